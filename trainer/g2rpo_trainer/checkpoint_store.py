"""The checkpoints of a run: each is complete or is not there, and damage is found out."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from g2rpo_trainer.errors import RunError
from g2rpo_trainer.files import checksum_fault, replacing, sync, write_checksums, writing

__all__ = ["Checkpoint", "CheckpointStore"]

_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A complete checkpoint: the number of steps behind it, and its folder."""

    step: int
    path: Path


@dataclass(frozen=True)
class CheckpointStore:
    """A folder of checkpoints.

    Attributes
    ----------
    path : Path
        The folder, which need not exist yet.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> store = CheckpointStore(Path(mkdtemp(), "checkpoints"))
    >>> for step in (25, 50, 75):
    ...     _ = store.save(step, lambda folder: None, keep=2)
    >>> [checkpoint.step for checkpoint in store.all()], store.latest().path.name
    ([50, 75], 'step-000075')
    """

    path: Path

    def path_of(self, step: int) -> Path:
        """Return the folder of the checkpoint after `step` steps, whether it exists or not."""
        return self.path / f"step-{step:06d}"

    def all(self) -> list[Checkpoint]:
        """Return the complete checkpoints, oldest first."""
        matches = [(_NAME.fullmatch(path.name), path) for path in self.path.glob("step-*")]
        return sorted(Checkpoint(int(match[1]), path) for match, path in matches if match)

    def latest(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, or None before the first."""
        return max(self.all(), default=None)

    def set_damaged_aside(self) -> list[str]:
        """Rename the checkpoints that are newer than the newest whole one, as they are damaged.

        Returns
        -------
        list of str
            A sentence for each.

        Raises
        ------
        RunError
            If there are checkpoints, and none is whole. They then keep their names.
        """
        damaged: list[tuple[Checkpoint, str]] = []
        for checkpoint in reversed(self.all()):
            fault = checksum_fault(checkpoint.path)
            if fault is None:
                break
            damaged.append((checkpoint, fault))
        else:
            if damaged:
                faults = "; ".join(f"{each.path.name}: {fault}" for each, fault in damaged)
                raise RunError(
                    f"every checkpoint in {self.path} is damaged ({faults}); bring back a copy, or "
                    "start again in another folder with --output-dir"
                )
        texts = []
        for each, fault in damaged:
            aside = each.path.with_name(f"damaged-{each.path.name}")
            with writing(self.path, "the name of a damaged checkpoint"):
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(each.path, aside)
            texts.append(f"{each.path} is damaged ({fault}); it is now {aside.name}")
        return texts

    def save(self, step: int, write: Callable[[Path], None], *, keep: int) -> Path:
        """Write a checkpoint by `write(folder)`, then drop the oldest of more than `keep`.

        `write` fills a temporary folder, which takes its name only once it is on the disk: a
        folder named ``step-…`` is complete whatever happens.

        An existing checkpoint of that step stays: a run is deterministic, so a second one would be
        the same, and there is no moment without either.

        Raises
        ------
        RunError
            If the disk is full.
        """
        path = self.path_of(step)
        if path.exists():
            return path
        with writing(self.path.parent, f"the checkpoint after step {step}"):
            with replacing(path) as partial:
                partial.mkdir(parents=True)
                write(partial)
                write_checksums(partial)
            sync(self.path)
        for old in self.all()[:-keep]:
            _drop(old.path)
        return path

    def remove_leftovers(self) -> None:
        """Remove the parts of checkpoints that a killed process was writing or dropping."""
        for pattern in (".partial-*", ".dropped-*"):
            for path in self.path.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)


def _drop(checkpoint: Path) -> None:
    # Under its own name a folder that has lost half of its files would count as complete.
    dropped = checkpoint.with_name(f".dropped-{checkpoint.name}")
    # One that cannot go now goes with the next checkpoint: it is no reason to end a run.
    with suppress(OSError):
        os.replace(checkpoint, dropped)
        shutil.rmtree(dropped)
