"""Checks of the dtypes and shapes of arguments, never of their values.

Values may be on another device or traced by a compiler, so reading them would synchronise or fail.
Dtypes and shapes are static: under ``jax.jit`` and ``torch.compile`` the checks cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj

from g2rpo._libraries import device_of
from g2rpo._typing import Array, Namespace


def namespace_of(**arrays: Array | None) -> Namespace:
    """Return the namespace that the named arrays share; None is skipped."""
    given = {name: array for name, array in arrays.items() if array is not None}
    for name, array in given.items():
        if not is_array_api_obj(array):
            raise TypeError(
                f"{name} must be an array of an Array API library (NumPy, PyTorch, JAX, ...), "
                f"got {type(array).__name__}"
            )
    try:
        return array_namespace(*given.values())
    except TypeError as error:
        kinds = ", ".join(f"{name}: {type(array).__name__}" for name, array in given.items())
        raise TypeError(f"all arrays must be of one library, got {kinds}") from error


def require_shape(name: str, array: Array, *shapes: tuple[int | str, ...]) -> None:
    """Raise unless ``array`` has one of the shapes; a letter stands for any size."""
    for shape in shapes:
        if len(shape) == array.ndim and all(
            isinstance(want, str) or want == got
            for want, got in zip(shape, array.shape, strict=True)
        ):
            return
    wanted = " or ".join(f"({', '.join(map(str, s))}{',' * (len(s) == 1)})" for s in shapes)
    raise ValueError(f"{name} must have shape {wanted}, got {tuple(array.shape)}")


def require_labels(xp: Namespace, name: str, labels: Array, size: int) -> None:
    """Raise unless ``labels`` is a vector of ``size`` integers."""
    if not xp.isdtype(labels.dtype, "integral"):
        raise TypeError(f"{name} must hold integer labels, got dtype {labels.dtype}")
    require_shape(name, labels, (size,))


def labels_of(groups: Array | int | None) -> Array | None:
    """Return labels as they are, and None for a number of consecutive members."""
    return None if isinstance(groups, int | np.integer) else groups


def as_groups(xp: Namespace, name: str, groups: Array | int, size: int) -> Array | int:
    """Return checked labels (``size``,), or the checked number of consecutive members."""
    if labels_of(groups) is not None:
        if getattr(groups, "ndim", 1) == 0:
            raise TypeError(
                f"{name} must be integer labels ({size},) or a Python integer, got an array of "
                "shape (); under jax.jit a number is a static argument"
            )
        require_labels(xp, name, groups, size)
        return groups
    if isinstance(groups, bool):
        raise TypeError(f"{name} must be integer labels or a number of rollouts, got {groups!r}")
    members = int(groups)
    if members < 1 or size % members:
        raise ValueError(
            f"{name} must be labels or a number that divides the {size} rollouts, got {members}"
        )
    return members


def require_floating(xp: Namespace, name: str, array: Array) -> None:
    """Raise unless ``array`` holds real floating-point numbers."""
    if not xp.isdtype(array.dtype, "real floating"):
        raise TypeError(f"{name} must be real floating point, got dtype {array.dtype}")


def require_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be one of {listed}, got {value!r}")


def require_positive(name: str, value: float, *, zero: bool = False) -> None:
    """Raise unless the Python number ``value`` is finite and positive (or zero, if ``zero``)."""
    if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        bound = "non-negative" if zero else "positive"
        raise ValueError(f"{name} must be finite and {bound}, got {value!r}")


def require_weights(**weights: Array | float) -> None:
    """Raise unless each weight that is a Python number is finite and not negative."""
    for name, weight in weights.items():
        if not is_array_api_obj(weight):
            require_positive(name, weight, zero=True)


def working_dtype(xp: Namespace, name: str, array: Array) -> tuple[Array, Array]:
    """Return the dtype of the computation and that of the result.

    A floating dtype is that of the result too, and half precision is computed in float32. Integers
    and booleans are promoted to the library's default floating dtype.
    """
    if xp.isdtype(array.dtype, "real floating"):
        result = array.dtype
    elif xp.isdtype(array.dtype, ("integral", "bool")):
        defaults = xp.__array_namespace_info__().default_dtypes(device=device_of(array))
        result = defaults["real floating"]
    else:
        raise TypeError(f"{name} must be real, got dtype {array.dtype}")
    return wide_dtype(xp, result), result


def wide_dtype(xp: Namespace, dtype: Array) -> Array:
    """Return float32 for half precision and every other floating dtype itself."""
    return xp.float32 if xp.finfo(dtype).bits < 32 else dtype


def widen(xp: Namespace, array: Array) -> Array:
    """Return half precision as float32 and every other floating array unchanged."""
    return xp.astype(array, wide_dtype(xp, array.dtype), copy=False)


def as_mask(xp: Namespace, mask: Array, shape: tuple[int | str, ...]) -> Array:
    """Return ``mask`` as bool after checking that it is a mask of the given shape."""
    require_shape("mask", mask, shape)
    if not xp.isdtype(mask.dtype, ("bool", "integral", "real floating")):
        raise TypeError(f"mask must be boolean or hold 0 and 1, got dtype {mask.dtype}")
    return xp.astype(mask, xp.bool)
