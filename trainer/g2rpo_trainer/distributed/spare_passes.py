"""As many passes on every process, where the weights of the model are divided over them.

The weights of a layer come together when it computes, and all processes bring their part. One that
has fewer responses therefore goes on with passes whose result counts for nothing.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from ..inputs.prompts import encode_prompts
from ..learning.batch import Batch
from ..model.policy_model import Policy
from .processes import Processes
from .sharding import is_sharded

_QUESTION: Any = {
    "problem": "?",
    "images": [],
    "answer": "",
    "problem_type": "numerical",
    "data_type": "text",
    "task_type": "",
    "options": [],
}


def spare_passes(policy: Policy, batch: Batch, planned: int) -> list[Batch]:
    """Return what a process passes through the model after its own passes, to have made as many.

    Every process must call this before the first of its passes.

    Parameters
    ----------
    policy : Policy
        Whose model it is; only if it is divided over processes anything is returned.
    batch : Batch
        What the passes are over; it says which columns there are.
    planned : int
        How many passes this process makes.

    Returns
    -------
    list of Batch
        One response of one token, as often as needed.
    """
    if not is_sharded(policy.model):
        return []
    missing = Processes.current().largest(planned) - planned
    return [_spare(policy, batch)] * missing if missing else []


def _spare(policy: Policy, like: Batch) -> Batch:
    columns: dict[str, Any] = {
        field.name: tensor.new_zeros((1, 1)[: tensor.ndim])
        for field in fields(like)
        if isinstance(tensor := getattr(like, field.name), torch.Tensor)
    }
    columns["tokens"] += policy.harmless_id
    columns["mask"] = torch.ones_like(columns["mask"])
    prompts = encode_prompts(policy, [_QUESTION])
    return Batch(**{"length_advantages": None, **columns, "prompts": prompts})
