"""Keeping a compiler's hands off the last bit."""

from __future__ import annotations

from g2rpo._typing import Array, Namespace


def rounded(xp: Namespace, products: Array) -> Array:
    """Return products as they are, rounded once, whatever is added to them afterwards.

    A compiler may fuse a product into a later addition and skip its rounding, and of two products
    that are added it may pick either, differently in the vectorised and the remaining part of a
    loop. Equal inputs would then give different sums, and opposite products a sum that is not 0.
    Neither rounding to a grid far below the last bit nor a selection changes a value of normal
    size, and no product is fused through them: the scaling by a power of two is exact.
    """
    grid = 2.0**120 if xp.finfo(products.dtype).bits <= 32 else 2.0**1000
    small = xp.abs(products) < 1.0
    on_grid = xp.round(xp.where(small, products, 0.0) * grid) * (1.0 / grid)
    return xp.where(small, on_grid, products)
