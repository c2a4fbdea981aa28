"""Options that several commands share, and how they reach a run's configuration."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", "-t", help="Name of a task; repeat it for several. Default: all."),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="`builtin`, a file, a folder, `owner/name` of the hub, `reasoning-gym:NAME`."
    ),
]
Device = Annotated[
    str | None, typer.Option(help="`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, …")
]
Rewards = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        metavar="TYPE=MODULE:FUNCTION",
        help="Reward of your own for a problem type; the working folder is searched. Repeat it.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="Any configuration value, by its dotted key, such as `rollout.limits.ocr=30`; a "
        "name with a dot in it stands in quotes: `'rollout.limits[\"v1.5\"]=30'`. Repeat it.",
    ),
]


def given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that were given, by dotted key of the configuration."""
    values = {key: value for key, value in flags.items() if value not in (None, [])}
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def reward_functions(texts: Sequence[str] | None) -> dict[str, str]:
    """Return the flags ``--reward TYPE=MODULE:FUNCTION`` by dotted key of the configuration."""
    from g2rpo_trainer.errors import RunError

    functions = {}
    for text in texts or []:
        problem_type, equals, path = text.rpartition("=")
        if not equals or not problem_type or ":" not in path or "." in problem_type:
            raise RunError(
                f"--reward {text!r} must be TYPE=MODULE:FUNCTION, "
                "such as colour=my_rewards:colour_match"
            )
        functions[f"rewards.functions.{problem_type}"] = path
    return functions


def search_working_folder() -> None:
    """Let import paths find modules in the working folder, after all that is installed."""
    if os.getcwd() not in sys.path:
        # At the end: a file of the user's called random.py must not stand in for Python's.
        sys.path.append(os.getcwd())
