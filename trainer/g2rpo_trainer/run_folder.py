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
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Self

from g2rpo._shown import error_text
from g2rpo_trainer.advantage_counts import advantage_counts
from g2rpo_trainer.config import TrainConfig, dump_config, load_config
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.files import (
    append_lines,
    checksum_fault,
    is_full,
    read_lines,
    replacing,
    sync,
    to_json,
    truncate_lines,
    write_checksums,
    write_text,
)

__all__ = ["Checkpoint", "RunFolder", "keep_some"]

_CHECKPOINT_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A complete checkpoint: the number of steps behind it, and its folder."""

    step: int
    path: Path


class RunFolder:
    """The folder of one run; made by `create` or `open`.

    Parameters
    ----------
    path : Path
        The folder, which exists.
    config : TrainConfig
        The configuration in ``config.yaml``.
    """

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = path
        self.config = config

    @classmethod
    def create(cls, path: str | Path, config: TrainConfig) -> Self:
        """Start a new run in `path`, which must hold none yet; write ``config.yaml``."""
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
        """Raise `RunError` if `path` holds a run, which a new one would overwrite."""
        path = Path(path)
        if (path / "config.yaml").exists() or (path / "metrics.jsonl").exists():
            raise RunError(
                f"{path} already holds a run; continue it with --resume, "
                "or name another folder with --output-dir"
            )

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the run in `path` to continue or to read it; the folder may have been moved."""
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
            with self.writing("config.yaml"):
                write_text(self.path / "config.yaml", dump_config(config))
        self.config = config

    def begin(self, step: int) -> None:
        """Prepare the folder for the steps after `step`.

        Logged lines of later steps are removed, because a resumed run writes them again; so is what
        a killed process left of a checkpoint.
        """
        with self.writing("the run"):
            for path in self._logs:
                truncate_lines(path, step)
            for pattern in (".partial-*", ".dropped-*"):
                for path in self._checkpoints_path.glob(pattern):
                    shutil.rmtree(path, ignore_errors=True)

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
    def _checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    @property
    def run_id(self) -> str:
        """The name under which trackers file the run: drawn once, kept in the folder."""
        path = self.path / "run_id"
        if not path.exists():
            with self.writing("run_id"):
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
        with self.writing("metrics.jsonl"):
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

        The bins are those of :func:`g2rpo_trainer.advantage_counts.advantage_counts`.
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
        with self.writing(f"samples/{path.name}"):
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
            with self.writing("environment.json"):
                write_text(self.path / "environment.json", json.dumps(kept, indent=2) + "\n")

    def read_environments(self) -> list[dict[str, Any]]:
        """Return the environments of the run, each with the ``step`` after which it began."""
        path = self.path / "environment.json"
        return list(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []

    def checkpoint_dir(self, step: int) -> Path:
        """Return the folder of the checkpoint after `step` steps, whether it exists or not."""
        return self._checkpoints_path / f"step-{step:06d}"

    def checkpoints(self) -> list[Checkpoint]:
        """Return the complete checkpoints, oldest first."""
        paths = self._checkpoints_path.glob("step-*")
        matches = [(_CHECKPOINT_NAME.fullmatch(path.name), path) for path in paths]
        return sorted(Checkpoint(int(match[1]), path) for match, path in matches if match)

    def latest_checkpoint(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, or None before the first."""
        return max(self.checkpoints(), default=None)

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
        for checkpoint in reversed(self.checkpoints()):
            fault = checksum_fault(checkpoint.path)
            if fault is None:
                break
            damaged.append((checkpoint, fault))
        else:
            if damaged:
                faults = "; ".join(f"{each.path.name}: {fault}" for each, fault in damaged)
                raise RunError(
                    f"every checkpoint in {self._checkpoints_path} is damaged ({faults}); bring "
                    "back a copy, or start again in another folder with --output-dir"
                )
        texts = []
        for each, fault in damaged:
            aside = each.path.with_name(f"damaged-{each.path.name}")
            with self.writing("the name of a damaged checkpoint"):
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(each.path, aside)
            texts.append(f"{each.path} is damaged ({fault}); it is now {aside.name}")
        return texts

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> Path:
        """Write a checkpoint by `write(folder)`, then drop the oldest beyond ``keep_checkpoints``.

        `write` fills a temporary folder, which takes its name only once it is on the disk: a
        folder named ``step-…`` is complete whatever happens. So are the logs up to its step.

        An existing checkpoint of that step stays: a run is deterministic, so a second one would be
        the same, and there is no moment without either.
        """
        path = self.checkpoint_dir(step)
        with self.writing(f"the checkpoint after step {step}"):
            for log in self._logs:
                if log.exists():
                    sync(log)
            if path.exists():
                return path
            with replacing(path) as partial:
                partial.mkdir(parents=True)
                write(partial)
                write_checksums(partial)
            sync(path.parent)
        for old in self.checkpoints()[: -self.config.output.keep_checkpoints]:
            _drop(old.path)
        return path

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Write ``summary.json``; numbers that JSON lacks become null or text."""
        path = self.path / "summary.json"
        with self.writing("summary.json"):
            write_text(path, json.dumps(to_json(summary), indent=2, allow_nan=False) + "\n")
        return path

    def read_summary(self) -> dict[str, Any]:
        """Return ``summary.json``, or nothing before the run has ended."""
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
    def writing(self, name: str) -> Iterator[None]:
        """Turn errors of the disk into a `RunError` with what could not be written, and the remedy.

        Parameters
        ----------
        name : str
            The file or content that is written inside the context.
        """
        try:
            yield
        except Exception as error:
            if not is_full(error) and not isinstance(error, OSError):
                raise
            reason = getattr(error, "strerror", None) or error_text(error)
            advice = (
                "make room there: older runs, or fewer checkpoints (output.keep_checkpoints)"
                if is_full(error)
                else "it must be a folder that this process may write to"
            )
            raise RunError(f"{self.path}: {name} cannot be written ({reason}); {advice}") from error


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


def keep_some(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Return at most `count` responses of a step: tasks take turns, each in the batch's order.

    Nothing is drawn at random, so a resumed run keeps the same. As the responses to a prompt are
    sampled alike, the first of them is no better than any other.

    Parameters
    ----------
    rows : sequence of mapping
        All responses, with at least ``task`` and ``prompt``; those to one prompt stand together.
    count : int
        Number of responses to keep.

    Examples
    --------
    >>> rows = [{"task": t, "prompt": p} for t, p in ["a1", "a1", "a2", "b1", "b1"]]
    >>> [row["task"] + row["prompt"] for row in keep_some(rows, 3)]
    ['a1', 'b1', 'a2']
    """
    by_prompt: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault((row["task"], row["prompt"]), []).append(row)
    by_task: dict[str, list[list[Mapping[str, Any]]]] = {}
    for (task, _), answers in by_prompt.items():
        by_task.setdefault(task, []).append(answers)
    # One response to each prompt of a task comes before the second to any of them.
    orders = [_in_turn(prompts) for prompts in by_task.values()]
    return _in_turn(orders)[:count]


def _in_turn(lists: Sequence[Sequence[Any]]) -> list[Any]:
    return [item for item in chain.from_iterable(zip_longest(*lists)) if item is not None]


def _drop(checkpoint: Path) -> None:
    # Under its own name a folder that has lost half of its files would count as complete.
    dropped = checkpoint.with_name(f".dropped-{checkpoint.name}")
    # One that cannot go now goes with the next checkpoint: it is no reason to end a run.
    with suppress(OSError):
        os.replace(checkpoint, dropped)
        shutil.rmtree(dropped)
