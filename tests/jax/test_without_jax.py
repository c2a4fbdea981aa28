"""Without JAX, importing the binding says how to install it."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "jax":
            return self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
try:
    import g2rpo_jax
except ImportError as error:
    print(error)
"""


def test_the_error_names_the_command():
    result = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True
    )
    assert "g2rpo_jax needs jax" in result.stdout
    assert 'pip install "g2rpo[jax]"' in result.stdout
