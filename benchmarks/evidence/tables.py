"""One table a question."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from benchmarks._intervals import interval
from benchmarks._report import markdown_table

from .questions import Question
from .simulator import Setting
from .world import TARGETS, TASKS, Floats

Columns = Mapping[str, Floats]

LEGEND = """\
Six simulated tasks share one policy a seed. *reward*: mean held-out reward of the tasks after \
training. Behind a sign: the difference to the first row of the table, paired by seed, with its \
95 % interval by bootstrap over seeds, bold where all of it is on one side of 0 (of twenty such \
intervals one is expected to be so by chance). *worst task*: the same for the lowest task of \
each seed; *area*: for the mean reward over the whole training; *by task*: for each task. \
*norms*: the largest of the tasks' mean gradient norms over the smallest, median over seeds; \
*share*: share of the largest in their sum. *W1*: distance of a task's advantages to N(0, 1), \
mean over tasks. *lost*: what a disturbance costs, against the same setting without it. \
*lengths*: mean length of each task in the end, in tokens, and *off target* how far they are \
outside of their targets then, mean over tasks. *entropy*: mean over the tasks in the last ten \
steps, in nats, and *outside* how far outside of their band tasks are then. *no signal*: share \
of the groups whose rewards are all equal, *misplaced* the mean absolute advantage of their \
responses, and *sampled* the groups that were sampled for each that was trained on."""


def _difference(name: str) -> Callable[[Columns, Columns], str]:
    return lambda own, base: str(interval(_VALUES[name](own) - _VALUES[name](base)))


def _by_task(own: Columns, base: Columns) -> str:
    parts = zip(TASKS, (own["tasks"] - base["tasks"]).T, strict=True)
    return ", ".join(f"{task.name} {values.mean():+.3f}" for task, values in parts)


def _lengths(own: Columns, base: Columns) -> str:
    means = own["length"].mean(axis=0)
    return ", ".join(f"{task.name} {mean:.1f}" for task, mean in zip(TASKS, means, strict=True))


def _norms(own: Columns, base: Columns) -> str:
    with np.errstate(divide="ignore"):  # a task without any signal
        return f"{np.median(own['norms'].max(axis=1) / own['norms'].min(axis=1)):.2f}"


def _beyond(own: Columns) -> Floats:
    """Return how far the mean lengths are outside of their targets, (S, K), in tokens."""
    _, low, high, _ = TARGETS.T
    return np.maximum(0, np.maximum(own["length"] - high, low - own["length"]))


def _mean(name: str, digits: int) -> Callable[[Columns, Columns], str]:
    return lambda own, base: f"{own[name].mean():.{digits}f}"


_VALUES: dict[str, Callable[[Columns], Floats]] = {
    "reward": lambda own: own["tasks"].mean(axis=1),
    "worst": lambda own: own["tasks"].min(axis=1),
    "area": lambda own: own["curve"].mean(axis=1),
}

#: By name: from the columns of a setting, and of the first one, to the text of a cell.
COLUMNS: dict[str, Callable[[Columns, Columns], str]] = {
    "reward": lambda own, base: f"{own['tasks'].mean():.3f}",
    "difference": _difference("reward"),
    "worst task": _difference("worst"),
    "area": _difference("area"),
    "by task": _by_task,
    "norms": _norms,
    "share": lambda own, base: f"{(own['norms'].max(1) / own['norms'].sum(1)).mean():.2f}",
    "W1": _mean("w1", 3),
    "lengths": _lengths,
    "off target": lambda own, base: f"{_beyond(own).mean():.2f}",
    "entropy": _mean("last_entropy", 2),
    "outside": _mean("outside", 3),
    "no signal": _mean("no_signal", 2),
    "misplaced": _mean("misplaced", 3),
    "sampled": _mean("sampled", 2),
}


def section(
    name: str,
    question: Question,
    settings: Mapping[str, Setting],
    found: Mapping[str, Columns],
    clean: Mapping[str, Columns],
) -> str:
    """Return the question and its table.

    Parameters
    ----------
    name : str
        Of the question.
    question : Question
        With the columns to show.
    settings : mapping of str to Setting
        As they were run, at the learning rates that were chosen.
    found, clean : mapping of str to columns
        What they gave, and what they give without the disturbance.
    """
    base = next(iter(found.values()))
    rows = []
    for label, own in found.items():
        rate = f" (rate {settings[label].learning_rate:g})" if question.rates else ""
        rows.append(
            [
                label + rate,
                *(
                    COLUMNS["difference"](own, clean[label])
                    if column == "lost"
                    else COLUMNS[column](own, base)
                    for column in question.columns
                ),
            ]
        )
    header = ("setting", *question.columns)
    title = name[0].upper() + name[1:]
    return f"## {title}\n\n{question.text}\n\n{markdown_table(header, rows)}"
