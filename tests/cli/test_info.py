"""``g2rpo info``: what is installed, what is missing, and which devices there are."""

import json
import platform
from importlib import metadata

import g2rpo
from g2rpo_cli import info


def test_json_has_versions_devices_and_extras(run):
    code, out, err = run("info", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["versions"]["g2rpo"] == g2rpo.__version__
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["versions"]["vllm"] is None
    cpu = found["devices"][0]
    assert cpu["device"] == "cpu"
    assert 0 < cpu["free"] <= cpu["total"]


def test_a_missing_extra_comes_with_its_command(run, monkeypatch):
    requirements = [
        "numpy>=1.26",
        'g2rpo[inner]; extra == "outer"',
        'g2rpo-abacus>=1; extra == "inner"',
        'numpy>=99; extra == "new"',
        'numpy>=1; extra == "here"',
    ]
    extras = {"Provides-Extra": ["outer", "new", "here"]}
    monkeypatch.setattr(info.metadata, "requires", lambda name: requirements)
    monkeypatch.setattr(info.metadata, "metadata", lambda name: Extras(extras))
    _, out, _ = run("info", "--json")
    found = json.loads(out)["extras"]
    assert found["outer"] == {
        "missing": ["g2rpo-abacus"],
        "command": 'pip install "g2rpo[outer]"',
    }
    (text,) = found["new"]["missing"]
    assert text == f"numpy>=99 ({metadata.version('numpy')} is installed)"
    assert found["here"] == {"missing": [], "command": None}
    monkeypatch.setenv("COLUMNS", "60")
    _, out, _ = run("info")
    assert 'pip install "g2rpo[outer]"' in out
    assert all(len(line) <= 60 for line in out.splitlines())


class Extras(dict):
    def get_all(self, name):
        return self[name]


def test_run_from_its_source_nothing_is_known_of_extras(run, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(info.metadata, "metadata", missing)
    code, out, _ = run("info")
    assert code == 0
    assert "extras: unknown" in out


def test_it_works_without_pytorch(without):
    result = without(["torch"], "info")
    assert result.returncode == 0, result.stderr
    assert "cpu" in result.stdout
