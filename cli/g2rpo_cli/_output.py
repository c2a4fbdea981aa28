"""Output of the commands: tables, JSON, files, and a spinner while one waits."""

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from g2rpo_trainer.layout import PlainTable

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")]


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show on a terminal what is being done, until it is."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    with console.status(escape(text)) if console.is_terminal else nullcontext():
        yield


def bar(items: Iterable[T], total: int, description: str) -> Iterable[T]:
    """Yield the items, with a bar on a terminal, which goes away when they are done."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = not console.is_terminal
    return track(items, description, total=total, console=console, transient=True, disable=hidden)


def print_table(table: "PlainTable", title: str = "", *, to_stderr: bool = False) -> None:
    """Print a table under a title; square brackets in its cells are no markup."""
    from rich.console import Console
    from rich.text import Text

    from g2rpo._shown import visible

    console = Console(stderr=to_stderr, highlight=False, markup=False)
    if title:  # not the table's own, which would be folded to the table's width
        console.print(Text(visible(title), style="bold"))
    console.print(table)


def print_json(content: Any, *, to_stderr: bool = False) -> None:
    """Print JSON: NaN as null, infinities as texts."""
    print(_json_text(content), file=sys.stderr if to_stderr else sys.stdout)


def write_json(path: Path, content: Any) -> None:
    """Write JSON to a file as `print_json` prints it."""
    with replaced_file(path) as file:
        file.write(f"{_json_text(content)}\n".encode())


def _json_text(content: Any) -> str:
    from g2rpo_trainer.files import to_json

    return json.dumps(to_json(content), indent=2, allow_nan=False)


def number_text(value: float, *, digits: int = 3) -> str:
    """Return a number as tables show it, such as ``1.000``, ``2.1e+06`` or ``∞``."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) >= 1e4:
        return f"{value:.1e}"
    text = f"{value:.{digits}f}"
    return text if float(text) else text.removeprefix("-")  # not -0.000


def refuse_output(
    option: str, path: Path | None, *, source: str | None = None, overwrite: bool = True
) -> None:
    """Raise `RunError` if a file to write is a folder, the file to read, or exists and may not."""
    from g2rpo_trainer.errors import RunError

    # Unlike pathlib, `os.path` takes a name that is too long for one of nothing.
    if path is None or not os.path.exists(path):
        return
    if source is not None and os.path.exists(source) and path.samefile(source):
        raise RunError(f"{option} {path}: is the file to read; name another")
    if path.is_dir():
        raise RunError(f"{option} {path}: is a folder; name a file")
    if not overwrite:
        raise RunError(f"{option} {path}: exists already; overwrite it with --force")


@contextmanager
def replaced_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file beside `path`, which takes its place when all has been written."""
    from g2rpo_trainer.errors import RunError
    from g2rpo_trainer.files import replacing

    try:
        if os.path.exists(path) and not path.is_file():  # a pipe or a device, such as /dev/stdout
            with path.open("wb") as file:
                yield file
            return
        path = path.resolve()  # a link stays one
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial, partial.open("wb") as file:
            yield file
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from None
