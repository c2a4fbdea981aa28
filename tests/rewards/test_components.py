"""Accuracy, format and structure, and their weighted sum."""

import json
import math

import pytest

from g2rpo.rewards import (
    ACCURACY,
    EXAMPLES,
    STRUCTURE,
    Components,
    TruthError,
    Weights,
    check_record,
    components,
)

BOX, FRAMES = [0, 0, 9, 9], {"1": [0, 0, 9, 9], "2": [1, 0, 9, 9]}


def parts(problem_type, truth, answer):
    record = {"problem_type": problem_type, "answer": truth}
    return components(record, f"<think></think><answer>{answer}</answer>")


@pytest.mark.parametrize("problem_type", list(ACCURACY))
def test_the_right_answer_has_all_components(problem_type):
    right = EXAMPLES[problem_type]
    assert parts(problem_type, right, right) == pytest.approx((1, 1, 1))
    assert parts(problem_type, right, right).total() == pytest.approx(1.5)


@pytest.mark.parametrize("problem_type", list(ACCURACY))
def test_without_the_format_there_is_no_structure(problem_type):
    right = EXAMPLES[problem_type]
    record = {"problem_type": problem_type, "answer": right}
    assert components(record, f"<answer>{right}</answer>") == pytest.approx((1, 0, 0))
    assert components(record, right) == (0, 0, 0)


@pytest.mark.parametrize(
    ("problem_type", "answer", "expected"),
    [
        ("spatial grounding", [1, 2, 3, 4], 1),
        ("spatial grounding", {"boxes": [1, 2, 3, 4]}, 1),
        ("spatial grounding", {"boxes": [4, 3, 2, 1]}, 1),
        ("spatial grounding", {"boxes": [[1, 2, 3, 4]]}, 1),
        ("spatial grounding", {"box": [1, 2, 3, 4]}, 1),
        ("spatial grounding", {"boxes": []}, 0),
        ("spatial grounding", {"boxes": [1, 2, 3]}, 0),
        ("spatial grounding", {"boxes": [[1, 2, 3, 4], "left"]}, 0),
        ("spatial grounding", {"place": [1, 2, 3, 4]}, 0),
        ("temporal grounding", {"time": [9, 1]}, 1),
        ("temporal grounding", {"time": ["1", "9"]}, 1),
        ("temporal grounding", {"time": ["1 s", "9 s"]}, 0),
        ("temporal grounding", {"time": [1, 9, 12]}, 0),
        ("tracking", {"boxes": FRAMES}, 1),
        ("tracking", {"boxes": {"1": BOX}}, 0.75),
        ("tracking", {"bbox_2d": {"1": ["0", "0", "9", "9"]}}, 0.75),
        ("tracking", [{"boxes": FRAMES}], 1),
        ("tracking", {"boxes": {"7": BOX}}, 0.5),
        ("tracking", {"boxes": {**FRAMES, "3": "left"}}, 0),
        ("tracking", {"boxes": {}}, 0),
        ("spatio-temporal grounding", {"time": [1, 2], "boxes": {"2": BOX}}, 0.75),
        ("spatio-temporal grounding", {"boxes": FRAMES}, 0),
        ("segmentation", {"boxes": BOX, "positive_points": [[1, 1]]}, 0),
    ],
)
def test_structure_is_the_share_of_the_required_form(problem_type, answer, expected):
    truth = {
        "tracking": json.dumps({"boxes": FRAMES}),
        "spatio-temporal grounding": json.dumps({"time": [1, 2], "boxes": FRAMES}),
    }.get(problem_type, EXAMPLES[problem_type])
    assert parts(problem_type, truth, json.dumps(answer)).structure == expected


def test_a_time_is_part_of_the_structure_in_videos_only():
    image = json.loads(EXAMPLES["segmentation"])
    video = image | {"time": 3}
    assert parts("segmentation", image, json.dumps(image)).structure == 1
    assert parts("segmentation", video, json.dumps(image)).structure == 0
    assert parts("segmentation", video, json.dumps(video)).structure == 1


def test_the_total_is_the_weighted_sum():
    assert Components(0.5, 1.0, 0.0).total() == pytest.approx(0.55)
    assert Components(0.5, 1.0, 0.5).total(Weights(1, 2, 4)) == pytest.approx(4.5)
    assert math.isnan(Components(math.nan, 1.0, 1.0).total())


def test_other_spellings_of_a_problem_type_are_accepted():
    assert parts("Math", "7", "7").accuracy == 1
    assert (
        parts("Spatial-Temporal  Grounding", *[EXAMPLES["spatio-temporal grounding"]] * 2)[0] == 1
    )


def test_every_structure_belongs_to_an_accuracy():
    assert set(STRUCTURE) <= set(ACCURACY) == set(EXAMPLES)


def test_a_bad_answer_names_its_problem_type():
    with pytest.raises(TruthError, match="answer of a 'regression' record: truth is 'ten'"):
        parts("regression", "ten", "10")
    with pytest.raises(TruthError, match="'tracking'"):
        check_record({"problem_type": "tracking", "answer": "[]"})
    for problem_type, right in EXAMPLES.items():
        check_record({"problem_type": problem_type, "answer": right})


def test_a_long_truth_does_not_fill_the_error():
    with pytest.raises(TruthError) as caught:
        parts("numerical", "x" * 1_000_000, "1")
    assert len(str(caught.value)) < 300
