"""The responses of a step that a run keeps, and how it shows them."""

from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

from rich.markup import escape
from rich.table import Table

__all__ = ["completions_table", "keep_some"]

_PROMPT_CHARACTERS, _RESPONSE_CHARACTERS = 120, 320


def keep_some(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Return at most `count` responses of a step: tasks take turns, each in the batch's order.

    Nothing is drawn at random, so a resumed run keeps the same. As the responses to a prompt are
    drawn alike, the first of them is no better than any other.

    Parameters
    ----------
    rows : sequence of mapping
        All responses, with at least ``task`` and ``prompt``; those to one prompt stand together.
    count : int
        How many to keep.

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


def completions_table(step: int, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of responses for a terminal; long texts are cut.

    Parameters
    ----------
    step : int
        After which step.
    rows : sequence of mapping
        As :meth:`g2rpo_trainer.run.folder.RunFolder.log` takes them.
    """
    table = Table(title=f"Responses of step {step}", title_justify="left", show_lines=True)
    table.add_column("task")
    table.add_column("prompt", ratio=2, style="dim", overflow="fold")
    table.add_column("response", ratio=4, overflow="fold")
    for heading in ("reward", "advantage", "tokens"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            escape(row["task"]),
            escape(_short(row["prompt"], _PROMPT_CHARACTERS)),
            escape(_short(row["response"], _RESPONSE_CHARACTERS)),
            f"{row['reward']:.3f}",
            f"{row['advantage']:+.2f}",
            str(row["length"]),
        )
    return table


def _in_turn(lists: Sequence[Sequence[Any]]) -> list[Any]:
    return [item for item in chain.from_iterable(zip_longest(*lists)) if item is not None]


def _short(text: str, characters: int) -> str:
    """Return a text in one line, cut in its middle: an answer stands at the end."""
    text = " ".join(text.split())
    half = characters // 2
    return text if len(text) <= characters else f"{text[:half]} … {text[-half:]}"
