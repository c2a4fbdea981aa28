"""Maths: equal as mathematics, within a time."""

import signal
import threading
import time

import pytest

from g2rpo.rewards import TruthError, maths_match
from g2rpo.rewards.clock import OutOfTime, time_limit
from g2rpo.rewards.maths import LONGEST


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        ("7", "7", 1),
        ("7.0", "7", 1),
        ("1,000", "1000", 1),
        ("7.001", "7", 0),
        (r"\frac{1}{2}", "0.5", 1),
        ("1/2", r"$\frac{1}{2}$", 1),
        (r"\boxed{7}", "7", 1),
        ("x=5", "5", 1),
        ("(x+1)^2", "x^2+2x+1", 1),
        ("(x+1)^2", "x^2+1", 0),
        (r"2\sqrt{2}", r"\sqrt{8}", 1),
        (r"\{1,2\}", r"\{2,1\}", 1),
        ("(1,2)", "(2,1)", 0),
        ("14/2", "7", 1),
        ("7 or 8", "8", 0),
        ("3+4", "7", 0),
        ("$ 10 - 3 $", "7", 0),
        ("(2+5)*1", "7", 0),
        (r"$2 \times 3.5$", "7", 0),
        (r"\sqrt{49}", "7", 1),
        ("-3+10", "7", 0),
        ("-7", "-7.0", 1),
        ("$-7$", "-7", 1),
        ("3+4=7", "7", 1),
        ("x+3+4", "x+7", 1),
        ("seven", "7", 0),
        ("y", "x", 0),
        ("", "x", 0),
        (r"\frac{", "7", 0),
    ],
)
def test_maths_match(answer, truth, expected):
    assert maths_match(answer, truth) == expected


@pytest.mark.parametrize("truth", ["", "isosceles triangle", r"\frac{", None])
def test_a_truth_that_is_no_expression_says_so(truth):
    with pytest.raises(TruthError, match=r"truth is .*; it must be a number or an expression"):
        maths_match("7", truth)


def test_a_long_answer_is_not_read():
    long = "+".join("x" * (LONGEST // 2))
    assert len(long) == LONGEST - 1
    assert maths_match(long, f"{LONGEST // 2}x") == 1
    assert maths_match(long + "+0", f"{LONGEST // 2}x") == 0


def test_a_comparison_that_takes_too_long_is_wrong():
    started = time.process_time()
    assert maths_match("$10000000!$", "7", seconds=0.2) == 0
    assert time.process_time() - started < 5


def test_an_answer_may_be_compared_outside_the_main_thread():
    values = []
    thread = threading.Thread(target=lambda: values.append(maths_match("14/2", "7")))
    thread.start()
    thread.join()
    assert values == [1.0]


def test_no_response_is_written_to_the_log(caplog):
    maths_match(r"\frac{secret}{", "x")
    maths_match("$9^{9^{9^9}}$", "7", seconds=0.1)
    assert caplog.records == []


class Finalised:
    """Something whose finaliser takes a while; Python ignores what is raised in there."""

    def __del__(self):
        end = time.monotonic() + 0.1
        while time.monotonic() < end:
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_time_limit_holds_after_an_alarm_in_a_finaliser():
    def work():
        Finalised()
        time.sleep(5)

    with pytest.raises(OutOfTime), time_limit(0.02):
        work()


def test_time_limit_leaves_an_earlier_alarm_alone():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    outer = signal.setitimer(signal.ITIMER_REAL, 0.15)
    try:
        with pytest.raises(OutOfTime), time_limit(0.02):
            time.sleep(60)
        assert not rung
        time.sleep(0.3)
        assert rung
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *outer)


def test_time_limit_lets_go_of_what_ends_in_time():
    with time_limit(0.05):
        pass
    time.sleep(0.1)
