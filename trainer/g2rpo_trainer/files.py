"""Files that survive a crash: replaced as a whole, or logs to which whole lines are appended."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from g2rpo._shown import error_text
from g2rpo_trainer.errors import RunError

__all__ = [
    "append_lines",
    "checksum_fault",
    "read_lines",
    "replacing",
    "sync",
    "to_json",
    "truncate_lines",
    "write_checksums",
    "write_text",
    "writing",
]

_CHECKSUMS = "checksums.json"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Writers in Rust (safetensors, tokenizers) give the error number in their text alone.
_OS_ERROR = re.compile(r"os error (\d+)")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a new file or folder, which takes the place of `path` at the end.

    A crash or an error leaves the old one, or none.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> path = Path(mkdtemp()) / "a.txt"
    >>> with replacing(path) as partial:
    ...     _ = partial.write_text("whole")
    >>> path.read_text()
    'whole'
    """
    partial = path.with_name(f".partial-{path.name}")
    _remove(partial)
    try:
        yield partial
        _sync_tree(partial)
        if path.is_dir():  # which cannot be replaced in one move, as a file can
            shutil.rmtree(path)
        os.replace(partial, path)
    except BaseException:
        _remove(partial)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a text file as a whole."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def append_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Append one JSON object a line."""
    lines = [json.dumps(to_json(record), allow_nan=False, ensure_ascii=False) for record in records]
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))


def read_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the JSON object of each line, and the offset in bytes at which its line ends.

    A crash can leave half a last line, and a power cut something else in its place: the first line
    that is no JSON object ends the file.
    """
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            end += len(line)
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                record = None
            if not isinstance(record, dict):
                return
            yield record, end


def truncate_lines(path: Path, after_step: int) -> None:
    """Cut off the lines of steps after `after_step`; ``step`` never falls from line to line.

    The file is cut in place, which needs no room on a disk that may be full.
    """
    if not path.exists():
        return
    kept = 0
    for record, end in read_lines(path):
        if record["step"] > after_step:
            break
        kept = end
    os.truncate(path, kept)


def write_checksums(folder: Path) -> None:
    """Write ``checksums.json``: the SHA-256 of each file of a folder, by its path in there."""
    sums = {path.relative_to(folder).as_posix(): _sha256(path) for path in _files(folder)}
    (folder / _CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def checksum_fault(folder: Path) -> str | None:
    """Return in words how a folder differs from its ``checksums.json``; None if it does not.

    Files that were added later do not count.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> folder = Path(mkdtemp())
    >>> _ = (folder / "a.txt").write_text("whole")
    >>> write_checksums(folder)
    >>> checksum_fault(folder)
    >>> _ = (folder / "a.txt").write_text("whale")
    >>> checksum_fault(folder)
    'a.txt does not have the checksum that it was written with'
    """
    try:
        sums = dict(json.loads((folder / _CHECKSUMS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return f"{_CHECKSUMS} is missing or damaged"
    for name, expected in sums.items():
        try:
            found = _sha256(folder / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found != expected:
            return f"{name} does not have the checksum that it was written with"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(root: Path) -> None:
    if root.is_file():
        sync(root)
    for folder, _, names in os.walk(root):
        for name in names:
            sync(Path(folder) / name)
        sync(Path(folder))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_full(error: BaseException) -> bool:
    """Return whether a write failed for lack of room: full disk, quota, or limit of file size.

    Examples
    --------
    >>> _is_full(OSError(errno.ENOSPC, "No space left on device"))
    True
    >>> _is_full(ValueError("I/O error: No space left on device (os error 28)"))
    True
    >>> _is_full(ValueError("no such key"))
    False
    """
    if isinstance(error, OSError):
        return error.errno in _FULL
    found = _OS_ERROR.search(str(error))
    return found is not None and int(found[1]) in _FULL


@contextmanager
def writing(folder: Path, name: str) -> Iterator[None]:
    """Turn errors of the disk into a `RunError` with what could not be written, and the remedy.

    Parameters
    ----------
    folder : Path
        Folder of a run.
    name : str
        The file or content that is written inside the context.
    """
    try:
        yield
    except Exception as error:
        if not _is_full(error) and not isinstance(error, OSError):
            raise
        reason = getattr(error, "strerror", None) or error_text(error)
        advice = (
            "make room there: older runs, or fewer checkpoints (output.keep_checkpoints)"
            if _is_full(error)
            else "it must be a folder that this process may write to"
        )
        raise RunError(f"{folder}: {name} cannot be written ({reason}); {advice}") from error


def to_json(value: Any) -> Any:
    """Return `value` as JSON holds it: NaN becomes null, infinities "inf" and "-inf".

    Examples
    --------
    >>> to_json({"a": [1.5, math.nan, -math.inf], 2: "text"})
    {'a': [1.5, None, '-inf'], '2': 'text'}
    """
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    if math.isfinite(number):
        return number
    return None if math.isnan(number) else str(number)
