"""A training checkpoint: a Hugging Face folder, with the optimiser's state beside it.

Nothing is pickled: moments go into ``optimizer.safetensors``, everything else is JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from g2rpo.run.errors import RunError

from .optimizer import MasterAdamW, optimizer_tensors, restore_optimizer_tensors
from .policy_model import Policy

_OPTIMIZER = "optimizer.safetensors"
_STATE = "trainer_state.json"


def save_checkpoint(
    folder: Path, policy: Policy, optimizer: MasterAdamW, state: dict[str, Any]
) -> None:
    """Fill an empty folder with the policy, the optimiser's moments and the trainer's state."""
    policy.save(folder)
    save_file(optimizer_tensors(policy, optimizer), folder / _OPTIMIZER)
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
