"""A run whose reward function breaks in every way, with empty responses and a task that is gone."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from .count import Count

_calls = itertools.count()
_PROMPTS, _GENERATIONS = 2, 2
_ABSENT = range(100, 150)  # steps without any reward
_VANISHED = range(200, 250)  # steps without the second task


def score(answer: str, truth: str) -> Any:
    """Return a number, NaN, an infinity, nothing, text, or an error."""
    call = next(_calls)
    if call // (_PROMPTS * _GENERATIONS) in _ABSENT:
        return math.nan
    if call % 11 == 0:
        raise ZeroDivisionError("broken")
    return [0.0, 1.0, math.nan, math.inf, 0.5, -math.inf, None, "x", 0.25][call % 9]


def run_with_broken_rewards(share: float) -> Iterator[Count]:
    """Train with broken rewards, empty responses, and a task that vanishes for 50 steps."""
    from g2rpo_trainer import loop, train
    from g2rpo_trainer.config import load_config
    from g2rpo_trainer.data import open_run
    from g2rpo_trainer.run_folder import RunFolder

    count = Count(
        "a run with NaN, infinite and absent rewards, empty responses and a task that is "
        "gone for 50 steps goes on to its last step"
    )
    steps = max(2, int(500 * share))
    with tempfile.TemporaryDirectory() as place:
        config = load_config(
            ["builtin"],
            settings=[
                "model.device=cpu",
                "data.tasks=[ocr, maths]",
                "data.eval_items=1",
                "data.eval_generations=1",
                f"rollout.prompts_per_step={_PROMPTS}",
                f"rollout.num_generations={_GENERATIONS}",
                "rollout.max_completion_length=24",
                f"optimization.steps={steps}",
                "output.plots=false",
                "output.trackers=[]",
                "output.completions=1000",
                "rewards.functions={character OCR: 'tests.faults.broken_rewards:score', "
                "numerical: 'tests.faults.broken_rewards:score'}",
                "rewards.skip_errors=true",
                "rewards.workers=0",
                f"output.dir={place}/run",
            ],
        )
        source = open_run(config)
        source.slots = _without_a_task(source.slots)
        with count.trying(f"{steps} steps"), mock.patch.object(loop, "open_sampler", _some_empty):
            train(config, source=source)
            run = RunFolder.open(f"{place}/run")
            logged = run.read_metrics()
            count.tried += len(logged) - 1
            assert [row["step"] for row in logged] == list(range(1, steps + 1))
            errors = sum(row["rewards/errors"] for row in logged)
            assert errors > steps
            rows = run.read_completions()
            empty = sum(not row["response"] for row in rows)
            assert empty >= steps / 10
            gone = {row["step"] - 1 for row in rows} - {
                row["step"] - 1 for row in rows if row["task"] == "maths"
            }
            assert gone == set(_VANISHED) & set(range(steps))
            count.figure = f"{errors:.0f} failed rewards, {empty} empty responses"
    yield count


def _without_a_task(slots: Any) -> Any:
    """Return `Source.slots` that leaves out the second task in some steps."""

    def chosen(*, seed: int, position: int, prompts: int) -> list[Any]:
        if position // _PROMPTS not in _VANISHED:
            return slots(seed=seed, position=position, prompts=prompts)
        more = slots(seed=seed, position=position, prompts=8 * prompts)
        return [slot for slot in more if slot.task == 0][:prompts]

    return chosen


@contextmanager
def _some_empty(config: Any, policy: Any, ranks: Any) -> Iterator[Any]:
    """Yield a sampler that ends a response of every fourth call before its first word."""
    import torch

    from g2rpo_trainer.vllm import open_sampler

    calls = itertools.count()

    def sampled(*arguments: Any, **options: Any) -> Any:
        found = sampler(*arguments, **options)
        if next(calls) % 4:
            return found
        mask, tokens = found.mask.clone(), found.tokens.clone()
        mask[0, 1:], tokens[0, 0] = False, policy.eos_ids[0]
        return replace(
            found,
            mask=mask,
            tokens=torch.where(mask, tokens, policy.tokenizer.pad_token_id),
            logprobs=torch.where(mask, found.logprobs, 0.0),
            entropies=torch.where(mask, found.entropies, 0.0),
            texts=["", *found.texts[1:]],
        )

    with open_sampler(config, policy, ranks) as sampler:
        yield sampled
