"""Options and progress bar of the commands that read tables of rewards."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from g2rpo_cli.comparison import RewardTable

__all__ = [
    "LONG",
    "MODULES",
    "Decoupled",
    "Group",
    "Length",
    "Reward",
    "Task",
    "Weight",
    "bar",
    "checked_weights",
    "read",
    "tracked",
]

#: What `g2rpo_cli.comparison` needs, of the extra `cli`.
MODULES = ("pydantic", "yaml", "rich", "matplotlib")

#: Fewer rows than this are done before a bar could be read.
LONG = 50_000

Reward = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        metavar="COLUMN",
        help="Column of the rewards; repeat it for several components. Default: `reward`.",
    ),
]
Group = Annotated[
    str, typer.Option("--group", metavar="COLUMN", help="Column of the prompts' labels.")
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="COLUMN",
        help="Column of the tasks' labels. Default: `task`; without it all rows are one task.",
    ),
]
Length = Annotated[
    str | None,
    typer.Option(
        "--length",
        metavar="COLUMN",
        help="Column of the responses' lengths in tokens, for `opo`. Default: `length`.",
    ),
]
Weight = Annotated[
    list[float] | None,
    typer.Option("--weight", help="Weight of each `--reward`, in their order. Default: 1."),
]
Decoupled = Annotated[
    bool,
    typer.Option(
        "--decoupled", help="Match each reward component by itself, where the estimator can."
    ),
]


def read(
    path: str, reward: list[str] | None, group: str, task: str | None, length: str | None
) -> "RewardTable":
    """Read a table, with a progress bar if it is long."""
    from g2rpo_cli.comparison import read_rewards

    return read_rewards(
        path, reward=reward or ["reward"], group=group, task=task, length=length, track=tracked
    )


def checked_weights(
    reward: list[str] | None, weight: list[float] | None, decoupled: bool
) -> list[float] | None:
    """Return the weights for the components, or refuse those that fit none."""
    from g2rpo_trainer.errors import RunError

    components = len(reward or ["reward"])
    if weight and components == 1:
        raise RunError("--weight needs several --reward")
    if decoupled and components == 1:
        raise RunError("--decoupled needs several --reward")
    if weight and len(weight) != components:
        raise RunError(f"--weight is given {len(weight)} times, but --reward {components} times")
    return weight or None


def tracked(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """Yield the items, with a progress bar if they are many."""
    return bar(items, total, description) if total >= LONG else items


def bar(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """Yield the items, with a bar on a terminal, which goes away when they are done."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not console.is_terminal:
        return items
    return track(items, description, total=total, console=console, transient=True)
