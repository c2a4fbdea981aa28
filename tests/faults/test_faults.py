"""A few tries of each promise; ``python -m tests.faults`` makes thousands."""

import pytest

from tests.faults.__main__ import PARTS, main
from tests.faults.count import Count, NotPossible

QUICK = ["losses", "records", "images", "settings", "folders"]


@pytest.mark.parametrize("part", QUICK)
def test_no_promise_is_broken_in_a_few_tries(part):
    for count in PARTS[part](0.01):
        assert count.tried
        assert not count.broken


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", sorted(set(PARTS) - set(QUICK)))
def test_no_promise_is_broken_in_a_few_tries_that_take_long(part, monkeypatch):
    monkeypatch.setenv("G2RPO_SOAK_MINUTES", "5")
    try:
        counts = list(PARTS[part](0.01))
    except NotPossible as reason:
        pytest.skip(str(reason))
    for count in counts:
        assert count.tried
        assert not count.broken


def test_a_broken_promise_is_counted_shown_and_ends_with_status_1(monkeypatch, tmp_path, capsys):
    def part(share):
        count = Count("numbers are even")
        for number in (2, 3):
            count.expect(number % 2 == 0, number)
        yield count

    monkeypatch.setitem(PARTS, "even", part)
    page = tmp_path / "faults.md"
    monkeypatch.setattr("sys.argv", ["faults", "even", "--output", str(page)])
    assert main() == 1
    shown = capsys.readouterr().out
    assert "numbers are even: count.py, line" in shown
    assert "assert holds: AssertionError: : 3" in shown.replace("\n", " ")
    assert "| numbers are even | 2 | 1 |  |" in page.read_text()
    assert "| even | 1 |" in page.read_text()


def test_parts_are_stored_as_they_end_and_left_out_when_it_goes_on(monkeypatch, tmp_path):
    ran = []

    def part(share):
        ran.append(share)
        yield Count("it is so", 3, figure="2 s")

    for name in ("one", "two"):
        monkeypatch.setitem(PARTS, name, part)
    page = tmp_path / "faults.md"
    for arguments in (["one", "--share", "0.5"], ["one", "two", "--continue"]):
        monkeypatch.setattr("sys.argv", ["faults", *arguments, "--output", str(page)])
        assert main() == 0
    assert ran == [0.5, 1.0]
    assert page.read_text().count("| it is so | 3 | 0 | 2 s |") == 2


def test_parts_run_at_the_same_time_in_processes_of_their_own(monkeypatch, tmp_path):
    page = tmp_path / "faults.md"
    arguments = ["records", "settings", "--share", "0.001", "--workers", "2"]
    monkeypatch.setattr("sys.argv", ["faults", *arguments, "--output", str(page)])
    assert main() == 0
    assert {path.stem for path in tmp_path.glob("faults/*.json")} == {"records", "settings"}
    assert page.read_text().count("| 0.001 |") == 2


def test_a_part_that_fails_is_broken_and_the_others_go_on(monkeypatch, tmp_path, capsys):
    def fails(share):
        raise ImportError("no such name")
        yield

    monkeypatch.setitem(PARTS, "batches", fails)
    page = tmp_path / "faults.md"
    arguments = ["faults", "batches", "records", "--share", "0.001", "--output", str(page)]
    monkeypatch.setattr("sys.argv", arguments)
    assert main() == 1
    assert "ImportError: no such name" in capsys.readouterr().out
    assert "| batches: the test itself goes on to its end | 1 | 1 |  |" in page.read_text()
    assert "a broken file of records" in page.read_text()


def test_what_a_machine_forbids_is_said_and_is_no_success(monkeypatch, tmp_path, capsys):
    def part(share):
        with Count("never").trying():
            raise NotPossible("no mount")
        yield

    monkeypatch.setitem(PARTS, "disk", part)
    page = tmp_path / "faults.md"
    monkeypatch.setattr("sys.argv", ["faults", "disk", "--output", str(page)])
    assert main() == 1
    assert "NOT POSSIBLE HERE: disk: no mount" in capsys.readouterr().out
    assert "| disk: not possible here | 0 | 0 | no mount |" in page.read_text()
