"""Multiple choice: one letter, or the text of its option."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from g2rpo.rewards import TruthError, check_record, choice_match, components, score_all

RIGHT = [
    *("B", "b", "(B)", "[B]", "{B}", "<B>", "B.", "B)", "B:", "(b).", "B,", "（Ｂ）", "Ⓑ"),
    *(r"\boxed{B}", "$B$", r"\text{B}", r"\(\text{(B)}\)", r"$\boxed{\mathbf{B}}$.", "`B`", '"B"'),
    *(
        "**B**",
        "**B.**",
        "Answer: B",
        "**Answer:** B",
        "**Answer: B**",
        "answer is (B)",
        "Option B",
    ),
    *("The correct answer is B.", "The final answer is $\\boxed{B}$", "So the answer is: **B**"),
    *("B. left", "(B) left", "B) left", "B: left", "B.left", "B. A dog", "B. C++", "**B. left**"),
    *(r"$\textbf{(B)}\ 12$", r"\boxed{\textbf{(B) }12}", r"$\boxed{\text{B. } 12}$", "B\nleft"),
]
WRONG = [
    *(
        "A",
        "C.",
        "Below",
        "",
        "1",
        "BB",
        "B or C",
        "B and C",
        "A or B",
        "A, B",
        "B, C",
        "A/B",
        "B?C",
    ),
    *(
        "A) or B)",
        "B) or C)",
        "B. C.",
        "A. B. C.",
        "(A), (B)",
        "Because of it",
        "b sharp",
        "B-flat",
    ),
    *("I think it is B", "a B", "B is right", "B=mc^2", "B++", "not B", "B A", "b.c. is a time"),
    *("Answer", "Answer: A", "Answer seems to be A", r"\boxed{A}\boxed{B}", "B" * 2000),
    *("B. left or A. right", "A\nB", "B or (A) right", "B. left and\nC. right"),
]


@pytest.mark.parametrize("answer", RIGHT)
def test_a_letter_alone_or_before_its_option_is_right(answer):
    assert choice_match(answer, "B") == 1


@pytest.mark.parametrize("answer", WRONG)
def test_a_letter_inside_of_a_text_is_wrong(answer):
    assert choice_match(answer, "B") == 0


@pytest.mark.parametrize(
    ("answer", "truth"),
    [("A dog", "A"), ("a cat", "A"), ("E=mc^2", "E"), ("C++", "C"), ("I think it is C", "I")],
)
def test_a_word_of_one_letter_is_no_option(answer, truth):
    assert choice_match(answer, truth) == 0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A crust", 1),
        ("a  crust.", 1),
        (r"\text{A crust}", 1),
        ("B. A crust", 1),
        ("B", 1),
        ("A", 0),
        ("A. The mantle", 0),
        ("The mantle", 0),
        ("crust", 0),
    ],
)
def test_an_option_may_be_named_by_its_text(answer, expected):
    options = ["A. The mantle", "B. A crust"]
    record = {"problem_type": "multiple choice", "answer": "B", "options": options}
    response = f"<think></think><answer>{answer}</answer>"
    assert components(record, response).accuracy == expected
    scored = score_all([record], [response], workers=0)
    assert scored.components[0].accuracy == expected


def test_the_text_of_an_option_compares_in_composed_form():
    truth = "A. caf\u00e9"
    assert choice_match("cafe\u0301", truth) == choice_match("CAFE\u0301.", truth) == 1


def test_an_option_that_looks_like_a_letter_is_its_text_first():
    record = {"problem_type": "multiple choice", "answer": "B", "options": ["A. C", "B. A. Smith"]}
    check_record(record)
    for answer, expected in {"A. Smith": 1, "B. A. Smith": 1, "B": 1, "A": 0, "A. C": 0}.items():
        assert components(record, f"<answer>{answer}</answer>").accuracy == expected
    record["answer"] = "A"
    check_record(record)
    assert components(record, "<answer>A. C</answer>").accuracy == 1


@pytest.mark.parametrize(
    "truth",
    [
        "A man is walking.",
        "A,C",
        "AC",
        "A and C",
        "A) or B)",
        "?",
        "12",
        "",
        ["A", "C"],
        ["AC"],
        None,
    ],
)
def test_a_truth_is_the_letter_of_one_option(truth):
    with pytest.raises(TruthError, match=r"it must be the letter of one option.*of its own"):
        choice_match("A", truth)
    with pytest.raises(TruthError, match="'multiple choice' record"):
        check_record({"problem_type": "multiple choice", "answer": truth})


def test_a_list_of_one_letter_is_its_entry():
    assert choice_match("B", ["B"]) == 1


def test_an_option_that_is_a_letter_is_not_mistaken_for_another_option():
    def accuracy(options, answer):
        record = {"problem_type": "multiple choice", "answer": "A", "options": options}
        return components(record, f"<answer>{answer}</answer>").accuracy

    assert accuracy(["A. T", "B. F"], "T") == accuracy(["A. B", "B. A"], "A") == 1
    assert accuracy(["A. T", "B. F"], "F") == accuracy(["A. B", "B. A"], "B") == 0
    assert accuracy(["A left", "B right"], "A left") == accuracy(["A left", "B right"], "left") == 1


def test_options_whose_letters_are_out_of_order_are_refused():
    record = {"problem_type": "multiple choice", "answer": "B", "options": ["B. cat", "A. dog"]}
    with pytest.raises(TruthError, match="their letters must be A, B, in this order"):
        check_record(record)
    with pytest.raises(ValueError, match=r"record 0: .*in this order"):
        score_all([record], ["<answer>B</answer>"], workers=0)


PIECES = [
    "A",
    "B",
    "b",
    ".",
    ")",
    "(",
    ":",
    " ",
    "or",
    "$",
    "**",
    "\\boxed{",
    "\\text{",
    "}",
    "Answer",
    "犬",
]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=8).map("".join))
def test_any_text_is_right_for_at_most_one_letter(text):
    values = [choice_match(text, letter) for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    assert set(values) <= {0.0, 1.0}
    assert sum(values) <= 1
