"""Options that several commands share, and how they reach a run's description."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["Data", "Device", "Tasks", "given"]

Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", "-t", help="Name of a task; repeat it for several. Default: all six."),
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


def given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that were given, by dotted key of the description."""
    values = {key: value for key, value in flags.items() if value not in (None, [])}
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
