"""The tables of docs/scaling.md are what the estimate gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from g2rpo_trainer import estimate as estimates
from g2rpo_trainer.estimate import estimate_memory
from g2rpo_trainer.model.adapting import peft_fault
from g2rpo_trainer.step_time import GPUS, step_seconds

from .model_sizes import H100, run_of, shape_of
from .test_estimate import FACTOR

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
GIB = 2**30
# Model, rank of adapters, GPUs, tokens of prompts and responses, responses sampled at once.
RUNS = [
    ("1.7B", 0, 1, 1024, 64),
    ("2.5B", 0, 1, 1024, 64),
    ("4B", 0, 1, 1024, 32),
    ("4B", 0, 2, 1024, 32),
    ("8B", 0, 1, 1024, 32),
    ("8B", 16, 1, 1024, 64),
    ("14B", 16, 1, 1024, 64),
    ("32B", 16, 1, 1024, 32),
    ("8B", 0, 8, 2048, 64),
    ("14B", 0, 8, 2048, 32),
    ("32B", 0, 8, 2048, 32),
    ("8B", 0, 8, 8192, 32),
]


def table():
    yield "| model | trained | GPUs | tokens | at once | rollout | loss | backward | step | fits |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for run in RUNS:
        size, rank, gpus, tokens, rows = run
        found = estimated(*run)
        phases = [f"{sum(parts.values()) / GIB:.0f}" for parts in found.phases.values()]
        share = found.peak / H100.free
        verdict = "yes" if share <= 0.9 else "barely" if share <= 1 else "no"
        trained = f"adapters of rank {rank}" if rank else "all"
        cells = [size, trained, str(gpus), f"{tokens:,} + {tokens:,}", str(rows), *phases, verdict]
        yield f"| {' | '.join(cells)} |"


def times():
    yield "| model | trained | GPUs | tokens | prefill | decode | update |"
    yield "|---|---|---|---|---|---|---|"
    for run in RUNS:
        size, rank, gpus, tokens, _ = run
        found = estimated(*run)
        if found.peak > H100.free:
            continue
        ranges = step_seconds(found, GPUS["H100"])
        parts = [f"{number(low)}–{number(high)}" for low, high in ranges.values()]
        trained = f"adapters of rank {rank}" if rank else "all"
        cells = [size, trained, str(gpus), f"{tokens:,} + {tokens:,}", *parts]
        yield f"| {' | '.join(cells)} |"


def number(seconds):
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"


def estimated(size, rank, gpus, tokens, rows):
    config = run_of(
        size,
        **{
            "model.lora.rank": rank,
            "model.sharding": "fsdp" if gpus > 1 else "none",
            "rollout.max_prompt_length": tokens,
            "rollout.max_completion_length": tokens,
            "rollout.batch_size": rows,
        },
    )
    shape = shape_of(size, rank)
    return estimate_memory(config, shape=shape, ranks=gpus, is_sharded=gpus > 1, gpu_free=H100.free)


@pytest.mark.skipif(peft_fault() is not None, reason=str(peft_fault()))
@pytest.mark.parametrize("expected", [table, times])
def test_a_table_is_what_the_estimate_gives(expected):
    text = "\n".join(expected())
    assert text in PAGE, f"docs/scaling.md must have this table:\n\n{text}\n"


def test_the_constants_are_the_page_s():
    each = estimates.ADAMW
    assert f"{sum(each) + 2} bytes for each trained weight" in PAGE
    assert f"gradient {each.gradient}" in PAGE
    assert f"a factor of {FACTOR:g}" in PAGE
    assert f"{estimates.ASSUMED_PROMPT:,} tokens" in PAGE
