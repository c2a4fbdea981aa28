"""A model with its adapter merged into the weights, which loads anywhere without peft."""

from __future__ import annotations

import shutil
from pathlib import Path

from g2rpo.run.sections import Model

from .loading import read_parts


def export_merged(checkpoint: Path, folder: Path, model: Model) -> None:
    """Write the base of a checkpoint's adapter with the adapter merged into it.

    Parameters
    ----------
    checkpoint : Path
        Of a run with ``model.lora``.
    folder : Path
        Where the model and its processor go, in Hugging Face format; replaced if it is there.
    model : Model
        Section ``model`` of the run's description.

    Notes
    -----
    The base is read anew, on the CPU: what the run holds in memory stays as it is. The sum is
    rounded to ``model.dtype``, so its logits are those of the run up to rounding.
    """
    from peft import PeftModel

    base, processor = read_parts(str(checkpoint), model)
    merged = PeftModel.from_pretrained(base, str(checkpoint)).merge_and_unload()
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    merged.save_pretrained(part)
    processor.save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
