"""Without tunix, importing the plug-in says how to install it; with it, no more is loaded."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "tunix":
            return self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
try:
    import g2rpo_tunix
except ImportError as error:
    print(error)
"""


def test_the_error_names_the_command():
    result = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True
    )
    assert "g2rpo_tunix needs tunix" in result.stdout
    assert 'pip install "g2rpo[tunix]"' in result.stdout


def test_the_plug_in_loads_neither_the_command_line_nor_pytorch():
    code = "import g2rpo_tunix, sys; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert {name.partition(".")[0] for name in result.stdout.split()} & {"torch", "typer"} == set()
