"""The checkpoints of a run: a folder named ``step-…`` is complete, whatever happened meanwhile.

A checkpoint is written to ``.partial-step-…``, which takes its name only once all of it is on the
disk; one that is no longer wanted loses its name before its files go.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from g2rpo_trainer.run.files import sync, sync_tree

__all__ = ["Checkpoint", "Checkpoints"]

_NAME = re.compile(r"step-(\d+)")


class Checkpoint(NamedTuple):
    """A complete checkpoint: the number of steps behind it, and its folder."""

    step: int
    path: Path


class Checkpoints:
    """The checkpoints in a folder.

    Parameters
    ----------
    path : Path
        The folder; the first checkpoint makes it.
    keep : int
        How many of the newest stay.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> checkpoints = Checkpoints(Path(mkdtemp()), keep=2)
    >>> for step in (5, 10, 15):
    ...     _ = checkpoints.save(step, lambda folder: (folder / "weights").touch())
    >>> [checkpoint.step for checkpoint in checkpoints]
    [10, 15]
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self.keep = keep

    def __iter__(self) -> Iterator[Checkpoint]:
        """Yield the complete ones, oldest first."""
        matches = [(_NAME.fullmatch(path.name), path) for path in self.path.glob("step-*")]
        return iter(sorted(Checkpoint(int(match[1]), path) for match, path in matches if match))

    def latest(self) -> Checkpoint | None:
        """Return the newest complete one, or None before the first."""
        return max(self, default=None)

    def place(self, step: int) -> Path:
        """Return where the checkpoint after `step` steps stands, or would."""
        return self.path / f"step-{step:06d}"

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Write a checkpoint by `write(folder)`, then drop the oldest beyond `keep`.

        A checkpoint of that step that is there already stays: a run repeats itself, so it would be
        the same, and there is no moment at which neither would be there.
        """
        final = self.place(step)
        if final.exists():
            return final
        partial = self.path / f".partial-{final.name}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            write(partial)
            sync_tree(partial)
            os.replace(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync(self.path)
        for old in list(self)[: -self.keep]:
            self._drop(old.path)
        return final

    def clean(self) -> None:
        """Remove what a process left that was killed while it wrote or dropped a checkpoint."""
        for pattern in (".partial-*", ".dropped-*"):
            for path in self.path.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def _drop(self, path: Path) -> None:
        # Under its own name a folder that has lost half of its files would count as complete.
        dropped = path.with_name(f".dropped-{path.name}")
        # One that cannot go now goes with the next checkpoint: it is no reason to end a run.
        with suppress(OSError):
            os.replace(path, dropped)
            shutil.rmtree(dropped)
