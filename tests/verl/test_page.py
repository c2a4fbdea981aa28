"""docs/verl.md is right about options and versions."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from g2rpo_verl.options import Options, read_options

PAGE = (Path(__file__).parents[2] / "docs" / "verl.md").read_text(encoding="utf-8")


def described() -> dict[str, Any]:
    """Return key -> default of the page's table."""
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]+) \|", PAGE, flags=re.MULTILINE)
    found = {}
    for keys, defaults in rows:
        names = re.findall(r"`([\w.]+)`", keys)
        values = [yaml.safe_load(text.strip(" `")) for text in defaults.split(", ")]
        found |= dict(zip(names, values, strict=True))
    return found


def defaults(options: Any, prefix: str = "") -> dict[str, Any]:
    found = {}
    for field in fields(options):
        value = getattr(options, field.name)
        name = prefix + field.name
        found |= defaults(value, f"{name}.") if is_dataclass(value) else {name: value}
    return found


def test_every_option_is_described_with_its_default():
    assert described() == defaults(read_options({}))
    assert defaults(Options()) == defaults(read_options({}))


def test_versions_are_those_of_the_tests():
    for package, name in (("verl", "verl"), ("torch", "PyTorch"), ("transformers", "transformers")):
        (said,) = set(re.findall(rf"ested with .*?{name} ([\d.]+\d)", PAGE, flags=re.DOTALL))
        assert version(package).startswith(said)
