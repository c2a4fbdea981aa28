"""A training checkpoint: a Hugging Face folder, with the optimiser's state beside it.

Nothing is pickled: moments go into ``optimizer.safetensors``, everything else is JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .policy_model import Policy

_OPTIMIZER = "optimizer.safetensors"
_STATE = "trainer_state.json"


def save_checkpoint(
    folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Fill an empty folder with the policy, the optimiser's moments and the trainer's state."""
    policy.save(folder)
    tensors = {}
    for name, parameter in policy.model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = value.detach().cpu().contiguous()
    save_file(tensors, folder / _OPTIMIZER)
    (folder / _STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")


def restore_optimizer(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """Put the moments of a checkpoint into a new optimiser over the same parameters."""
    parameters = dict(policy.model.named_parameters())
    for key, value in load_file(folder / _OPTIMIZER).items():
        slot, name = key.split("/", 1)
        parameter = parameters[name]
        # AdamW counts its steps on the CPU; moments live where the parameter does.
        device = parameter.device if value.ndim else torch.device("cpu")
        optimizer.state[parameter][slot] = value.to(device)


def read_state(folder: Path) -> dict[str, Any]:
    """Return the trainer's state."""
    state: dict[str, Any] = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    return state
