"""What a block of equal values gets, and ranks of small segments by counting instead of sorting.

A block is known by three numbers: how many values its segment has, how many of them are smaller,
and how many are equal. For segments of up to a few dozen values all blocks there can be fit into a
table, made by the same sums as for sorted segments, so that results agree to the last bit.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

from g2rpo._libraries import device_of, gather, is_eager
from g2rpo._normal import mean_between, quantile_of_ratio
from g2rpo._segments import exact_sum, sum_between
from g2rpo._typing import Array, Namespace

Ties = Literal["midpoint", "barycentre"]

#: No midpoint quantile reaches 2**QUANTILE_BITS in magnitude: 8 would take 10**15 values.
QUANTILE_BITS = 3

#: Largest segments whose ranks are counted, with as many comparisons a value. Beyond, sorting each
#: segment by itself is as fast.
MOST_COUNTED = 32


def midpoint_means(
    xp: Namespace, rank: Array, size: Array, first: Array, stop: Array, dtype: Array, length: int
) -> Array:
    """Return the mean midpoint quantile of the blocks at positions [first, stop); any if empty.

    ``rank`` is each position's rank in its segment of ``size`` values, from 0; positions whose
    rank is no less belong to absent values. ``length`` is the ``size`` of :func:`exact_sum`.
    """
    ranked = rank < size
    numerator = xp.where(ranked, 2 * rank + 1, 1)
    denominator = xp.where(ranked, 2 * size, 2)
    quantiles = quantile_of_ratio(xp, numerator, denominator, dtype, largest=2 * length)
    total = exact_sum(
        xp,
        quantiles,
        lambda limbs: sum_between(xp, limbs, first, stop),
        bits=QUANTILE_BITS,
        integer=rank.dtype,
        size=length,
    )
    members = stop - first
    return total / xp.astype(xp.where(members > 0, members, 1), dtype)


def barycentres(
    xp: Namespace, lower: Array, upper: Array, size: Array, wanted: Array, dtype: Array
) -> Array:
    """Return the mean of N(0, 1) over the blocks of ranks [lower, upper); any unless wanted."""
    lower, upper = xp.where(wanted, lower, 0), xp.where(wanted, upper, 1)
    return mean_between(xp, lower, upper, xp.where(wanted, size, 1), dtype)


def match_rows(xp: Namespace, values: Array, members: int, ties: Ties) -> tuple[Array, Array]:
    """Match segments of ``members`` consecutive values (N,); see ``transport.match``."""
    integer = xp.arange(0, device=device_of(values)).dtype
    # One row a member, so that comparing and adding run along the segments, which are many.
    columns = _transposed(xp, values, members)
    theirs, own = xp.expand_dims(columns, axis=1), xp.expand_dims(columns, axis=0)
    # NaN is neither smaller than anything nor equal to itself.
    smaller, equal = _count(xp, theirs < own), _count(xp, theirs == own)
    size = xp.expand_dims(_count(xp, columns == columns), axis=0)
    code = xp.astype(size, integer) * members + xp.astype(smaller, integer)
    code = code * (members + 1) + xp.astype(equal, integer)
    code = _transposed(xp, xp.reshape(code, (-1,)), values.shape[0] // members)
    code = xp.reshape(code, (-1,))

    matched, has_signal = _table_for(xp, values, members, ties)
    return gather(xp, matched, code), gather(xp, has_signal, code)


def tabled_means(
    xp: Namespace,
    smaller: Array,
    equal: Array,
    size: Array,
    wanted: Array,
    values: Array,
    ties: Ties,
) -> Array:
    """Return what blocks of small segments get, of an array like ``values``; any unless wanted."""
    code = (size * MOST_COUNTED + smaller) * (MOST_COUNTED + 1) + equal
    matched, _ = _table_for(xp, values, MOST_COUNTED, ties)
    return gather(xp, matched, xp.where(wanted, code, 0))


def _table_for(xp: Namespace, values: Array, members: int, ties: Ties) -> tuple[Array, Array]:
    key = (xp, device_of(values), values.dtype, members, ties, values.shape[0].bit_length())
    return (_kept_table if is_eager(values) else _table)(*key)


def _transposed(xp: Namespace, values: Array, width: int) -> Array:
    """Return rows of ``width`` values as columns, contiguous in memory."""
    columns = xp.permute_dims(xp.reshape(values, (-1, width)), (1, 0))
    return xp.reshape(xp.reshape(columns, (-1,)), (width, -1))


def _count(xp: Namespace, flags: Array) -> Array:
    return xp.sum(xp.astype(flags, xp.int8), axis=0, dtype=xp.int8)


def _table(
    xp: Namespace, device: Any, dtype: Array, members: int, ties: Ties, bits: int
) -> tuple[Array, Array]:
    """Return what each block gets, and whether its segment has signal.

    Blocks stand in the order of (size, smaller, equal), with sizes and numbers of equal values from
    0 to ``members``. Blocks that do not occur get 0.
    """
    shape = (members + 1, members, members + 1)
    position = xp.arange(shape[0] * shape[1] * shape[2], device=device)
    equal = position % shape[2]
    smaller = position // shape[2] % members
    size = position // (shape[1] * shape[2])
    wanted = (equal > 0) & (equal < size) & (smaller + equal <= size)
    if ties == "barycentre":
        mean = barycentres(xp, smaller, smaller + equal, size, wanted, dtype)
    else:
        ranks = xp.arange(shape[0] * shape[1], device=device)
        first = size * members + xp.where(wanted, smaller, 0)
        stop = first + xp.where(wanted, equal, 0)
        rank, of_size = ranks % members, ranks // members
        # As many limbs as for any array of so many bits: the same bits as in sorted segments.
        mean = midpoint_means(xp, rank, of_size, first, stop, dtype, (1 << bits) - 1)
    return xp.where(wanted, mean, 0.0), wanted


#: Tables that are no part of a compiled program. They are small, and only the latest are kept.
_kept_table = lru_cache(maxsize=32)(_table)
