"""verl finds the plug-in by itself; one that fails to load is seen."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY
from verl.trainer.ppo.v1 import get_trainer_cls

import g2rpo
from g2rpo_verl import plugin

ROOT = Path(__file__).parents[2]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_verl_finds_the_entry_point():
    (found,) = [each for each in entry_points(group="verl.plugins") if each.name == "g2rpo"]
    assert found.load() is plugin


def test_every_estimator_is_registered():
    assert "g2rpo" in ADV_ESTIMATOR_REGISTRY
    assert {f"g2rpo-{name}" for name in g2rpo.ESTIMATORS} <= set(ADV_ESTIMATOR_REGISTRY)


@pytest.mark.parametrize("mode", ["sync", "colocate_async", "separate_async"])
def test_every_trainer_of_verl_has_one_with_tasks(mode):
    assert issubclass(get_trainer_cls(f"g2rpo_{mode}"), get_trainer_cls(mode))


def test_importing_verl_alone_loads_nothing_of_ours_but_the_plug_in():
    code = "import verl, sys; print(*[m for m in sys.modules if m.startswith('g2rpo')])"
    result = python(code)
    assert result.stdout.split() == ["g2rpo_verl", "g2rpo_verl.plugin"], result.stderr


def test_launcher_ends_with_the_cause_if_the_plug_in_cannot_register():
    broken = "import verl, sys; sys.modules['g2rpo'] = None; import verl.trainer.main_ppo"
    result = python(broken)
    assert result.returncode != 0
    assert "g2rpo" in result.stderr.splitlines()[-1]


def test_a_missing_library_is_seen_although_verl_hides_it():
    result = python("import sys; sys.modules['wrapt'] = None; import verl")
    assert "g2rpo_verl is not loaded" in result.stderr
    assert 'pip install "g2rpo[verl]"' in result.stderr


def test_another_version_of_verl_is_refused_with_the_remedy():
    for installed in ("0.9.0", "0.10.0.dev0", "0.10.0", "1.0"):
        with pytest.raises(ImportError, match=r'pip install "verl>=0.9.1,<0.10"'):
            plugin.check_version(installed)
    for installed in ("0.9.1", "0.9.2.dev0", version("verl")):
        plugin.check_version(installed)


def test_extra_asks_for_the_versions_that_the_plug_in_supports():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"verl{plugin.SUPPORTED}"' in text
    tested = (ROOT / "constraints-verl.txt").read_text(encoding="utf-8")
    (pinned,) = [line for line in tested.splitlines() if line.startswith("verl==")]
    assert pinned.removeprefix("verl==") in SpecifierSet(plugin.SUPPORTED)
    assert pinned == f"verl=={version('verl')}"


def test_verl_may_be_used_without_the_plug_in():
    code = "import verl.trainer.ppo.core_algos as c; print('g2rpo' in c.ADV_ESTIMATOR_REGISTRY)"
    assert python(code).stdout.split() == ["True"]
    assert python(code, VERL_USE_EXTERNAL_PLUGINS="none").stdout.split() == ["False"]
