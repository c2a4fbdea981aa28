"""Rows of JSONL, CSV and Parquet files: read with their places, written with one more column."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any, Literal, TypeAlias

from g2rpo._suggest import unknown_name
from g2rpo_trainer.data.tables import ArrowRows, JsonLines, Table, need_library, read_table
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.files import to_json
from g2rpo_trainer.record import BrokenRecord

Format: TypeAlias = Literal["jsonl", "csv", "parquet"]

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
_STDIN = "-"

_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER = re.compile(rf"{_INTEGER.pattern}(\.[0-9]+)?([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Rows:
    """N rows of a file."""

    source: str  # name of the file in titles and errors
    format: Format
    names: tuple[str, ...]  # columns, in the order in which they first appear
    records: list[dict[str, Any]]  # of a CSV, values are texts
    place: Callable[[int], str]  # number of a row -> "a.csv, line 7"
    arrow: Any = None  # pyarrow.Table of a Parquet file, with its types

    def __len__(self) -> int:
        return len(self.records)

    def line(self, row: int) -> str:
        """Return the place of a row without the name of the file."""
        return self.place(row).removeprefix(f"{self.source}, ")


def format_of(path: str | Path) -> Format:
    """Return the format that the suffix of a path names."""
    if str(path) == _STDIN:
        return "jsonl"
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise RunError(f"{path}: {unknown_name('suffix', suffix, _FORMATS)}")
    return _FORMATS[suffix]


def read_rows(path: str | Path) -> Rows:
    """Read all rows of a file, at least one; the path ``-`` is standard input, as JSONL."""
    kind = format_of(path)
    if str(path) == _STDIN:
        with _copy_of_stdin() as copy:
            lines = JsonLines(copy)
            lines.name = "standard input"
            rows = _of_table(lines, kind)
    elif kind == "csv":
        rows = _read_csv(Path(path))
    else:
        rows = _of_table(read_table(Path(path)), kind)
    if not rows.records:
        raise RunError(f"{rows.source}: has no rows")
    return rows


@contextmanager
def _copy_of_stdin() -> Iterator[Path]:
    with NamedTemporaryFile(suffix=".jsonl") as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.flush()
        yield Path(copy.name)


def _of_table(table: Table, kind: Format) -> Rows:
    records = []
    for row, found in enumerate(table.scan()):
        if isinstance(found, BrokenRecord):
            raise RunError(f"{table.place(row)}: {found}")
        records.append(dict(found))
    names = tuple(dict.fromkeys(chain.from_iterable(records)))
    arrow = table.arrow if isinstance(table, ArrowRows) else None
    return Rows(table.name, kind, names, records, table.place, arrow)


def _read_csv(path: Path) -> Rows:
    # A cell may hold a whole response; the default limit is 128 KiB.
    csv.field_size_limit(2**31 - 1)
    text = io.StringIO(_read_text(path), newline="")
    reader = csv.reader(text, delimiter=_delimiter_of(path), strict=True)
    header: list[str] = []
    records: list[dict[str, Any]] = []
    lines: list[int] = []
    try:
        for cells in reader:
            if not cells:  # a blank line
                continue
            if len(cells) == len(header):
                records.append(dict(zip(header, cells, strict=True)))
                lines.append(reader.line_num)
            elif header:
                columns = f"{len(cells)} column{'s' * (len(cells) > 1)}"
                raise RunError(
                    f"{path}, line {reader.line_num}: has {columns}, "
                    f"but the header has {len(header)}: {', '.join(header)}"
                )
            else:
                header = cells
                if twice := [name for name in header if header.count(name) > 1]:
                    raise RunError(
                        f"{path}, line {reader.line_num}: "
                        f"the column {twice[0]!r} stands twice in the header"
                    )
    except csv.Error as error:
        raise RunError(f"{path}, line {reader.line_num}: is not CSV ({error})") from None
    return Rows(str(path), "csv", tuple(header), records, lambda row: f"{path}, line {lines[row]}")


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise RunError(
            f"{path}, line {line}: is not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8"
        ) from None


def _delimiter_of(path: str | Path) -> str:
    return "\t" if Path(path).suffix.lower() == ".tsv" else ","


def write_rows(
    file: IO[bytes], path: str | Path, rows: Rows, column: str, values: Sequence[float]
) -> None:
    """Write rows with a column of numbers, in the format of the suffix of `path`."""
    kind = format_of(path)
    if kind == "parquet":
        _write_parquet(file, rows, column, values)
        return
    records: Iterable[dict[str, Any]] = rows.records
    if kind == "jsonl" and rows.format == "csv":
        columns = [_typed([row[name] for row in rows.records]) for name in rows.names]
        records = (dict(zip(rows.names, row, strict=True)) for row in zip(*columns, strict=True))
    changed = (
        {**record, column: to_json(value)} for record, value in zip(records, values, strict=True)
    )
    if kind == "jsonl":
        _write_jsonl(file, changed)
    else:
        _write_csv(file, changed, list(dict.fromkeys([*rows.names, column])), _delimiter_of(path))


def _write_jsonl(file: IO[bytes], records: Iterable[dict[str, Any]]) -> None:
    encode = json.JSONEncoder(ensure_ascii=False).encode
    for record in records:
        try:
            file.write(f"{encode(record)}\n".encode())
        except UnicodeEncodeError:  # half a surrogate pair, which only an escape can hold
            file.write(f"{json.dumps(record)}\n".encode())
        except TypeError:
            for name, cell in record.items():  # to name the column
                _json_text(cell, name, "JSON")
            raise


def _write_csv(
    file: IO[bytes], records: Iterable[dict[str, Any]], names: list[str], delimiter: str
) -> None:
    stream = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
    try:
        writer.writerow(names)
        for record in records:
            writer.writerow([_csv_text(record.get(name), name) for name in names])
        stream.flush()
    except UnicodeEncodeError as error:
        raise RunError(f"half a surrogate pair cannot be written as CSV ({error.reason})") from None
    finally:
        stream.detach()


def _write_parquet(file: IO[bytes], rows: Rows, column: str, values: Sequence[float]) -> None:
    pa = need_library("pyarrow", "a Parquet file", extra="cli")
    import_module("pyarrow.parquet")
    table = _to_arrow(pa, rows) if rows.arrow is None else rows.arrow
    cells = pa.array(values, pa.float64(), from_pandas=True)  # NaN becomes null
    if column in table.column_names:
        table = table.set_column(table.column_names.index(column), column, cells)
    else:
        table = table.append_column(column, cells)
    pa.parquet.write_table(table, file)


def _to_arrow(pa: Any, rows: Rows) -> Any:
    convert = _typed if rows.format == "csv" else _with_infinities
    columns = {}
    for name in rows.names:
        try:
            columns[name] = pa.array(convert([record.get(name) for record in rows.records]))
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise RunError(
                f"column {name!r} cannot be written as Parquet "
                f"({str(error).splitlines()[0]}); write .jsonl"
            ) from None
    return pa.table(columns)


def _csv_text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bytes):
        raise RunError(f"column {name!r} holds bytes, which CSV cannot; write .parquet")
    return _json_text(value, name, "CSV") if isinstance(value, bool | dict | list) else str(value)


def _json_text(value: Any, name: str, kind: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise RunError(
            f"column {name!r} cannot be written as {kind} ({error}); write .parquet"
        ) from None


def _with_infinities(cells: list[Any]) -> list[Any]:
    """Return numbers where infinities, which JSON lacks, stand as texts among numbers."""
    texts = {cell for cell in cells if isinstance(cell, str)}
    others = {type(cell) for cell in cells if not isinstance(cell, str)}
    if texts and texts <= {"inf", "-inf"} and others <= {int, float, type(None)}:
        return [None if cell is None else float(cell) for cell in cells]
    return cells


def _typed(cells: list[Any]) -> list[Any]:
    """Return numbers if every cell that is not empty is written as JSON writes numbers."""
    filled = [cell for cell in cells if cell]
    # A column without any number stays text: all(...) alone would turn it into nulls.
    if not filled or not all(map(_NUMBER.fullmatch, filled)):
        return cells
    # Parquet has 64 bits for an integer, which 20 characters can hold.
    whole = all(
        _INTEGER.fullmatch(cell) and len(cell) <= 20 and abs(int(cell)) < 2**63 for cell in filled
    )
    number: Callable[[str], float] = int if whole else float
    if any(math.isinf(number(cell)) for cell in filled):  # 1e999, which no format would keep
        return cells
    return [number(cell) if cell else None for cell in cells]
