"""Rollouts of a divided model: its weights are gathered once where they fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .launched import run_worker

WORKER = Path(__file__).with_name("gathering_worker.py")


@pytest.mark.slow
def test_weights_are_gathered_once_however_many_tokens_are_sampled(tmp_path):
    output = tmp_path / "found.json"
    run_worker(WORKER, output)
    for found in json.loads(output.read_text()):
        assert all(each["divided"] for pair in found.values() for each in pair)
        for multiple in (1, 64):
            short, long = found[f"True {multiple}"]
            assert short["gathers"] == long["gathers"] > 0
            # Where one process has no room each token gathers all layers anew.
            few, many = found[f"False {multiple}"]
            assert many["gathers"] > few["gathers"] + 16
            assert many["tokens"] == long["tokens"]
