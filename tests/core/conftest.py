"""Every core test runs on every library: a library that cannot be imported fails its tests."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

LIBRARIES = ("numpy", "array_api_strict", "torch", "jax")
DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Library:
    """One array library at one floating precision."""

    name: str
    dtype: str
    xp: Any

    def array(self, values: Any) -> Any:
        """Make an array; floating values get the precision under test."""
        values = np.asarray(values)
        if values.dtype.kind == "f":
            values = values.astype(self.dtype)
        return self.xp.asarray(values)

    def call(self, function: Callable[..., Any], *arrays: Any, **options: Any) -> np.ndarray:
        """Apply ``function`` to arrays of this library and return the result as NumPy's.

        JAX is called through ``jit``: that is how it is used, and eager JAX compiles every
        primitive for every new shape.
        """
        given = [a if a is None else self.array(a) for a in arrays]
        function = partial(function, **options)
        if self.name == "jax":
            function = importlib.import_module("jax").jit(function)
        return self.numpy(function(*given))

    @staticmethod
    def numpy(array: Any) -> np.ndarray:
        return np.asarray(array.detach() if hasattr(array, "detach") else array)

    @property
    def tolerance(self) -> float:
        return 1e-6 if self.dtype == "float32" else 1e-12


def make_library(name: str, dtype: str, stack: ExitStack) -> Library:
    if name == "jax":
        jax = importlib.import_module("jax")
        stack.enter_context(jax.numpy_dtype_promotion("strict"))
        stack.enter_context(jax.numpy_rank_promotion("raise"))
        # Single precision is JAX as it comes: with 32-bit integers, too.
        stack.enter_context(jax.enable_x64(dtype == "float64"))
        return Library(name, dtype, jax.numpy)
    # PyTorch itself lacks some names of the standard; the private functions want all of them.
    namespace = "array_api_compat.torch" if name == "torch" else name
    return Library(name, dtype, importlib.import_module(namespace))


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest, dtype: str) -> Iterator[Library]:
    with ExitStack() as stack:
        yield make_library(request.param, dtype, stack)


@pytest.fixture
def xp(library: Library) -> Any:
    return library.xp


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260408)
