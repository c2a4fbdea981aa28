"""Rows with one more column, the advantages: to a file that is whole or not there at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from g2rpo_cli.comparison.reading import Track, delimiter_of, format_of, untracked
from g2rpo_cli.comparison.rows import Format, Rows, need_pyarrow
from g2rpo_cli.comparison.table import RewardTable
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.files import replacing, to_json

__all__ = ["refuse_clash", "replaced_file", "write_advantages"]


def refuse_clash(table: RewardTable, column: str, replace: bool) -> None:
    """Raise `RunError` if the rows have the column already, unless it may be replaced."""
    if table.rows is None:
        raise RunError("the table has no rows of a file to write; read it with read_rewards")
    if column in table.rows.names and not replace:
        raise RunError(
            f"{table.source}: has a column {column!r} already; replace it with --force, "
            "or name another with --column"
        )


def write_advantages(
    table: RewardTable,
    advantages: Any,
    output: str | Path | IO[bytes],
    *,
    column: str = "advantage",
    overwrite: bool = False,
    track: Track = untracked,
) -> None:
    """Write the rows of a table with a column of advantages, all else as it was.

    Parameters
    ----------
    table : RewardTable
        From :func:`read_rewards`.
    advantages : array_like
        Real, shape (N,). NaN is written as null in JSON and Parquet, and as an empty cell in CSV;
        infinities as the texts ``"inf"`` and ``"-inf"`` in JSON and CSV.
    output : path or binary file
        Where to. A path is written, in the format of its suffix, beside its place and moved there
        when it is complete. An open file gets CSV if the rows came as CSV, else JSONL.
    column : str, optional
        Name of the new column, which comes last, or takes the place of one of this name.
    overwrite : bool, optional
        Whether ``output`` may exist, and whether the rows may have the column.
    track : callable, optional
        As in :func:`read_rewards`.

    Raises
    ------
    RunError
        If the file exists, is the one that was read, cannot be written, or its format cannot hold
        what a column holds. Nothing is left behind then.

    Notes
    -----
    A file of the format that was read keeps every value. Between formats, texts of a CSV become
    numbers where the whole column is numbers; a CSV holds lists and objects as JSON text, and
    nothing for null.
    """
    refuse_clash(table, column, overwrite)
    rows = table.rows
    assert rows is not None  # refuse_clash has seen to it
    values = np.asarray(advantages, dtype=np.float64)
    if values.shape != (len(rows),):
        raise ValueError(f"advantages must have shape ({len(rows)},), got {values.shape}")
    if not isinstance(output, str | Path):
        kind: Format = "csv" if rows.format == "csv" else "jsonl"
        delimiter = delimiter_of(table.source)
        _WRITERS[kind](output, rows, column, values.tolist(), delimiter, track)
        return
    path = Path(output)
    kind = format_of(path)
    refuse_output(path, table.source, overwrite)
    with replaced_file(path) as file:
        _WRITERS[kind](file, rows, column, values.tolist(), delimiter_of(path), track)


def refuse_output(path: Path, source: str, overwrite: bool) -> None:
    """Raise `RunError` if `path` is the file that was read, or exists and may not."""
    if path.exists():
        if Path(source).exists() and path.samefile(source):
            raise RunError(f"--output {path}: is the file to read; name another")
        if path.is_dir():
            raise RunError(f"--output {path}: is a folder; name a file")
        if not overwrite:
            raise RunError(f"--output {path}: exists already; overwrite it with --force")


@contextmanager
def replaced_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file beside `path`, which takes its place when all has been written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial, partial.open("wb") as file:
            yield file
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from None


def _write_jsonl(
    file: IO[bytes], rows: Rows, column: str, values: list[float], _: str, track: Track
) -> None:
    encode = json.JSONEncoder(ensure_ascii=False).encode
    records = track(zip(rows.records(), values, strict=True), len(rows), "writing")
    for record, value in records:
        record[column] = to_json(value)
        try:
            file.write(f"{encode(record)}\n".encode())
        except UnicodeEncodeError:  # half a surrogate pair, which only an escape can hold
            file.write(f"{json.dumps(record)}\n".encode())
        except TypeError:
            raise RunError(_no_json(record)) from None


def _no_json(record: dict[str, Any]) -> str:
    for name, value in record.items():
        try:
            json.dumps(value)
        except TypeError as error:
            return f"column {name!r} cannot be written as JSON ({error}); write .parquet"
    raise AssertionError("every value can be written")


def _write_csv(
    file: IO[bytes], rows: Rows, column: str, values: list[float], delimiter: str, track: Track
) -> None:
    header = list(rows.names)
    place = header.index(column) if column in header else len(header)
    stream = io.TextIOWrapper(file, encoding="utf-8", errors="strict", newline="")
    writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
    try:
        writer.writerow([*header[:place], column, *header[place + 1 :]])
        for cells, value in track(zip(rows.texts(), values, strict=True), len(rows), "writing"):
            plain = to_json(value)
            cells[place : place + 1] = ["" if plain is None else str(plain)]
            writer.writerow(cells)
        stream.flush()
    except UnicodeEncodeError as error:
        raise RunError(f"half a surrogate pair cannot be written as CSV ({error.reason})") from None
    finally:
        stream.detach()


def _write_parquet(
    file: IO[bytes], rows: Rows, column: str, values: list[float], _: str, track: Track
) -> None:
    pa = need_pyarrow()
    table = rows.arrow()
    cells = pa.array(values, pa.float64(), from_pandas=True)  # NaN becomes null
    if column in table.column_names:
        table = table.set_column(table.column_names.index(column), column, cells)
    else:
        table = table.append_column(column, cells)
    pa.parquet.write_table(table, file)


_WRITERS: dict[Format, Callable[[IO[bytes], Rows, str, list[float], str, Track], None]] = {
    "jsonl": _write_jsonl,
    "csv": _write_csv,
    "parquet": _write_parquet,
}
