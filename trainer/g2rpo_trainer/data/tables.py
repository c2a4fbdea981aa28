"""Tables of rows that are read by number, from files and libraries, in memory only if needed."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from g2rpo._extras import require
from g2rpo._json_lines import parse_object
from g2rpo._shown import clipped, error_text, shown
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.record import BrokenRecord

# Parquet that unpacks to more than this is mapped from a temporary file in place of memory [bytes].
_IN_MEMORY = 2**28
_ROWS_AT_ONCE = 256

Found = Mapping[str, Any] | BrokenRecord


class Table(ABC):
    """N rows in order, each a mapping or the error in its place."""

    def __init__(self, name: str, task: str, folder: Path | None) -> None:
        self.name, self.task, self.folder = name, task, folder

    @abstractmethod
    def scan(self) -> Iterator[Found]:
        """Yield all rows in order, or the error in the place of a row; must be called first."""

    @abstractmethod
    def row(self, index: int) -> Mapping[str, Any]:
        """Return one row; raise BrokenRecord if it is none."""

    def place(self, index: int) -> str:
        """Return the place of a row, for errors."""
        return f"{self.name}, record {index + 1}"


class JsonLines(Table):
    """A file with an object a line, of which only the places of the lines are in memory."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), path.stem, path.parent)
        self._path = path
        self._starts, self._lines = array("q"), array("q")

    def scan(self) -> Iterator[Found]:
        """Read the file once, and note where its lines begin."""
        self._starts, self._lines = array("q"), array("q")
        start = 0
        with _opened(self._path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    self._starts.append(start)
                    self._lines.append(number)
                    yield _found(line)
                start += len(line)

    def row(self, index: int) -> Mapping[str, Any]:
        """Read one line."""
        with _opened(self._path) as file:
            file.seek(self._starts[index])
            return _record(file.readline())

    def place(self, index: int) -> str:
        """Return the line."""
        return f"{self.name}, line {self._lines[index]}"


class Objects(Table):
    """A sequence of mappings in memory."""

    def __init__(
        self, rows: Sequence[Any], name: str, task: str, folder: Path | None = None
    ) -> None:
        super().__init__(name, task, folder)
        self._rows = rows

    def scan(self) -> Iterator[Found]:
        """Yield all objects."""
        for index in range(len(self._rows)):
            try:
                yield self.row(index)
            except BrokenRecord as error:
                yield error

    def row(self, index: int) -> Mapping[str, Any]:
        """Return one object."""
        try:
            row = self._rows[index]
        # A data set of the user's own, or with a transform, runs the user's code.
        except Exception as error:
            reason = clipped(f"{type(error).__name__}: {error}")
            raise RunError(f"{self.place(index)}: cannot be read ({reason})") from error
        if not isinstance(row, Mapping):
            raise BrokenRecord(f"is {shown(row)}, but must be an object with columns")
        return row


class ArrowRows(Table):
    """A table of pyarrow, in memory or mapped from a file."""

    def __init__(self, table: Any, name: str, task: str, folder: Path | None, keep: Any = None):
        super().__init__(name, task, folder)
        self.arrow = table
        self._keep = keep  # the folder of a mapped file, which goes when the table does

    def row(self, index: int) -> Mapping[str, Any]:
        """Convert one row."""
        rows: list[dict[str, Any]] = self.arrow.slice(index, 1).to_pylist()
        return rows[0]

    def scan(self) -> Iterator[Found]:
        """Convert a few rows at a time."""
        for batch in self.arrow.to_batches(max_chunksize=_ROWS_AT_ONCE):
            yield from batch.to_pylist()


class HubRows(Table):
    """A data set of the library datasets, which maps it from its own files."""

    def __init__(self, dataset: Any, name: str, task: str, folder: Path | None = None) -> None:
        super().__init__(name, task, folder)
        # As Arrow holds it: nothing is decoded, and images stay {bytes, path}. Columns that the
        # user's own format leaves out stay out.
        own = dataset.format
        self._dataset = dataset.with_format("arrow", own["columns"], own["output_all_columns"])

    def row(self, index: int) -> Mapping[str, Any]:
        """Convert one row."""
        rows: list[dict[str, Any]] = self._dataset[index].to_pylist()
        return rows[0]

    def scan(self) -> Iterator[Found]:
        """Convert a few rows at a time."""
        for part in self._dataset.iter(_ROWS_AT_ONCE):
            yield from part.to_pylist()


def need_library(module: str, purpose: str, extra: str = "data") -> Any:
    """Return a module, or say which extra brings it."""
    require(purpose, module, extra=extra, error=RunError)
    return import_module(module)


def read_table(path: Path) -> Table:
    """Open a file by its suffix: ``.jsonl``, ``.json`` (a list, or an object a line), ``.parquet``.

    Raises RunError if it cannot be read, or is not what its suffix says.
    """
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    if path.suffix.lower() == ".json" and _first_byte(path) == b"[":
        return _read_array(path)
    return JsonLines(path)


def _record(line: bytes) -> Mapping[str, Any]:
    """Return the object that a line of JSON is."""
    try:
        return parse_object(line.rstrip().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise BrokenRecord(f"is not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8") from None
    except ValueError as error:
        raise BrokenRecord(str(error)) from None


def _found(line: bytes) -> Found:
    try:
        return _record(line)
    except BrokenRecord as error:
        return error


def _read_array(path: Path) -> Objects:
    with _opened(path) as file:
        data = file.read()
    try:
        rows = json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise RunError(f"{path}, line {error.lineno}: is not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from None
    return Objects(rows, str(path), path.stem, path.parent)


def _read_parquet(path: Path) -> ArrowRows:
    pa = need_library("pyarrow", str(path), extra="cli")
    import_module("pyarrow.parquet")
    try:
        # Opened by Python first, whose errors say what is wrong with a path.
        with _opened(path), pa.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := [name for name in names if names.count(name) > 1]:
                raise RunError(f"{path}: has two columns {shown(twice[0])}; rename one of them")
            groups = range(file.metadata.num_row_groups)
            size = sum(file.metadata.row_group(group).total_byte_size for group in groups)
            if size <= _IN_MEMORY:
                return ArrowRows(file.read(), str(path), path.stem, path.parent)
            return _mapped(pa, file, path)
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0].rpartition("'<Buffer>': ")[2].rstrip(".")
        raise RunError(f"{path}: is not a Parquet file ({reason})") from None


def _mapped(pa: Any, file: Any, path: Path) -> ArrowRows:
    """Unpack a Parquet file, which cannot be read row by row, into one that can."""
    folder = TemporaryDirectory(prefix="g2rpo-")
    unpacked = str(Path(folder.name) / "rows.arrow")
    try:
        with pa.ipc.new_file(unpacked, file.schema_arrow) as writer:
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                writer.write_batch(batch)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be unpacked into {folder.name} ({error.strerror or error}); "
            "set TMPDIR to a folder with more room"
        ) from None
    table = pa.ipc.open_file(pa.memory_map(unpacked)).read_all()
    return ArrowRows(table, str(path), path.stem, path.parent, keep=folder)


def _first_byte(path: Path) -> bytes:
    with _opened(path) as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file; what goes wrong while it is read is an error of the file, too."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        # Those of pyarrow have no other text than their own.
        reason = error.strerror or error_text(error)
        raise RunError(f"{path}: cannot be read ({reason})") from None
