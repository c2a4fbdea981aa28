import io
import math

import pytest
from rich.console import Console

from g2rpo_trainer.report.display import Display

METRICS = {"reward": 0.5, "reward/ocr": 0.25, "completions/mean_length/ocr": 12.34, "step_time": 2}


@pytest.fixture
def plain():
    return Console(file=io.StringIO(), width=80)


def test_plain_lines_come_every_ten_steps_and_at_the_end(plain):
    with Display(25, ["ocr"], console=plain) as display:
        for step in range(1, 26):
            display.step(step, METRICS)
    lines = plain.file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/25", "11/25", "21/25", "25/25"]
    assert lines[0] == "step 1/25 | reward 0.500 | ocr 0.250 | 2.0 s a step"


def test_plain_lines_do_not_wrap(plain):
    tasks = [f"a-task-with-a-long-name-{number}" for number in range(9)]
    Display(1, tasks, console=plain).step(1, METRICS)
    assert len(plain.file.getvalue().splitlines()) == 1


def test_scoring_that_fails_is_told_once_for_each_reason(plain):
    with Display(3, ["ocr"], console=plain) as display:
        display.step(1, {**METRICS, "rewards/timeouts": 0.0, "rewards/errors": 0.0})
        display.step(2, {**METRICS, "rewards/timeouts": 8.0, "rewards/errors": 0.0})
        display.step(3, {**METRICS, "rewards/timeouts": 9.0, "rewards/errors": 1.0})
    lines = [line for line in plain.file.getvalue().splitlines() if "responses" in line]
    assert len(lines) == 2
    assert lines[0].startswith("step 2: 8 responses took longer to score than rewards.timeout")
    assert lines[1].startswith("step 3: 1 responses made their reward function fail")


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ([1, 1, 1, 1, 1], ["steps 1 to 3"]),
        ([1, 1, 0.5, 1, 1, 1, 1], []),
        ([None, 1, 1, 1], []),
        ([1, 1], []),
    ],
)
def test_rewards_that_never_differ_are_told_once(plain, shares, told):
    with Display(9, ["ocr"], console=plain) as display:
        for step, share in enumerate(shares, 1):
            signal = {} if share is None else {"frac_reward_zero_std": share}
            display.step(step, METRICS | signal)
    lines = [line for line in plain.file.getvalue().splitlines() if "teach nothing" in line]
    assert [line.partition(":")[0] for line in lines] == told
    assert all("g2rpo eval MODEL --samples" in line and "mean 0.500" in line for line in lines)


def test_table_on_a_terminal_shows_every_task():
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with Display(3, ["ocr", "maths"], 1, console=console) as display:
        display.step(2, {**METRICS, "entropy/ocr": math.nan})
    text = console.file.getvalue()
    assert "0.250" in text
    assert "12.3" in text
    assert "2/3" in text
    assert "nan" not in text


def test_phase_reports_its_end(plain):
    display = Display(1, [], console=plain)
    with display.phase("held-out items", 4) as advance:
        advance(4)
    assert plain.file.getvalue().startswith("held-out items: 4 items in ")


def test_phase_that_fails_says_nothing(plain):
    with pytest.raises(RuntimeError), Display(1, [], console=plain).phase("items", 4):
        raise RuntimeError
    assert plain.file.getvalue() == ""


def test_message_is_text_not_markup(plain):
    Display(1, [], console=plain).message("see [maths] in runs/[1]")
    assert plain.file.getvalue() == "see [maths] in runs/[1]\n"
