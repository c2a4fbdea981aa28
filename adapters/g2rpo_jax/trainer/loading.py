"""The policy of a run, with what the run says of it."""

from __future__ import annotations

from g2rpo.run.description import RunDescription
from g2rpo.run.records import source_of

from .device import resolve_device
from .policy_model import Policy, load_policy
from .prompts import prompt_fault


def load_described(description: RunDescription, name: str | None = None) -> Policy:
    """Load the policy of a run.

    Parameters
    ----------
    description : RunDescription
        Its model, data and rollout sections.
    name : str, optional
        Another model in place of the described one, such as a checkpoint of the run.

    Returns
    -------
    Policy

    Raises
    ------
    RunError
        If the device is missing, or the model cannot be loaded.

    Notes
    -----
    Where ``data.skip_broken`` is set, the data leave out from now on what this policy cannot read.
    """
    policy = load_policy(
        name or description.model.name,
        resolve_device(description.model.device),
        max_prompt_length=description.rollout.max_prompt_length,
    )
    if description.data.skip_broken:
        source_of(description.data).refuse(lambda record: prompt_fault(policy, record))
    return policy
