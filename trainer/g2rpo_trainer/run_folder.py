"""The folder of a run: configuration, metrics, checkpoints and summary, safe against a crash.

=====================  ==========================================================================
``config.yaml``        the configuration; `load_config` reads it
``metrics.jsonl``      one JSON object a line, with ``step`` and the metrics of that step
``completions.jsonl``  some responses of every step, one JSON object a line
``advantages.jsonl``   histogram of the advantages of each task in every step
``samples/``           some answers to held-out items before and after the run, for its report
``environment.json``   versions and device of each process that continued the run
``checkpoints/``       ``step-000025/``, … ; a folder with such a name was written to its end, and
                       has the checksums of its files; ``damaged-step-…`` did not have them later
``tensorboard/``       the metrics as TensorBoard events
``plots/``             plots of the metrics
``.lock``              held by the process that writes the folder
``summary.json``       held-out rewards before and after; written when the run has ended
=====================  ==========================================================================
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from g2rpo._shown import error_text
from g2rpo_trainer.checkpoint_store import CheckpointStore
from g2rpo_trainer.config import TrainConfig, dump_config, load_config
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.files import (
    append_lines,
    read_lines,
    sync,
    to_json,
    truncate_lines,
    write_text,
    writing,
)
from g2rpo_trainer.step_log import advantage_counts, keep_some

__all__ = ["RunFolder"]


class RunFolder:
    """The folder of one run; made by `create` or `open`.

    Parameters
    ----------
    path : Path
        The folder, which exists.
    config : TrainConfig
        The configuration in ``config.yaml``.

    Attributes
    ----------
    checkpoints : CheckpointStore
        Its checkpoints.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> path = Path(mkdtemp(), "run")
    >>> folder = RunFolder.create(path, load_config())
    >>> folder.log(1, {"reward": 0.5, "reward/ocr": 0.25})
    >>> RunFolder.open(path).read_metrics()
    [{'step': 1.0, 'reward': 0.5, 'reward/ocr': 0.25}]
    """

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = path
        self.config = config
        self.checkpoints = CheckpointStore(path / "checkpoints")

    @classmethod
    def create(cls, path: str | Path, config: TrainConfig) -> Self:
        """Start a new run in `path`, which must hold none yet; write ``config.yaml``.

        Raises
        ------
        RunError
            If `path` holds a run, or cannot be written.
        """
        path = Path(path)
        cls.refuse_existing(path)
        with _creating(path):
            path.mkdir(parents=True, exist_ok=True)
            write_text(path / "config.yaml", dump_config(config))
        return cls(path, config)

    @staticmethod
    @contextmanager
    def locked(path: str | Path) -> Iterator[None]:
        """Keep other processes from writing in `path`, which is created if it does not exist.

        The lock does not outlive this process, however it ends.

        Raises
        ------
        RunError
            If another process has the lock.
        """
        from filelock import FileLock, Timeout

        path = Path(path)
        lock = FileLock(path / ".lock", blocking=False, thread_local=False)
        try:
            with _creating(path):
                path.mkdir(parents=True, exist_ok=True)
                lock.acquire()
        except Timeout:
            raise RunError(
                f"{path} is in use: another process trains there; wait for its end, stop it, or "
                "name another folder with --output-dir"
            ) from None
        try:
            yield
        finally:
            lock.release()

    @staticmethod
    def refuse_existing(path: str | Path) -> None:
        """Refuse a folder with a run, which a new one would overwrite.

        Raises
        ------
        RunError
            If `path` holds a run.
        """
        path = Path(path)
        if (path / "config.yaml").exists() or (path / "metrics.jsonl").exists():
            raise RunError(
                f"{path} already holds a run; continue it with --resume, "
                "or name another folder with --output-dir"
            )

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the run in `path` to continue or to read it; the folder may have been moved.

        Raises
        ------
        RunError
            If `path` holds no run, or its configuration cannot be read.
        """
        path = Path(path)
        if not (path / "config.yaml").exists():
            raise RunError(
                f"{path} holds no run (no config.yaml); leave out --resume to start one there"
            )
        config = load_config(path / "config.yaml", {"output.dir": str(path)})
        return cls(path, config)

    def update_config(self, config: TrainConfig) -> None:
        """Replace the configuration, for a run that is continued with more steps."""
        if config != self.config:
            with writing(self.path, "config.yaml"):
                write_text(self.path / "config.yaml", dump_config(config))
        self.config = config

    def begin(self, step: int) -> None:
        """Prepare the folder for the steps after `step`.

        Logged lines of later steps are removed, because a resumed run writes them again; so is what
        a killed process left of a checkpoint.
        """
        with writing(self.path, "the run"):
            for path in self._logs:
                truncate_lines(path, step)
            self.checkpoints.remove_leftovers()

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended and written its summary."""
        return (self.path / "summary.json").exists()

    @property
    def metrics_path(self) -> Path:
        """File of the metrics."""
        return self.path / "metrics.jsonl"

    @property
    def completions_path(self) -> Path:
        """File of the responses."""
        return self.path / "completions.jsonl"

    @property
    def advantages_path(self) -> Path:
        """File of the histograms of advantages."""
        return self.path / "advantages.jsonl"

    @property
    def _logs(self) -> tuple[Path, ...]:
        return self.metrics_path, self.completions_path, self.advantages_path

    @property
    def plots_path(self) -> Path:
        """Folder of the plots."""
        return self.path / "plots"

    @property
    def run_id(self) -> str:
        """The name under which trackers file the run: drawn once, kept in the folder."""
        path = self.path / "run_id"
        if not path.exists():
            with writing(self.path, "run_id"):
                write_text(path, secrets.token_hex(4))
        return path.read_text(encoding="utf-8")

    def log(
        self,
        step: int,
        metrics: Mapping[str, float],
        completions: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Append the metrics of a step and some of its responses.

        Parameters
        ----------
        step : int
            From 1.
        metrics : mapping of str to float
            Any numbers; NaN is written as null.
        completions : sequence of mapping
            All responses of the step, with at least ``task`` and ``prompt``; ``output.completions``
            of them are written. Of their advantages, if they have any, histograms are.

        Raises
        ------
        RunError
            If the disk is full.
        """
        with writing(self.path, "metrics.jsonl"):
            kept = keep_some(completions, self.config.output.completions)
            if kept:
                rows = [{"step": step} | dict(row) for row in kept]
                append_lines(self.completions_path, rows)
            if counts := advantage_counts(completions):
                append_lines(self.advantages_path, [{"step": step, "counts": counts}])
            append_lines(self.metrics_path, [{"step": step} | dict(metrics)])

    def read_metrics(self) -> list[dict[str, float]]:
        """Return the logged lines in order, with NaN in place of null."""
        return [
            {name: math.nan if value is None else float(value) for name, value in record.items()}
            for record, _ in read_lines(self.metrics_path)
        ]

    def read_completions(self) -> list[dict[str, Any]]:
        """Return the responses that were kept, in the order of their steps."""
        return [record for record, _ in read_lines(self.completions_path)]

    def read_advantages(self) -> dict[str, list[int]]:
        """Return the histogram of the advantages of each task over all steps.

        The bins are those of :func:`g2rpo_trainer.step_log.advantage_counts`.
        """
        totals: dict[str, list[int]] = {}
        for record, _ in read_lines(self.advantages_path):
            for task, counts in record["counts"].items():
                known = totals.get(task, [0] * len(counts))
                totals[task] = [one + other for one, other in zip(known, counts, strict=True)]
        return totals

    def write_samples(self, when: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Replace the answers to held-out items that are kept of ``before`` or ``after``."""
        path = self.path / "samples" / f"{when}.jsonl"
        with writing(self.path, f"samples/{path.name}"):
            path.parent.mkdir(exist_ok=True)
            lines = [json.dumps(to_json(row), allow_nan=False) for row in rows]
            write_text(path, "".join(f"{line}\n" for line in lines))
        return path

    def read_samples(self, when: str) -> list[dict[str, Any]]:
        """Return the answers that were kept, none if there are none."""
        return [row for row, _ in read_lines(self.path / "samples" / f"{when}.jsonl")]

    def note_environment(self, step: int, environment: Mapping[str, str]) -> None:
        """Add the environment in which the run goes on after `step`, unless it is the last one."""
        noted = self.read_environments()
        # Later steps are done again.
        kept = [each for each in noted if each["step"] < step]
        if not kept or {**kept[-1], "step": step} != {"step": step, **environment}:
            kept.append({"step": step, **environment})
        if kept != noted:
            with writing(self.path, "environment.json"):
                write_text(self.path / "environment.json", json.dumps(kept, indent=2) + "\n")

    def read_environments(self) -> list[dict[str, Any]]:
        """Return the environments of the run, each with the ``step`` after which it began."""
        path = self.path / "environment.json"
        return list(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> Path:
        """Write a checkpoint after the logs up to its step, see :meth:`CheckpointStore.save`."""
        with writing(self.path, f"the checkpoint after step {step}"):
            for log in self._logs:
                if log.exists():
                    sync(log)
        return self.checkpoints.save(step, write, keep=self.config.output.keep_checkpoints)

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Write ``summary.json``; numbers that JSON lacks become null or text."""
        path = self.path / "summary.json"
        with writing(self.path, "summary.json"):
            write_text(path, json.dumps(to_json(summary), indent=2, allow_nan=False) + "\n")
        return path

    def read_summary(self) -> dict[str, Any]:
        """Return ``summary.json``, or nothing before the run has ended.

        Raises
        ------
        RunError
            If the file is damaged.
        """
        path = self.path / "summary.json"
        if not path.exists():
            return {}
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise RunError(
                f"{path} is damaged ({error_text(error)}); bring back a copy, or remove it and let "
                "--resume write it again"
            ) from None


@contextmanager
def _creating(path: Path) -> Iterator[None]:
    try:
        yield
    except TimeoutError:  # of a lock; an OSError, too
        raise
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error.strerror}); name another folder with --output-dir"
        ) from None
