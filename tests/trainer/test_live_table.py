"""The live table: each number beside what it should be, on terminals of any width."""

import io
import math

import pytest
from rich.console import Console

from g2rpo_trainer.report.display import Display
from g2rpo_trainer.report.live_table import LiveTable
from g2rpo_trainer.report.trend import Trend

TASKS = ("ocr", "maths")


def metrics(step):
    values = {"reward": 0.3 + step / 100, "frac_reward_zero_std": 0.25, "entropy": 0.3}
    for task, length, norm in (("ocr", 27.0, 1.0), ("maths", 12.0, 3.0)):
        values |= {
            f"reward/{task}": 0.3 + step / 100,
            f"frac_reward_zero_std/{task}": 0.25,
            f"completions/mean_length/{task}": length,
            f"length_target/low/{task}": 9.0,
            f"length_target/high/{task}": 24.0,
            f"entropy/{task}": 0.03 if task == "maths" else 0.3,
        }
        if step == 10:
            values[f"equity/grad_norm/{task}"] = norm
    return values


def shown(width, steps=40, tasks=TASKS, bounds=None):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    bounds = {"maths": (0.05, 0.6), "ocr": (0.05, 0.6)} if bounds is None else bounds
    table = LiveTable(tasks, bounds)
    for step in range(1, steps + 1):
        table.step(metrics(step))
    console.print(table.render(console))
    return console.file.getvalue()


def test_a_row_has_change_target_bounds_signal_share_and_trend():
    head, ocr, maths, mean = shown(100).splitlines()
    for name in ("task", "reward", "length", "entropy", "signal", "gradient", "trend"):
        assert name in head
    assert "0.700 +0.300" in ocr  # the last ten steps less the first ten
    assert "27.0↑ 9–24" in ocr
    assert "0.300 0.05–0.6" in ocr
    assert "75%" in ocr
    assert "25%" in ocr  # of the gradient norms, measured at step 10
    assert "▁" in ocr
    assert "█" in ocr
    assert "12.0 9–24" in maths
    assert "0.030↓ 0.05–0.6" in maths
    assert "0.700 +0.300" in mean


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (80, ["reward", "length", "entropy", "signal", "gradient", "trend"]),
        (60, ["reward", "length", "entropy", "trend"]),
        (50, ["reward", "length", "entropy"]),
        (30, ["reward", "length"]),
        (20, ["reward"]),
    ],
)
def test_a_narrow_terminal_loses_columns_and_no_task(width, columns):
    lines = shown(width).splitlines()
    assert len(lines) == 4
    assert all(len(line.rstrip()) <= width for line in lines)
    assert lines[0].split() == ["task", *columns]
    assert "0.700 +0.300" in lines[1]


def test_without_targets_and_bounds_there_are_plain_numbers():
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    table = LiveTable(["ocr"])
    table.step({"reward/ocr": 0.5, "entropy/ocr": math.nan})
    console.print(table.render(console))
    assert "nan" not in console.file.getvalue()
    assert "0.500" in console.file.getvalue()


def test_names_of_tasks_are_text():
    names = ("[red]x[/red]", "\x1b[31mred", "a" * 200)
    text = shown(100, tasks=names, bounds={})
    assert "[red]x[/red]" in text
    assert "\x1b" not in text
    assert "␛[31mred" in text
    assert len(text.splitlines()) == 5


def test_warnings_stand_below_the_table_while_they_hold():
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    wrong = {"reward/ocr": 0.5, "completions/clipped_ratio/ocr": 0.5}
    with Display(20, ["ocr"], console=console) as display:
        for step in range(1, 11):
            display.step(step, wrong)
    assert "! ocr: 50% of the responses were cut off" in console.file.getvalue()


def test_a_trend_is_short_however_long_the_run_is():
    for steps in (1, 2, 13, 100, 5000):
        trend = Trend(width=12)
        for step in range(steps):
            trend.add(float(step))
        line = trend.line()
        assert 1 <= len(line) <= 13
        assert line[-1] == "█" or steps == 1
        assert list(line) == sorted(line)
    trend.add(math.nan)
    assert trend.line() == line


def test_a_change_is_that_from_the_first_steps_to_the_last():
    trend = Trend()
    assert math.isnan(trend.change)
    for value in (0.1, 0.3):
        trend.add(value)
    assert trend.change == pytest.approx(0.2)
    for value in [0.5] * 30:
        trend.add(value)
    assert trend.change == pytest.approx(0.5 - (0.1 + 0.3 + 8 * 0.5) / 10)
