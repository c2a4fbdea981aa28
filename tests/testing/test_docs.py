"""The tables of docs/verify.md have all invariants, and those that each estimator breaks."""

import re
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings

import g2rpo.testing
from g2rpo import ESTIMATORS
from g2rpo.testing import INVARIANTS, verify_advantages

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "verify.md").read_text(encoding="utf-8")


def rows(heading):
    """Return the rows of the first table under a heading, as lists of cells."""
    section = PAGE.partition(f"## {heading}")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def names(cell):
    return re.findall(r"`([\w@+-]+)`", cell)


def estimator(cell):
    """Return the estimator of a cell such as: `gaussian`, `task_stage="match"`."""
    (name,), options = names(cell.split(",")[0]), re.findall(r'`task_stage="?([\w-]+)"?`', cell)
    stages = [None if option == "None" else option for option in options]
    return partial(ESTIMATORS[name], task_stage=stages[0]) if stages else ESTIMATORS[name]


TABLE = {row[0]: names(row[1]) for row in rows("Which estimator keeps which")}


def broken(cell, **options):
    results = verify_advantages(estimator(cell), **options)
    return [result.invariant.name for result in results if not result.holds]


def test_every_invariant_is_explained():
    assert [names(row[0])[0] for row in rows("The invariants")] == list(INVARIANTS)


def test_every_estimator_is_in_the_table():
    assert {names(cell)[0] for cell in TABLE} == set(ESTIMATORS)


@pytest.mark.parametrize("cell", TABLE)
def test_an_estimator_breaks_the_invariants_of_the_table(cell):
    assert broken(cell, invariants=TABLE[cell]) == TABLE[cell]


@pytest.mark.slow
@pytest.mark.parametrize("cell", TABLE)
def test_an_estimator_keeps_the_other_invariants(cell):
    kept = [name for name in INVARIANTS if name not in TABLE[cell]]
    # 50, and 500 with --hypothesis-profile=nightly.
    assert broken(cell, invariants=kept, max_examples=settings.default.max_examples // 2) == []


def test_the_reference_lists_every_public_name():
    page = (DOCS / "reference" / "testing.md").read_text(encoding="utf-8")
    assert set(g2rpo.testing.__all__) <= set(re.findall(r"\w+", page))
