"""Results of an evaluation with standard errors: means over prompts, and the best of k responses.

Responses to one prompt are not independent: n responses to each of m prompts are m observations,
not n · m. All estimates are therefore means over prompts of a value of each prompt. They are
computed on the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from g2rpo._checks import namespace_of, require_labels, require_shape
from g2rpo._extras import needs
from g2rpo._libraries import to_numpy
from g2rpo._typing import Array

__all__ = ["Estimate", "best_of", "mean_estimate", "mean_of_estimates"]

Floats = npt.NDArray[np.float64]


class Estimate(NamedTuple):
    """A mean over prompts with its standard error.

    Attributes
    ----------
    mean : float
        In the unit of the values; NaN without prompts.
    standard_error : float
        Of the mean; NaN with fewer than two prompts.
    freedom : float
        Degrees of freedom of the standard error; NaN with fewer than two prompts.
    prompts : int
        Number of prompts.
    """

    mean: float
    standard_error: float
    freedom: float
    prompts: int

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        r"""Return Student's confidence interval, mean ± t · standard error.

        Parameters
        ----------
        confidence : float
            Probability, in (0, 1), with which the interval covers the true mean.

        Returns
        -------
        tuple of float
            Lower and upper bound, both NaN with fewer than two prompts. The interval is symmetric,
            so it may extend beyond the range of the values.

        Raises
        ------
        ValueError
            If ``confidence`` is no probability.
        ImportError
            Without SciPy, which the extra ``cli`` brings.

        Examples
        --------
        >>> low, high = Estimate(0.5, 0.1, 9.0, 10).interval()
        >>> round(low, 3), round(high, 3)
        (0.274, 0.726)
        """
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must be in (0, 1), got {confidence!r}")
        if math.isnan(self.standard_error):
            return math.nan, math.nan
        if self.standard_error == 0:  # the degrees of freedom may be NaN
            return self.mean, self.mean
        half = _student_quantile(0.5 + 0.5 * confidence, self.freedom) * self.standard_error
        return self.mean - half, self.mean + half


def mean_estimate(values: Array, groups: Array, /) -> Estimate:
    r"""Return the mean over prompts of each prompt's mean, with its standard error.

    With :math:`\bar x_i` the mean of prompt i of m:

    .. math:: \bar x = \frac1m \sum_i \bar x_i, \qquad
              s^2 = \frac{1}{m (m - 1)} \sum_i (\bar x_i - \bar x)^2

    Parameters
    ----------
    values : array
        Real, shape (N,). NaN is left out; a prompt with only NaN has no mean.
    groups : array
        Integer prompt labels, shape (N,), in any order.

    Returns
    -------
    Estimate
        With m − 1 degrees of freedom.

    Raises
    ------
    TypeError
        If an argument is no array, or labels are not integers.
    ValueError
        If shapes differ.

    Notes
    -----
    Prompts are drawn independently, responses to one prompt are not. A standard error over n
    responses to each prompt that treats all of them as independent is too small by a factor of up
    to √n.

    Examples
    --------
    >>> import numpy as np
    >>> mean_estimate(np.asarray([1.0, 1.0, 0.0, 0.0]), np.asarray([0, 0, 1, 1]))
    Estimate(mean=0.5, standard_error=0.5, freedom=1.0, prompts=2)
    """
    return _over_prompts(np.asarray([each.mean() for each in _by_prompt(values, groups)]))


def best_of(values: Array, groups: Array, /, k: int) -> Estimate:
    r"""Return the expected best of k responses to a prompt, mean over prompts.

    From n responses with :math:`r_{(1)} \le \dots \le r_{(n)}` the mean over all subsets of k:

    .. math:: \sum_{i=k}^{n} r_{(i)} \binom{i - 1}{k - 1} \Big/ \binom{n}{k}

    It is unbiased for any k ≤ n, which the largest of the first k is too, but with a larger
    variance. For rewards of 0 and 1 it is pass@k.

    Parameters
    ----------
    values : array
        Real, shape (N,). NaN is left out.
    groups : array
        Integer prompt labels, shape (N,), in any order.
    k : int
        At least 1. A prompt with fewer values is left out.

    Returns
    -------
    Estimate
        Over the prompts that have k values.

    Raises
    ------
    TypeError
        If an argument is no array, or labels are not integers.
    ValueError
        If shapes differ, or ``k`` is not positive.

    References
    ----------
    Chen et al., Evaluating large language models trained on code, arXiv:2107.03374, for pass@k.

    Examples
    --------
    >>> import numpy as np
    >>> values, groups = np.asarray([0.0, 0.2, 1.0]), np.zeros(3, int)
    >>> [round(best_of(values, groups, k).mean, 4) for k in (1, 2, 3)]
    [0.4, 0.7333, 1.0]
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k!r}")
    enough = [each for each in _by_prompt(values, groups) if len(each) >= k]
    return _over_prompts(np.asarray([np.sort(each) @ _shares(len(each), k) for each in enough]))


def mean_of_estimates(estimates: Sequence[Estimate], /) -> Estimate:
    r"""Return the mean over tasks of independent estimates, each task counting the same.

    The standard error is :math:`\sqrt{\sum_t s_t^2} / T`, its degrees of freedom those of Welch
    and Satterthwaite, :math:`(\sum_t s_t^2)^2 / \sum_t (s_t^4 / \nu_t)`.

    Parameters
    ----------
    estimates : sequence of Estimate
        Those without prompts are left out.

    Returns
    -------
    Estimate
        ``prompts`` is the number over all tasks.

    Examples
    --------
    >>> both = mean_of_estimates([Estimate(0.2, 0.3, 9.0, 10), Estimate(0.4, 0.4, 9.0, 10)])
    >>> round(both.mean, 3), round(both.standard_error, 3), both.prompts
    (0.3, 0.25, 20)
    """
    known = [each for each in estimates if each.prompts]
    if not known:
        return Estimate(math.nan, math.nan, math.nan, 0)
    squares = [each.standard_error**2 for each in known]
    total = sum(squares)
    parts = sum(square**2 / each.freedom for square, each in zip(squares, known, strict=True))
    freedom = total**2 / parts if parts else math.inf
    mean = sum(each.mean for each in known) / len(known)
    prompts = sum(each.prompts for each in known)
    return Estimate(mean, math.sqrt(total) / len(known), freedom, prompts)


def _by_prompt(values: Array, groups: Array) -> list[Floats]:
    xp = namespace_of(values=values, groups=groups)
    require_shape("values", values, ("N",))
    require_labels(xp, "groups", groups, values.shape[0])
    host, labels = to_numpy(values).astype(np.float64), to_numpy(groups)
    host, labels = host[~np.isnan(host)], labels[~np.isnan(host)]
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order])) + 1
    return [part for part in np.split(host[order], starts) if len(part)]


def _over_prompts(means: Floats) -> Estimate:
    prompts = len(means)
    if not prompts:
        return Estimate(math.nan, math.nan, math.nan, 0)
    error = float(means.std(ddof=1)) / math.sqrt(prompts) if prompts > 1 else math.nan
    freedom = float(prompts - 1) if prompts > 1 else math.nan
    return Estimate(float(means.mean()), error, freedom, prompts)


def _shares(n: int, k: int) -> Floats:
    """Return the share of all subsets of k with the i-th smallest of n as their largest, (n,)."""
    subsets = math.comb(n, k)
    # A quotient of Python integers: a binomial of a few hundred overflows a float.
    return np.asarray([math.comb(i, k - 1) / subsets for i in range(n)])


def _student_quantile(probability: float, freedom: float) -> float:
    try:
        # Imported here, since the core depends on NumPy only.
        from scipy.special import stdtrit
    except ModuleNotFoundError as error:
        text = needs("a confidence interval", "scipy", extra="cli")
        raise ImportError(text, name=error.name) from error
    return float(stdtrit(freedom, probability))
