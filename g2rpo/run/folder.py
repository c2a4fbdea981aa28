"""A run's folder: configuration, metrics, checkpoints and summary, safe against a crash.

=====================  ==========================================================================
``config.yaml``        the resolved description; `load_description` reads it back
``metrics.jsonl``      one JSON object a line, with ``step`` and the metrics of that step
``tensorboard/``       the same numbers as TensorBoard events
``checkpoints/``       ``step-000025/``, … ; a folder with such a name is complete
``plots/``             pictures of the metrics
``summary.json``       held-out rewards before and after; there once the run has ended
=====================  ==========================================================================
"""

import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from g2rpo.run.description import RunDescription, dump_description, load_description
from g2rpo.run.errors import RunError

__all__ = ["Checkpoint", "RunFolder"]

_logger = logging.getLogger(__name__)
_CHECKPOINT = re.compile(r"step-(\d+)")


class Checkpoint(NamedTuple):
    """A complete checkpoint: the number of steps behind it, and its folder."""

    step: int
    path: Path


class RunFolder:
    """The folder of one run; make it with `create` or `open`.

    Parameters
    ----------
    path : Path
        The folder, which exists.
    description : RunDescription
        The resolved description, as it stands in ``config.yaml``.
    """

    def __init__(self, path: Path, description: RunDescription) -> None:
        self.path = path
        self.description = description
        self._events: Any = None
        self._events_asked = False

    @classmethod
    def create(cls, path: str | Path, description: RunDescription) -> Self:
        """Start a new run in `path`, which must hold none yet; write ``config.yaml``."""
        path = Path(path)
        cls.refuse_existing(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            _write_text(path / "config.yaml", dump_description(description))
        except OSError as error:
            raise RunError(
                f"{path} cannot be written ({error.strerror}); "
                "name another folder with --output-dir"
            ) from None
        return cls(path, description)

    @staticmethod
    def refuse_existing(path: str | Path) -> None:
        """Raise `RunError` if `path` holds a run, which a new one would overwrite."""
        path = Path(path)
        if (path / "config.yaml").exists() or (path / "metrics.jsonl").exists():
            raise RunError(
                f"{path} already holds a run; continue it with --resume, "
                "or name another folder with --output-dir"
            )

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the run in `path` to continue or to read it; a folder may have been moved."""
        path = Path(path)
        if not (path / "config.yaml").exists():
            raise RunError(
                f"{path} holds no run (no config.yaml); leave out --resume to start one there"
            )
        description = load_description(path / "config.yaml", {"output.dir": str(path)})
        return cls(path, description)

    def update_description(self, description: RunDescription) -> None:
        """Replace the description, for a run that is continued with more steps."""
        _write_text(self.path / "config.yaml", dump_description(description))
        self.description = description

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended and left its summary."""
        return (self.path / "summary.json").exists()

    @property
    def metrics_path(self) -> Path:
        """The metrics' file."""
        return self.path / "metrics.jsonl"

    @property
    def plots_path(self) -> Path:
        """The folder of the pictures."""
        return self.path / "plots"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line of metrics, and the same numbers as TensorBoard events."""
        record = {"step": step} | {name: _to_json(value) for name, value in metrics.items()}
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        events = self._event_writer(step)
        if events is not None:
            for name, value in metrics.items():
                events.add_scalar(name, float(value), step)

    def read_metrics(self) -> list[dict[str, float]]:
        """Return the logged lines in order; null comes back as NaN."""
        return [
            {name: math.nan if value is None else float(value) for name, value in record.items()}
            for record, _ in self._lines()
        ]

    def truncate_metrics(self, after_step: int) -> None:
        """Drop the lines of later steps: a resumed run writes them again.

        The file is replaced at once, so that a crash leaves either the old or the new one.
        """
        if self.metrics_path.exists():
            kept = [line for record, line in self._lines() if record["step"] <= after_step]
            _write_text(self.metrics_path, "".join(kept))

    def checkpoint_dir(self, step: int) -> Path:
        """Return where the checkpoint after `step` steps stands, or would."""
        return self.path / "checkpoints" / f"step-{step:06d}"

    def checkpoints(self) -> list[Checkpoint]:
        """Return the complete checkpoints, oldest first."""
        found = (self.path / "checkpoints").glob("step-*")
        matches = [(_CHECKPOINT.fullmatch(path.name), path) for path in found]
        return sorted(Checkpoint(int(match[1]), path) for match, path in matches if match)

    def latest_checkpoint(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, or None before the first."""
        return next(reversed(self.checkpoints()), None)

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> Path:
        """Write a checkpoint by `write(folder)`, then drop the oldest beyond `keep_checkpoints`.

        `write` fills a temporary folder, which takes its name only once it is on the disk: a
        folder named ``step-…`` is complete whatever happens.
        """
        final = self.checkpoint_dir(step)
        partial = final.with_name(f".partial-{final.name}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            write(partial)
            _sync_tree(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if final.exists():  # os.replace cannot put a folder in the place of a filled one
            shutil.rmtree(final)
        os.replace(partial, final)
        _sync(final.parent)
        for old in self.checkpoints()[: -self.description.output.keep_checkpoints]:
            shutil.rmtree(old.path)
        return final

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Write ``summary.json`` at once; numbers that JSON lacks become null or text."""
        path = self.path / "summary.json"
        _write_text(path, json.dumps(_to_json(summary), indent=2, allow_nan=False) + "\n")
        return path

    def close(self) -> None:
        """Flush the TensorBoard events."""
        if self._events is not None:
            self._events.close()
            self._events, self._events_asked = None, False

    def _lines(self) -> Iterator[tuple[dict[str, Any], str]]:
        if not self.metrics_path.exists():
            return
        with self.metrics_path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):  # a crash can leave half a last line
                    yield json.loads(line), line

    def _event_writer(self, step: int) -> Any:
        if self.description.output.tensorboard and not self._events_asked:
            self._events_asked = True
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                _logger.warning("no TensorBoard events: the package tensorboard is not installed")
            else:
                # A resumed run hides what an earlier process wrote for steps that come again.
                self._events = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
        return self._events


def _to_json(value: Any) -> Any:
    """Return `value` as JSON holds it: NaN becomes null, infinities "inf" and "-inf"."""
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    if math.isfinite(number):
        return number
    return None if math.isnan(number) else str(number)


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(text, encoding="utf-8")
    _sync(partial)
    os.replace(partial, path)


def _sync_tree(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            _sync(Path(folder) / name)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
