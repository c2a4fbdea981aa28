"""Rollouts of several processes with a vLLM in each.

The stand-in computes as the policy does, so the ratio of the two is 1 if it has the weights of now,
and responses do not depend on who has sampled them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from . import launched

STAND_IN = Path(__file__).parent / "stand_in"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def sampled(launcher, folder, model, *more):
    """Run with vLLM; return the metrics and the responses of all steps."""
    described = launched.settings(
        folder,
        str(model),
        "rollout.engine=vllm",
        "optimization.steps=2",
        "output.equity_steps=0",
        *more,
    )
    code, output = launched.run(launcher, *described)
    assert code == 0, output[-3000:]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["sampler/ratio/max"] == pytest.approx(1, abs=1e-3)
    return lines


@pytest.mark.parametrize(
    "launcher", [launched.TORCHRUN, launched.SHARDS], ids=["replicas", "shards"]
)
def test_processes_sample_what_one_does(launcher, random_policy_folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(STAND_IN))
    model = random_policy_folder
    alone = sampled((), tmp_path / "alone", model)
    both = sampled(launcher, tmp_path / "both", model)
    assert len(both) == len(alone) == 2
    for name in ("reward", "completions/mean_length", "loss/total"):
        assert both[0][name] == pytest.approx(alone[0][name], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("way", ["merged", "request"])
def test_an_adapter_that_is_divided(random_policy_folder, tmp_path, monkeypatch, way):
    monkeypatch.syspath_prepend(str(STAND_IN))
    settings = ["model.lora.rank=2", f"rollout.vllm_adapter={way}"]
    sampled(launched.SHARDS, tmp_path, random_policy_folder, *settings)
