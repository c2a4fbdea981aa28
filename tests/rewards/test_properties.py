"""Properties of the rewards for any numbers: symmetry, best answers, monotonicity."""

import json
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from g2rpo.rewards import box_iou, mean_relative_accuracy, number_match, span_iou, track_iou

EDGES = st.integers(-50, 50) | st.floats(-1e6, 1e6)


def boxes(edges=EDGES):
    return st.tuples(edges, edges, edges, edges).map(
        lambda e: [*map(min, e[:2], e[2:]), *map(max, e[:2], e[2:])]
    )


BOXES = boxes().filter(lambda box: (box[2] - box[0]) * (box[3] - box[1]) > 1e-9)
SPANS = st.tuples(EDGES, EDGES).map(sorted).filter(lambda span: span[1] - span[0] > 1e-9)


@pytest.mark.parametrize(("function", "kind"), [(box_iou, BOXES), (span_iou, SPANS)])
@given(data=st.data())
def test_overlap_is_symmetric_and_best_for_the_same(function, kind, data):
    first, second = (json.dumps(data.draw(kind)) for _ in range(2))
    value = function(first, second)
    assert value == pytest.approx(function(second, first), abs=1e-12)
    assert 0 <= value <= function(second, second) == 1


@given(BOXES, st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_the_larger_part_of_a_box_overlaps_more(box, first, second):
    def part(share):
        return json.dumps([*box[:3], box[1] + share * (box[3] - box[1])])

    less, more = sorted((first, second))
    truth = json.dumps(box)
    assert box_iou(part(less), truth) <= box_iou(part(more), truth) + 1e-9
    assert box_iou(part(less), truth) == pytest.approx(less, abs=1e-6)


@given(SPANS, st.floats(0, 1e6))
def test_a_span_that_is_shifted_overlaps_by_what_remains(span, shift):
    length = span[1] - span[0]
    assume(length > 1e-3)
    moved = json.dumps([end + shift for end in span])
    remains = max(length - shift, 0)
    assert span_iou(moved, json.dumps(span)) == pytest.approx(
        remains / (2 * length - remains), abs=1e-6
    )


@given(st.lists(BOXES, min_size=1, max_size=4), st.data())
def test_every_frame_of_a_track_weighs_the_same(frames, data):
    kept = data.draw(st.integers(0, len(frames)))
    track = {str(frame): box for frame, box in enumerate(frames)}
    answer = dict(list(track.items())[:kept])
    value = track_iou(json.dumps({"boxes": answer}), {"boxes": track})
    assert value == pytest.approx(kept / len(frames))


@given(st.floats(-1e9, 1e9).filter(lambda value: abs(value) > 1e-3))
def test_a_number_further_off_has_no_more_relative_accuracy(truth):
    answers = [truth * (1 + step / 40) for step in range(45)]
    values = [mean_relative_accuracy(repr(answer), truth) for answer in answers]
    assert values[0] == 1
    assert values[-1] == 0
    assert all(near >= far for near, far in pairwise(values))


@given(st.integers(-(10**6), 10**6), st.integers(0, 99))
def test_numbers_match_if_they_agree_to_two_decimals(hundreds, hundredths):
    truth = f"{hundreds}.{hundredths:02d}"
    assert number_match(truth + "001", truth) == 1
    assert number_match(f"{hundreds}.{(hundredths + 1) % 100:02d}", truth) == 0
