"""As many passes on every process, where the weights of the model are divided over them.

The weights of a layer come together when it computes, and all processes bring their part. One that
has fewer responses therefore goes on with passes whose result counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch

from .batch import Batch
from .policy_model import Policy
from .processes import Processes
from .prompts import encode_prompts
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


def spare_passes(policy: Policy, batch: Batch, made: int) -> Iterator[Batch]:
    """Yield what a process passes through the model until all have made as many passes.

    Parameters
    ----------
    policy : Policy
        Whose model it is. Only if it is divided over processes anything is yielded, and all of them
        must call this.
    batch : Batch
        What the passes were over; it says which columns there are.
    made : int
        How many passes this process has made.

    Yields
    ------
    Batch
        One response of one token.
    """
    if not is_sharded(policy.model):
        return
    missing = Processes.current().largest(made) - made
    if missing:
        spare = _spare(policy, batch)
        for _ in range(missing):
            yield spare


def _spare(policy: Policy, like: Batch) -> Batch:
    columns: dict[str, Any] = {
        field.name: tensor.new_zeros((1, 1)[: tensor.ndim])
        for field in fields(like)
        if isinstance(tensor := getattr(like, field.name), torch.Tensor)
    }
    columns["tokens"] += policy.eos_ids[0]
    columns["mask"] = torch.ones_like(columns["mask"])
    prompts = encode_prompts(policy, [_QUESTION])
    return Batch(**{"length_advantages": None, **columns, "prompts": prompts})
