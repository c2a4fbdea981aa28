"""Run invariants on an advantage function, and report the smallest batch that breaks each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity
from hypothesis.errors import Flaky
from hypothesis.strategies import SearchStrategy

from g2rpo.testing.invariants import INVARIANTS, Invariant
from g2rpo.testing.report import describe
from g2rpo.testing.strategies import DType, RewardBatch
from g2rpo.testing.subject import AdvantageFunction, LibraryName, Subject, Violation


@dataclass(frozen=True)
class Counterexample:
    """The smallest batch found on which an invariant fails.

    Attributes
    ----------
    message : str
        Description of the violation, one line.
    batch : RewardBatch
        The batch.
    arguments : tuple of numpy.ndarray
        Positional arguments of the call: the batch's two or three arrays.
    keywords : dict of str to numpy.ndarray
        Keyword arguments of the call: ``lengths``, if the function takes them.
    columns : dict of str to numpy.ndarray
        Columns of the report, such as actual and expected advantages; shape (N,) each.
    """

    message: str
    batch: RewardBatch
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    columns: dict[str, Any]

    def __str__(self) -> str:
        return describe(self.message, self.batch, self.columns)


@dataclass(frozen=True)
class Result:
    """Whether an invariant holds.

    Attributes
    ----------
    invariant : Invariant
        The invariant.
    counterexample : Counterexample or None
        None if it holds.
    waived : bool
        Whether a failure is allowed.
    """

    invariant: Invariant
    counterexample: Counterexample | None
    waived: bool

    @property
    def holds(self) -> bool:
        """Whether no counter-example was found."""
        return self.counterexample is None

    @property
    def verdict(self) -> str:
        """``"holds"``, ``"fails"`` or, for an allowed failure, ``"waived"``."""
        return "holds" if self.holds else "waived" if self.waived else "fails"


def verify_advantages(
    fn: AdvantageFunction,
    *,
    invariants: Iterable[str | Invariant] | None = None,
    waive: Iterable[str] = (),
    max_examples: int = 100,
    tolerance: float = 1e-3,
    library: LibraryName = "numpy",
    dtype: DType = "float64",
    batches: SearchStrategy[RewardBatch] | None = None,
    seed: int = 0,
) -> list[Result]:
    """Search for a counter-example to every invariant.

    Parameters
    ----------
    fn : callable
        ``fn(rewards, groups, tasks)`` or ``fn(rewards, groups)`` -> advantages (N,). Rewards are
        floating point, labels int64, all of shape (N,). With a keyword ``lengths`` it also gets
        the responses' lengths in tokens, int64.
    invariants : iterable of str or Invariant, optional
        Invariants to check; all of :data:`INVARIANTS` by default.
    waive : iterable of str, optional
        Names of invariants that may fail.
    max_examples : int, optional
        Number of batches per invariant.
    tolerance : float, optional
        Largest difference of advantages from their expected values, in units of the largest
        advantage or 1. The default allows for a small constant in a denominator; 0 requires equal
        bits.
    library : {"numpy", "torch", "jax"}, optional
        Library of the arrays that the function takes.
    dtype : {"float32", "float64"}, optional
        Dtype of the rewards.
    batches : SearchStrategy of RewardBatch, optional
        Strategy of the batches; by default that of each invariant.
    seed : int, optional
        Seed of the search: the same seed draws the same batches.

    Returns
    -------
    list of Result
        In the order of ``invariants``.

    Raises
    ------
    TypeError
        If ``fn`` cannot be called.
    ValueError
        If a name is unknown or an option is out of its range.

    Examples
    --------
    >>> def centred(rewards, groups):
    ...     return rewards - rewards.mean()
    >>> (result,) = verify_advantages(centred, invariants=["zero-sum"])
    >>> print(result.counterexample)
    the advantages of group 0 sum to -0.5
      group  task  reward  advantage
          0     0       0       -0.5
          1     0       1        0.5
    """
    chosen = [_find(each) for each in (INVARIANTS if invariants is None else invariants)]
    waived = {_find(name, among=chosen).name for name in waive}
    if max_examples < 1:
        raise ValueError(f"max_examples must be positive, got {max_examples}")
    subject = Subject(fn, library=library, dtype=dtype, tolerance=tolerance)
    found = []
    for invariant in chosen:
        inputs = invariant.inputs(dtype, batches)
        counterexample = _search(subject, invariant, inputs, max_examples, seed)
        found.append(Result(invariant, counterexample, invariant.name in waived))
    return found


def check_advantages(fn: AdvantageFunction, **options: Any) -> None:
    """Raise unless every invariant holds for an advantage function; for use in your own tests.

    Parameters
    ----------
    fn : callable
        ``fn(rewards, groups, tasks)`` or ``fn(rewards, groups)`` -> advantages (N,).
    **options
        Those of :func:`verify_advantages`: ``invariants``, ``waive``, ``max_examples``,
        ``tolerance``, ``library``, ``dtype``, ``batches``, ``seed``.

    Raises
    ------
    AssertionError
        If an invariant fails that is not waived. Its text shows the smallest counter-example of
        each.
    TypeError
        If ``fn`` cannot be called.
    ValueError
        If a name is unknown or an option is out of its range.

    Examples
    --------
    >>> from g2rpo import gaussian_advantages, grpo_advantages
    >>> check_advantages(gaussian_advantages, max_examples=20)
    >>> check_advantages(
    ...     grpo_advantages,
    ...     waive=["increasing-maps", "task-variance", "finite"],
    ...     max_examples=20,
    ... )
    """
    results = verify_advantages(fn, **options)
    failing = [result for result in results if result.verdict == "fails"]
    if not failing:
        return
    name = getattr(fn, "__name__", type(fn).__name__)
    reports = [
        f"{result.invariant.name}: {result.invariant.statement}\n{result.counterexample}"
        for result in failing
    ]
    heading = f"{name} breaks {len(failing)} of {len(results)} invariants"
    raise AssertionError("\n\n".join([heading, *reports]))


def _find(wanted: str | Invariant, among: Iterable[Invariant] | None = None) -> Invariant:
    known = INVARIANTS if among is None else {each.name: each for each in among}
    if isinstance(wanted, Invariant):
        return wanted
    if wanted not in known:
        from g2rpo._suggest import unknown_name

        raise ValueError(unknown_name("invariant", wanted, known))
    return known[wanted]


def _search(
    subject: Subject,
    invariant: Invariant,
    inputs: SearchStrategy[tuple[Any, ...]],
    max_examples: int,
    seed: int,
) -> Counterexample | None:
    last: list[Counterexample] = []

    def example_of(message: str, batch: RewardBatch, columns: dict[str, Any]) -> Counterexample:
        keywords = subject.keywords(batch)
        # Lengths come before the advantages.
        shown = {name.removesuffix("s"): values for name, values in keywords.items()} | columns
        return Counterexample(message, batch, subject.arguments(batch), keywords, shown)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=max_examples,
        derandomize=False,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @hypothesis.given(inputs)
    def attempt(arguments: tuple[Any, ...]) -> None:
        try:
            invariant.check(subject, *arguments)
        except Violation as violation:
            last[:] = [example_of(str(violation), arguments[0], violation.columns)]
            raise

    try:
        attempt()
    except Violation:
        return last[0]  # Hypothesis ends with the smallest.
    except Flaky:
        text = "equal inputs gave different results: use no random numbers and keep no state"
        return example_of(text, last[0].batch, {})
    return None
