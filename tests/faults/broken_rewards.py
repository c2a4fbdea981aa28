"""A reward function that breaks in every way, by turns, and for 50 steps always."""

import itertools
import math

_calls = itertools.count()
_STEP = 4  # responses in a step


def score(answer, truth):
    """Return a number, NaN, an infinity, nothing, text, or an error."""
    call = next(_calls)
    if 100 <= call // _STEP < 150:
        return math.nan
    if call % 11 == 0:
        raise ZeroDivisionError("broken")
    return [0.0, 1.0, math.nan, math.inf, 0.5, -math.inf, None, "x", 0.25][call % 9]
