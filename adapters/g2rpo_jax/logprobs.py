"""Log-probabilities and exact entropies of a language model's head, without its logits in memory.

The logits of N tokens are an (N, V) array: 2.5 GB in float32 for 4,096 tokens and a vocabulary of
151,936. Here only one tile of them is in memory, and the backward pass computes them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero

from g2rpo._head_checks import check_head, check_label_values, check_labels, check_options

from ._softmax import IGNORED, Needs, choose_tile, operand_dtype, softmax_backward, softmax_forward
from ._tiles import Options, OutputGrads, Softmax, sum_dtype, with_common_axes

__all__ = ["logprobs_and_entropy"]


def logprobs_and_entropy(
    hidden: Array,
    weight: Array,
    labels: Array,
    /,
    *,
    bias: Array | None = None,
    low_rank: tuple[Array, Array] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    tile: tuple[int, int] | None = None,
) -> tuple[Array, Array]:
    r"""Return each label's log-probability and the exact entropy, differentiable both.

    With logits :math:`z = c \tanh((W h + b) / c) / T`, or :math:`z = (W h + b) / T` without a
    softcap c, these are :math:`\log p_y` and :math:`-\sum_v p_v \log p_v` of p = softmax(z).

    Parameters
    ----------
    hidden : Array
        Last hidden states, floating point, shape (..., H).
    weight : Array
        The head's weight, floating point, shape (V, H): an embedding, or ``kernel.T`` of a dense
        layer.
    labels : Array
        Integers, shape (...). Tokens labelled ``ignore_index`` do not count.
    bias : Array, optional
        Shape (V,). Minus infinity excludes an entry, also with a softcap.
    low_rank : tuple of Array, optional
        x of shape (..., R) and U of shape (V, R): the product U x is added to W h (LoRA), so that a
        frozen weight needs no gradient.
    temperature : float, optional
        T, positive; static, as are the options below.
    softcap : float, optional
        c, positive; None for no cap.
    ignore_index : int, optional
        Label of tokens that do not count: their log-probability, entropy and gradients are 0 for
        any hidden states.
    tile : tuple of int, optional
        Tokens and vocabulary entries of the tiles; by default depending on the default device. It
        changes time and memory, and results only by rounding.

    Returns
    -------
    logprobs, entropy : Array
        In nats, shape (...), float32; float64 if ``hidden`` or ``weight`` is.

    Raises
    ------
    TypeError
        If an argument is no ``jax.Array``, of a wrong dtype, or an option is traced.
    ValueError
        If shapes do not fit, an option is out of its range, or, where label values can be read, one
        other than ``ignore_index`` is outside 0 .. V - 1.

    Notes
    -----
    *Labels*: their values are checked outside of transformations only, and a call then waits for
    them. Under ``jax.jit`` a label outside 0 .. V - 1 makes its token's log-probability NaN,
    without a gradient; the entropy and all other tokens are unaffected.

    *Memory*: beyond the results and the gradients, a few tiles, the gradient of ``hidden`` in
    float32, and a few numbers per token. Gradients that are not required are not computed.

    *Time*: one matrix product forward; backward one to compute the logits again, and one for each
    of the gradients of ``hidden`` and ``weight``.

    *Precision*: the operands of products have the arrays' dtype (the promoted one, if they differ),
    and the gradient by the logits is rounded to it; sums are float32 (float64). The precision of
    float32 products on a device is that of ``jax.default_matmul_precision``.

    *JAX*: works under ``jit``, ``vmap``, ``grad``, ``checkpoint`` and ``shard_map``. Forward-mode
    differentiation raises. A second derivative is right, but saves every tile.

    *Sharding*: under ``jit`` sharded tokens are not moved. Inside ``shard_map``, which is faster,
    the gradient of a weight that is equal on all devices is summed over them once, at the end.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> hidden = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    >>> weight = jnp.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    >>> logprobs, entropy = logprobs_and_entropy(hidden, weight, jnp.array([2, -100]))
    >>> logprobs.round(4), entropy.round(4)  # three equal logits; a token that does not count
    (Array([-1.0986,  0.    ], dtype=float32), Array([1.0986, 0.    ], dtype=float32))
    """
    if low_rank is not None and len(low_rank) != 2:
        raise ValueError(f"low_rank must be two arrays, got {len(low_rank)}")
    named = {"hidden": hidden, "weight": weight, "bias": bias, "labels": labels}
    named |= {f"low_rank[{i}]": array for i, array in enumerate(low_rank or ())}
    for name, array in named.items():
        if array is not None and not isinstance(array, jax.Array):
            raise TypeError(f"{name} must be a jax.Array, got {type(array).__name__}")
    check_head(hidden, weight, bias, low_rank, is_floating=_has_dtype(jnp.floating))
    check_labels(labels, hidden, is_integral=_has_dtype(jnp.integer))
    check_options(temperature, softcap, tile)
    entries = weight.shape[0]
    if not isinstance(labels, jax.core.Tracer) and labels.is_fully_addressable:
        values = np.asarray(labels)
        check_label_values(values[values != ignore_index], entries)
    states: tuple[Array, ...] = (hidden,)
    weights: tuple[Array, ...] = (weight,)
    if low_rank is not None:
        states, weights = (hidden, low_rank[0]), (weight, low_rank[1])
    dtype = sum_dtype(operand_dtype(*states, *weights))
    if labels.size == 0:
        return (jnp.zeros(labels.shape, dtype),) * 2

    states = tuple(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) for x in states)
    codes = _codes(labels.reshape(-1), entries, ignore_index)
    tokens_by_entries = choose_tile() if tile is None else (int(tile[0]), int(tile[1]))
    options = Options(
        float(temperature), None if softcap is None else float(softcap), tokens_by_entries
    )
    states, weights, bias, codes = with_common_axes((states, weights, bias, codes))
    logprobs, entropy = _linear_softmax(options, states, weights, bias, codes)
    return logprobs.reshape(labels.shape), entropy.reshape(labels.shape)


def _has_dtype(kind: Any) -> Callable[[Array], bool]:
    return lambda array: jnp.issubdtype(array.dtype, kind)


def _codes(labels: Array, entries: int, ignore_index: int) -> Array:
    """Return labels as int32, with IGNORED for ignored ones and ``entries`` for invalid ones."""
    wide = labels.astype(jnp.int64 if labels.dtype.itemsize == 8 else jnp.int32)
    outside = (wide < 0) | (wide >= entries)
    codes = jnp.where(outside, entries, wide).astype(jnp.int32)
    return jnp.where(wide == ignore_index, IGNORED, codes)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear_softmax(
    options: Options,
    states: tuple[Array, ...],
    weights: tuple[Array, ...],
    bias: Array | None,
    codes: Array,
) -> tuple[Array, Array]:
    """Return log-probabilities and entropies (T,) of states (T, K), weights (V, K), codes (T,)."""
    return _counted(softmax_forward(states, weights, bias, codes, options), codes)


def _counted(softmax: Softmax, codes: Array) -> tuple[Array, Array]:
    counts = codes != IGNORED
    return jnp.where(counts, softmax.logprobs, 0.0), jnp.where(counts, softmax.entropy, 0.0)


def _forward(options: Options, *primals: Any) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
    """Return the results and the residuals for the backward pass."""
    states, weights, bias, codes = jax.tree.map(
        lambda primal: primal.value, primals, is_leaf=_is_primal
    )
    softmax = softmax_forward(states, weights, bias, codes, options)
    perturbed = jax.tree.map(lambda primal: primal.perturbed, primals[:3], is_leaf=_is_primal)
    needs = _Static(Needs(perturbed[0], perturbed[1], bool(perturbed[2])))
    residuals = (states, weights, bias, codes, softmax.entropy, softmax.normalizer, needs)
    return _counted(softmax, codes), residuals


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Static:
    """Static data among the residuals, as part of their tree structure."""

    value: Needs


def _is_primal(value: Any) -> bool:
    return hasattr(value, "perturbed")


def _backward(
    options: Options, residuals: tuple[Any, ...], cotangents: tuple[Any, Any]
) -> tuple[Any, ...]:
    """Return the gradients by states, weights and bias, and None for codes."""
    states, weights, bias, codes, entropy, normalizer, needs = residuals
    by_logprobs, by_entropy = (None if isinstance(c, SymbolicZero) else c for c in cotangents)
    has_grad = jnp.zeros_like(codes, dtype=bool)
    if by_logprobs is not None:
        known = (codes != IGNORED) & (codes < weights[0].shape[0])
        by_logprobs = jnp.where(known, by_logprobs, 0.0)
        has_grad = has_grad | (by_logprobs != 0)
    if by_entropy is not None:
        by_entropy = jnp.where(codes != IGNORED, by_entropy, 0.0)
        has_grad = has_grad | (by_entropy != 0)
    # Tokens without a gradient may hold any values, NaN included.
    codes = jnp.where(has_grad, codes, IGNORED)
    entropy, normalizer = (jnp.where(has_grad, x, 0.0) for x in (entropy, normalizer))
    gradients = softmax_backward(
        states,
        weights,
        bias,
        codes,
        Softmax(normalizer, entropy, normalizer),
        OutputGrads(by_logprobs, by_entropy),
        needs.value,
        options,
    )
    return (*gradients, None)


_linear_softmax.defvjp(_forward, _backward, symbolic_zeros=True)
