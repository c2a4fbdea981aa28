"""Options of the commands that read tables of rewards."""

from typing import TYPE_CHECKING, Annotated

import typer

from g2rpo_cli._output import waiting

if TYPE_CHECKING:
    from g2rpo_cli.comparison import RewardTable

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
    """Read a table by the options of a command."""
    from g2rpo_cli.comparison import read_rewards

    with waiting(f"reading {path}"):
        return read_rewards(path, reward=reward or "reward", group=group, task=task, length=length)


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
