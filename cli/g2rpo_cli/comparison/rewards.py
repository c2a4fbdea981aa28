"""Tables of rewards: the columns that estimators take, beside the rows that they came from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from g2rpo._suggest import unknown_name
from g2rpo.labels import encode_labels
from g2rpo_cli._output import refuse_output, replaced_file
from g2rpo_cli.comparison.rows import Rows, format_of, read_rows, write_rows
from g2rpo_trainer.errors import RunError

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RewardTable:
    """Rewards with their groups and tasks, as arrays.

    Attributes
    ----------
    rewards : numpy.ndarray
        float64, shape (N,), or (N, K) for K components; NaN where there is no reward.
    groups, tasks : numpy.ndarray
        int64 labels, shape (N,). Tasks count from 0, in the order of ``task_names``.
    task_names, reward_names : tuple of str
        Name of every task and of every component.
    source : str
        Origin of the rewards, for titles.
    rows : Rows, optional
        Rows of the file, for :func:`write_advantages`.
    lengths : numpy.ndarray, optional
        float64, shape (N,): lengths of the responses in tokens, for estimators that take them.

    Examples
    --------
    >>> groups, tasks = np.asarray([0, 0, 1, 1]), np.zeros(4, np.int64)
    >>> len(RewardTable(np.asarray([0.0, 1.0, 0.2, 0.7]), groups, tasks))
    4
    """

    rewards: Floats
    groups: Labels
    tasks: Labels
    task_names: tuple[str, ...] = ("all",)
    reward_names: tuple[str, ...] = ("reward",)
    source: str = ""
    rows: Rows | None = field(default=None, repr=False, compare=False)
    lengths: Floats | None = None

    def __len__(self) -> int:
        return len(self.groups)


def read_rewards(
    path: str | Path,
    *,
    reward: str | Sequence[str] = "reward",
    group: str = "group",
    task: str | None = None,
    length: str | None = None,
) -> RewardTable:
    r"""Read a table of rewards from a JSONL, CSV or Parquet file.

    The suffix names the format: ``.jsonl``, ``.ndjson`` and ``.json`` hold one object a line
    (``.json`` also a list of objects), ``.csv`` and ``.tsv`` a header and rows, ``.parquet`` is
    read with pyarrow. The path ``-`` is standard input, as JSONL.

    Parameters
    ----------
    path : path
        File to read.
    reward : str or sequence of str, optional
        Column of the rewards, or K columns of components. Numbers, booleans (1 and 0), and texts
        that spell either. An empty cell, null and NaN are an absent reward; infinities are legal.
    group : str, optional
        Column of the prompts' labels: all texts or all integers.
    task : str, optional
        Column of the tasks' labels, likewise. By default ``task`` if there is such a column, else
        all rows are of one task, ``all``.
    length : str, optional
        Column of the responses' lengths in tokens, numbers of at least 0. By default ``length`` if
        there is such a column and it holds such numbers, else there are none.

    Returns
    -------
    RewardTable
        With the rows in the order of the file.

    Raises
    ------
    RunError
        If the file cannot be read, a column is missing, a reward or a length is no number, a label
        is neither text nor integer, or a group has rows in two tasks. The text names the file, the
        line (the record, for Parquet) and the column.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> path = Path(mkdtemp()) / "rewards.csv"
    >>> _ = path.write_text("group,reward,task\na,0,ocr\na,1,ocr\nb,,maths\n")
    >>> table = read_rewards(path)
    >>> table.rewards, table.groups, table.tasks, table.task_names
    (array([ 0.,  1., nan]), array([0, 0, 1]), array([1, 1, 0]), ('maths', 'ocr'))
    """
    rows = read_rows(path)
    components = (reward,) if isinstance(reward, str) else tuple(reward)
    columns = [_rewards(_Column(rows, name, "--reward")) for name in components]
    groups, _ = _labels(_Column(rows, group, "--group"))
    names: tuple[str, ...] = ("all",)
    tasks = np.zeros(len(rows), dtype=np.int64)
    if task is not None or "task" in rows.names:
        tasks, names = _labels(_Column(rows, task or "task", "--task"))
        _refuse_shared_groups(rows, groups, tasks, names)
    rewards = columns[0] if len(columns) == 1 else np.stack(columns, axis=1)
    lengths = None
    try:
        lengths = _lengths(_Column(rows, length or "length", "--length"))
    except RunError:
        if length is not None:  # else there is no such column, or it means something else
            raise
    return RewardTable(rewards, groups, tasks, names, components, rows.source, rows, lengths)


def rows_to_write(table: RewardTable, column: str, overwrite: bool) -> Rows:
    """Return the rows; raise `RunError` if they have the column and it may not be overwritten."""
    if table.rows is None:
        raise RunError("the table has no rows of a file to write; read it with read_rewards")
    if column in table.rows.names and not overwrite:
        raise RunError(
            f"{table.source}: has a column {column!r} already; replace it with --force, "
            "or name another with --column"
        )
    return table.rows


def write_advantages(
    table: RewardTable,
    advantages: Any,
    output: str | Path | IO[bytes],
    *,
    column: str = "advantage",
    overwrite: bool = False,
) -> None:
    r"""Write the rows of a table with a column of advantages, all else as it was.

    Parameters
    ----------
    table : RewardTable
        From :func:`read_rewards`.
    advantages : array_like
        Real, shape (N,). NaN is written as null in JSON and Parquet, and as an empty cell in CSV;
        infinities as the texts ``"inf"`` and ``"-inf"`` in JSON and CSV.
    output : path or binary file
        A path is written in the format of its suffix, beside its place, and moved there when it is
        complete. An open file gets CSV if the rows came as CSV, else JSONL.
    column : str, optional
        Name of the new column, which comes last, or takes the place of one of this name.
    overwrite : bool, optional
        Whether ``output`` may exist, and whether the rows may have the column.

    Raises
    ------
    RunError
        If the file exists, is the one that was read, cannot be written, or its format cannot hold
        what a column holds. Nothing is left behind then.
    ValueError
        If ``advantages`` has another shape.

    Notes
    -----
    A file of the format that was read keeps every value. Between formats, texts of a CSV become
    numbers where the whole column is numbers; a CSV holds lists and objects as JSON text, and
    nothing for null.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> folder = Path(mkdtemp())
    >>> _ = (folder / "rewards.csv").write_text("group,reward\na,0\na,1\n")
    >>> table = read_rewards(folder / "rewards.csv")
    >>> write_advantages(table, [-1, 1], folder / "advantages.jsonl")
    >>> print((folder / "advantages.jsonl").read_text().strip())
    {"group": "a", "reward": 0, "advantage": -1.0}
    {"group": "a", "reward": 1, "advantage": 1.0}
    """
    rows = rows_to_write(table, column, overwrite)
    values = np.asarray(advantages, dtype=np.float64)
    if values.shape != (len(rows),):
        raise ValueError(f"advantages must have shape ({len(rows)},), got {values.shape}")
    if not isinstance(output, str | Path):
        path = rows.source if rows.format == "csv" else "-"
        write_rows(output, path, rows, column, values.tolist())
        return
    format_of(output)
    refuse_output("--output", Path(output), source=rows.source, overwrite=overwrite)
    with replaced_file(Path(output)) as file:
        write_rows(file, output, rows, column, values.tolist())


class _Column:
    """Cells of one column, with errors that name their places."""

    def __init__(self, rows: Rows, name: str, option: str) -> None:
        if name not in rows.names:
            first = f"{rows.source}, line 1" if rows.format == "csv" else rows.place(0)
            text = unknown_name("column", name, rows.names)
            raise RunError(f"{first}: {text}; name another with {option}")
        for row, record in enumerate(rows.records):
            if name not in record:
                raise RunError(f"{rows.place(row)}: has no column {name!r}")
        self.rows, self._name = rows, name
        self.cells = [record[name] for record in rows.records]

    def error(self, row: int, wish: str) -> RunError:
        """Return the error for a cell that is not as it must be."""
        place = f"{self.rows.place(row)}, column {self._name!r}"
        return RunError(f"{place}: is {_shown(self.cells[row])}, but {wish}")


def _shown(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _rewards(column: _Column) -> Floats:
    return _numbers(column, "must be a number, or empty for no reward")


def _lengths(column: _Column) -> Floats:
    wish = "must be a length in tokens, a number of at least 0"
    values = _numbers(column, wish)
    for row, (value, cell) in enumerate(zip(values, column.cells, strict=True)):
        if isinstance(cell, bool) or not 0 <= value < math.inf:
            raise column.error(row, wish)
    return values


def _numbers(column: _Column, wish: str) -> Floats:
    values = np.empty(len(column.cells))
    for row, cell in enumerate(column.cells):
        try:
            values[row] = _number(cell)
        except OverflowError:
            raise column.error(row, "must fit into a 64-bit floating-point number") from None
        except (TypeError, ValueError):
            raise column.error(row, wish) from None
    return values


_WORDS = {"": math.nan, "null": math.nan, "true": 1.0, "false": 0.0}


def _number(cell: Any) -> float:
    if isinstance(cell, float | int):
        return float(cell)
    if cell is None:
        return math.nan
    if not isinstance(cell, str) or "_" in cell:  # float() would read 1_0 as 10
        raise ValueError
    word = _WORDS.get(cell.strip().lower())
    return float(cell) if word is None else word


def _labels(column: _Column) -> tuple[Labels, tuple[str, ...]]:
    """Return codes 0, 1, … and the names that they stand for, in ascending order."""
    cells = column.cells
    kind = type(cells[0])
    for row, cell in enumerate(cells):
        if type(cell) not in (str, int) or cell == "":
            raise column.error(row, "must be a label: text, or a whole number")
        if kind is int and type(cell) is int and not -(2**63) <= cell < 2**63:
            raise column.error(row, "must fit into a 64-bit integer")
    for row, cell in enumerate(cells):
        if type(cell) is not kind:
            first = f"{column.rows.line(0)} has {_shown(cells[0])}"
            wish = f"{first}; labels must be all text or all whole numbers"
            raise column.error(row, wish)
    if kind is str:
        return encode_labels(cells)
    labels, codes = np.unique(np.asarray(cells, np.int64), return_inverse=True)
    return codes.astype(np.int64), tuple(map(str, labels.tolist()))


def _refuse_shared_groups(rows: Rows, groups: Labels, tasks: Labels, names: Sequence[str]) -> None:
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    strangers = np.flatnonzero(tasks != tasks[first][inverse])
    if strangers.size:
        row = int(strangers[0])
        earlier = int(first[inverse[row]])
        raise RunError(
            f"{rows.place(row)}: has task {names[tasks[row]]!r}, but its group has task "
            f"{names[tasks[earlier]]!r} in {rows.line(earlier)}; a group is the responses to one "
            "prompt, of one task"
        )
