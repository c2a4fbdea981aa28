"""Reports of counter-examples: a batch as a table, and as code that creates it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from types import MappingProxyType
from typing import Any

import numpy.typing as npt

from g2rpo.testing.strategies import RewardBatch

#: In a table of more rows, equal consecutive rows become one with their number.
_ROWS = 8

#: Largest number of rows that are shown.
_MOST_ROWS = 20
Values = npt.NDArray[Any]


def describe(message: str, batch: RewardBatch, columns: Mapping[str, Values]) -> str:
    """Return the message, and below it a line for every rollout.

    The first columns are labels and rewards, these in full; other numbers are shown to six digits.

    Examples
    --------
    >>> import numpy as np
    >>> batch = RewardBatch(np.asarray([0.5, np.inf]), np.asarray([7, 7]), np.asarray([0, 0]))
    >>> print(describe("too large", batch, {"advantage": np.asarray([0.0, 12.0])}))
    too large
      group  task  reward  advantage
          7     0     0.5          0
          7     0     inf         12
    """
    headed = {"group": batch.groups, "task": batch.tasks, "reward": batch.rewards, **columns}
    rows = list(zip(*(_texts(name, values) for name, values in headed.items()), strict=True))
    heading = tuple(headed)
    if len(rows) > _ROWS:
        runs = [(row, len(list(run))) for row, run in groupby(rows)]
        rows = [(f"{number} x", *row) for row, number in runs]
        heading = ("rollouts", *heading)
    table = [heading, *rows[:_MOST_ROWS]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  " + "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
        for row in table
    ]
    if len(rows) > _MOST_ROWS:
        lines.append(f"  ... and {len(rows) - _MOST_ROWS} rows more")
    return "\n".join([message, *lines])


def reproduction(
    arguments: Iterable[Values],
    name: str = "fn",
    module: str = "np",
    keywords: Mapping[str, Values] = MappingProxyType({}),
) -> str:
    """Return the call that repeats an example with arrays of a module.

    Parameters
    ----------
    arguments : iterable of numpy.ndarray
        Positional arguments of the call.
    name : str
        Function to call.
    module : str
        Array library, as it is imported: ``np``, ``torch``, ``jnp``.
    keywords : mapping of str to numpy.ndarray
        Keyword arguments of the call.

    Returns
    -------
    str
        A line of Python.

    Examples
    --------
    >>> import numpy as np
    >>> reproduction((np.asarray([0.0, -np.inf]), np.asarray([0, 0])), "grpo", "torch")
    'grpo(torch.asarray([0.0, -torch.inf]), torch.asarray([0, 0]))'
    """
    special = {"inf": f"{module}.inf", "-inf": f"-{module}.inf", "nan": f"{module}.nan"}

    def text(values: Values) -> str:
        items = [special.get(repr(value), repr(value)) for value in values.tolist()]
        return f"{module}.asarray([{', '.join(items)}])"

    named = [f"{key}={text(values)}" for key, values in keywords.items()]
    return f"{name}({', '.join([*map(text, arguments), *named])})"


def _texts(name: str, values: Values) -> list[str]:
    numbers = values.tolist()
    if values.dtype.kind != "f":
        return [str(number) for number in numbers]
    if name.endswith("reward"):
        # All digits, so that the batch can be repeated; 1.0 as 1.
        return [repr(number).removesuffix(".0") for number in numbers]
    return [f"{number + 0.0:.6g}" for number in numbers]
