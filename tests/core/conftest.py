"""Fixtures that run every core test on every library; a library that cannot be imported fails.

``G2RPO_TEST_DEVICE=cuda`` runs PyTorch's share on that device, and fails without it.
``G2RPO_TEST_LIBRARIES=numpy,jax`` names the libraries of an environment that lacks the others.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

LIBRARIES = tuple(
    os.environ.get("G2RPO_TEST_LIBRARIES", "numpy,array_api_strict,torch,jax").split(",")
)
DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Library:
    """One array library at one floating precision."""

    name: str
    dtype: str
    xp: Any
    device: str

    def array(self, values: Any) -> Any:
        """Make an array; floating values get the precision under test."""
        values = np.asarray(values)
        if values.dtype.kind == "f":
            values = values.astype(self.dtype)
        device = self.device if self.name == "torch" else None
        return self.xp.asarray(values, device=device)

    def call(self, function: Callable[..., Any], *arrays: Any, **options: Any) -> np.ndarray:
        """Apply ``function`` to arrays of this library and return the result as NumPy's."""
        given = [a if a is None else self.array(a) for a in arrays]
        return self.numpy(function(*given, **options))

    @staticmethod
    def numpy(array: Any) -> np.ndarray:
        return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)

    @property
    def tolerance(self) -> float:
        return 1e-6 if self.dtype == "float32" else 1e-12


def make_library(name: str, dtype: str, device: str, stack: ExitStack) -> Library:
    if name == "jax":
        jax = importlib.import_module("jax")
        stack.enter_context(jax.numpy_dtype_promotion("strict"))
        stack.enter_context(jax.numpy_rank_promotion("raise"))
        # Single precision is JAX as it comes: with 32-bit integers, too.
        stack.enter_context(jax.enable_x64(dtype == "float64"))
        return Library(name, dtype, jax.numpy, device)
    # PyTorch itself lacks some names of the standard; the private functions want all of them.
    namespace = "array_api_compat.torch" if name == "torch" else name
    return Library(name, dtype, importlib.import_module(namespace), device)


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def device() -> str:
    return os.environ.get("G2RPO_TEST_DEVICE", "cpu")


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest, dtype: str, device: str) -> Iterator[Library]:
    with ExitStack() as stack:
        yield make_library(request.param, dtype, device, stack)


@pytest.fixture
def xp(library: Library) -> Any:
    return library.xp


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260408)
