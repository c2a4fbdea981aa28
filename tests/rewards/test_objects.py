"""Several boxes or spans in an answer, and the forms in which they may be written."""

import json
import math
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from g2rpo.rewards import (
    TruthError,
    box_iou,
    check_record,
    components,
    segmentation_match,
    span_iou,
    track_iou,
    tube_iou,
)

A, B, C = [0, 0, 10, 10], [500, 500, 600, 600], [50, 0, 60, 10]
HALF_A = [0, 0, 10, 5]
FLAT, REVERSED = [5, 5, 5, 9], [600, 600, 500, 500]


def parts(problem_type, truth, answer):
    record = {"problem_type": problem_type, "answer": truth}
    return components(record, f"<think></think><answer>{answer}</answer>")


@pytest.mark.parametrize(
    ("truth", "answer", "expected"),
    [
        ([A, B], [A, B], 1),
        ([A, B], [B, A], 1),
        ([A, B], [HALF_A, B], 0.75),
        ([A, B], [B, HALF_A], 0.75),
        # Missing and surplus boxes both reduce the value.
        ([A, B], [B], 0.5),
        ([A, B], B, 0.5),
        ([A, B], [A, B, C], 2 / 3),
        (B, [A, B], 0.5),
        (B, [B, A], 0.5),
        ([B], [B], 1),
        # The same box twice finds one object, unless there are two.
        (A, [A, A], 0.5),
        ([A, B], [A, A], 0.5),
        ([A, A], [A, A], 1),
        ([A, A], [A], 0.5),
        # A box that encloses nothing is one that was given.
        (A, [A, FLAT], 0.5),
        ([A, B], [A, REVERSED], 0.5),
        ([A, B], [], 0),
        ([A, B], [FLAT, REVERSED], 0),
        (A, [A, "left"], 0.5),
        (A, [A, [1, 2, 3]], 0.5),
        # The best assignment is not the greedy one, which begins with 3/4 and is left with 0.
        ([[0, 0, 4, 1], [2, 0, 6, 1]], [[1, 0, 4, 1], [0, 0, 2, 1]], (2 / 5 + 2 / 4) / 2),
    ],
)
def test_boxes_have_the_iou_of_the_best_assignment(truth, answer, expected):
    assert box_iou(json.dumps(answer), truth) == pytest.approx(expected)
    assert box_iou(json.dumps({"boxes": answer}), {"boxes": truth}) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("truth", "answer", "expected"),
    [
        ([[0, 4], [6, 9]], [[6, 9], [0, 2]], 0.75),
        ([[0, 4], [6, 9]], [6, 9], 0.5),
        ([0, 4], [[6, 9], [0, 4]], 0.5),
        ([0, 4], [[0, 4], [4, 0]], 0.5),
        ([0, 4], [], 0),
    ],
)
def test_spans_have_the_iou_of_the_best_assignment(truth, answer, expected):
    assert span_iou(json.dumps(answer), truth) == pytest.approx(expected)
    assert span_iou(json.dumps({"time": answer}), {"time": truth}) == pytest.approx(expected)


EDGE = st.integers(0, 12)
BOXES = st.lists(
    st.tuples(EDGE, EDGE, st.integers(1, 8), st.integers(1, 8)).map(
        lambda box: [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    ),
    min_size=1,
    max_size=4,
)


@given(BOXES, BOXES, st.randoms())
def test_no_assignment_is_better_and_no_order_matters(truth, answer, random):
    value = box_iou(json.dumps(answer), truth)
    fewer, more = sorted((truth, answer), key=len)
    sums = [
        math.fsum(box_iou(json.dumps(one), other) for one, other in zip(fewer, order, strict=False))
        for order in permutations(more)
    ]
    assert value == pytest.approx(max(sums) / len(more))
    assert box_iou(json.dumps(truth), answer) == pytest.approx(value)
    random.shuffle(truth)
    random.shuffle(answer)
    assert box_iou(json.dumps(answer), truth) == value


def test_an_answer_of_more_than_256_objects_scores_0():
    assert parts("spatial grounding", A, json.dumps([A] * 256))[::2] == (1 / 256, 1)
    assert parts("spatial grounding", A, json.dumps([A] * 257))[::2] == (0, 0)
    assert parts("spatial grounding", A, "[0,0,10,10] " * 257)[::2] == (0, 0)
    assert parts("temporal grounding", [0, 4], json.dumps({"time": [[0, 4]] * 10_000}))[::2] == (
        0,
        0,
    )
    with pytest.raises(TruthError, match="a list of 1 to 256"):
        check_record({"problem_type": "spatial grounding", "answer": [A] * 257})


WRITTEN = {
    "list": "[500, 500, 600, 600]",
    "list of lists": "[[500, 500, 600, 600]]",
    "key": '{"boxes": [500, 500, 600, 600]}',
    "several under a key": '{"boxes": [[500, 500, 600, 600]]}',
    "other list before the key": '{"size": [1, 1, 5, 5], "boxes": [500, 500, 600, 600]}',
    "Qwen2.5-VL": '```json\n[\n\t{"bbox_2d": [500, 500, 600, 600], "label": "horse\'s"}\n]\n```',
    "fence on one line": "```[500, 500, 600, 600]```",
    "bbox": '{"bbox": [500, 500, 600, 600]}',
    "bboxes": '{"bboxes": [[500, 500, 600, 600]]}',
    "box": '{"box": [500, 500, 600, 600], "boxes": null}',
    "deeper": '{"objects": [{"label": "cat", "bbox_2d": [500, 500, 600, 600]}]}',
    "by name": '{"boxes": {"cat": [500, 500, 600, 600]}}',
    "corners by name": '{"x1": 500, "y1": 500, "x2": 600, "y2": 600}',
    "numbers as texts": '{"boxes": ["500", "500.0", "6e2", " 600 "]}',
    "list as a text": '{"boxes": "[500, 500, 600, 600]"}',
    "single quotes": "{'size': [1, 1, 5, 5], 'boxes': [500, 500, 600, 600]}",
    "Qwen2-VL": "<|box_start|>(500,500),(600,600)<|box_end|>",
    "two corners": "(500, 500), (600, 600)",
    "InternVL": "<box>[[500, 500, 600, 600]]</box>",
    "numbers that JSON does not have": "[500., +500, 600., 600]",
}
AROUND = {
    "text around a list": "It is at [500,500,600,600].",
    "text around corners": "The cat (500,500),(600,600) sleeps.",
    "text around an object": 'So {"size": [1, 1, 5, 5], "boxes": [500, 500, 600, 600]} it is.',
    "text around a fence": 'At\n```json\n{"a": [1, 2, 3, 4], "bbox_2d": [500, 500, 600, 600]}\n```',
    "other key": '{"coordinates": [500, 500, 600, 600]}',
    "broken JSON": '[{"bbox_2d": [500, 500, 600, 600]},',
    "open fence": "```json\n[500, 500, 600, 600]",
}


@pytest.mark.parametrize("form", list(WRITTEN))
def test_a_box_is_read_in_every_notation(form):
    assert parts("spatial grounding", B, WRITTEN[form]) == (1, 1, 1)
    assert parts("spatial grounding", WRITTEN[form], json.dumps(B)) == (1, 1, 1)


@pytest.mark.parametrize("form", list(AROUND))
def test_a_box_in_other_text_is_right_but_has_no_structure(form):
    assert parts("spatial grounding", B, AROUND[form]) == (1, 1, 0)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # The key decides; what stands elsewhere is no box.
        ('{"boxes": "left", "size": [500, 500, 600, 600]}', 0),
        ('{"boxes": [500, 500, 600], "size": [500, 500, 600, 600]}', 0),
        ('{"boxes": [0, 0, 10, 10], "bbox": [500, 500, 600, 600]}', 0),
        ('{"boxes": [[500, 500, 600, 600], [1, 2, 3]]}', 0.5),
        ('{"bbox_2d": [500, 500, 600, 600]}\n{"bbox_2d": [0, 0, 10, 10]}', 0.5),
        ("[500,500,600,600] or [0,0,10,10]", 0.5),
        ('{"boxes": [500, 500, 600, 600, 1]}', 0),
        ('{"boxes": [500, 500, true, 600]}', 0),
        ('{"boxes": ["500px", "500px", "600px", "600px"]}', 0),
        ("[[500, 500], [600, 600]]", 0),
        ("500, 500, 600, 600", 0),
    ],
)
def test_numbers_under_other_keys_are_no_boxes(answer, expected):
    assert box_iou(answer, B) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"fps": [24, 30], "time": [4, 8]}', (1, 1)),
        ('{"times": [[4, 8]]}', (1, 1)),
        ('{"start": 4, "end": 8.0}', (1, 1)),
        ('```json\n[{"start_time": "00:04", "end_time": "00:08.00", "event": "a"}]\n```', (1, 1)),
        ('{"time": ["0:00:04", "8"]}', (1, 1)),
        ('[{"start": 4, "end": 8}, {"start": 10, "end": 12}]', (0.5, 1)),
        ('At {"fps": [24, 30], "time": [4, 8]}.', (1, 0)),
        ("from [4, 8] s", (1, 0)),
        ('{"time": "soon", "fps": [4, 8]}', (0, 0)),
        ("4 to 8", (0, 0)),
        ("[00:04, 00:08]", (0, 0)),
    ],
)
def test_a_span_is_read_in_every_notation(answer, expected):
    assert parts("temporal grounding", [4, 8], answer)[::2] == expected


TRACK = {"boxes": {"1": A, "2": A}}
MASK = {"boxes": [A, B], "positive_points": [[1, 1]], "negative_points": [[9, 99]]}


@pytest.mark.parametrize(
    ("problem_type", "truth", "answer"),
    [
        ("tracking", TRACK, {"bbox_2d": {"1": A, "2": ["0", "0", "10", "10"]}}),
        (
            "spatio-temporal grounding",
            TRACK | {"time": [4, 8]},
            TRACK | {"start": 4, "end": "0:08"},
        ),
        ("segmentation", MASK, MASK | {"boxes": [B, A], "positive_points": [["1", "1"]]}),
        ("segmentation", MASK | {"time": None}, MASK | {"boxes": None, "bbox_2d": [A, B]}),
    ],
)
def test_other_problem_types_read_the_same_notations(problem_type, truth, answer):
    text = answer if isinstance(answer, str) else json.dumps(answer)
    for written in (text, f"```json\n{text}\n```", f"[{text}]"):
        assert parts(problem_type, truth, written) == pytest.approx((1, 1, 1)), written


def test_other_problem_types_take_several_objects():
    assert segmentation_match(json.dumps(MASK | {"boxes": [A]}), MASK) == pytest.approx(0.75)
    tube = TRACK | {"time": [[0, 4], [6, 9]]}
    assert tube_iou(json.dumps(TRACK | {"time": [6, 9]}), tube) == pytest.approx(0.75)
    assert track_iou(json.dumps({"boxes": {"1": [A], "2": A}}), TRACK) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "truth",
    [
        [],
        [[]],
        [A, FLAT],
        [A, REVERSED],
        [A, "left"],
        "[0,0,9,9] in an image [0,0,99,99]",
        {"boxes": []},
    ],
)
def test_an_ambiguous_truth_is_refused(truth):
    with pytest.raises(TruthError, match=r"it must contain one box .* or be a list of 1 to 256"):
        check_record({"problem_type": "spatial grounding", "answer": truth})


def test_one_box_in_other_text_is_a_truth():
    assert box_iou("[0,0,10,5]", "The cat is at [0,0,10,10].") == 0.5
