"""Results are kept cell by cell, and intervals are over seeds."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from benchmarks._intervals import interval
from benchmarks.evidence.cells import CHUNK, Cells, key
from benchmarks.evidence.questions import QUESTIONS
from benchmarks.evidence.simulator import Setting
from benchmarks.evidence.tables import COLUMNS, section

FIRST, SECOND = Setting(), Setting(estimator="grpo")


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Two settings at one chunk of seeds, two steps each."""
    cells = Cells(tmp_path_factory.mktemp("cells"), 2, 1)
    cells.fill([FIRST, SECOND], [0])
    return cells


def test_only_missing_cells_are_run(cells):
    kept, lost = cells.path(FIRST, 0), cells.path(SECOND, 0)
    text = lost.read_text()
    kept.write_text(kept.read_text() + " ")  # so that a second run would be seen
    lost.unlink()
    cells.fill([FIRST, SECOND], [0])
    assert kept.read_text().endswith(" ")
    assert lost.read_text() == text
    assert len(list(cells.folder.iterdir())) == 2


def test_a_row_is_a_seed(cells):
    columns = cells.read(FIRST, CHUNK)
    assert columns["tasks"].shape == (CHUNK, 6)
    assert {len(values) for values in columns.values()} == {CHUNK}


def test_every_setting_has_a_file_of_its_own():
    settings = {
        label: setting
        for question in QUESTIONS.values()
        for label, setting in question.settings.items()
    }
    names = {repr(setting): key(setting) for setting in settings.values()}
    assert len(set(names.values())) == len(names)
    assert key(FIRST) != key(replace(FIRST, options={"task_stage": None}))


@pytest.mark.parametrize("name", QUESTIONS)
def test_each_question_has_a_table(name, cells):
    question = QUESTIONS[name]
    columns = cells.read(FIRST, CHUNK)
    found = dict.fromkeys(question.settings, columns)
    text = section(name, question, question.settings, found, found)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(question.settings)
    assert {line.count("|") for line in lines} == {2 + len(question.columns)}
    assert set(question.columns) <= {*COLUMNS, "lost"}
    if "lost" in question.columns:
        assert list(question.clean) == list(question.settings)


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = [
        (found := interval(rng.normal(1, 1, 40), 500)).low <= 1 <= found.high for _ in range(400)
    ]
    assert np.mean(inside) == pytest.approx(0.94, abs=0.03)


def test_bold_is_what_excludes_zero():
    assert str(interval(np.asarray([1.0, 1.0]))) == "**+1.0000 [+1.0000, +1.0000]**"
    assert str(interval(np.zeros(3))) == "0"
    assert not str(interval(np.asarray([1.0, -1.0]))).startswith("**")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(["sizes"], "no question sizes"), (["--seeds", "30"], "--seeds must be a multiple of 20")],
)
def test_command_refuses_what_it_cannot_run(arguments, text):
    command = [sys.executable, "-m", "benchmarks.evidence", *arguments]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 2
    assert text in found.stderr


@pytest.mark.slow
def test_command_writes_tables_numbers_and_pictures(tmp_path):
    command = [sys.executable, "-m", "benchmarks.evidence", "equity", "distribution"]
    command += [
        "--seeds",
        "20",
        "--steps",
        "2",
        "--workers",
        "1",
        "--cache",
        str(tmp_path / "cells"),
    ]
    command += ["--output", str(tmp_path / "page.md"), "--pictures", str(tmp_path / "pictures")]
    subprocess.run(command, check=True, capture_output=True)
    assert "## Equity" in (tmp_path / "page.md").read_text()
    numbers = json.loads((tmp_path / "page.json").read_text())
    assert len(numbers["rewards"]["equity"]["gaussian, both"]) == 20
    pictures = {path.name: path.stat().st_size for path in (tmp_path / "pictures").iterdir()}
    assert set(pictures) == {"equity.svg", "gradient-norms.svg", "distribution.svg"}
    assert max(pictures.values()) < 100_000
