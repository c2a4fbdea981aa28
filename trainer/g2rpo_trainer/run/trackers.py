"""Where metrics go beside ``metrics.jsonl``: TensorBoard, Weights & Biases, trackio.

Each is a library with three functions: start, log, finish. None is imported before a run needs it,
and none brings PyTorch or JAX with it.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from g2rpo_trainer.errors import RunError

__all__ = ["TRACKERS", "Session", "Tracker", "Trackers", "require_trackers"]

_logger = logging.getLogger(__name__)


class Session(NamedTuple):
    """What a tracker is told about a run.

    Attributes
    ----------
    path : Path
        The run's folder.
    step : int
        Steps that are behind: what a tracker may hold of later ones comes again.
    run_id : str
        The same whenever the run goes on, and no other run's.
    project : str
        Under which the run is filed.
    config : mapping
        The run's configuration.
    """

    path: Path
    step: int
    run_id: str
    project: str
    config: Mapping[str, Any]


class Tracker(Protocol):
    """Takes the metrics of one step after another."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a step."""

    def close(self) -> None:
        """Write all that is still on its way."""


class _TensorBoard:
    """Event files in ``tensorboard/``, by TensorBoard's own writer."""

    def __init__(self, session: Session) -> None:
        self._events = import_module("tensorboard.compat.proto.event_pb2")
        self._summaries = import_module("tensorboard.compat.proto.summary_pb2")
        files = import_module("tensorboard.summary.writer.event_file_writer")
        self._writer = files.EventFileWriter(str(session.path / "tensorboard"))
        # From here on TensorBoard hides what an earlier process wrote for steps that come again.
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._add(session.step + 1, session_log=start)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        value = self._summaries.Summary.Value
        values = [value(tag=name, simple_value=number) for name, number in metrics.items()]
        self._add(step, summary=self._summaries.Summary(value=values))

    def close(self) -> None:
        self._writer.close()

    def _add(self, step: int, **contents: Any) -> None:
        self._writer.add_event(self._events.Event(step=step, wall_time=time.time(), **contents))


class _Hosted:
    """A library with wandb's interface; a run that goes on keeps its id there."""

    def __init__(self, module: str, **options: Any) -> None:
        self._run = import_module(module).init(resume="allow", **options)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def _wandb(session: Session) -> Tracker:
    return _Hosted(
        "wandb",
        project=session.project,
        name=session.path.name,
        id=session.run_id,
        dir=str(session.path),
        config=dict(session.config),
    )


def _trackio(session: Session) -> Tracker:
    # Here the name tells which run goes on.
    name = f"{session.path.name}-{session.run_id}"
    return _Hosted("trackio", project=session.project, name=name, config=dict(session.config))


TRACKERS: dict[str, Callable[[Session], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _wandb,
    "trackio": _trackio,
}
"""Name -> what starts it. The names are also those of the packages."""


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
    """The trackers of a run: one that fails is given up with a warning, and the run goes on.

    Parameters
    ----------
    names : sequence of str
        Keys of `TRACKERS`.
    session : Session
        What they are told.

    Raises
    ------
    RunError
        If one does not start: at the beginning of a run that can still be put right.
    """

    def __init__(self, names: Sequence[str], session: Session) -> None:
        self._trackers: dict[str, Tracker] = {}
        for name in names:
            try:
                self._trackers[name] = TRACKERS[name](session)
            except Exception as error:
                self.close()
                raise RunError(
                    f"output.trackers: {name} does not start ({_reason(error)}); "
                    "put that right, or leave it out"
                ) from error

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand the metrics of a step to all of them."""
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(step, metrics)
            except Exception as error:
                del self._trackers[name]
                self._give_up(name, error)

    def close(self) -> None:
        """End the session with all of them."""
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
            _reason(error),
        )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
