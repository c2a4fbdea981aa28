"""Writes the records of a source as a host's data set: ``train.parquet`` and ``test.parquet``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from g2rpo._shown import listed
from g2rpo_trainer.data import Source
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.record import BrokenRecord, Record

from .rows import HOSTS, Host, Parts

FILES = ("train.parquet", "test.parquet")
"""The records to train on, and those that are held out."""

#: A group of rows in a file: as many, or as many bytes of media.
_ROWS, _BYTES = 1024, 2**26

Track = Callable[[Iterable[Record], int, str], Iterable[Record]]


def check_folder(folder: Path, force: bool, names: Iterable[str] = FILES) -> None:
    """Raise unless a folder can be written: there is none, or `force` replaces one of ours.

    One that holds anything but `names` is never replaced.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RunError(f"{folder} is a file; name a folder by --output")
    if others := sorted({path.name for path in folder.iterdir()} - set(names)):
        raise RunError(
            f"{folder} holds {listed(others)}, which this command did not write; name another "
            "folder by --output"
        )
    if not force:
        raise RunError(
            f"{folder} exists; name another folder by --output, or replace it by --force"
        )


def write_records(
    source: Source,
    name: str,
    folder: Path,
    *,
    prompts: int | None = None,
    seed: int = 0,
    eval_items: int = 128,
    track: Track = lambda records, total, description: records,
) -> dict[str, int]:
    """Write the :data:`FILES` of a data set for a trainer, a key of :data:`HOSTS`, into a folder.

    They hold the first `prompts` of a run with this seed, in its order, and `eval_items` held-out
    records of each task; by default each record once, in the order of the source. Returns the
    number of rows by file. Raises RunError if a record cannot be used, unless ``data.skip_broken``
    allows it.
    """
    _refuse_unsuitable(source, name)
    tasks = source.summary().tasks.values()

    def use(record: Record) -> Record:
        if (fault := HOSTS[name].fault(record)) is not None:
            raise BrokenRecord(fault)
        return record

    train: Iterable[Record]
    test: Iterable[Record]
    if prompts is None:
        train, test = (source.stored_records(use, held_out=held_out) for held_out in (False, True))
        total, held = sum(t.training or 0 for t in tasks), sum(t.held_out or 0 for t in tasks)
    else:
        slots = source.slots(seed=seed, position=0, prompts=prompts)
        train, total = (source.read(slot, use) for slot in slots), prompts
        test = (r for task in source.tasks for r in source.held_out(task, eval_items, use))
        held = sum(min(t.held_out or eval_items, eval_items) for t in tasks)
    counts = {}
    for file, records, size in zip(FILES, (train, test), (total, held), strict=True):
        tracked = track(records, size, file)
        counts[file] = _write(folder / file, tracked, HOSTS[name], source.parts)
        if not counts[file]:
            reasons = "\n".join(source.summary().examples)
            raise RunError(f"none of the records for {file} can be used, such as:\n{reasons}")
    return counts


def _refuse_unsuitable(source: Source, name: str) -> None:
    """Raise if a host cannot take the records of a source."""
    from g2rpo_trainer.data.streams import PROBLEM_TYPE

    host = HOSTS[name]
    for parts, reason in host.refused.items():
        if parts <= source.parts:
            raise RunError(f"there are records {reason}")
    types = {kind for task in source.summary().tasks.values() for kind in task.problem_types}
    if PROBLEM_TYPE in types:
        raise RunError(
            "records of reasoning-gym are scored by its own scorers, whose entries a column of "
            f"texts cannot hold; {name} needs records with an answer of their own"
        )


def _write(path: Path, records: Iterable[Record], host: Host, parts: Parts) -> int:
    pa, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    fields = host.fields(pa, parts)
    schema = pa.schema(fields.items(), metadata={"huggingface": json.dumps(_features(fields))})
    count = 0
    with parquet.ParquetWriter(path, schema) as writer:
        for rows in _groups(host.row(r, n, path.stem, parts) for n, r in enumerate(records)):
            # Arrow makes no JSON out of Python's values, but casts texts to it.
            table = pa.Table.from_pylist(rows, schema=_as_texts(pa, schema))
            writer.write_table(table.cast(schema))
            count += len(rows)
    return count


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += sum(len(image["bytes"]) for image in row.get("images", ()))
        size += sum(len(uri) for video in row.get("videos", ()) for uri in video["video"])
        if len(group) == _ROWS or size >= _BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _features(fields: dict[str, Any]) -> dict[str, Any]:
    """Return what tells the library datasets that a column holds images."""
    images = {"images": {"_type": "List", "feature": {"_type": "Image"}}}
    return {"info": {"features": images if "images" in fields else {}}}


def _as_texts(pa: Any, schema: Any) -> Any:
    """Return a schema with texts in place of JSON, in columns and one level below."""

    def plain(kind: Any) -> Any:
        if pa.types.is_struct(kind):
            return pa.struct({field.name: plain(field.type) for field in kind})
        return pa.string() if isinstance(kind, pa.BaseExtensionType) else kind

    return pa.schema([(f.name, plain(f.type)) for f in schema], metadata=schema.metadata)
