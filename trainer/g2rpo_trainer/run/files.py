"""Files that survive a crash: written whole or not at all, and logs that grow line by line."""

import errno
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "append_lines",
    "is_full",
    "read_lines",
    "sync",
    "sync_tree",
    "to_json",
    "truncate_lines",
    "write_text",
]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Writers in Rust (safetensors, tokenizers) give the number in their text alone.
_OS_ERROR = re.compile(r"os error (\d+)")


def write_text(path: Path, text: str) -> None:
    """Replace a file at once: a crash leaves the old one or the new one."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        partial.write_text(text, encoding="utf-8")
        sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def append_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Append one JSON object a line."""
    lines = [json.dumps(to_json(record), allow_nan=False, ensure_ascii=False) for record in records]
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))


def read_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the JSON object of each line, and the place in the file where its line ends.

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


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(root: Path) -> None:
    """Wait until a folder with all that is in it is on the disk."""
    for folder, _, names in os.walk(root):
        for name in names:
            sync(Path(folder) / name)
        sync(Path(folder))


def is_full(error: BaseException) -> bool:
    """Tell whether something could not be written for lack of room: disk, quota or file size.

    Examples
    --------
    >>> is_full(OSError(errno.ENOSPC, "No space left on device"))
    True
    >>> is_full(ValueError("I/O error: No space left on device (os error 28)"))
    True
    >>> is_full(ValueError("no such key"))
    False
    """
    if isinstance(error, OSError):
        return error.errno in _FULL
    found = _OS_ERROR.search(str(error))
    return found is not None and int(found[1]) in _FULL


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
