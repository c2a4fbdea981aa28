"""The script for a GPU, rehearsed on a CPU."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def lines_of(*arguments):
    command = [sys.executable, str(SCRIPT), "--rehearse", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_all_parts_together_take_eight_minutes_at_most():
    assert sum(runpy.run_path(str(SCRIPT))["LIMITS"].values()) <= 480


def test_each_part_prints_one_line():
    found = lines_of("--part", "versions", "--part", "adamw", "--part", "advantages")
    assert [line["part"] for line in found] == ["versions", "adamw", "advantages"]
    assert not any("error" in line or "skipped" in line for line in found)
    assert found[0]["device"] == "cpu"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_other_parts_can_be_rehearsed():
    names = [
        "attention",
        "ratios",
        "decoding",
        "compiled",
        "update",
        "blocks",
        "head",
        "repeats",
        "builtin",
        "tests",
    ]
    found = lines_of(*(part for name in names for part in ("--part", name)))
    assert [line["part"] for line in found] == names
    assert not any("error" in line or "skipped" in line for line in found)


def test_a_part_that_takes_too_long_stops_itself_alone(monkeypatch, capsys):
    script = runpy.run_path(str(SCRIPT))
    script["LIMITS"]["builtin"] = 1
    found = script["_run"]("builtin", rehearse=False)
    assert found == {"part": "builtin", "error": "not done after 1 s"}
