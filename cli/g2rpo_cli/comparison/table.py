"""Tables of rewards: the columns that estimators take, beside the rows that they came from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from g2rpo._suggest import unknown_name
from g2rpo.labels import encode_labels
from g2rpo_cli.comparison.reading import STDIN, Track, read_rows, untracked
from g2rpo_cli.comparison.rows import Rows
from g2rpo_trainer.errors import RunError

__all__ = ["RewardTable", "read_rewards"]

#: The task of a table that names none.
ONE_TASK = "all"


@dataclass(frozen=True)
class RewardTable:
    """Rewards with their groups and tasks, as arrays.

    Attributes
    ----------
    rewards : numpy.ndarray
        float64, shape (N,), or (N, K) for K components; NaN where there is no reward.
    groups, tasks : numpy.ndarray
        int64 labels, shape (N,). Tasks count from 0, in the order of ``task_names``.
    task_names : tuple of str
        Name of every task.
    reward_names : tuple of str
        Name of every component.
    source : str
        Where the rewards come from, for titles.
    rows : Rows, optional
        The rows of the file, for :func:`g2rpo_cli.comparison.write_advantages`.
    lengths : numpy.ndarray, optional
        float64, shape (N,): lengths of the responses in tokens, for estimators that take them.
    """

    rewards: npt.NDArray[np.float64]
    groups: npt.NDArray[np.int64]
    tasks: npt.NDArray[np.int64]
    task_names: tuple[str, ...] = (ONE_TASK,)
    reward_names: tuple[str, ...] = ("reward",)
    source: str = ""
    rows: Rows | None = field(default=None, repr=False, compare=False)
    lengths: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.groups)


def read_rewards(
    path: str | Path,
    *,
    reward: str | Sequence[str] = "reward",
    group: str = "group",
    task: str | None = None,
    length: str | None = None,
    track: Track = untracked,
) -> RewardTable:
    r"""Read a table of rewards from a JSONL, CSV or Parquet file.

    The suffix names the format: ``.jsonl``, ``.ndjson`` and ``.json`` hold one object a line,
    ``.csv`` and ``.tsv`` a header and rows, ``.parquet`` is read with pyarrow. The path ``-`` is
    standard input, as JSONL.

    Parameters
    ----------
    path : path
        The file.
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
    track : callable, optional
        ``track(items, total, description)`` yields the items; for a progress bar.

    Returns
    -------
    RewardTable
        With the rows in the order of the file.

    Raises
    ------
    RunError
        If the file cannot be read, a column is missing, a reward or a length is no number, a label
        is neither text nor integer, or a group has rows in two tasks. The text names the file, the
        line (the row, for Parquet) and the column.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "rewards.csv"
    ...     _ = path.write_text("group,reward,task\na,0,ocr\na,1,ocr\nb,,maths\n")
    ...     table = read_rewards(path)
    >>> table.rewards, table.groups, table.tasks, table.task_names
    (array([ 0.,  1., nan]), array([0, 0, 1]), array([1, 1, 0]), ('maths', 'ocr'))
    """
    rows = read_rows(path, track)
    source = "standard input" if str(path) == STDIN else str(path)
    components = (reward,) if isinstance(reward, str) else tuple(reward)
    columns = [_rewards(_Column(source, rows, name, "--reward")) for name in components]
    groups, _ = _labels(_Column(source, rows, group, "--group"))
    names: tuple[str, ...] = (ONE_TASK,)
    if task is None and "task" not in rows.names:
        tasks = np.zeros(len(rows), dtype=np.int64)
    else:
        tasks, names = _labels(_Column(source, rows, task or "task", "--task"))
        _refuse_shared_groups(source, rows, groups, tasks, names)
    rewards = columns[0] if len(columns) == 1 else np.stack(columns, axis=1)
    lengths = _lengths_if_any(source, rows, length)
    return RewardTable(rewards, groups, tasks, names, components, source, rows, lengths)


class _Column:
    """The cells of one column, and how to complain about one of them."""

    def __init__(self, source: str, rows: Rows, name: str, option: str) -> None:
        self._source, self._rows, self._name = source, rows, name
        if name not in rows.names:
            first = f", {'line 1' if rows.format == 'csv' else rows.place(0)}"
            raise RunError(
                f"{source}{first}: {unknown_name('column', name, rows.names)}; "
                f"name another with {option}"
            )
        try:
            self.cells = rows.column(name)
        except LookupError as missing:
            raise RunError(
                f"{source}, {rows.place(missing.args[0])}: has no column {name!r}"
            ) from None

    def error(self, row: int, text: str) -> RunError:
        return RunError(
            f"{self._source}, {self._rows.place(row)}, column {self._name!r}: "
            f"is {_shown(self.cells[row])}, but {text}"
        )

    def place(self, row: int) -> str:
        return self._rows.place(row)


def _shown(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _rewards(column: _Column) -> npt.NDArray[np.float64]:
    values = np.empty(len(column.cells))
    for row, cell in enumerate(column.cells):
        try:
            values[row] = _number(cell)
        except OverflowError:
            raise column.error(row, "must fit into a 64-bit floating-point number") from None
        except (TypeError, ValueError):
            raise column.error(row, "must be a number, or empty for no reward") from None
    return values


def _lengths_if_any(source: str, rows: Rows, name: str | None) -> npt.NDArray[np.float64] | None:
    if name is not None:
        return _lengths(_Column(source, rows, name, "--length"))
    try:
        return _lengths(_Column(source, rows, "length", "--length"))
    except RunError:  # no such column, or one of another meaning
        return None


def _lengths(column: _Column) -> npt.NDArray[np.float64]:
    values = np.empty(len(column.cells))
    for row, cell in enumerate(column.cells):
        try:
            values[row] = math.nan if isinstance(cell, bool) else _number(cell)
        except (OverflowError, TypeError, ValueError):
            values[row] = math.nan
        if not 0 <= values[row] < math.inf:
            raise column.error(row, "must be a length in tokens, a number of at least 0")
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


def _labels(column: _Column) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Return codes 0, 1, … and the names that they stand for, in ascending order."""
    kinds = set(map(type, column.cells))
    if kinds == {str} and "" not in column.cells:
        return encode_labels(column.cells)
    if kinds == {int}:
        try:
            labels, codes = np.unique(np.asarray(column.cells, np.int64), return_inverse=True)
        except OverflowError:
            row = next(row for row, x in enumerate(column.cells) if not -(2**63) <= x < 2**63)
            raise column.error(row, "must fit into a 64-bit integer") from None
        return codes.astype(np.int64), tuple(map(str, labels.tolist()))
    for row, cell in enumerate(column.cells):
        if type(cell) not in (str, int) or cell == "":
            raise column.error(row, "must be a label: text, or a whole number")
    first = column.cells[0]
    row = next(row for row, cell in enumerate(column.cells) if type(cell) is not type(first))
    raise column.error(
        row,
        f"{column.place(0)} has {_shown(first)}; labels must be all text or all whole numbers",
    )


def _refuse_shared_groups(
    source: str,
    rows: Rows,
    groups: npt.NDArray[np.int64],
    tasks: npt.NDArray[np.int64],
    names: Sequence[str],
) -> None:
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    strangers = np.flatnonzero(tasks != tasks[first][inverse])
    if strangers.size:
        row = int(strangers[0])
        earlier = int(first[inverse[row]])
        raise RunError(
            f"{source}, {rows.place(row)}: has task {names[tasks[row]]!r}, but its group has task "
            f"{names[tasks[earlier]]!r} in {rows.place(earlier)}; a group is the responses to one "
            "prompt, of one task"
        )
