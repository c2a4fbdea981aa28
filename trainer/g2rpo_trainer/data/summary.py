"""Numbers of records of a source, and their table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from g2rpo._shown import visible

if TYPE_CHECKING:
    from g2rpo_trainer.layout import PlainTable


@dataclass(frozen=True)
class TaskSummary:
    """Records of one task.

    Attributes
    ----------
    problem_types : dict of str to int
        Problem type -> number of records; 0 if they are drawn without end.
    training, held_out : int or None
        Numbers of records; None if they are drawn without end.
    share : float
        Share of the prompts of a run.
    reward_kind : str
        For people: of a built-in task the shape of its reward, of others the problem types.
    """

    problem_types: dict[str, int]
    training: int | None
    held_out: int | None
    share: float
    reward_kind: str


@dataclass(frozen=True)
class Summary:
    """Tasks of a source and the records that were left out.

    Attributes
    ----------
    tasks : dict of str to TaskSummary
        In the order of the tasks.
    skipped : int
        Broken records that were left out so far.
    examples : list of str
        Faults of the first of them.
    """

    tasks: dict[str, TaskSummary]
    skipped: int
    examples: list[str]


def summary_table(
    summary: Summary, more: Mapping[str, Mapping[str, str]] = MappingProxyType({})
) -> PlainTable:
    """Return the table that begins a run: one row a task.

    Parameters
    ----------
    summary : Summary
        From :meth:`Source.summary`.
    more : mapping of str to mapping
        Heading of a further column -> task -> text of the cell.

    Returns
    -------
    PlainTable
        Problem types with their numbers of records, records trained on and held out, share of the
        prompts. Tasks that are drawn without end have ∞ records.

    Examples
    --------
    >>> import sys
    >>> from rich.console import Console
    >>> of_maths = TaskSummary({"numerical": 40}, 35, 5, share=1.0, reward_kind="binary")
    >>> table = summary_table(Summary({"maths": of_maths}, 0, []))
    >>> Console(file=sys.stdout, width=80).print(table)
    Data
     task   problem types  training  held out   share
     ────────────────────────────────────────────────
     maths  numerical            35         5  100.0%
    """
    from rich.markup import escape

    from g2rpo_trainer.layout import PlainTable

    types, numbers = "problem types", ("training", "held out", "share")
    table = PlainTable("task", types, numbers=numbers, more=more, optional=types, title="Data")
    for name, task in summary.tasks.items():
        counts = task.problem_types.items()
        # One type needs no number: it is all of the task's.
        kinds = [kind if len(counts) == 1 else f"{kind} ({count:,})" for kind, count in counts]
        table.add_row(
            escape(name),
            escape(", ".join(kinds)),
            _number(task.training),
            _number(task.held_out),
            f"{task.share:.1%}",
            *(column[name] for column in more.values()),
        )
    return table


def skipped_text(summary: Summary) -> str:
    """Return the lines about records that were left out, or an empty text.

    Examples
    --------
    >>> print(skipped_text(Summary({}, 2, ["a.jsonl, line 3: is not JSON"])))
    2 broken records are left out, such as:
    a.jsonl, line 3: is not JSON
    """
    if not summary.skipped:
        return ""
    noun = "record is" if summary.skipped == 1 else "records are"
    heading = f"{summary.skipped} broken {noun} left out, such as:"
    return visible("\n".join([heading, *summary.examples]))


def _number(count: int | None) -> str:
    return "∞" if count is None else f"{count:,}"
