"""Normal scores of blocks of equal values, and ranks of small segments by counting comparisons.

The score of a block depends on three integers: the size of its segment, and the numbers of smaller
and of greater values in it. For segments of up to a few dozen values the scores of all possible
blocks fit into a table. It is computed by the same sums as those of sorted segments, so that
results agree to the last bit.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

from g2rpo._libraries import as_bytes, device_of, gather, is_eager
from g2rpo._normal import mean_between, quantile_of_ratio
from g2rpo._segments import exact_sum, sum_between
from g2rpo._typing import Array, Namespace

Ties = Literal["midpoint", "barycentre"]

#: No midpoint quantile reaches 2**QUANTILE_BITS in magnitude: 8 would take 10**15 values.
QUANTILE_BITS = 3

#: Largest size of a segment whose ranks are counted, by as many comparisons per value. Sorting is
#: as fast for larger ones.
MOST_COUNTED = 32


def midpoint_means(
    xp: Namespace, rank: Array, size: Array, first: Array, stop: Array, dtype: Array, length: int
) -> Array:
    """Return the mean midpoint quantile of the blocks at positions [first, stop).

    Empty blocks get an arbitrary value. ``rank`` is each position's rank from 0 in its segment of
    ``size`` present values; absent values have ranks of ``size`` and more. ``length`` is the
    ``size`` of :func:`exact_sum`.
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
    """Return the mean of N(0, 1) over the blocks of ranks [lower, upper).

    Blocks that are not ``wanted`` get an arbitrary value.
    """
    lower, upper = xp.where(wanted, lower, 0), xp.where(wanted, upper, 1)
    return mean_between(xp, lower, upper, xp.where(wanted, size, 1), dtype)


def count_columns(xp: Namespace, values: Array, members: int, ties: Ties) -> tuple[Array, Array]:
    """Match segments of ``members`` consecutive values (N,); see ``transport.match_columns``.

    The result has one column per segment, so that reductions over the few members of a segment run
    along the contiguous axis of the many segments.
    """
    columns = as_columns(xp, values, members)
    columns = xp.reshape(xp.reshape(columns, (-1,)), columns.shape)  # contiguous
    less = as_bytes(xp, xp.expand_dims(columns, axis=1) < xp.expand_dims(columns, axis=0))
    smaller, greater = (xp.sum(less, axis=axis, dtype=xp.int8) for axis in (0, 1))
    # NaN is neither smaller nor greater than anything, like a value of a segment without signal.
    present = as_bytes(xp, columns == columns)
    size = xp.sum(present, axis=0, keepdims=True, dtype=xp.int8)
    size, smaller32, greater32 = (xp.astype(each, xp.int32) for each in (size, smaller, greater))
    code = _code(size, smaller32, greater32, members)
    matched = gather(xp, _table_for(xp, values, members, ties), xp.reshape(code, (-1,)))
    return xp.reshape(matched, columns.shape), smaller + greater > 0


def tabled_means(
    xp: Namespace,
    size: Array,
    smaller: Array,
    greater: Array,
    wanted: Array,
    values: Array,
    ties: Ties,
) -> Array:
    """Return scores of blocks of small segments, in the dtype of ``values``; 0 unless wanted."""
    code = _code(size, smaller, greater, MOST_COUNTED)
    table = _table_for(xp, values, MOST_COUNTED, ties)
    return gather(xp, table, xp.where(wanted, code, 0))


def _code(size: Array, smaller: Array, greater: Array, members: int) -> Array:
    """Return the index of a block in the table of segments of up to ``members`` values."""
    return size * members**2 + smaller * members + greater


def _table_for(xp: Namespace, values: Array, members: int, ties: Ties) -> Array:
    key = (xp, device_of(values), values.dtype, members, ties, values.shape[0].bit_length())
    return (_kept_table if is_eager(values) else _table)(*key)


def as_columns(xp: Namespace, values: Array, members: int) -> Array:
    """Return segments of consecutive values (N,) as the columns of an array (members, B)."""
    if members == 1:
        return xp.expand_dims(values, axis=0)
    return xp.permute_dims(xp.reshape(values, (-1, members)), (1, 0))


def from_columns(xp: Namespace, columns: Array) -> Array:
    """Return the columns of an array (members, B) one after the other, (N,)."""
    return xp.reshape(xp.permute_dims(columns, (1, 0)), (-1,))


def _table(xp: Namespace, device: Any, dtype: Array, members: int, ties: Ties, bits: int) -> Array:
    """Return the score of each block, in the order of (size, smaller, greater).

    Segments have 0 to ``members`` values. Blocks that do not occur, and segments without signal,
    get 0.
    """
    position = xp.arange((members + 1) * members**2, device=device)
    size = position // members**2
    smaller = position // members % members
    greater = position % members
    equal = size - smaller - greater
    wanted = (equal > 0) & (equal < size)
    if ties == "barycentre":
        mean = barycentres(xp, smaller, smaller + equal, size, wanted, dtype)
    else:
        ranks = xp.arange((members + 1) * members, device=device)
        first = size * members + xp.where(wanted, smaller, 0)
        stop = first + xp.where(wanted, equal, 0)
        rank, of_size = ranks % members, ranks // members
        # The limbs of any array of this bit length, so that results equal those of sorted segments.
        mean = midpoint_means(xp, rank, of_size, first, stop, dtype, (1 << bits) - 1)
    return xp.where(wanted, mean, 0.0)


#: For eager calls; inside of a compiled program the table is computed there.
_kept_table = lru_cache(maxsize=32)(_table)
