"""From ``data.source``, or from rows, to tables: files, folders, and data sets of the hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from g2rpo._shown import error_text, listed, shown
from g2rpo._suggest import unknown_name
from g2rpo_trainer.config import DATA_SUFFIXES, Data
from g2rpo_trainer.errors import RunError

from .tables import HubRows, Objects, Table, need_library, read_table

_SAVED = ("dataset_dict.json", "state.json")

# In a folder of data files, a file of these formats would be ignored in silence.
_OTHER_TABLES = (".csv", ".tsv", ".ndjson", ".arrow", ".feather", ".orc", ".xls", ".xlsx")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")


def open_tables(data: Data) -> list[Table]:
    """Open the source, unless it is drawn on the fly; raise RunError if it cannot be read."""
    path = Path(os.path.expanduser(data.source))
    if os.path.isdir(path):  # unlike pathlib, False for names too long
        return _open_folder(path, data)
    if path.suffix.lower() in DATA_SUFFIXES:
        _refuse_hub_options(data)
        return [read_table(path)]
    return [_load(data)]


def table_of(rows: Any) -> Table:
    """Return given rows as a table; raise RunError if they are no sequence of records."""
    if remedy := _remedy(rows):
        raise RunError(f"rows is of type {type(rows).__name__}; {remedy}")
    form = getattr(rows, "format", None)
    # The library datasets. What a transform makes of a row, it makes when the row is asked for.
    if isinstance(form, dict) and form["type"] != "custom":
        return HubRows(rows, "rows", "rows")
    return Objects(rows, "rows", "rows")


def _remedy(rows: Any) -> str | None:
    """Return what to hand over in place of rows that are no sequence of records."""
    if isinstance(rows, str | bytes | Path):
        return "name a file, a folder or a data set of the hub by data.source"
    if isinstance(rows, Mapping):
        return f"hand over one of its entries, such as a split ({listed(rows)})"
    if hasattr(rows, "columns") and hasattr(rows, "shape"):  # its entries are columns
        for name in ("to_pylist", "to_dicts"):  # pyarrow, polars
            if hasattr(rows, name):
                return f"hand over rows.{name}()"
        return "hand over datasets.Dataset.from_pandas(rows)"
    if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
        return "records are looked up by number; hand over list(rows)"
    return None


def _open_folder(path: Path, data: Data) -> list[Table]:
    if any((path / name).is_file() for name in _SAVED):
        return [_load_saved(path, data)]
    _refuse_hub_options(data)
    *first, last = DATA_SUFFIXES
    formats = f"{', '.join(first)} or {last}"
    found = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    files = [file for file in found if file.suffix.lower() in DATA_SUFFIXES and file.is_file()]
    others = [file.name for file in found if _is_other_table(file)]
    if others:
        raise RunError(
            f"{path}: {listed(others)} cannot be read; save the records as {formats}, or move the "
            "file out of the folder"
        )
    if not files:
        raise RunError(f"{path}: has no {formats} file")
    return [read_table(file) for file in files]


def _is_other_table(file: Path) -> bool:
    name = Path(file.name.lower())
    if name.suffix in _COMPRESSED:
        return Path(name.stem).suffix in (*DATA_SUFFIXES, *_OTHER_TABLES) and file.is_file()
    return name.suffix in _OTHER_TABLES and file.is_file()


def _load_saved(path: Path, data: Data) -> Table:
    if data.subset is not None or data.revision is not None:
        raise RunError("data.subset and data.revision are for data sets of the hub alone")
    datasets = need_library("datasets", f"the folder {path}")
    try:
        saved = datasets.load_from_disk(str(path))
    # The library raises errors of many kinds on damaged files, down to those of JSON and Arrow.
    except Exception as error:
        raise RunError(f"{path}: cannot be read ({error_text(error)})") from None
    if isinstance(saved, dict):
        split = data.split or "train"
        if split not in saved:
            raise RunError(f"data.split: {unknown_name('split', split, saved)}")
        return HubRows(saved[split], f"{path} ({split})", path.name, path)
    if data.split is not None:
        raise RunError(f"data.split is {shown(data.split)}, but {path} was saved without splits")
    return HubRows(saved, str(path), path.name, path)


def _load(data: Data) -> Table:
    datasets = need_library("datasets", f"data.source {shown(data.source)}")
    split = data.split or "train"
    try:
        dataset = datasets.load_dataset(
            data.source, name=data.subset, split=split, revision=data.revision
        )
    # Errors of the network, the hub, the builder and the file formats have no common kind.
    except Exception as error:
        raise RunError(
            f"data.source {shown(data.source)} is no file or folder, and as a data set of the hub "
            f"it cannot be loaded ({error_text(error)})"
        ) from None
    return HubRows(dataset, f"{data.source} ({split})", data.source.rpartition("/")[2])


def _refuse_hub_options(data: Data) -> None:
    for name in ("split", "subset", "revision"):
        if getattr(data, name) is not None:
            raise RunError(
                f"data.{name} is {shown(getattr(data, name))}, but data.source "
                f"{shown(data.source)} is a file or a folder of files, which has none"
            )
