"""Quantile and density of the standard normal distribution, antisymmetric to the last bit.

The ``ndtri`` of the libraries differ by more than the last bit, and not every library has one, so
the quantile is implemented here: Wichura's AS241 rational approximations, about 1e-16 relative.

References
----------
Wichura, M. J. (1988). Algorithm AS 241: The percentage points of the normal distribution.
Applied Statistics 37(3), 477-484. doi:10.2307/2347330
"""

from __future__ import annotations

import math

from g2rpo._typing import Array, Namespace

# Numerator and denominator of each of the three regions, highest power first.
_CENTRAL = (
    (
        2.5090809287301226727e3,
        3.3430575583588128105e4,
        6.7265770927008700853e4,
        4.5921953931549871457e4,
        1.3731693765509461125e4,
        1.9715909503065514427e3,
        1.3314166789178437745e2,
        3.3871328727963666080e0,
    ),
    (
        5.2264952788528545610e3,
        2.8729085735721942674e4,
        3.9307895800092710610e4,
        2.1213794301586595867e4,
        5.3941960214247511077e3,
        6.8718700749205790830e2,
        4.2313330701600911252e1,
        1.0,
    ),
)
_TAIL = (
    (
        7.74545014278341407640e-4,
        2.27238449892691845833e-2,
        2.41780725177450611770e-1,
        1.27045825245236838258e0,
        3.64784832476320460504e0,
        5.76949722146069140550e0,
        4.63033784615654529590e0,
        1.42343711074968357734e0,
    ),
    (
        1.05075007164441684324e-9,
        5.47593808499534494600e-4,
        1.51986665636164571966e-2,
        1.48103976427480074590e-1,
        6.89767334985100004550e-1,
        1.67638483018380384940e0,
        2.05319162663775882187e0,
        1.0,
    ),
)
_FAR_TAIL = (
    (
        2.01033439929228813265e-7,
        2.71155556874348757815e-5,
        1.24266094738807843860e-3,
        2.65321895265761230930e-2,
        2.96560571828504891230e-1,
        1.78482653991729133580e0,
        5.46378491116411436990e0,
        6.65790464350110377720e0,
    ),
    (
        2.04426310338993978564e-15,
        1.42151175831644588870e-7,
        1.84631831751005468180e-5,
        7.86869131145613259100e-4,
        1.48753612908506148525e-2,
        1.36929880922737805310e-1,
        5.99832206555887937690e-1,
        1.0,
    ),
)


def _rational(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Array) -> Array:
    """Evaluate numerator over denominator by Horner's rule."""
    numerator, denominator = coefficients[0][0] * x, coefficients[1][0] * x
    for above, below in zip(coefficients[0][1:-1], coefficients[1][1:-1], strict=True):
        numerator, denominator = (numerator + above) * x, (denominator + below) * x
    return (numerator + coefficients[0][-1]) / (denominator + coefficients[1][-1])


def quantile(xp: Namespace, centre: Array, tail: Array, *, smallest: float = 0.0) -> Array:
    r"""Return :math:`\Phi^{-1}(p)` from ``centre`` = p - 1/2 and ``tail`` = min(p, 1 - p).

    With both given there is no cancellation at either end, and the result is exactly odd in
    ``centre``: p and 1 - p have the same ``tail``. The tail must be positive. ``smallest`` is a
    lower bound of it, if known: the far region is then skipped where no value can be in it.
    """
    middle = centre * _rational(_CENTRAL, 0.180625 - centre * centre)
    depth = xp.sqrt(-xp.log(tail))
    outer = _rational(_TAIL, depth - 1.6)
    if smallest < math.exp(-25.0):
        outer = xp.where(depth <= 5.0, outer, _rational(_FAR_TAIL, depth - 5.0))
    outer = xp.where(centre < 0.0, -outer, outer)
    return xp.where(xp.abs(centre) <= 0.425, middle, outer)


def quantile_of_ratio(
    xp: Namespace, numerator: Array, denominator: Array, dtype: Array, *, largest: float = math.inf
) -> Array:
    r"""Return :math:`\Phi^{-1}(k / m)` for integer arrays 0 < k < m <= ``largest``.

    Mirrored fractions k / m and (m - k) / m give exactly opposite values and m / 2 gives exactly
    0, because the centred fraction and the tail are formed from the integers.
    """
    whole = xp.astype(denominator, dtype)
    centre = xp.astype(2 * numerator - denominator, dtype) / (2.0 * whole)
    tail = xp.astype(xp.minimum(numerator, denominator - numerator), dtype) / whole
    return quantile(xp, centre, tail, smallest=1.0 / largest)


def rounded(xp: Namespace, products: Array) -> Array:
    """Return products unchanged, and keep compilers from fusing them into a later addition.

    A fused multiply-add skips the rounding of a product. Of two products that are added a compiler
    may fuse either, differently in the vectorised and the scalar part of a loop, so equal inputs
    would give different sums, and opposite products a sum other than 0. No product is fused through
    a rounding to a grid far below the last bit or through a selection, and neither changes a value
    of normal size.
    """
    grid = 2.0**120 if xp.finfo(products.dtype).bits <= 32 else 2.0**1000
    small = xp.abs(products) < 1.0
    on_grid = xp.round(xp.where(small, products, 0.0) * grid) * (1.0 / grid)
    return xp.where(small, on_grid, products)


def density(xp: Namespace, z: Array) -> Array:
    """Return the standard normal density; differences of two values are exactly antisymmetric."""
    return rounded(xp, xp.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi))


def mean_between(xp: Namespace, first: Array, stop: Array, size: Array, dtype: Array) -> Array:
    r"""Return the mean of N(0, 1) between its quantiles at first / size and stop / size.

    Exactly that is :math:`(\varphi(z_a) - \varphi(z_b)) / (p_b - p_a)`. On a narrow interval the
    difference cancels, and the Taylor series of :math:`\Phi^{-1}` about the interval's middle is
    used instead. The switch balances the two errors: about eps / limit of the closed form against
    limit ** 6 / 50 of the series.

    Parameters
    ----------
    first, stop, size : array
        Integers with 0 <= first < stop <= size.
    """
    limit = 0.125 if xp.finfo(dtype).bits <= 32 else 2.0**-8
    middle = quantile_of_ratio(xp, first + stop, 2 * size, dtype)
    width = xp.astype(stop - first, dtype) / xp.astype(size, dtype)
    edges = []
    for edge in (first, stop):
        inner = (edge > 0) & (edge < size)
        z = quantile_of_ratio(xp, xp.where(inner, edge, 1), xp.where(inner, size, 2), dtype)
        edges.append(xp.where(inner, density(xp, z), 0.0))
    closed = (edges[0] - edges[1]) / width
    square, spread = middle * middle, width / density(xp, middle)
    spread = xp.where(spread < limit, spread * spread, 0.0)
    series = middle * (1.0 + spread / 24.0 + spread * spread * (7.0 + 6.0 * square) / 1920.0)
    return xp.where(spread > 0.0, series, closed)
