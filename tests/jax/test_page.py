"""The code of docs/jax.md runs on eight devices, with the results that the page describes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .devices import run

PAGE = Path(__file__).parents[2] / "docs" / "jax.md"

CHECKS = """
assert history[-1] > history[0] + 0.3, history
assert len(jax.devices()) == 8
alone, same_terms = update(params, *batch)
for ours in (with_jit, with_shard_map):
    for name, value in alone.items():
        assert jnp.allclose(ours[name], value, rtol=1e-5, atol=1e-6), name
assert jnp.allclose(jnp.stack(terms), jnp.stack(same_terms), atol=1e-6)
explicit = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
with jax.set_mesh(explicit):
    vectors = jax.device_put((rewards, groups, tasks), P("data"))
    vectors = jax.jit(lambda x: jax.sharding.reshard(x, P()))(vectors)
    g2rpo.gaussian_advantages(*vectors)
advantages = g2rpo.gaussian_advantages(rewards, groups, tasks)
padded = jnp.append(rewards, jnp.nan), jnp.append(groups, 0), jnp.append(tasks, 0)
assert g2rpo.gaussian_advantages(*padded).tolist() == [*advantages.tolist(), 0.0]
"""


@pytest.mark.slow
def test_the_code_of_the_page_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 3
    script = tmp_path / "page.py"
    script.write_text("\n".join([*blocks, CHECKS]), encoding="utf-8")
    assert "mean reward" in run(script)
