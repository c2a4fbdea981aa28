"""A model with its adapter merged into the weights, which loads anywhere without peft."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from g2rpo_trainer.config import Model

from .loading import read_parts
from .lora import tied_layers
from .policy_model import GENERATION_SETTINGS


def export_merged(checkpoint: Path, folder: Path, model: Model) -> None:
    """Write the base of a checkpoint's adapter with the adapter merged into it.

    Parameters
    ----------
    checkpoint : Path
        Of a run with ``model.lora``.
    folder : Path
        Where the model and its processor go, in Hugging Face format; replaced if it is there.
    model : Model
        Section ``model`` of the run's configuration.

    Notes
    -----
    The base is read anew, on the CPU: what the run holds in memory stays as it is. The sum is
    rounded to ``model.dtype``, so its logits are those of the run up to rounding. Where the base
    ties its embedding and its output layer and one of them has an adapter, they are untied.
    """
    from peft import PeftModel

    base, processor = read_parts(str(checkpoint), model)
    adapted = PeftModel.from_pretrained(base, str(checkpoint))
    _untie(base)
    merged = adapted.merge_and_unload()
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    merged.save_pretrained(part)
    processor.save_pretrained(part)
    if (checkpoint / GENERATION_SETTINGS).is_file():
        shutil.copy(checkpoint / GENERATION_SETTINGS, part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _untie(model: Any) -> None:
    """Give each adapted layer a weight of its own: merging changes the weight in place."""
    tied = tied_layers(model)
    for layer in tied.values():
        base = layer.get_base_layer()
        base.weight = torch.nn.Parameter(base.weight.detach().clone(), requires_grad=False)
    if tied:
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
