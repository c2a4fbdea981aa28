"""All shortcuts of a policy, tried at once: the same verdicts on every process."""

from __future__ import annotations

import torch

from ..inputs.prompts import Inputs, first_with_images, select_rows
from ..model.policy_model import Policy
from ..sampling import prefill_trial, trial_responses
from .forward import packing_trial
from .head import has_large_vocabulary, head_trial


def find_shortcuts(policy: Policy, prompts: Inputs) -> None:
    """Try every shortcut on one prompt, with images if any has, unless that is done already.

    What is computed does not depend on the data: the processes of a sharded model go through the
    same layers at the same time.

    Parameters
    ----------
    policy : Policy
        Whose trials these are. Of several processes all must call this, each with prompts of its
        own.
    prompts : dict of str to Tensor
        At least one.

    Notes
    -----
    Takes no random numbers from the run. A single process that does not call this tries each
    shortcut when it first needs it.
    """
    trials = policy.trials
    if trials.are_over:
        return
    first = first_with_images(prompts)
    prompt = select_rows(prompts, slice(first, first + 1))
    # First what the trials of the others go through.
    if has_large_vocabulary(policy):
        trials.settle("head", lambda: head_trial(policy, prompt))
    trials.settle("rollout", lambda: prefill_trial(policy, prompt))

    def pack() -> str | None:
        groups = torch.zeros(3, dtype=torch.int64, device=policy.device)
        responses = trial_responses(policy, select_rows(prompt, groups))
        return packing_trial(policy, prompt, groups, responses.tokens, responses.mask)

    trials.settle("forward", pack)
