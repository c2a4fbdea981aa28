"""Selection of the tokens with the highest entropies of their task."""

from __future__ import annotations

import math

from g2rpo._checks import (
    as_mask,
    namespace_of,
    require_floating,
    require_labels,
    require_shape,
    widen,
)
from g2rpo._libraries import device_of, gather, stop_gradient
from g2rpo._segments import count, sort_by_segment
from g2rpo._typing import Array


def high_entropy_mask(
    entropies: Array, mask: Array, tasks: Array | None = None, /, *, share: float
) -> Array:
    r"""Return the mask of the tokens with the highest entropies, a share of each task's.

    Of n tokens of a task those remain whose entropy is at least the k-th largest, with

    .. math:: k = 1 + \lfloor share \cdot (n - 1) \rfloor

    Parameters
    ----------
    entropies : array
        Exact entropies of the next-token distributions, shape (B, T), floating point, in nats.
    mask : array
        bool or 0/1, shape (B, T).
    tasks : array, optional
        Integer task labels, shape (B,); one quantile for all tokens by default.
    share : float
        From 0, the task's largest entropy alone, to 1, all tokens. The paper recommends 0.2.

    Returns
    -------
    array
        bool, shape (B, T).

    Raises
    ------
    TypeError
        If an argument is no array or of a wrong dtype.
    ValueError
        If a shape is wrong or ``share`` is not in [0, 1].

    Notes
    -----
    All tokens that are equal to the k-th largest remain, so a task may keep more than its share:
    all of its tokens if the k-th largest is 0. An entropy of NaN is left out, unless ``share`` is
    1.

    The quantile is taken by task because tasks differ in entropy: a task of low entropy may have no
    token above a quantile of the whole batch, and would not be trained. One task gives TRL's
    ``top_entropy_quantile``. Pass all tokens of an optimiser step in one call.

    Multiply the ``importance_weights`` of :func:`g2rpo.policy_loss` by the mask, so that the
    denominator, the entropy term and the KL term keep all tokens, as in the paper.

    References
    ----------
    "Beyond the 80/20 rule", arXiv:2506.01939.

    Examples
    --------
    >>> import numpy as np
    >>> entropies = np.asarray([[0.1, 2.0, 1.0], [0.0, 0.02, np.nan]])
    >>> mask = np.asarray([[True, True, True], [True, True, False]])
    >>> high_entropy_mask(entropies, mask, np.asarray([0, 1]), share=0.5)
    array([[False,  True,  True],
           [False,  True, False]])
    """
    xp = namespace_of(entropies=entropies, mask=mask, tasks=tasks)
    require_floating(xp, "entropies", entropies)
    require_shape("entropies", entropies, ("B", "T"))
    mask = as_mask(xp, mask, entropies.shape)
    if tasks is not None:
        require_labels(xp, "tasks", tasks, entropies.shape[0])
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share!r}")
    if share == 1 or math.prod(entropies.shape) == 0:
        return mask
    entropies = widen(xp, stop_gradient(entropies))
    # Minus infinity sorts masked tokens below every entropy.
    keys = xp.where(mask & ~xp.isnan(entropies), entropies, -xp.inf)
    keys = xp.reshape(keys, (-1,))
    if tasks is None:
        labels = xp.zeros(keys.shape, dtype=xp.int32, device=device_of(keys))
    else:
        labels = xp.broadcast_to(xp.expand_dims(tasks, axis=1), mask.shape)
        labels = xp.reshape(labels, (-1,))
    layout = sort_by_segment(xp, labels, keys)
    counted = gather(xp, xp.reshape(mask, (-1,)), layout.order)
    tokens = count(xp, counted, layout.first, layout.stop)
    # Rounding must not lose a token where share * (n - 1) is an integer.
    beyond = xp.floor(share * xp.astype(tokens - 1, keys.dtype) + 1e-3)
    beyond = xp.where(tokens > 0, xp.astype(beyond, tokens.dtype), 0)
    smallest = gather(xp, gather(xp, keys, layout.order), layout.stop - 1 - beyond)
    smallest = xp.reshape(gather(xp, smallest, layout.inverse), mask.shape)
    return mask & (entropies >= smallest)
