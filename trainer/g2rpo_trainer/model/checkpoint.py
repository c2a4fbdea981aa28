"""A training checkpoint: a Hugging Face folder, with the optimiser's state beside it.

Nothing is pickled: moments go into ``optimizer.safetensors``, everything else is JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from g2rpo_trainer.errors import RunError

from ..distributed.sharding import is_sharded, whole_weights
from ..learning.optimizer import MasterAdamW, optimizer_tensors, restore_optimizer_tensors
from .policy_model import Policy

_OPTIMIZER = "optimizer.safetensors"
_STATE = "trainer_state.json"


class Whole(NamedTuple):
    """What several processes have of a policy and its optimiser, as if one had all.

    Attributes
    ----------
    weights : dict of str to Tensor
    moments : dict of str to Tensor
    """

    weights: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]


def gather_whole(policy: Policy, optimizer: MasterAdamW) -> Whole | None:
    """Bring the parts of a divided policy together on the first process, in its main memory.

    Every process must call this. Where each has the whole policy there is nothing to bring.
    """
    if not is_sharded(policy.model):
        return None
    return Whole(whole_weights(policy.model), optimizer_tensors(policy, optimizer))


def save_checkpoint(
    folder: Path,
    policy: Policy,
    optimizer: MasterAdamW,
    state: dict[str, Any],
    whole: Whole | None = None,
) -> None:
    """Fill an empty folder with the policy, the optimiser's moments and the trainer's state.

    ``whole`` is what :func:`gather_whole` has returned; the files are the same with and without.
    """
    policy.save(folder, whole.weights if whole else None)
    moments = whole.moments if whole else optimizer_tensors(policy, optimizer)
    save_file(moments, folder / _OPTIMIZER)
    (folder / _STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")


def restore_checkpoint(folder: Path, policy: Policy, optimizer: MasterAdamW) -> dict[str, Any]:
    """Put the moments of a checkpoint into a new optimiser, and return the trainer's state.

    The policy is loaded from the folder already.

    Raises
    ------
    RunError
        If a file is missing or damaged: no crash leaves such a folder, but a copy may.
    """
    try:
        restore_optimizer_tensors(policy, optimizer, load_file(folder / _OPTIMIZER))
        state: dict[str, Any] = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"{folder} is damaged ({reason}); remove it, and --resume goes on from the checkpoint "
            "before"
        ) from error
    return state
