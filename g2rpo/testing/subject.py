"""The function under test, with NumPy batches as input and float64 advantages as output."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from array_api_compat import is_array_api_obj

from g2rpo._checks import require_choice
from g2rpo._libraries import to_numpy
from g2rpo._shown import typed_error_text
from g2rpo.advantages import takes_lengths
from g2rpo.testing.strategies import DType, RewardBatch

#: ``fn(rewards, groups, tasks)``, or ``fn(rewards, groups)``, -> advantages (N,).
AdvantageFunction: TypeAlias = Callable[..., Any]
LibraryName: TypeAlias = Literal["numpy", "torch", "jax"]
Values: TypeAlias = npt.NDArray[Any]


class Violation(AssertionError):
    """An invariant does not hold for a batch.

    Parameters
    ----------
    message : str
        Description of the violation, with its numbers.
    **columns : numpy.ndarray
        Further columns of the report, beside labels and rewards; shape (N,) each.
    """

    def __init__(self, message: str, **columns: Values) -> None:
        super().__init__(message)
        self.columns: dict[str, Values] = {
            name.replace("_", " "): values for name, values in columns.items()
        }


class Subject:
    """An advantage function with its array library, precision and tolerance.

    Parameters
    ----------
    fn : callable
        ``fn(rewards, groups, tasks)`` or ``fn(rewards, groups)``; with a keyword ``lengths`` it
        gets the batch's :attr:`RewardBatch.lengths` as well.
    library : {"numpy", "torch", "jax"}, optional
        Library of the arrays that it takes.
    dtype : {"float32", "float64"}, optional
        Dtype of the rewards that it gets.
    tolerance : float, optional
        Largest difference of advantages from their expected values, in units of the largest
        advantage or 1. The rounding errors of sums are allowed in addition, also with 0.

    Raises
    ------
    TypeError
        If ``fn`` cannot be called.
    ValueError
        If an option has another value.

    Examples
    --------
    >>> subject = Subject(lambda rewards, groups: rewards - rewards.mean())
    >>> subject(RewardBatch(np.asarray([0.0, 1.0]), np.asarray([0, 0]), np.asarray([0, 0])))
    array([-0.5,  0.5])
    """

    def __init__(
        self,
        fn: AdvantageFunction,
        *,
        library: LibraryName = "numpy",
        dtype: DType = "float64",
        tolerance: float = 1e-3,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"fn must be callable, got {type(fn).__name__}")
        require_choice("library", library, ("numpy", "torch", "jax"))
        require_choice("dtype", dtype, ("float32", "float64"))
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance must be in [0, 1), got {tolerance!r}")
        self.tolerance = tolerance
        self.rounding: float = float(np.finfo(dtype).eps)
        self._fn = fn
        self._dtype = dtype
        self._takes_tasks = _takes_tasks(fn)
        self._takes_lengths = takes_lengths(fn)
        self._library = library
        self._namespace = import_module("jax.numpy" if library == "jax" else library)

    def __call__(self, batch: RewardBatch) -> npt.NDArray[np.float64]:
        """Return the advantages of a batch, float64, shape (N,).

        Raises
        ------
        Violation
            If the function raises, or returns anything but one real number per rollout.
        """
        size = batch.rewards.shape[0]
        with self._precision(), np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Copies: a function that writes into its arguments must not change the example.
            arrays = [self._namespace.asarray(array.copy()) for array in self.arguments(batch)]
            keywords = {
                name: self._namespace.asarray(array) for name, array in self.keywords(batch).items()
            }
            try:
                result = self._fn(*arrays, **keywords)
                advantages = to_numpy(result) if is_array_api_obj(result) else None
            except Exception as error:
                raise Violation(f"it raised {typed_error_text(error)}") from error
        if advantages is None:
            kind = type(result).__name__
            raise Violation(f"it returned {kind}, not an array of shape ({size},)")
        if advantages.shape != (size,):
            raise Violation(f"it returned shape {advantages.shape} for {size} rollouts")
        if advantages.dtype.kind not in "fiub":
            raise Violation(f"it returned {advantages.dtype}, not real numbers")
        return np.asarray(advantages, dtype=np.float64)

    def arguments(self, batch: RewardBatch) -> tuple[Values, ...]:
        """Return the positional arguments of the function: two or three NumPy arrays."""
        rewards = batch.rewards.astype(self._dtype)
        return (rewards, batch.groups, batch.tasks)[: 3 if self._takes_tasks else 2]

    def keywords(self, batch: RewardBatch) -> dict[str, Values]:
        """Return the keyword arguments of the function: ``lengths``, if it takes them."""
        return {"lengths": batch.lengths} if self._takes_lengths else {}

    def far(self, values: Values, expected: Values | float, *, rounding: float = 0.0) -> Values:
        """Return which values are farther from ``expected`` than the tolerance; NaN equals NaN.

        Parameters
        ----------
        rounding : float, optional
            Additional tolerance, in units of the dtype's eps and of the scale.
        """
        expected = np.broadcast_to(expected, values.shape)
        allowed = (self.tolerance + rounding * self.rounding) * scale_of(values, expected)
        same = (values == expected) | (np.isnan(values) & np.isnan(expected))
        with np.errstate(invalid="ignore", over="ignore"):
            near: Values = same | (np.abs(values - expected) <= allowed)
        return ~near

    def _precision(self) -> AbstractContextManager[Any]:
        if self._library != "jax":
            return nullcontext()
        enable: Any = import_module("jax").enable_x64
        return enable(self._dtype == "float64")  # type: ignore[no-any-return]


def scale_of(*arrays: Values) -> float:
    """Return the largest finite magnitude in the arrays, and at least 1."""
    values = np.abs(np.concatenate([np.ravel(array) for array in arrays]))
    return float(np.max(values, initial=1.0, where=np.isfinite(values)))


def _takes_tasks(fn: AdvantageFunction) -> bool:
    try:
        signature = inspect.signature(fn)
    except ValueError:  # some built-in functions have none
        return True
    try:
        signature.bind(None, None, None)
    except TypeError:
        return False
    return True
