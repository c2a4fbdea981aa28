"""Trackers of metrics beside ``metrics.jsonl``: TensorBoard, Weights & Biases, trackio.

None is imported before a run needs it, and none imports PyTorch or JAX.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from g2rpo._shown import typed_error_text
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.run_folder import RunFolder

_logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """A tracker that has been started for a run."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step."""

    def close(self) -> None:
        """Write all pending metrics, and end."""


class _TensorBoard:
    """Event files in ``tensorboard/``, by TensorBoard's own writer."""

    def __init__(self, folder: RunFolder, step: int) -> None:
        self._events = import_module("tensorboard.compat.proto.event_pb2")
        self._summaries = import_module("tensorboard.compat.proto.summary_pb2")
        files = import_module("tensorboard.summary.writer.event_file_writer")
        self._writer = files.EventFileWriter(str(folder.path / "tensorboard"))
        # TensorBoard then hides what an earlier process wrote for steps that are repeated.
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._add(step + 1, session_log=start)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        value = self._summaries.Summary.Value
        values = [value(tag=name, simple_value=number) for name, number in metrics.items()]
        self._add(step, summary=self._summaries.Summary(value=values))

    def close(self) -> None:
        self._writer.close()

    def _add(self, step: int, **contents: Any) -> None:
        self._writer.add_event(self._events.Event(step=step, wall_time=time.time(), **contents))


class _Hosted:
    """A library with wandb's interface; a resumed run keeps its id there."""

    def __init__(self, module: str, **options: Any) -> None:
        self._run = import_module(module).init(resume="allow", **options)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def _wandb(folder: RunFolder, step: int) -> Tracker:
    return _Hosted(
        "wandb",
        project=folder.config.output.project,
        name=folder.path.name,
        id=folder.run_id,
        dir=str(folder.path),
        config=folder.config.model_dump(mode="json"),
    )


def _trackio(folder: RunFolder, step: int) -> Tracker:
    return _Hosted(
        "trackio",
        project=folder.config.output.project,
        # trackio resumes a run by its name.
        name=f"{folder.path.name}-{folder.run_id}",
        config=folder.config.model_dump(mode="json"),
    )


TRACKERS: dict[str, Callable[[RunFolder, int], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _wandb,
    "trackio": _trackio,
}
"""Start functions by name, which is also that of the package; they take folder and steps done."""


def require_trackers(names: Sequence[str]) -> None:
    """Raise `RunError` with the command to run if a tracker's package is not installed."""
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        rest = ", ".join(name for name in names if name not in missing)
        raise RunError(
            f"output.trackers names {', '.join(missing)}, which is not installed; run: "
            f"pip install {' '.join(missing)} (or leave it out: --set 'output.trackers=[{rest}]')"
        )


def _is_installed(name: str) -> bool:
    # A folder ./wandb, which wandb itself leaves behind, passes for a package without an origin.
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


class Trackers:
    """The trackers of a run; one that fails is dropped with a warning, and the run goes on.

    `step` steps are done; what a tracker may hold of later ones is logged again. Raises RunError if
    one does not start: at the beginning of a run that can still be put right.
    """

    def __init__(self, folder: RunFolder, step: int) -> None:
        self._trackers: dict[str, Tracker] = {}
        for name in folder.config.output.trackers:
            try:
                self._trackers[name] = TRACKERS[name](folder, step)
            except Exception as error:
                self.close()
                raise RunError(
                    f"output.trackers: {name} does not start ({typed_error_text(error)}); "
                    "put that right, or leave it out"
                ) from error

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step with all of them."""
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(step, metrics)
            except Exception as error:
                del self._trackers[name]
                self._give_up(name, error)

    def close(self) -> None:
        """Close all of them."""
        while self._trackers:
            name, tracker = self._trackers.popitem()
            try:
                tracker.close()
            except Exception as error:
                self._give_up(name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        _logger.warning(
            "%s gets no more metrics in this session, metrics.jsonl has them all: %s",
            name,
            typed_error_text(error),
        )
