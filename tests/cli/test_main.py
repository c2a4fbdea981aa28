import subprocess
import sys

import pytest

import g2rpo


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["train"],
        ["eval"],
        ["info"],
        ["init"],
        ["config"],
        ["tasks"],
        ["tasks", "show"],
        ["tasks", "list"],
        ["advantages"],
        ["compare"],
        ["verify"],
    ],
)
def test_every_command_has_help(run, command):
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert "Usage: g2rpo" in out


def test_version(run):
    assert run("--version")[:2] == (0, f"{g2rpo.__version__}\n")


def test_without_typer(without):
    result = without(["typer"], "train")
    assert result.returncode == 2
    assert 'pip install "g2rpo[cli]"' in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        (["torch"], ["train"], "torch"),
        (["transformers"], ["eval"], "torch"),
        (["PIL"], ["tasks", "show"], "cli"),
    ],
)
def test_missing_extra_names_what_to_install(without, missing, arguments, extra):
    result = without(missing, *arguments)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert missing[0] in line
    assert f'pip install "g2rpo[{extra}]"' in line


def test_run_package_without_its_extra():
    code = "import sys; sys.modules['pydantic'] = None; import g2rpo_trainer.config"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: g2rpo_trainer.config needs pydantic" in result.stderr
    assert 'pip install "g2rpo[torch]"' in result.stderr


def test_help_loads_no_framework(without):
    result = without(["torch", "yaml", "matplotlib", "PIL"], "train", "--help")
    assert result.returncode == 0, result.stderr
