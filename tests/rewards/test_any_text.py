"""Any text has reward components from 0 to 1, in bounded time."""

import json
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from g2rpo.rewards import (
    ACCURACY,
    EXAMPLES,
    TruthError,
    check_record,
    components,
    maths_match,
    parse_response,
)

MEGABYTE = 1_000_000
TAGS = ["<think>", "</think>", "<thinking>", "</thinking>", "<answer>", "</answer>", "< / Answer >"]
PIECES = ["[", "]", "{", "}", '"boxes":', '"time":', ",", "-1", "0", "9" * 400, "1e999", "NaN", "B"]
PIECES += ["(", ")", "```", "json", "'", '"', "bbox_2d", "start", "end", "1:2", "<|box_start|>"]
PIECES += ["[0,0,1,1]", "(0,0),(1,1)", "[0,1]"]
MARKUP = [
    "$",
    "**",
    r"\boxed{",
    r"\text{",
    r"\frac{1}{2}",
    "Answer:",
    "½",
    "√",
    "²",
    "%",
    "1,234",
    " cm",
]
SCRIPTS = ["क", "ि", "\u0301", "\u0316", "\u200d", "\u200b", "\ufe0f", "\u0f73", "犬", "ﬁ"]
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
SOUP = st.lists(st.sampled_from(TAGS + PIECES + MARKUP + SCRIPTS) | ANY_TEXT, max_size=12).map(
    "".join
)

NUMBERS = (
    st.floats()
    | st.integers()
    | st.sampled_from([10**400, "HUGE", True, None, "1", "0:1", "[1, 2]"])
)
NAMES = st.sampled_from(
    ["boxes", "time", "positive_points", "negative_points", "1", "nan", "bbox_2d", "start", "end"]
)
VALUES = st.recursive(
    NUMBERS | st.lists(NUMBERS, min_size=2, max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


SEVERAL = {
    "OCR": ["no parking", "हिन्दी"],
    "character OCR": ["7A8", "e\u0301"],
    "open-ended": ["一", "a b"],
}
OPTIONS = ["A. A dog", "B. १½", "C. cafe\u0301"]


def assert_in_range(problem_type, text):
    truth = SEVERAL.get(problem_type, EXAMPLES[problem_type])
    record = {"problem_type": problem_type, "answer": truth, "options": OPTIONS}
    for response in (text, f"<think></think><answer>{text}</answer>"):
        parts = components(record, response)
        assert all(isinstance(part, float) and 0 <= part <= 1 for part in parts), parts


CHEAP = [problem_type for problem_type in ACCURACY if problem_type != "maths"]


@pytest.mark.parametrize("problem_type", CHEAP)
@given(text=SOUP)
def test_any_text_has_a_reward_from_0_to_1(problem_type, text):
    assert_in_range(problem_type, text)


@pytest.mark.parametrize("problem_type", CHEAP)
@given(value=VALUES)
def test_any_json_has_a_reward_from_0_to_1(problem_type, value):
    # Python writes no number of thousands of digits, but a policy may.
    assert_in_range(problem_type, json.dumps(value).replace('"HUGE"', "9" * 5000))


@pytest.mark.parametrize("problem_type", CHEAP)
@given(text=SOUP, options=st.lists(SOUP, max_size=3))
def test_any_truth_is_right_for_itself_or_refused(problem_type, text, options):
    for truth in (text, [text], [text, text]):
        record = {"problem_type": problem_type, "answer": truth, "options": options}
        with suppress(TruthError):
            check_record(record)


SYMBOLS = "0129x+-*/^=<(){}[],!%$\\&_:.e ½√²π°−ⅷ犬\ud800\x00"
COMMANDS = [
    r"\frac",
    r"\left(",
    r"\overline{3}",
    "1e-7",
    "1,234",
    "12:00",
    " cm",
    "**",
    "Answer: ",
    r"\sqrt",
    r"\pi",
    r"\infty",
    r"\int",
    r"\sum",
    r"\text",
    r"\boxed",
    "None",
]
LATEX = st.sampled_from([*SYMBOLS, *COMMANDS, r"\begin{matrix}", "__import__('os')"])


@given(st.lists(LATEX, max_size=7).map("".join))
def test_any_formula_has_a_reward_of_0_or_1(text):
    for truth in ("x^2+1", "12", [1, "x=2"]):
        assert maths_match(text, truth, seconds=0.5) in (0.0, 1.0)


LONG = {
    "digits": "9" * MEGABYTE,
    "digits and a letter": "9" * MEGABYTE + "x",
    "a fraction": "0." + "3" * MEGABYTE,
    "brackets": "[" * MEGABYTE,
    "braces": '{"boxes":' * (MEGABYTE // 9),
    "half boxes": "[1,2,3," * (MEGABYTE // 7),
    "spaces in a box": "[1," + " " * MEGABYTE + "]",
    "opened answers": "<answer>" * (MEGABYTE // 8),
    "answers": "</think><answer></answer>" * (MEGABYTE // 25),
    "thoughts": "<think>" * (MEGABYTE // 7),
    "words": "a b " * (MEGABYTE // 4),
    "one word": "a" * MEGABYTE,
    "dollars": "$" * MEGABYTE,
    "marks in two orders": "a" + "\u0300\u0316" * (MEGABYTE // 2),
    "marks that come apart": "\u0f73" * MEGABYTE,
    "joiners": "\u200d" * MEGABYTE,
    "groups": "1,234" * (MEGABYTE // 5),
    "groups and spaces": "1 " * (MEGABYTE // 2),
    "stars": "*" * MEGABYTE,
    "boxed": r"\boxed{" * (MEGABYTE // 7),
    "letters": "A) " * (MEGABYTE // 3),
    "fractions": "½" * MEGABYTE,
    "surrogates": "\ud800" * MEGABYTE,
    "frames": json.dumps({"boxes": {str(frame): [0, 0, 1, 1] for frame in range(20_000)}}),
    "boxes": json.dumps({"boxes": [[0, 0, 1, 1]] * 10_000}),
    "boxes in a text": "[0,0,1,1] " * (MEGABYTE // 10),
    "texts as boxes": json.dumps({"boxes": ["[]"] * (MEGABYTE // 6)}),
    "empty objects": json.dumps([{}] * (MEGABYTE // 4)),
    "keys in keys": '{"boxes":[' * 400 + "1" + "]}" * 400,
    "spaces after a corner": "(1,1)" + " " * MEGABYTE + "(",
    "spaces in a tag": "<" + " " * MEGABYTE + "answer" + " " * MEGABYTE,
    "a fence": "```" + "a" * MEGABYTE + "```",
    "quotes": "'" * MEGABYTE,
    "a clock": '{"time": ["' + "1:" * (MEGABYTE // 2) + '", "1"]}',
    "points": json.dumps({"positive_points": [[1, 2]] * 50_000}),
}


@pytest.mark.parametrize("name", list(LONG))
def test_a_megabyte_is_scored_in_seconds(name):
    started = time.process_time()
    for problem_type in ACCURACY:
        assert_in_range(problem_type, LONG[name])
    assert time.process_time() - started < 20


def test_reading_a_response_takes_linear_time():
    def seconds(size):
        started = time.process_time()
        parse_response("<think>" + "</think><answer>" * size)
        return time.process_time() - started

    assert seconds(40_000) < 40 * max(min(seconds(4_000) for _ in range(3)), 1e-3)
