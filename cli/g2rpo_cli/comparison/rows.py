"""The rows of a table as they were read, and the same rows in the form that another file wants."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from importlib import import_module
from typing import Any, Literal, TypeAlias

from g2rpo._extras import require
from g2rpo_trainer.errors import RunError

__all__ = ["CsvRows", "Format", "JsonRows", "ParquetRows", "Rows", "need_pyarrow"]

Format: TypeAlias = Literal["jsonl", "csv", "parquet"]

_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER = re.compile(rf"{_INTEGER.pattern}(\.[0-9]+)?([eE][+-]?[0-9]+)?")


class Rows(ABC):
    """N rows with named columns, and where each stands in its file.

    The three forms are those of the three kinds of file; each kind keeps its own form as it was.
    """

    #: Kind of the file that the rows came from.
    format: Format
    #: Names of the columns, in order; of JSON, all that any row has.
    names: Sequence[str]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def column(self, name: str) -> list[Any]:
        """Return the N values of a column; raise `LookupError(row)` where there is none."""

    @abstractmethod
    def place(self, row: int) -> str:
        """Return where a row stands, such as ``"line 7"``."""

    @abstractmethod
    def records(self) -> Iterator[dict[str, Any]]:
        """Yield each row as a new dictionary."""

    def texts(self) -> Iterator[list[str]]:
        """Yield each row as cells of text; null and what a row lacks are empty."""
        for record in self.records():
            yield [_text(record.get(name), name) for name in self.names]

    def arrow(self) -> Any:
        """Return the rows as a table of pyarrow."""
        pa = need_pyarrow()
        columns = {}
        for name, cells in self._typed_columns():
            try:
                columns[name] = pa.array(cells)
            except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
                raise RunError(
                    f"column {name!r} cannot be written as Parquet "
                    f"({str(error).splitlines()[0]}); write .jsonl"
                ) from None
        return pa.table(columns)

    def _typed_columns(self) -> Iterator[tuple[str, list[Any]]]:
        records = list(self.records())
        for name in self.names:
            yield name, _with_infinities([record.get(name) for record in records])


class JsonRows(Rows):
    """One object a line."""

    format = "jsonl"

    def __init__(self, objects: Sequence[dict[str, Any]], lines: Sequence[int]) -> None:
        self._objects, self._lines = objects, lines

    def __len__(self) -> int:
        return len(self._objects)

    @cached_property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        """All keys, in the order in which they first appear."""
        names: dict[str, None] = {}
        for record in self._objects:
            if record.keys() - names.keys():
                names.update(dict.fromkeys(record))
        return tuple(names)

    def column(self, name: str) -> list[Any]:
        """Return the N values of a column; raise `LookupError(row)` where there is none."""
        try:
            return [record[name] for record in self._objects]
        except KeyError:
            raise LookupError(
                next(row for row, record in enumerate(self._objects) if name not in record)
            ) from None

    def place(self, row: int) -> str:
        """Return the line."""
        return f"line {self._lines[row]}"

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield each row as a new dictionary."""
        return map(dict, self._objects)


class CsvRows(Rows):
    """Cells of text under a header."""

    format = "csv"

    def __init__(
        self, header: Sequence[str], cells: Sequence[list[str]], lines: Sequence[int]
    ) -> None:
        self.names, self._cells, self._lines = header, cells, lines

    def __len__(self) -> int:
        return len(self._cells)

    def column(self, name: str) -> list[Any]:
        """Return the N cells of a column."""
        index = self.names.index(name)
        return [row[index] for row in self._cells]

    def place(self, row: int) -> str:
        """Return the line on which the row ends."""
        return f"line {self._lines[row]}"

    def texts(self) -> Iterator[list[str]]:
        """Yield the rows as they were."""
        return map(list, self._cells)

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield each row as a dictionary, with numbers where a whole column holds numbers."""
        columns = [cells for _, cells in self._typed_columns()]
        for row in zip(*columns, strict=True):
            yield dict(zip(self.names, row, strict=True))

    def _typed_columns(self) -> Iterator[tuple[str, list[Any]]]:
        for name in self.names:
            yield name, _typed(self.column(name))


class ParquetRows(Rows):
    """A table of pyarrow."""

    format = "parquet"

    def __init__(self, table: Any) -> None:
        self._table = table
        self.names = tuple(table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def column(self, name: str) -> list[Any]:
        """Return the N values of a column."""
        values: list[Any] = self._table.column(name).to_pylist()
        return values

    def place(self, row: int) -> str:
        """Return the number of the row, from 1."""
        return f"row {row + 1}"

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield each row as a dictionary."""
        for batch in self._table.to_batches(max_chunksize=10_000):
            yield from batch.to_pylist()

    def arrow(self) -> Any:
        """Return the table as it was."""
        return self._table


def need_pyarrow() -> Any:
    """Return pyarrow with its Parquet module, or say how to install it."""
    require("a Parquet file", "pyarrow", extra="cli", error=RunError)
    import_module("pyarrow.parquet")
    return import_module("pyarrow")


def _text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool | dict | list):
        try:
            return json.dumps(value, ensure_ascii=False)
        except TypeError as error:
            raise RunError(
                f"column {name!r} cannot be written as CSV ({error}); write .parquet"
            ) from None
    if isinstance(value, bytes):
        raise RunError(f"column {name!r} holds bytes, which CSV cannot; write .parquet")
    return str(value)


def _with_infinities(cells: list[Any]) -> list[Any]:
    """Return numbers where infinities, which JSON lacks, stand as texts among numbers."""
    texts = {cell for cell in cells if isinstance(cell, str)}
    others = (cell for cell in cells if not isinstance(cell, str))
    if texts <= {"inf", "-inf"} and all(
        cell is None or type(cell) in (int, float) for cell in others
    ):
        return [None if cell is None else float(cell) for cell in cells] if texts else cells
    return cells


def _typed(cells: list[str]) -> list[Any]:
    """Return numbers if every cell that is not empty is written as JSON writes numbers."""
    if _all(cells, _INTEGER) and all(abs(int(cell)) < 2**63 for cell in cells if cell):
        return [int(cell) if cell else None for cell in cells]
    if _all(cells, _NUMBER):
        return [float(cell) if cell else None for cell in cells]
    return cells


def _all(cells: Iterable[str], pattern: re.Pattern[str]) -> bool:
    # A column without any number stays text: all(...) alone would turn it into nulls.
    return any(cells) and all(pattern.fullmatch(cell) for cell in cells if cell)
