"""`examples/jax_grpo.py`, run as a user runs it."""

from __future__ import annotations

import re
import runpy
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


def test_a_step_takes_the_buffers_of_weights_and_moments():
    """What an update replaces is donated, so that no second copy of it is held."""
    import jax
    import optax

    example = runpy.run_path(str(EXAMPLE))
    params = example["init_policy"](jax.random.key(0), 40)

    def loss(params, scale):
        return scale * sum((leaf**2).sum() for leaf in jax.tree.leaves(params)), scale

    state, step = example["make_step"](loss, params, optax.adam(1e-3))
    given = jax.tree.leaves((params, state))
    compiled = step.lower(params, state, 1.0).compile().as_text()
    assert len(re.findall(r"(?:may|must)-alias", compiled)) == len(given)
    step(params, state, 1.0)
    assert all(leaf.is_deleted() for leaf in given)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_task_rises():
    _, rows = run()
    assert {task: row[2] > 0 for task, row in rows.items()} == dict.fromkeys(rows, True)
    assert rows["sorting"][4] < rows["sorting"][3]
    assert rows["bars"][4] > rows["bars"][3]


def test_it_is_one_file_of_at_most_300_lines():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 300
