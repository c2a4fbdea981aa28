"""Folders of runs, finished or still being written, as a report needs them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from g2rpo._shown import error_text, listed
from g2rpo._suggest import unknown_name
from g2rpo_trainer.config import TrainConfig
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.files import read_lines
from g2rpo_trainer.run_folder import RunFolder

T = TypeVar("T")

_NUMBERS = ("reward", "accuracy", "length")


@dataclass(frozen=True)
class Response:
    """A response with what it was worth; NaN where there is no such number."""

    text: str
    reward: float
    accuracy: float
    length: float
    ended: bool


@dataclass(frozen=True)
class Item:
    """A prompt with the responses that were kept of it, in the order in which they were sampled."""

    task: str
    number: int  # of the item in its task, or of the prompt in the run
    problem: str
    answer: str  # the right one; empty where it was not kept
    images: tuple[str, ...]  # small copies, as data URIs
    responses: tuple[Response, ...]


@dataclass(frozen=True)
class Run:
    """Content of a report about a run.

    Samples are by time: ``before`` and ``after`` are answers to held-out items, ``first step`` and
    ``last step`` responses of the training.
    """

    path: Path
    config: TrainConfig
    tasks: list[str]  # to show
    records: list[dict[str, float]]  # metrics of its steps
    summary: dict[str, Any]  # content of summary.json; empty until the run ends
    advantages: dict[str, list[int]]  # task -> histogram of its advantages
    samples: dict[str, list[Item]]
    environments: list[dict[str, Any]]  # versions and devices, with the step after which each began
    notes: list[str]  # sentences on what is missing or was left out

    @property
    def step(self) -> int:
        """Steps that are logged."""
        return int(self.records[-1]["step"])

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended, and was not continued since."""
        return self.summary.get("steps") == self.step


def read_runs(paths: Sequence[Path], tasks: Sequence[str] | None = None) -> list[Run]:
    """Read runs that can be shown beside each other, with the tasks to show; by default all.

    Raises RunError if one cannot be read or is named twice, a task is unknown, or the runs have
    other tasks.
    """
    places = [path.resolve() for path in paths]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise RunError(f"{paths[number]} is named twice; name each run once")
    runs = [read_run(path) for path in paths]
    first = runs[0]
    for run in runs[1:]:
        if set(run.tasks) != set(first.tasks):
            raise RunError(
                f"the runs have different tasks: {first.path} has {listed(first.tasks)}, "
                f"{run.path} has {listed(run.tasks)}; report them one by one"
            )
    for task in tasks or ():
        if task not in first.tasks:
            raise RunError(f"--task: {unknown_name('task', task, first.tasks)}")
    return [replace(run, tasks=list(dict.fromkeys(tasks or first.tasks))) for run in runs]


def read_run(path: Path) -> Run:
    """Read a run from its folder."""
    folder = _opened(path)
    notes: list[str] = []
    records = _records(folder.metrics_path, notes)
    if not records:
        raise RunError(
            f"{folder.metrics_path} has no step yet; report the run when it has done its first"
        )
    run = Run(
        path,
        folder.config,
        # Left out of the configuration, they are those of the data, whose metrics name them.
        folder.config.data.tasks or _tasks(records),
        records,
        _read(path / "summary.json", folder.read_summary),
        _read(folder.advantages_path, folder.read_advantages),
        {
            **{when: _held_out(folder, when) for when in ("before", "after")},
            **_trained(folder),
        },
        _read(path / "environment.json", folder.read_environments),
        notes,
    )
    notes += _missing(run)
    return run


def _tasks(records: list[dict[str, float]]) -> list[str]:
    names = dict.fromkeys(name for record in records for name in record)
    return [name.removeprefix("reward/") for name in names if name.startswith("reward/")]


def _opened(path: Path) -> RunFolder:
    try:
        if not path.exists():
            raise RunError(f"there is no folder {path}")
        if not path.is_dir():
            raise RunError(f"{path} is a file; name the folder of a run, as --output-dir did")
        if not any(path.iterdir()):
            raise RunError(f"{path} is empty; name the folder of a run, as --output-dir did")
        if not (path / "config.yaml").is_file():
            raise RunError(f"{path} holds no run: it has no file config.yaml")
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror})") from None
    return RunFolder.open(path)


def _records(path: Path, notes: list[str]) -> list[dict[str, float]]:
    """Read the whole lines of the metrics; note what follows the last of them."""
    records: list[dict[str, float]] = []
    with _reading(path):
        for record, _ in read_lines(path):
            where = f"{path}, line {len(records) + 1}"
            try:
                records.append({name: _number(value) for name, value in record.items()})
                step = records[-1]["step"]
            except (TypeError, ValueError, KeyError) as error:
                raise RunError(f"{where}: is no metrics of a step ({error_text(error)})") from None
            if len(records) > 1 and step <= records[-2]["step"]:
                raise RunError(f"{where}: step {step:g} follows step {records[-2]['step']:g}")
        rest = _rest(path)
    if rest:
        whole = f"shown up to step {int(records[-1]['step'])}" if records else "nothing is shown"
        lines = rest.count(b"\n")
        reason = (
            f"is no JSON object; it and all that follows are left out ({lines} lines)"
            if lines
            else "is not whole: the run is being written, or was stopped there"
        )
        notes.append(f"{path}: line {len(records) + 1} {reason}; {whole}")
    return records


def _rest(path: Path) -> bytes:
    """Return what follows the last whole line."""
    end = max((end for _, end in read_lines(path)), default=0)
    if not path.exists():
        return b""
    with path.open("rb") as file:
        file.seek(end)
        return file.read()


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _held_out(folder: RunFolder, when: str) -> list[Item]:
    path = folder.path / "samples" / f"{when}.jsonl"
    return _read(path, lambda: [_item(row, row["item"]) for row in folder.read_samples(when)])


def _item(row: Mapping[str, Any], number: int) -> Item:
    images = tuple(map(str, row.get("images", ())))
    responses = tuple(map(_response, row["responses"]))
    return Item(row["task"], number, row["problem"], row["answer"], images, responses)


def _response(row: Mapping[str, Any]) -> Response:
    reward, accuracy, length = (_number(row.get(name)) for name in _NUMBERS)
    return Response(str(row["response"]), reward, accuracy, length, bool(row.get("ended", True)))


def _trained(folder: RunFolder) -> dict[str, list[Item]]:
    """Read the responses of the first and the last step of which some were kept."""

    def read() -> dict[str, list[Item]]:
        rows = folder.read_completions()
        ends = {"first step": rows[0]["step"], "last step": rows[-1]["step"]} if rows else {}
        return {
            when: _prompts([row for row in rows if row["step"] == step])
            for when, step in ends.items()
        }

    return _read(folder.completions_path, read)


def _prompts(rows: Sequence[Mapping[str, Any]]) -> list[Item]:
    prompts: dict[tuple[int, str, str], list[Response]] = {}
    for row in rows:
        key = row["record"], row["task"], row["prompt"]
        prompts.setdefault(key, []).append(_response(row))
    return [
        Item(task, record, prompt, "", (), tuple(responses))
        for (record, task, prompt), responses in prompts.items()
    ]


def _missing(run: Run) -> Iterator[str]:
    if not run.is_finished:
        steps = run.config.optimization.steps
        yield (
            f"{run.path}: the run has not ended: {run.step} of {steps} steps are logged, and "
            "held-out rewards are measured at its end"
        )
    if not run.advantages:
        yield f"{run.path}: no histograms of advantages were kept; runs of this version keep them"
    if not run.samples["before"]:
        yield f"{run.path}: no answers to held-out items were kept; runs of this version keep them"


def _read(path: Path, read: Callable[[], T]) -> T:
    with _reading(path):
        return read()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what a damaged file leads to into an error that names it."""
    try:
        yield
    except RunError:
        raise
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is damaged ({error_text(error)}); mend or remove it") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path} does not hold what a run writes there ({error_text(error)}); mend or remove it"
        ) from None
