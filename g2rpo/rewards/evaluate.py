"""Scoring of one response without raising: its components, or the kind of fault."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from .custom import function_name, raised_at
from .ground_truth import TruthError
from .libraries import MissingLibraryError
from .registry import RewardFunction
from .score import BadRewardError, Components, components

Fault = Literal["truth", "library", "error", "timeout", "died"]


class Job(NamedTuple):
    """A response to score; ``problem_type`` is a key of the reward functions."""

    problem_type: str
    truth: Any
    response: str


class Outcome(NamedTuple):
    """Components, or the kind of fault, its message and the traceback, if any."""

    components: Components | None
    fault: Fault | None = None
    message: str = ""
    trace: str = ""


def evaluate(job: Job, functions: Mapping[str, RewardFunction]) -> Outcome:
    """Score one response; errors become outcomes.

    Examples
    --------
    >>> from g2rpo.rewards import ACCURACY
    >>> evaluate(Job("numerical", "7", "<answer>7</answer>"), ACCURACY).components
    Components(accuracy=1.0, format=0.0, structure=0.0)
    >>> evaluate(Job("numerical", "?", "<answer>7</answer>"), ACCURACY).fault
    'truth'
    """
    record = {"problem_type": job.problem_type, "answer": job.truth}
    try:
        return Outcome(components(record, job.response, functions))
    except TruthError as error:
        return Outcome(None, "truth", str(error))
    except MissingLibraryError as error:
        return Outcome(None, "library", str(error))
    except BadRewardError as error:
        return Outcome(None, "error", str(error))
    # A custom function may raise anything; sys.exit() in it must not end the run.
    except (Exception, SystemExit) as error:
        function = functions[job.problem_type]
        message = (
            f"reward function {function_name(function)} raised {type(error).__name__}: {error} "
            f"({raised_at(error, function)})"
        )
        return Outcome(None, "error", message, traceback.format_exc())
