"""Notations of numbers, the same for answers and truths."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from g2rpo.rewards import TruthError, mean_relative_accuracy, number_match

SAME = [
    ("1,234,567", "1234567"),
    ("10,00,000", "1000000"),
    ("1,00,000.5", "100000.5"),
    ("1 234 567", "1234567"),
    ("1'234'567", "1234567"),
    ("1.234.567", "1234567"),
    (r"1\,234", "1234"),
    ("1{,}234", "1234"),
    ("1,5", "1.5"),
    ("0,125", "0.125"),
    ("12,75", "12.75"),
    ("1.234,5", "1234.5"),
    ("1 234,5", "1234.5"),
    ("1.6e3", "1600"),
    ("1.6×10³", "1600"),
    (r"1.6\times10^{3}", "1600"),
    ("3/4", "0.75"),
    (r"\frac{3}{4}", "0.75"),
    ("½", "0.5"),
    ("2 1/2", "2.5"),
    ("2½", "2.5"),
    ("-2½", "-2.5"),
    ("√2", "1.41"),
    (r"\sqrt{2}", "1.41"),
    ("2√3", "3.46"),
    (r"\$18.90", "18.9"),
    ("$18.90", "18.9"),
    ("-$5", "-5"),
    ("€5", "5 €"),
    ("50%", "0.5"),
    ("50%", "50"),
    ("0.5", "50%"),
    ("12 cm", "12"),
    ("12", "12 cm"),
    ("12cm", "12 centimeters"),
    ("30 km/h", "30 km per hour"),
    ("1.5 million", "1500000"),
    ("٣", "3"),
    ("３", "3"),
    ("**7**", "7"),
    (r"\boxed{7}", "7"),
    ("The answer is 7.", "7"),
    ("\N{EN DASH}7", "-7"),
]


@pytest.mark.parametrize(("answer", "truth"), SAME)
def test_other_notations_of_a_number_are_right(answer, truth):
    assert number_match(answer, truth) == number_match(truth, answer) == 1
    assert mean_relative_accuracy(answer, truth) == 1


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("15", "1,5"),
        ("1.234", "1,234"),
        ("1.2", "1,2345"),
        ("50000000000000000", "50000000000000001"),
        ("0.5%", "50%"),
        ("12 m", "12 cm"),
        ("€5", "$5"),
        ("357", "357,5"),
        ("1.5", "1.5 million"),
        ("0", "2e-7"),
        ("3e-7", "2e-7"),
        ("14/2", "7"),
        ("√49", "7"),
    ],
)
def test_other_numbers_are_wrong(answer, truth):
    assert number_match(answer, truth) == 0
    assert number_match(truth, truth) == 1


NO_NUMBERS = [
    "3\N{EN DASH}5",
    "⅟2",
    r"2 \text{ or } 3",
    "3,5,7",
    "1,2,3",
    "1,5.2",
    "7 8",
    "12:00",
    "1/0",
    "7 5/1",
    "7 or 8",
    "7 apples",
    "1_000",
]


@pytest.mark.parametrize(
    "text", [*NO_NUMBERS, "x=5", "2^3", "(5)", "1,234,56", "nan", "inf", "1e99999"]
)
def test_a_text_that_is_no_number_is_wrong_and_refused_as_a_truth(text):
    assert number_match(text, "357") == mean_relative_accuracy(text, "357") == 0
    for function in (number_match, mean_relative_accuracy):
        with pytest.raises(TruthError, match="it must be a finite number"):
            function("1", text)


@pytest.mark.parametrize("truth", [math.nan, math.inf, [1, 2], [], {"a": 1}, [[1]], True, None])
def test_a_value_that_is_not_one_finite_number_is_refused(truth):
    with pytest.raises(TruthError, match="it must be a finite number"):
        number_match("1", truth)


def test_a_list_of_one_is_its_entry():
    assert number_match("7", [7]) == number_match("7", ["7"]) == number_match("7", (7,)) == 1


def test_a_small_truth_is_compared_to_two_significant_digits():
    assert number_match("0.0030", "0.003") == number_match("0.00301", "0.003") == 1
    assert number_match("0.0034", "0.003") == number_match("0", "0.003") == 0
    assert number_match("0.001", "0") == 1  # two decimals


def test_an_error_at_a_threshold_does_not_pass_it():
    # 20 off by a tenth, a fifth, and so on: 1 − t itself is no error below 1 − t.
    for tenths in range(1, 5):
        expected = 1 - 2 * tenths / 10
        assert mean_relative_accuracy(str(20 + 2 * tenths), 20) == pytest.approx(expected)


@given(st.integers(-(10**40), 10**40))
def test_groups_of_thousands_are_the_number(number):
    assert number_match(f"{number:,}", number) == 1
    assert number_match(f"{number:,}".replace(",", " "), number) == 1
    assert number_match(f"{number + 1:,}", number) == 0


@given(st.decimals(-999, 999, places=3))
def test_a_decimal_comma_is_a_point_unless_it_looks_like_thousands(number):
    text = str(number)
    whole = text.lstrip("-").partition(".")[0]
    if whole == "0":
        assert number_match(text.replace(".", ","), text) == 1
    elif number:
        assert number_match(text.replace(".", ","), str(number * 1000)) == 1
    assert number_match(text.replace(".", ",")[:-1], text[:-1]) == 1


@given(st.text(st.characters(exclude_categories=())) | st.text("0123456789.,/%$ e-½√²\\{}"))
def test_any_text_is_a_number_or_none(text):
    for value in (number_match(text, "7"), mean_relative_accuracy(text, "7")):
        assert 0 <= value <= 1
    try:
        value = number_match(text, text)
    except TruthError:
        return
    assert value == 1
