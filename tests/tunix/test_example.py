"""`examples/tunix_grpo.py`, run as a user runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "tunix_grpo.py"
ROW = re.compile(r"^(\w+) +(\d\.\d{3}) +(\d\.\d{3}) +([+-]\d\.\d{3}) +(\d+\.\d) +(\d+\.\d)$", re.M)


def changes(*arguments: str) -> dict[str, float]:
    """Return the change of each task's reward in the example's table."""
    done = subprocess.run(
        [sys.executable, EXAMPLE, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {row[1]: float(row[4]) for row in ROW.finditer(done.stdout)}


def test_a_few_steps_end_in_a_table():
    found = changes("--cold-start-steps", "2", "--steps", "2")
    assert list(found) == ["arithmetic", "box", "bars", "sorting"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_task_rises():
    found = changes()
    assert {task: change > 0 for task, change in found.items()} == dict.fromkeys(found, True)
