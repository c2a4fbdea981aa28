# ruff: noqa: E402 (a missing package is named before anything needs it)
"""Property-based tests of advantage functions: batches, invariants and a slow oracle.

:func:`check_advantages` runs every invariant on your own function, and shows the smallest batch
that breaks one. :func:`reward_batches` draws batches for other tests, and
:mod:`g2rpo.testing.oracle` is a reference implementation in plain Python.

``import g2rpo`` does not import this package. It needs Hypothesis, which
``pip install "g2rpo[cli]"`` installs.

Examples
--------
>>> from g2rpo.testing import check_advantages
>>> def centred(rewards, groups):
...     return rewards - rewards.mean()
>>> check_advantages(centred, invariants=["ties", "zero-sum"])
Traceback (most recent call last):
    ...
AssertionError: centred breaks 1 of 2 invariants
<BLANKLINE>
zero-sum: The advantages of a group sum to 0
the advantages of group 0 sum to -0.5
  group  task  reward  advantage
      0     0       0       -0.5
      1     0       1        0.5
"""

from g2rpo._extras import require

require("g2rpo.testing", "hypothesis", extra="cli")

from g2rpo.testing import oracle
from g2rpo.testing.check import (
    Counterexample,
    Result,
    check_advantages,
    verify_advantages,
)
from g2rpo.testing.invariants import INVARIANTS, Invariant, register_invariant
from g2rpo.testing.report import reproduction
from g2rpo.testing.strategies import (
    KINDS,
    ORDINARY,
    RewardBatch,
    increasing_maps,
    integer_labels,
    reward_batches,
    rewards_of,
)
from g2rpo.testing.subject import Subject, Violation

__all__ = [
    "INVARIANTS",
    "KINDS",
    "ORDINARY",
    "Counterexample",
    "Invariant",
    "Result",
    "RewardBatch",
    "Subject",
    "Violation",
    "check_advantages",
    "increasing_maps",
    "integer_labels",
    "oracle",
    "register_invariant",
    "reproduction",
    "reward_batches",
    "rewards_of",
    "verify_advantages",
]
