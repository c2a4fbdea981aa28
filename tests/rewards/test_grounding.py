"""Spans, tracks and segmentation prompts, with values computed by hand."""

import json
import math
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from g2rpo.rewards import TruthError, segmentation_match, span_iou, track_iou, tube_iou
from g2rpo.rewards.points import point_similarity

FULL, HALF, OFF = [0, 0, 10, 10], [0, 0, 10, 5], [20, 0, 30, 10]
TRACK = {"boxes": {"1": FULL, "2": FULL}}
TUBE = {"time": [2, 6], **TRACK}
MASK = {
    "boxes": FULL,
    "positive_points": [[0, 0], [100, 0], [0, 100]],
    "negative_points": [[200, 200], [300, 200], [200, 300]],
}
NEAR = math.exp(-(30**2) / (2 * 50**2))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"time": [2, 6]}', 1.0),
        ("[2.0, 6e0]", 1.0),
        ("from [2,4] s", 0.5),
        ("[4, 8]", 1 / 3),
        ("[6, 8]", 0.0),
        ("[6, 2]", 0.0),
        ("[2, 2]", 0.0),
        ("2 to 6", 0.0),
        ("", 0.0),
    ],
)
def test_span_iou_is_overlap_over_union(answer, expected):
    assert span_iou(answer, '{"time": [2, 6]}') == pytest.approx(expected)


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ({"1": FULL, "2": FULL}, 1.0),
        ({"2": FULL, "1": HALF}, 0.75),
        ({"1": FULL}, 0.5),
        ({"1.0": FULL, " 2": FULL}, 1.0),
        ({"1": FULL, "2": FULL, "3": OFF}, 1.0),
        ({"1": FULL, "2": OFF}, 0.5),
        ({"1": FULL, "2": "same"}, 0.5),
        ({"1": FULL, "2": [10, 10, 0, 0]}, 0.5),
        ([FULL, FULL], 0.0),
        ({}, 0.0),
    ],
)
def test_track_iou_is_the_mean_over_the_frames_of_the_truth(boxes, expected):
    assert track_iou(json.dumps({"boxes": boxes}), TRACK) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (TUBE, 1.0),
        ({"time": [2, 4], "boxes": {"1": FULL, "2": HALF}}, 0.25 + 0.375),
        (TRACK, 0.5),
        ({"time": [2, 6]}, 0.5),
        # One good frame of two is worth half of the space, not all of it.
        ({"time": [2, 6], "boxes": {"1": FULL}}, 0.75),
        ({"time": "2 to 6", "boxes": 3}, 0.0),
    ],
)
def test_tube_iou_is_half_time_and_half_space(answer, expected):
    assert tube_iou(json.dumps(answer), TUBE) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 1.0),
        ({"positive_points": [[0, 100], [0, 0], [100, 0]]}, 1.0),
        ({"boxes": HALF}, 0.75),
        ({"boxes": OFF}, 0.5),
        ({"positive_points": [[30, 0], [130, 0], [30, 100]]}, 0.75 + 0.25 * NEAR),
        # The distance is the mean: one point 90 away is as good as three 30 away.
        ({"negative_points": [[200, 200], [300, 200], [200, 390]]}, 0.75 + 0.25 * NEAR),
        ({"negative_points": [[200, 200], [300, 200]]}, 0.75),
        ({"negative_points": [[200, 200], [300, 200], [200]]}, 0.75),
        ({"positive_points": [[1e308, 0], [-1e308, 0], [0, 1e308]]}, 0.75),
    ],
)
def test_segmentation_of_an_image_adds_box_and_points(change, expected):
    assert segmentation_match(json.dumps(MASK | change), MASK) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (5, 1.0),
        (7, 0.7 + 0.3 / math.e),
        (1, 0.7 + 0.3 * math.exp(-2)),
        ("5", 1.0),
        ("00:07.0", 0.7 + 0.3 / math.e),
        ("soon", 0.7),
        (1e308, 0.7),
    ],
)
def test_segmentation_of_a_video_adds_the_distance_in_time(time, expected):
    answer = json.dumps(MASK | {"time": time})
    assert segmentation_match(answer, MASK | {"time": 5}) == pytest.approx(expected)


def test_segmentation_of_a_video_without_a_time_loses_that_part_only():
    assert segmentation_match(json.dumps(MASK), MASK | {"time": 5}) == pytest.approx(0.7)


POINTS = st.lists(st.lists(st.integers(0, 200), min_size=2, max_size=2), min_size=1, max_size=4)


@given(POINTS, st.data())
def test_points_are_compared_under_the_best_assignment(targets, data):
    size = len(targets)
    points = data.draw(POINTS.filter(lambda drawn: len(drawn) == size))
    sums = [
        sum(math.dist(point, target) for point, target in zip(order, targets, strict=True))
        for order in permutations(points)
    ]
    expected = math.exp(-((min(sums) / size) ** 2) / 5000)
    assert point_similarity(points, targets) == pytest.approx(expected)
    assert point_similarity(targets, points) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("function", "truth"),
    [
        (span_iou, "[3, 3]"),
        (span_iou, "soon"),
        (track_iou, "{}"),
        (track_iou, {"boxes": {}}),
        (track_iou, {"boxes": {"1": [0, 0, 0, 5]}}),
        (track_iou, {"boxes": {"1": FULL, "1.0": FULL}}),
        (tube_iou, TRACK),
        (tube_iou, TUBE | {"time": [6, 2]}),
        (segmentation_match, MASK | {"boxes": [0, 0, 1]}),
        (segmentation_match, MASK | {"negative_points": []}),
        (segmentation_match, MASK | {"time": "late"}),
        (segmentation_match, "[" * 100_000),
    ],
)
def test_an_invalid_truth_is_refused_with_its_required_form(function, truth):
    with pytest.raises(TruthError, match=r"^truth is .{1,200}; it must (be|contain) .*\["):
        function("", truth)
