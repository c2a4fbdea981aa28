"""The contents of a checkpoint, and the merged model at the end of a run with an adapter.

A checkpoint is a Hugging Face folder with the state of the optimiser and the run beside it. Nothing
is pickled: moments go into ``optimizer.safetensors``, everything else is JSON. Of a sharded policy
each rank writes some of the safetensors files, and reads its own rows of the moments.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from g2rpo._shown import error_text
from g2rpo_trainer.config import Model
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.files import replacing, writing

from .distributed import Ranks
from .model.adapting import tied_layers
from .model.policy_model import GENERATION_SETTINGS, Policy
from .model.reading import read_parts
from .optimizer import MasterAdamW, optimizer_tensors, restore_optimizer_tensors
from .shard_files import PART, stored_tensors, write_parts
from .sharding import full_adapter, full_tensor, is_sharded, local_tensor
from .vllm_weights import named_as_on_disk, weights_of

_OPTIMIZER, _MODEL = "optimizer", "model"
_STATE = "trainer_state.json"


@dataclass(frozen=True)
class Staged:
    """The files and weights that a sharded policy adds to a checkpoint.

    Attributes
    ----------
    folder : Path
        Files that the ranks have written.
    weights : dict of str to Tensor
        Weights of an adapter; empty where the weights are among the files.
    """

    folder: Path
    weights: dict[str, torch.Tensor]


@contextmanager
def staged_shards(
    folder: Path,
    policy: Policy,
    optimizer: MasterAdamW,
    ranks: Ranks,
    *,
    part_bytes: int = PART,
) -> Iterator[Staged | None]:
    """Let each rank of a sharded policy write its part of a checkpoint; a collective.

    Parameters
    ----------
    folder : Path
        Folder of the run.
    policy : Policy
        Policy to save.
    optimizer : MasterAdamW
        Its optimiser.
    ranks : Ranks
        Ranks that train together.
    part_bytes : int
        Largest file, and about the most that a rank has in main memory.

    Yields
    ------
    Staged or None
        For :func:`save_checkpoint` on rank 0, inside the context; None if each rank has all of the
        policy.
    """
    if not is_sharded(policy.model):
        yield None
        return
    staging = folder / "checkpoints" / ".partial-shards"
    with ranks.raise_on_all_ranks(), writing(folder, "shards"):
        _require_finite(policy)
        if ranks.is_main:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
    options: dict[str, Any] = {
        "guard": partial(writing, folder, "shards"),
        "part_bytes": part_bytes,
    }
    try:
        moments = optimizer_tensors(policy, optimizer).items()
        whole = ((name, full_tensor(value)) for name, value in moments)
        write_parts(staging, _OPTIMIZER, whole, ranks, **options)
        weights = {}
        if policy.has_adapter:
            weights = full_adapter(policy.model)
        else:
            write_parts(staging, _MODEL, _saved_weights(policy), ranks, **options)
        yield Staged(staging, weights)
    finally:
        if ranks.is_main:
            shutil.rmtree(staging, ignore_errors=True)


def _saved_weights(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all weights, and the buffers that are saved with them."""
    model = policy.model
    ignored = set(model._keys_to_ignore_on_save or ())
    yield from ((name, weight) for name, weight in weights_of(policy) if name not in ignored)
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: value for name, value in model.state_dict().items() if name not in known}
    yield from named_as_on_disk(model, buffers).items()


def _require_finite(policy: Policy) -> None:
    weights = (local_tensor(weight.detach()) for weight in policy.model.parameters())
    if not all(bool(weight.isfinite().all()) for weight in weights):
        raise RunError(
            "a weight of the policy is not finite, so no checkpoint is written; --resume goes on "
            "from the one before. If that comes again, lower optimization.learning_rate"
        )


def save_checkpoint(
    folder: Path,
    policy: Policy,
    optimizer: MasterAdamW,
    state: dict[str, Any],
    staged: Staged | None = None,
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
    staged : Staged, optional
        From :func:`staged_shards`; the tensors are the same with and without.

    Raises
    ------
    RunError
        If a weight is not finite: such a checkpoint would replace one that can be used.
    """
    if staged is None:
        _require_finite(policy)
    policy.save(folder, staged.weights if staged else None)
    if staged is None:
        tensors = optimizer_tensors(policy, optimizer).items()
        moments = {name: value.cpu().contiguous() for name, value in tensors}
        save_file(moments, folder / f"{_OPTIMIZER}.safetensors")
    else:
        for path in staged.folder.iterdir():
            os.replace(path, folder / path.name)
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
        restore_optimizer_tensors(policy, optimizer, stored_tensors(folder, _OPTIMIZER))
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
