"""`examples/jax_grpo.py`, run as a user runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")

EXAMPLE = Path(__file__).parents[2] / "examples" / "jax_grpo.py"
ROW = re.compile(r"^(\w+) +(\d\.\d{3}) +(\d\.\d{3}) +([+-]\d\.\d{3}) +(\d+\.\d) +(\d+\.\d)$", re.M)


def run(*arguments: str) -> tuple[str, dict[str, tuple[float, ...]]]:
    """Return what the example prints, and the rows of its table."""
    done = subprocess.run(
        [sys.executable, EXAMPLE, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = {row[1]: tuple(map(float, row.groups()[1:])) for row in ROW.finditer(done.stdout)}
    return done.stdout, rows


def test_a_few_steps_end_in_a_table():
    out, rows = run("--cold-start-steps", "2", "--steps", "2")
    assert list(rows) == ["arithmetic", "box", "bars", "sorting"]
    assert "imitation    1: loss" in out
    for term in ("total", "policy", "length", "entropy"):
        assert re.search(rf"step    1: .*{term} [+-]\d", out)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_task_rises():
    _, rows = run()
    assert {task: row[2] > 0 for task, row in rows.items()} == dict.fromkeys(rows, True)
    assert rows["sorting"][4] < rows["sorting"][3]
    assert rows["bars"][4] > rows["bars"][3]


def test_it_is_one_file_of_at_most_300_lines():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 300
