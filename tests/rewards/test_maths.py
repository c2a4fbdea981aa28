"""Maths: equality of expressions, within a time limit."""

import math
import signal
import threading
import time

import pytest

from g2rpo.rewards import TruthError, maths_match
from g2rpo.rewards.time_limit import OutOfTime, time_limit
from g2rpo.rewards.unwrapping import LONGEST


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
def test_expressions_match_by_their_value(answer, truth, expected):
    assert maths_match(answer, truth) == expected


SAME = [
    ("1,234,567", "1234567"),
    ("10,00,000", "1000000"),
    ("1 000 000", "1000000"),
    (r"1\,234", "1234"),
    ("1{,}234", "1234"),
    ("1.234.567", "1234567"),
    ("2,1", "1,2"),
    ("1,5", "1,5"),
    ("(10,20,300)", "(10, 20, 300)"),
    ("(100,200)", "(100, 200)"),
    ("7, 8 and 9", "7, 8, 9"),
    ("√2", r"\sqrt{2}"),
    ("1.41421356", r"\sqrt{2}"),
    ("1.414214", "1.41421356"),
    ("½", "0.5"),
    ("1½", "3/2"),
    ("2 1/2", "2.5"),
    (r"2\frac{1}{2}", "2.5"),
    ("1 1/4", "5/4"),
    ("2π", r"2\pi"),
    ("x²", "x^2"),
    ("x^-1", r"\frac{1}{x}"),
    ("2**10", "1024"),
    ("10^-3", "0.001"),
    ("10⁻³", "0.001"),
    ("∞", r"\infty"),
    (r"0.\overline{3}", "1/3"),
    (r"0.1\overline{6}", r"\frac{1}{6}"),
    ("0.1(6)", r"\frac{1}{6}"),
    ("50%", "0.5"),
    (r"50\%", "50"),
    ("50", "50%"),
    ("x=50", "50%"),
    (r"50\%", r"\frac{100}{2}"),
    (r"8\!:\!00", "8:00"),
    (r"33\frac{1}{3}\%", r"\frac{1}{3}"),
    (r"\$18.90", "18.9"),
    ("$18.90", r"\$18.90"),
    ("18.90 dollars", "$18.90"),
    ("5 cm", "5"),
    ("5", "5 cm"),
    ("5cm", "5 centimeters"),
    ("5 m", "5m"),
    (r"2\sqrt{3}\text{ cm}", r"2\sqrt{3}"),
    ("2√3 cm", r"2\sqrt{3}"),
    (r"5\text{ apples}", "5"),
    (r"1.5\text{ million}", "1500000"),
    ("90°", r"90^\circ"),
    (r"\text{13}", "13"),
    (r"**12**", "12"),
    ("The answer is 12", "12"),
    ("The answer is $12$.", "12"),
    (r"$\boxed{12}$.", "12"),
    ("x≈5", "5"),
    ("x=3,y=4", "y=4,x=3"),
    ("x=3 or x=-3", r"\pm 3"),
    ("12=x", "x=12"),
    ("y = -1/2*x + 3/4", "2x+4y-3=0"),
    ("-34x-45y+20z-100=0", "34x+45y-20z+100=0"),
    ("D = (0, 1)", "D = (0, 1)"),
    (r"4\sqrt{2}", r"$4\sqrt(2)$"),
    ("12:00", "12:00"),
    ("1:2", "2:4"),
    ("1011_2", "1011_2"),
]

DIFFERENT = [
    ("12", "1,2"),
    ("15", "1,5"),
    ("1000", "1,000,2"),
    ("10", "10^-3"),
    ("0", r"0.\overline{3}"),
    ("0.3333", "1/3"),
    ("2", "n=2, 3, 4"),
    ("n=1,2,3", "n=2,3,4"),
    ("D = (0, 1.5)", "D = (0, 1)"),
    ("2021", r"\pm 2021"),
    ("3", "n=3k"),
    ("y=12", "x=12"),
    (r"1 + \frac{1}{\mathrm{e}}", r"1 - \frac{1}{\mathrm{e}}"),
    (r"21, 36, \text{ and } 82", r"19, 46, \text{ and } 82"),
    (r"(3, \frac{2\pi}{3})", r"\left( 3, \frac{\pi}{2} \right)"),
    ("4", r"$4\sqrt(2)$"),
    ("1:00", "12:00"),
    ("6:15", "12:30"),
    ("1:2:3", "1:3:2"),
    ("1011_2", "1011_3"),
    ("3", "3t"),
    ("5", "5m"),
    ("5 m", "5 cm"),
    ("€18.90", "$18.90"),
    (r"2\sqrt{3}\text{ cm}", r"2\sqrt{3}\text{ m}"),
    ("1/0", "7"),
    (r"\infty", r"-\infty"),
]


@pytest.mark.parametrize(("answer", "truth"), SAME)
def test_other_notations_of_the_right_answer_are_right(answer, truth):
    assert maths_match(answer, truth) == 1
    assert maths_match(truth, truth) == 1


@pytest.mark.parametrize(("answer", "truth"), DIFFERENT)
def test_similar_expressions_of_another_value_are_wrong(answer, truth):
    assert maths_match(answer, truth) == 0
    assert maths_match(truth, truth) == 1


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        ("50000000000000000", "50000000000000001", 0),
        ("50000000000000000, 1", "50000000000000001, 1", 0),
        ("x=50000000000000000", "x=50000000000000001", 0),
        ("0", "1.6e-19", 0),
        ("1.6e-19", "0", 0),
        ("1.6e-19, 0", "1e-19, 0", 0),
        ("3e-7", "2e-7", 0),
        ("x=3e-7", "x=2e-7", 0),
        ("0.3e-6", "3e-7", 1),
        ("x=0.3e-6", "x=3e-7", 1),
        (r"9\times10^{-40}", r"6.6\times10^{-34}", 0),
        (r"6.6\times10^{-34}", "6.6e-34", 1),
        ("6.6·10⁻³⁴", "6.6e-34", 1),
        (r"\frac{1}{2006!}", r"\frac{1}{2004!}", 0),
        (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}", 0),
        (r"\frac{1}{3 \cdot 2^{2006}}", r"\frac{2^{2005}+1}{3 \cdot 2^{2006}}", 0),
        ("6.03e23", "6.02e23", 0),
        ("1234567.89", "1234567.88", 0),
        ("1234568", "1234567.5", 0),
        ("4188790204.7864", r"\frac{4}{3}\pi 10^9", 1),
        ("4188790204.7", r"\frac{4}{3}\pi 10^9", 0),
        ("0.30000000000000004", "0.3", 1),
        ("7.0000001", "7", 1),
        (r"\sin(\pi)", "0", 1),
        ("-0", "0", 1),
    ],
)
def test_numbers_of_any_size_are_compared_by_their_digits(answer, truth, expected):
    assert maths_match(answer, truth) == expected


@pytest.mark.parametrize(
    "answer",
    [
        "{7+5}",
        r"\left(7+5\right)",
        r"\bigl(7+5\bigr)",
        r"7\,+\,5",
        "(7)+(5)",
        "7-(-5)",
        "|7+5|",
        r"\frac{7+5}{1}",
        r"\text{7+5}",
        "12+0",
        "12*1",
        r"12\cdot 1",
        "3×4",
        "3(4)",
        "x=7+5",
        "7+5+0*x",
        "7+5+0x",
        "12*x/x",
        "12+x-x",
        "13=12",
        "x+1=13=12",
        "0*x+13=12",
        "7 5",
        r"7\,5",
        r"7\frac{5}{1}",
        "7 5/1",
        r"\int_0^{12} 1 dx",
        r"\sum_{i=1}^{12} 1",
        "7 or 12",
    ],
)
def test_an_answer_that_repeats_the_question_or_does_not_hold_is_wrong(answer):
    assert maths_match(answer, "12") == 0


@pytest.mark.parametrize("answer", ["x=12", "7+5=12", "x=7+5=12", "12=12", "24/2", "{12}"])
def test_a_result_after_its_calculation_is_right(answer):
    assert maths_match(answer, "12") == 1


def test_an_unevaluated_sum_of_squares_is_wrong():
    assert maths_match("3^2+4^2", "25") == maths_match("2^{3+1}", "16") == 0
    assert maths_match(r"\int_0^1 x dx", r"\frac{1}{2}") == 0
    assert maths_match(r"\int_0^1 x dx", r"\int_0^1 x dx") == 1
    assert maths_match("x=5+0y", "x=5") == maths_match("x=2+3", "x=5") == 0


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [("2, 3", [2, 3], 1), ("3,2", [2, 3], 1), ("2", [2, 3], 0), ("7", [7], 1), ("x", ["x"], 1)],
)
def test_a_list_is_a_collection_of_answers(answer, truth, expected):
    assert maths_match(answer, truth) == expected


@pytest.mark.parametrize(
    "truth", ["1/0", "7 5", "3\N{EN DASH}5", r"1, 2, \ldots, n", [[1], 2], {"a": 1}, [], math.nan]
)
def test_a_truth_without_a_value_is_refused(truth):
    with pytest.raises(TruthError, match="it must be a number or an expression"):
        maths_match("7", truth)


@pytest.mark.parametrize("truth", ["", "isosceles triangle", r"\frac{", None])
def test_a_truth_that_is_no_expression_is_refused(truth):
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
    """An object with a slow finaliser; Python ignores exceptions in it."""

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


def test_time_limit_restores_an_earlier_alarm():
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


def test_time_limit_does_not_interrupt_a_block_that_ends_in_time():
    with time_limit(0.05):
        pass
    time.sleep(0.1)
