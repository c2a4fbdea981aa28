"""A few tries of each promise; ``python -m tests.faults`` makes thousands."""

import pytest

from tests.faults.__main__ import PARTS, main
from tests.faults.count import Count

QUICK = ["losses", "records", "images", "settings", "folders"]


@pytest.mark.parametrize("part", QUICK)
def test_no_promise_is_broken_in_a_few_tries(part):
    for count in PARTS[part](0.01):
        assert count.tried
        assert not count.broken


@pytest.mark.slow
@pytest.mark.parametrize("part", sorted(set(PARTS) - set(QUICK)))
def test_no_promise_is_broken_in_a_few_tries_that_take_long(part):
    for count in PARTS[part](0.01):
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
    assert "numbers are even: 3: AssertionError" in capsys.readouterr().out
    assert "| numbers are even | 2 | 1 |" in page.read_text()
