"""Warnings of a run: each begins when it should, is told once, and ends."""

import io
import math

import pytest
from rich.console import Console

from g2rpo_trainer.report.display import Display
from g2rpo_trainer.report.watch import Watch, spans

RIGHT = {
    "reward": 0.5,
    "rewards/accuracy/mean": 0.4,
    "frac_reward_zero_std": 0.5,
    "completions/clipped_ratio": 0.0,
    "entropy": 0.3,
    "completions/mean_length": 12.0,
    "length_target/low": 9.0,
    "length_target/high": 24.0,
}
BOUNDS = {"ocr": (0.1, 0.6)}


def metrics(task="ocr", **changed):
    names = {
        "accuracy": "rewards/accuracy/mean",
        "without_signal": "frac_reward_zero_std",
        "cut_off": "completions/clipped_ratio",
        "length": "completions/mean_length",
    }
    values = RIGHT | {names.get(name, name): value for name, value in changed.items()}
    return {f"{name}/{task}": value for name, value in values.items()}


def replay(course, tasks=("ocr",), bounds=BOUNDS):
    """Return the steps at which warnings begin and end, by their kinds."""
    watch = Watch(tasks, bounds)
    begins, ends = {}, {}
    for step, values in enumerate(course, 1):
        begun, ended = watch.step(step, values)
        for warning in begun:
            begins.setdefault(warning.kind, []).append(step)
        for warning in ended:
            ends.setdefault(warning.kind, []).append(step)
    return begins, ends


@pytest.mark.parametrize(
    ("kind", "wrong", "first"),
    [
        ("accuracy", {"accuracy": 0.0, "reward": 0.1}, 10),
        ("signal", {"without_signal": 1.0}, 20),
        ("cut off", {"cut_off": 0.1}, 10),
        ("entropy", {"entropy": 0.05}, 10),
        ("entropy", {"entropy": 0.7}, 10),
        ("length", {"length": 8.0}, 20),
        ("length", {"length": 25.0}, 20),
    ],
)
def test_each_warning_begins_after_its_steps_is_told_once_and_ends(kind, wrong, first):
    assert replay([metrics()] * 60) == ({}, {})
    begins, ends = replay([*[metrics(**wrong)] * 40, *[metrics()] * 20])
    assert begins == {kind: [first]}
    assert ends == {kind: [45]}
    # One step that is right in between, and the count begins anew.
    one_right = [*[metrics(**wrong)] * (first - 1), metrics(), *[metrics(**wrong)] * (first - 1)]
    assert replay(one_right)[0] == {}


@pytest.mark.parametrize(
    "harmless",
    [
        {"accuracy": math.nan},  # no accuracy is measured
        {"accuracy": 0.001},
        {"without_signal": 0.99},
        {"cut_off": 0.09},
        {"entropy": 0.1},
        {"length": 9.0},
        {"length": 24.0},
        {"length": 100.0, "length_target/low": math.nan, "length_target/high": math.nan},
    ],
)
def test_what_is_within_its_limits_is_no_warning(harmless):
    assert replay([metrics(**harmless)] * 60) == ({}, {})


def test_entropy_without_bounds_is_no_warning():
    assert replay([metrics(entropy=9.0)] * 30, bounds={}) == ({}, {})


def test_a_length_that_comes_nearer_is_no_warning():
    coming = [metrics(length=60 - step) for step in range(36)]
    assert replay(coming) == ({}, {})
    leaving = [metrics(length=25 + step) for step in range(36)]
    assert list(replay(leaving)[0]) == ["length"]


def test_entropy_that_jumps_from_one_side_to_the_other_is_neither_low_nor_high():
    assert replay([metrics(entropy=0.05 if step % 2 else 0.9) for step in range(30)]) == ({}, {})


def test_a_warning_near_its_limit_does_not_come_and_go():
    course = [metrics(cut_off=0.5)] * 10
    course += [metrics(cut_off=0.05 if step % 12 == 0 else 0.5) for step in range(120)]
    begins, ends = replay(course)
    assert begins["cut off"][0] == 10
    assert len(begins["cut off"]) == len(ends["cut off"]) + 1 <= 11
    rare = [metrics(cut_off=0.5)] * 10 + [metrics(cut_off=0.05)] * 4 + [metrics(cut_off=0.5)] * 30
    assert replay(rare)[1] == {"cut off": [15]}


def test_steps_without_the_task_do_not_count():
    course = [metrics(cut_off=1.0) if step % 3 == 0 else metrics("maths") for step in range(30)]
    begins, ends = replay(course, tasks=("ocr", "maths"))
    assert begins == {"cut off": [28]}
    assert ends == {}


def test_texts_have_the_numbers_and_what_to_try():
    watch = Watch(["v1.5"], {})
    for step in range(1, 21):
        watch.step(step, metrics("v1.5", accuracy=0.0, reward=0.1, cut_off=0.25, length=30.5))
    texts = {warning.kind: (warning.text, warning.advice) for warning in watch.active}
    assert "only the form of the answers is rewarded" in texts["accuracy"][0]
    assert "25% of the responses" in texts["cut off"][0]
    assert 'rollout.limits["v1.5"]' in texts["cut off"][1]
    assert "length 30.5 tokens is over its target 9–24" in texts["length"][0]
    assert "length.weight" in texts["length"][1]


def test_spans_of_a_run_have_their_first_and_last_steps():
    course = [*[metrics(cut_off=1.0)] * 12, *[metrics()] * 10, *[metrics(cut_off=1.0)] * 15]
    records = [{"step": step} | values for step, values in enumerate(course, 1)]
    found = spans(records, ["ocr"], BOUNDS)
    assert [(span.warning.kind, span.first, span.last) for span in found] == [
        ("cut off", 10, 12),
        ("cut off", 32, None),
    ]


@pytest.fixture
def plain():
    return Console(file=io.StringIO(), width=80)


@pytest.mark.parametrize("quiet", [False, True])
def test_a_display_prints_each_warning_once_and_its_end(plain, quiet):
    display = Display(60, ["ocr"], console=plain, bounds=BOUNDS, quiet=quiet)
    with display:
        for step in range(1, 41):
            display.step(step, metrics(entropy=0.05 if step <= 20 else 0.3))
    lines = [line for line in plain.file.getvalue().splitlines() if "ocr: " in line]
    assert lines[0].startswith("step 10: ocr: entropy 0.050 nats is below its bounds 0.1–0.6")
    assert "To try: a larger entropy.weights.ocr" in lines[0]
    if quiet:
        assert plain.file.getvalue().splitlines() == lines[:1]
    else:
        assert lines[1].startswith("step 25: ocr: no longer: entropy")
        assert len(lines) == 2


def test_a_resumed_run_knows_the_steps_before_and_tells_nothing_again(plain):
    records = [{"step": step} | metrics(cut_off=1.0) for step in range(1, 16)]
    display = Display(60, ["ocr"], 15, console=plain, bounds=BOUNDS)
    display.recall(records)
    display.step(16, metrics(cut_off=1.0))
    assert "cut off" not in plain.file.getvalue()
    display = Display(60, ["ocr"], 5, console=plain, bounds=BOUNDS)
    display.recall(records[:5])
    for step in range(6, 11):
        display.step(step, metrics(cut_off=1.0))
    assert "step 10: ocr: 100% of the responses were cut off" in plain.file.getvalue()
