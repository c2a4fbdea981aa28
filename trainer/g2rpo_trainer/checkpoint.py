"""The contents of a checkpoint, and the merged model at the end of a run with an adapter.

A checkpoint is a Hugging Face folder with the state of the optimiser and the run beside it. Nothing
is pickled: moments go into ``optimizer.safetensors``, everything else is JSON.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from g2rpo._shown import error_text
from g2rpo_trainer.config import Model
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.files import replacing

from .distributed import Ranks
from .model.adapting import tied_layers
from .model.loading import read_parts
from .model.policy_model import GENERATION_SETTINGS, Policy
from .optimizer import MasterAdamW, optimizer_tensors, restore_optimizer_tensors
from .sharding import full_weights, is_sharded

_OPTIMIZER = "optimizer.safetensors"
_STATE = "trainer_state.json"


@dataclass(frozen=True)
class Gathered:
    """The unsharded weights of a policy and moments of its optimiser, by name."""

    weights: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]


def gather_shards(policy: Policy, optimizer: MasterAdamW, ranks: Ranks) -> Gathered | None:
    """Gather a sharded policy on rank 0, on the CPU; None if each rank has all of it.

    Every rank must call this.
    """
    if not is_sharded(policy.model):
        return None
    return Gathered(full_weights(policy.model, ranks), optimizer_tensors(policy, optimizer, ranks))


def save_checkpoint(
    folder: Path,
    policy: Policy,
    optimizer: MasterAdamW,
    state: dict[str, Any],
    gathered: Gathered | None = None,
) -> None:
    """Fill an empty folder with the policy, the optimiser's moments and the state of the run.

    Parameters
    ----------
    folder : Path
        The folder.
    policy : Policy
        Policy to save.
    optimizer : MasterAdamW
        Its optimiser.
    state : dict
        State of the run, as JSON holds it.
    gathered : Gathered, optional
        Result of :func:`gather_shards`; the files are the same with and without.
    """
    policy.save(folder, gathered.weights if gathered else None)
    moments = gathered.moments if gathered else optimizer_tensors(policy, optimizer)
    save_file(moments, folder / _OPTIMIZER)
    (folder / _STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")


def restore_checkpoint(folder: Path, policy: Policy, optimizer: MasterAdamW) -> dict[str, Any]:
    """Restore the optimiser's moments from a checkpoint, and return the state of the run.

    The policy has been loaded from the folder before.

    Raises
    ------
    RunError
        If a file is missing or damaged: no crash leaves such a folder, but a copy may.
    """
    try:
        restore_optimizer_tensors(policy, optimizer, load_file(folder / _OPTIMIZER))
        state: dict[str, Any] = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = error_text(error)
        raise RunError(
            f"{folder} is damaged ({reason}); remove it, and --resume goes on from the checkpoint "
            "before"
        ) from error
    return state


def export_merged(checkpoint: Path, folder: Path, model: Model) -> None:
    """Merge the adapter of a checkpoint into its base model, which then loads without peft.

    Parameters
    ----------
    checkpoint : Path
        Folder of a checkpoint of a run with ``model.lora``.
    folder : Path
        Folder for the model and its processor, in Hugging Face format; replaced if it exists.
    model : Model
        Section ``model`` of the run's configuration.

    Notes
    -----
    The base is read again, on the CPU; the policy in memory is not touched. The sum is
    rounded to ``model.dtype``, so its logits are those of the run up to rounding. Where the base
    ties its embedding and its output layer and one of them has an adapter, they are untied.
    """
    from peft import PeftModel

    base, processor = read_parts(str(checkpoint), model)
    adapted = PeftModel.from_pretrained(base, str(checkpoint))
    _untie(base)
    merged = adapted.merge_and_unload()
    with replacing(folder) as partial:
        merged.save_pretrained(partial)
        processor.save_pretrained(partial)
        if (checkpoint / GENERATION_SETTINGS).is_file():
            shutil.copy(checkpoint / GENERATION_SETTINGS, partial)


def _untie(model: Any) -> None:
    """Copy the tied weight of each adapted layer, because merging changes it in place."""
    tied = tied_layers(model)
    for layer in tied.values():
        base = layer.get_base_layer()
        base.weight = torch.nn.Parameter(base.weight.detach().clone(), requires_grad=False)
    if tied:
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
