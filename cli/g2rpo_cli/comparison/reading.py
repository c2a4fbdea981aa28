"""JSONL, CSV and Parquet files to rows; an error names the file, the line and the column."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from g2rpo._json_lines import parse_object
from g2rpo._suggest import unknown_name
from g2rpo_cli.comparison.rows import CsvRows, Format, JsonRows, ParquetRows, Rows, need_pyarrow
from g2rpo_trainer.errors import RunError

__all__ = ["STDIN", "Track", "delimiter_of", "format_of", "read_rows", "untracked"]

T = TypeVar("T")

#: ``track(items, total, description)`` yields the items and shows how many are done.
Track: TypeAlias = Callable[[Iterable[Any], int, str], Iterable[Any]]

#: The name of standard input, which is read as JSONL.
STDIN = "-"

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}


def untracked(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """Return the items: the tracker that shows nothing."""
    return items


def format_of(path: str | Path) -> Format:
    """Return the format that the suffix of a path names."""
    if str(path) == STDIN:
        return "jsonl"
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise RunError(f"{path}: {unknown_name('suffix', suffix, _FORMATS)}")
    return _FORMATS[suffix]


def delimiter_of(path: str | Path) -> str:
    """Return what stands between the cells of a CSV file: a tab in ``.tsv``."""
    return "\t" if Path(path).suffix.lower() == ".tsv" else ","


def read_rows(path: str | Path, track: Track) -> Rows:
    """Read all rows of a file; there is at least one."""
    kind = format_of(path)
    if kind == "parquet":
        rows: Rows = _read_parquet(Path(path))
    else:
        text = _read_text(path)
        rows = _read_json(path, text, track) if kind == "jsonl" else _read_csv(path, text, track)
    if not len(rows):
        raise RunError(f"{_name(path)}: has no rows")
    return rows


def _read_text(path: str | Path) -> str:
    name = _name(path)
    try:
        data = sys.stdin.buffer.read() if str(path) == STDIN else Path(path).read_bytes()
    except OSError as error:
        raise RunError(f"{name}: cannot be read ({error.strerror})") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RunError(
            f"{name}, line {line}: is not UTF-8 (byte 0x{data[error.start]:02x}); "
            "save the file as UTF-8"
        ) from None
    if not text.strip():
        raise RunError(f"{name}: is empty")
    return text


def _read_json(path: str | Path, text: str, track: Track) -> JsonRows:
    objects: list[dict[str, Any]] = []
    numbers: list[int] = []
    # Not splitlines(), which also splits at characters that may stand inside a JSON text.
    lines = text.split("\n")
    for number, line in track(enumerate(lines, 1), len(lines), "reading"):
        if not line or line.isspace():
            continue
        try:
            objects.append(parse_object(line))
        except ValueError as error:
            raise RunError(f"{_name(path)}, line {number}: {error}") from None
        numbers.append(number)
    return JsonRows(objects, numbers)


def _read_csv(path: str | Path, text: str, track: Track) -> CsvRows:
    name = _name(path)
    total = text.count("\n") + 1
    with _fields_of_any_size():
        reader = csv.reader(
            io.StringIO(text, newline=""), delimiter=delimiter_of(path), strict=True
        )
        rows = track(_with_lines(reader, name), total, "reading")
        header: list[str] | None = None
        cells: list[list[str]] = []
        lines: list[int] = []
        for line, row in rows:
            if not row:  # a blank line
                continue
            if header is None:
                header = _checked_header(row, f"{name}, line {line}")
                continue
            if len(row) != len(header):
                raise RunError(
                    f"{name}, line {line}: has {_count(len(row), 'column')}, "
                    f"but the header has {len(header)}: {', '.join(header)}"
                )
            cells.append(row)
            lines.append(line)
    return CsvRows(header or [], cells, lines)


def _with_lines(reader: Any, name: str) -> Iterator[tuple[int, list[str]]]:
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise RunError(f"{name}, line {reader.line_num}: is not CSV ({error})") from None


def _checked_header(header: list[str], where: str) -> list[str]:
    for index, column in enumerate(header):
        if column in header[:index]:
            raise RunError(f"{where}: the column {column!r} stands twice in the header")
    return header


@contextmanager
def _fields_of_any_size() -> Iterator[None]:
    # A cell may hold a whole response, and the default limit of the csv module is 128 KiB.
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_parquet(path: Path) -> ParquetRows:
    pa = need_pyarrow()
    try:
        with path.open("rb") as file:
            table = pa.parquet.read_table(file)
    except pa.ArrowException as error:
        # Less a beginning that speaks of a buffer, which is how the file was handed over.
        reason = str(error).splitlines()[0].rpartition("'<Buffer>': ")[2].rstrip(".")
        raise RunError(f"{path}: is not a Parquet file ({reason})") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error})") from None
    return ParquetRows(table)


def _name(path: str | Path) -> str:
    return "standard input" if str(path) == STDIN else str(path)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
