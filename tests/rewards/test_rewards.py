"""Boxes, numbers, letters, characters and parts of a response, with values computed by hand."""

import numpy as np
import pytest

from g2rpo.rewards import (
    box_iou,
    character_accuracy,
    choice_match,
    mean_relative_accuracy,
    number_match,
    parse_response,
    score,
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("[0,0,10,10]", 1.0),
        ("[0, 0, 10, 5]", 0.5),
        ("the box is [5,0,15,10].", 1 / 3),
        ("[10,0,20,10]", 0.0),
        ("[10,10,0,0]", 0.0),
        ("[0,0,10]", 0.0),
        ('{"boxes": [0, 0, 1e1, 5.0]}', 0.5),
        ("[0., +0, 10., 5]", 0.5),
        ("[.0, 0, 10, 5.]", 0.5),
        ("[., 0, 10, 5]", 0.0),
        ("", 0.0),
    ],
)
def test_box_iou_is_overlap_over_union(answer, expected):
    assert box_iou(answer, "[0,0,10,10]") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("7", 1),
        ("7.0", 1),
        ("7.001", 1),
        ("7.01", 0),
        ("+7", 1),
        ("7 8", 0),
        ("x", 0),
        ("1e999", 0),
    ],
)
def test_numbers_match_to_two_decimals(answer, expected):
    assert number_match(answer, "7") == expected


def test_the_unicode_minus_is_a_minus():
    assert number_match("\N{MINUS SIGN}7", "-7") == 1
    assert number_match("\N{MINUS SIGN}7", "7") == 0
    assert number_match("7\N{MINUS SIGN}", "7") == 0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("20", 1.0), ("19.5", 1.0), ("19", 0.9), ("21", 0.9), ("16", 0.6), ("11", 0.1), ("10", 0.0)],
)
def test_mean_relative_accuracy_is_the_share_of_passed_thresholds(answer, expected):
    assert mean_relative_accuracy(answer, "20") == pytest.approx(expected)


def test_mean_relative_accuracy_of_0_is_1_for_0_only():
    assert mean_relative_accuracy("0", "0") == 1.0
    assert mean_relative_accuracy("0.1", "0") == 0.0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("B", 1), ("b", 1), ("(B)", 1), ("B. left", 1), ("A", 0), ("Below", 0), ("", 0), ("1", 0)],
)
def test_a_choice_matches_by_its_letter(answer, expected):
    assert choice_match(answer, "B") == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("7A8", 1.0), (" 7A8 ", 1.0), ("7A", 2 / 3), ("7B8", 2 / 3), ("", 0.0), ("7A8" * 9, 0.0)],
)
def test_character_accuracy_is_one_minus_the_error_rate(answer, expected):
    assert character_accuracy(answer, "7A8") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "answer", "well_formed"),
    [
        ("<think></think><answer>4</answer>", "4", True),
        ("<think>a\nb</think>\n<answer>4</answer>\n", "4", True),
        ("<answer>4</answer>", "4", False),
        ("<think>a</think><answer>4</answer>!", "4", False),
        ("<think>a</think><answer>4", None, False),
        ("<think><answer>3</answer></think><answer>4</answer>", "4", False),
        ("<think></think><answer>3</answer><answer>4</answer>", "4", False),
        ("<think>a</think></think><answer>4</answer>", "4", False),
        ("<thinking>a</thinking><answer>4</answer>", "4", True),
        ("<think>a</thinking><answer>4</answer>", "4", False),
        ("<think>a</think>so<answer>4</answer>", "4", False),
        ("</think>a<think><answer>4</answer>", "4", False),
        ("<answer>3<answer>4</answer>", "4", False),
        ("<think>It goes into <answer> tags.</think><answer>4</answer>", "4", False),
        ("<think>It ends with </answer>.</think><answer>4</answer>", "4", False),
        ("<think>Use <answer></answer> tags.</think><answer>4</answer>", "4", False),
        ("<think>a</think><answer>4</answer><answer>", "4", False),
        ("<answer>3</answer><think>No.</think><answer>4</answer>", "4", False),
        ("<think>a</think>< answer > 4 </ answer >", "4", False),
        ("< think >a< / think ><\tanswer\n>4< /answer>", "4", False),
        ("<think>a</think><ANSWER>4</Answer>", "4", False),
        ("<think>< answer >3</ answer ></think><answer>4</answer>", "4", False),
        ("<think>a</think><answer>3< answer >4</ answer ></answer>", "4", False),
        ("<think>a < b, c > d</think><answer>4</answer>", "4", True),
        ("<answers>4</answers>", None, False),
        ('<answer id="1">4</answer>', None, False),
        ("</answer><answer>4</answer></answer>", "4", False),
        ("<answer>3</answer><answer>4", "3", False),
        ("", None, False),
    ],
)
def test_the_answer_is_found_and_the_format_checked(text, answer, well_formed):
    assert parse_response(text) == (answer, well_formed)


def test_format_and_accuracy_add_up():
    record = {"problem_type": "maths", "answer": "4"}
    assert score(record, "<think></think><answer>4</answer>").reward == pytest.approx(1.0)
    assert score(record, "<answer>4</answer>").reward == pytest.approx(0.9)
    assert score(record, "<think></think><answer>5</answer>").reward == pytest.approx(0.1)
    assert score(record, "4").reward == 0.0


@pytest.mark.parametrize(
    ("problem_type", "truth"),
    [
        ("spatial grounding", "left"),
        ("spatial grounding", "[5,5,5,9]"),
        ("numerical", "three"),
        ("regression", "inf"),
        ("multiple choice", "?"),
        ("character OCR", " "),
    ],
)
def test_a_record_without_a_usable_answer_is_refused(problem_type, truth):
    with pytest.raises(ValueError, match="truth is"):
        score({"problem_type": problem_type, "answer": truth}, "<answer>1</answer>")


def test_unknown_problem_type_names_the_known_ones():
    with pytest.raises(ValueError, match=r"problem_type is 'poetry'; .*'maths'"):
        score({"problem_type": "poetry", "answer": ""}, "")
    with pytest.raises(ValueError, match="did you mean 'tracking'"):
        score({"problem_type": "trackin", "answer": ""}, "")


def test_a_truth_may_be_a_value_or_a_text_in_tags():
    assert number_match("7", 7) == number_match("7", 7.001) == 1
    assert number_match("7", "<answer> 7 </answer>") == 1
    assert number_match("7", np.int64(7)) == 1
    assert box_iou("[0,0,10,5]", np.array([0, 0, 10, 10])) == 0.5
    assert box_iou("[0,0,10,5]", [0, 0, 10, 10]) == box_iou("[0,0,10,5]", {"boxes": [0, 0, 10, 10]})
