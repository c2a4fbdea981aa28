"""Without tunix, importing the plug-in says how to install it; with it, no more is loaded."""

import subprocess
import sys


def test_the_error_names_the_command(error_without):
    error = error_without("g2rpo_tunix", "tunix")
    assert "g2rpo_tunix needs tunix" in error
    assert 'pip install "g2rpo[tunix]"' in error


def test_the_plug_in_loads_neither_the_command_line_nor_pytorch():
    code = "import g2rpo_tunix, sys; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert {name.partition(".")[0] for name in result.stdout.split()} & {"torch", "typer"} == set()
