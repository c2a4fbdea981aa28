"""A run's folder: configuration, metrics, checkpoints and summary, safe against a crash.

=====================  ==========================================================================
``config.yaml``        the resolved configuration; `load_config` reads it back
``metrics.jsonl``      one JSON object a line, with ``step`` and the metrics of that step
``completions.jsonl``  some responses of every step, one JSON object a line
``checkpoints/``       ``step-000025/``, … ; a folder with such a name is complete
``tensorboard/``       the metrics as TensorBoard events
``plots/``             pictures of the metrics
``summary.json``       held-out rewards before and after; there once the run has ended
=====================  ==========================================================================
"""

import json
import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from g2rpo_trainer.config import TrainConfig, dump_config, load_config
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.run.checkpoints import Checkpoint, Checkpoints
from g2rpo_trainer.run.completions import keep_some
from g2rpo_trainer.run.files import (
    append_lines,
    is_full,
    read_lines,
    sync,
    to_json,
    truncate_lines,
    write_text,
)
from g2rpo_trainer.run.trackers import Session, Trackers, require_trackers

__all__ = ["Checkpoint", "RunFolder"]


class RunFolder:
    """The folder of one run; make it with `create` or `open`.

    Parameters
    ----------
    path : Path
        The folder, which exists.
    config : TrainConfig
        The resolved configuration, as it stands in ``config.yaml``.
    """

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = path
        self.config = config
        self._trackers: Trackers | None = None

    @classmethod
    def create(cls, path: str | Path, config: TrainConfig) -> Self:
        """Start a new run in `path`, which must hold none yet; write ``config.yaml``."""
        path = Path(path)
        cls.refuse_existing(path)
        require_trackers(config.output.trackers)
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_text(path / "config.yaml", dump_config(config))
        except OSError as error:
            raise RunError(
                f"{path} cannot be written ({error.strerror}); "
                "name another folder with --output-dir"
            ) from None
        return cls(path, config)

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
        config = load_config(path / "config.yaml", {"output.dir": str(path)})
        return cls(path, config)

    def update_config(self, config: TrainConfig) -> None:
        """Replace the configuration, for a run that is continued with more steps."""
        require_trackers(config.output.trackers)
        if config != self.config:
            with self.writing("config.yaml"):
                write_text(self.path / "config.yaml", dump_config(config))
        self.config = config

    def begin(self, step: int) -> None:
        """Make ready to log the steps after `step`, and start the trackers.

        What the folder holds of later steps goes, for a resumed run writes it again; so does what a
        killed process left of a checkpoint.
        """
        with self.writing("the run"):
            for path in (self.metrics_path, self.completions_path):
                truncate_lines(path, step)
            self._checkpoints.clean()
            output = self.config.output
            config = self.config.model_dump(mode="json")
            session = Session(self.path, step, self._run_id(), output.project, config)
            self._trackers = Trackers(output.trackers, session)

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended and left its summary."""
        return (self.path / "summary.json").exists()

    @property
    def metrics_path(self) -> Path:
        """The metrics' file."""
        return self.path / "metrics.jsonl"

    @property
    def completions_path(self) -> Path:
        """The file of the responses."""
        return self.path / "completions.jsonl"

    @property
    def plots_path(self) -> Path:
        """The folder of the pictures."""
        return self.path / "plots"

    def log(
        self,
        step: int,
        metrics: Mapping[str, float],
        completions: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Append the metrics of a step, and hand them to the trackers; keep some of its responses.

        Parameters
        ----------
        step : int
            From 1.
        metrics : mapping of str to float
            Any numbers; NaN is written as null.
        completions : sequence of mapping
            All responses of the step, with at least ``task`` and ``prompt``. Of those
            ``output.completions`` go into the file.

        Raises
        ------
        RunError
            If the disk is full.
        """
        with self.writing("metrics.jsonl"):
            kept = keep_some(completions, self.config.output.completions)
            if kept:
                rows = [{"step": step} | dict(row) for row in kept]
                append_lines(self.completions_path, rows)
            append_lines(self.metrics_path, [{"step": step} | dict(metrics)])
        if self._trackers is not None:
            self._trackers.log(step, metrics)

    def read_metrics(self) -> list[dict[str, float]]:
        """Return the logged lines in order; null comes back as NaN."""
        return [
            {name: math.nan if value is None else float(value) for name, value in record.items()}
            for record, _ in read_lines(self.metrics_path)
        ]

    def read_completions(self) -> list[dict[str, Any]]:
        """Return the responses that were kept, in the order of their steps."""
        return [record for record, _ in read_lines(self.completions_path)]

    def checkpoint_dir(self, step: int) -> Path:
        """Return where the checkpoint after `step` steps stands, or would."""
        return self._checkpoints.place(step)

    def checkpoints(self) -> list[Checkpoint]:
        """Return the complete checkpoints, oldest first."""
        return list(self._checkpoints)

    def latest_checkpoint(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, or None before the first."""
        return self._checkpoints.latest()

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> Path:
        """Write a checkpoint by `write(folder)`, then drop the oldest beyond `keep_checkpoints`.

        `write` fills a temporary folder, which takes its name only once it is on the disk: a
        folder named ``step-…`` is complete whatever happens. So are the logs up to its step.
        """
        with self.writing(f"the checkpoint after step {step}"):
            for path in (self.metrics_path, self.completions_path):
                if path.exists():
                    sync(path)
            return self._checkpoints.save(step, write)

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Write ``summary.json`` at once; numbers that JSON lacks become null or text."""
        path = self.path / "summary.json"
        with self.writing("summary.json"):
            write_text(path, json.dumps(to_json(summary), indent=2, allow_nan=False) + "\n")
        return path

    def read_summary(self) -> dict[str, Any]:
        """Return ``summary.json``, or nothing before the run has ended."""
        path = self.path / "summary.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}

    def close(self) -> None:
        """End the session with the trackers."""
        if self._trackers is not None:
            self._trackers.close()
            self._trackers = None

    @property
    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.path / "checkpoints", self.config.output.keep_checkpoints)

    def _run_id(self) -> str:
        """Return the name by which trackers know the run: drawn once, kept in the folder."""
        path = self.path / "run_id"
        if not path.exists():
            write_text(path, secrets.token_hex(4))
        return path.read_text(encoding="utf-8")

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Say of an error of the disk what could not be written, and what to do."""
        try:
            yield
        except Exception as error:
            if not is_full(error) and not isinstance(error, OSError):
                raise
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            advice = (
                "make room there: older runs, or fewer checkpoints (output.keep_checkpoints)"
                if is_full(error)
                else "it must be a folder that this process may write to"
            )
            raise RunError(f"{self.path}: {what} cannot be written ({reason}); {advice}") from error
