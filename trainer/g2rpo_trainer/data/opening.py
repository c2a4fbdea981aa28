"""From ``data.source``, or from rows, to tables: files, folders, and data sets of the hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from g2rpo._shown import clipped, listed, shown
from g2rpo._suggest import unknown_name
from g2rpo_trainer.config import DATA_SUFFIXES, Data
from g2rpo_trainer.errors import RunError

from .tables import HubRows, Objects, Table, read_table

_SAVED = ("dataset_dict.json", "state.json")


def open_tables(data: Data) -> list[Table]:
    """Open what ``data.source`` names, unless it is drawn on the fly.

    Parameters
    ----------
    data : Data
        Source, split, subset and revision.

    Returns
    -------
    list of Table
        At least one; with a row at least.

    Raises
    ------
    RunError
        If there is no such thing, or it cannot be read.
    """
    path = Path(os.path.expanduser(data.source))
    if os.path.isdir(path):  # unlike pathlib, False for names too long
        tables = _open_folder(path, data)
    elif path.suffix.lower() in DATA_SUFFIXES:
        _refuse_hub_options(data)
        tables = [read_table(path)]
    else:
        tables = [_load(data)]
    if not any(len(table) for table in tables):
        raise RunError(f"{data.source}: has no records")
    return tables


def table_of(rows: Any) -> Table:
    """Return rows that are already there as a table.

    Raises
    ------
    RunError
        If they are no sequence of records, or there are none.
    """
    if remedy := _remedy(rows):
        raise RunError(f"rows is of type {type(rows).__name__}; {remedy}")
    if not len(rows):
        raise RunError("rows: has no records")
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


def need_library(module: str, purpose: str, extra: str = "data") -> Any:
    """Return a module, or say which extra brings it."""
    if find_spec(module) is None:
        name = module.replace("_", "-")
        raise RunError(f'{purpose} needs {name}; run: pip install "g2rpo[{extra}]"')
    return import_module(module)


def _open_folder(path: Path, data: Data) -> list[Table]:
    if any((path / name).is_file() for name in _SAVED):
        return [_load_saved(path, data)]
    _refuse_hub_options(data)
    files = sorted(
        file
        for file in path.iterdir()
        if file.suffix.lower() in DATA_SUFFIXES and file.is_file() and not file.name.startswith(".")
    )
    if not files:
        *first, last = DATA_SUFFIXES
        raise RunError(f"{path}: has no {', '.join(first)} or {last} file")
    return [read_table(file) for file in files]


def _load_saved(path: Path, data: Data) -> Table:
    if data.subset is not None or data.revision is not None:
        raise RunError("data.subset and data.revision are for data sets of the hub alone")
    datasets = need_library("datasets", f"the folder {path}")
    try:
        saved = datasets.load_from_disk(str(path))
    # The library raises errors of many kinds on damaged files, down to those of JSON and Arrow.
    except Exception as error:
        raise RunError(f"{path}: cannot be read ({_one_line(error)})") from None
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
            f"it cannot be loaded ({_one_line(error)})"
        ) from None
    return HubRows(dataset, f"{data.source} ({split})", data.source.rpartition("/")[2])


def _refuse_hub_options(data: Data) -> None:
    for name in ("split", "subset", "revision"):
        if getattr(data, name) is not None:
            raise RunError(
                f"data.{name} is {shown(getattr(data, name))}, but data.source "
                f"{shown(data.source)} is a file or a folder of files, which has none"
            )


def _one_line(error: Exception) -> str:
    return clipped(" ".join(str(error).split())) or type(error).__name__
