"""A training checkpoint: weights and optimiser in Orbax's format, everything else as JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orbax.checkpoint as ocp

from g2rpo_jax.policy.decoder import Params
from g2rpo_jax.policy.files import save_sizes

if TYPE_CHECKING:
    from .policy_model import Policy

_WEIGHTS, _OPTIMIZER, _STATE = "weights", "optimizer", "trainer_state.json"


def save_checkpoint(folder: Path, policy: Policy, optimizer: Any, state: dict[str, Any]) -> None:
    """Fill an empty folder with the policy, the optimiser's state and the trainer's."""
    save_sizes(folder, policy.config, policy.tokenizer)
    with _checkpointer() as checkpointer:
        checkpointer.save((folder / _WEIGHTS).absolute(), policy.params)
        checkpointer.save((folder / _OPTIMIZER).absolute(), optimizer)
    (folder / _STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")


def holds_weights(folder: Path) -> bool:
    """Tell whether a folder has weights in Orbax's format."""
    return (folder / _WEIGHTS).is_dir()


def restore_weights(folder: Path, like: Params) -> Params:
    """Return the weights of a checkpoint.

    Parameters
    ----------
    folder : Path
        Of the checkpoint.
    like : Params
        Arrays, or their shapes and dtypes.
    """
    with _checkpointer() as checkpointer:
        return checkpointer.restore((folder / _WEIGHTS).absolute(), like)


def restore_optimizer(folder: Path, like: Any) -> Any:
    """Return the optimiser's state of a checkpoint, placed as ``like`` is."""
    with _checkpointer() as checkpointer:
        return checkpointer.restore((folder / _OPTIMIZER).absolute(), like)


def read_state(folder: Path) -> dict[str, Any]:
    """Return the trainer's state."""
    state: dict[str, Any] = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    return state


@contextmanager
def _checkpointer() -> Iterator[ocp.StandardCheckpointer]:
    # Orbax tells of every file through the log of Abseil.
    logging.getLogger("absl").setLevel(logging.ERROR)
    with ocp.StandardCheckpointer() as checkpointer:
        yield checkpointer
        checkpointer.wait_until_finished()
