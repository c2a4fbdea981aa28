"""State that lives between steps: named tuples of arrays, to and from plain JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from array_api_compat import is_torch_array

from g2rpo._checks import namespace_of
from g2rpo._libraries import device_of
from g2rpo._typing import Array

S = TypeVar("S", bound=NamedTuple)


def to_numpy(array: Array) -> Any:
    """Copy an array of any library to the host, as NumPy's."""
    if is_torch_array(array):
        array = array.detach().cpu()
    return np.asarray(array)


def state_to_json(state: NamedTuple) -> dict[str, Any]:
    """Return the state as dictionaries and lists; infinities become strings, for strict JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        return value

    return {name: plain(to_numpy(array).tolist()) for name, array in state._asdict().items()}


def state_from_json(kind: type[S], data: Mapping[str, Any], like: Array) -> S:
    """Return the state with the library, device and floating dtype of ``like``.

    Raises
    ------
    ValueError
        If ``data`` has not exactly the fields of the state.
    """
    xp = namespace_of(like=like)
    if set(data) != set(kind._fields):
        raise ValueError(
            f"{kind.__name__} must have the fields {', '.join(kind._fields)}, "
            f"got {', '.join(sorted(data)) or 'none'}"
        )
    arrays = []
    for name in kind._fields:
        values = np.asarray(data[name])
        if values.dtype.kind != "b":
            values = values.astype(np.float64)
        dtype = xp.bool if values.dtype.kind == "b" else like.dtype
        arrays.append(xp.asarray(values.tolist(), dtype=dtype, device=device_of(like)))
    return kind._make(arrays)
