"""Right answers of records: options, lists, numbers that are none."""

import json
import math

import pytest

from g2rpo.rewards import score
from g2rpo_trainer.errors import RunError

from .conftest import opened, records_of, sums
from .test_formats import error_of, one

CHOICE = {"problem": "Which?", "problem_type": "multiple choice"}


def accuracy(record, answer):
    return score(record.as_row(), f"<answer>{answer}</answer>").accuracy


@pytest.mark.parametrize(
    ("options", "answer", "letter"),
    [
        (["A. The mantle", "B. A crust"], "A crust", "B"),
        (["A. The mantle", "B. A crust"], "a  crust.", "B"),
        (["A. The mantle", "B. A crust"], "B. A crust", "B"),
        (["(a) cat", "(b) dog"], "dog", "B"),
        (["A cat", "B dog"], "dog", "B"),
        (["cat", "dog"], "B) dog", "B"),
        (["caf\u00e9", "bar"], "cafe\u0301", "A"),
        (["cat", "Cat"], "Cat", "B"),
        (["T", "F"], "F", "B"),
        (["A", "B"], "B", "B"),
        (["0.5", "½"], 0.5, "A"),
        (["cat", "dog"], ["dog"], "B"),
        (["A. Smith", "B. Jones"], "Jones", "B"),
    ],
)
@pytest.mark.parametrize("kind", ["multiple choice", "Multiple  Choice"])
def test_an_option_is_named_by_its_letter_or_its_text(options, answer, letter, kind):
    record = one({**CHOICE, "options": options, "answer": answer, "problem_type": kind})
    assert record.answer == letter
    text = options[ord(letter) - ord("A")]
    assert accuracy(record, letter) == 1
    assert accuracy(record, text) == 1
    others = [option for option in options if option != text]
    assert all(accuracy(record, option) == 0 for option in others if option.lower() != text.lower())


@pytest.mark.parametrize(
    ("options", "answer", "text"),
    [
        (["cat", "dog"], "E", "answer is 'E'; it must be one of 2 options"),
        (["cat", "cat"], "cat", "answer is 'cat', the text of 2 options; not of one"),
        (["cat", "dog"], "A. dog", "answer is 'A. dog'; it must agree with option A, 'cat'"),
        (
            ["B", "A"],
            "A",
            "answer is 'A', which is a letter and the text of another option; "
            "options must begin with their letters, such as 'A. …'",
        ),
        (
            ["B. cat", "A. dog"],
            "B",
            "options is ['B. cat', 'A. dog']; their letters must be A, B, in this order",
        ),
    ],
)
def test_an_answer_that_could_mean_another_option_is_refused(options, answer, text):
    assert error_of({**CHOICE, "options": options, "answer": answer}) == text


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("A man is walking.", "'A man is walking.'"),
        ("A,C", "'A,C'"),
        ("AC", "'AC'"),
        (["A", "C"], "['A', 'C']"),
        ("a bird", "'a bird'"),
    ],
)
@pytest.mark.parametrize("options", [[], ["cat", "dog", "cow"]])
def test_an_answer_that_names_no_one_option_is_refused(answer, shown, options):
    error = error_of({**CHOICE, "options": options, "answer": answer})
    assert error == (
        f"answer of a 'multiple choice' record: truth is {shown}; it must be the letter of one "
        "option, alone or with its text (B, or B. left); a question with several right options "
        "needs a reward function of its own"
    )


def test_letters_are_for_multiple_choice_alone():
    row = {"problem": "2+2?", "options": ["3", "4"], "answer": "4"}
    assert one({**row, "problem_type": "numerical"}).answer == "4"
    assert one({**row, "problem_type": "open-ended"}).answer == "4"


@pytest.mark.parametrize("kind", ["OCR", "character ocr", "open-ended"])
def test_a_list_is_several_answers_where_each_is_right(kind):
    row = {"problem": "Which colour?", "answer": ["grey", " gray ", 7], "problem_type": kind}
    record = one(row)
    assert record.answer == ["grey", "gray", "7"]
    assert [accuracy(record, answer) for answer in ("grey", "gray", "7", "blue")][:3] == [1, 1, 1]
    assert accuracy(record, json.dumps(row["answer"])) < 1


def test_a_list_of_a_maths_record_is_a_collection():
    record = one({"problem": "Solve.", "answer": [2, 3], "problem_type": "math"})
    assert [accuracy(record, answer) for answer in ("2, 3", "3, 2", "2", "6")] == [1, 1, 0, 0]


@pytest.mark.parametrize("kind", ["numerical", "regression", "maths", "OCR", "open-ended"])
def test_a_list_of_one_is_its_entry(kind):
    record = one({"problem": "2+2?", "answer": [4], "problem_type": kind})
    assert record.answer == "4"
    assert accuracy(record, "4") == 1


@pytest.mark.parametrize("kind", ["numerical", "regression"])
def test_a_number_has_one_answer(kind):
    error = error_of({"problem": "2+2?", "answer": [4, 5], "problem_type": kind})
    assert error.endswith("truth is ['4', '5']; it must be a finite number")


@pytest.mark.parametrize("answer", [[], [[4]], [{"a": 4}]])
def test_a_list_of_answers_holds_texts(answer):
    error = error_of({"problem": "2+2?", "answer": answer, "problem_type": "OCR"})
    assert error == f"answer is {answer!r}; it must be a text or a list of texts"


def test_lists_that_are_one_answer_stay_what_they_are():
    boxes = {"problem": "Where?", "answer": [1, 2, 3, 4], "problem_type": "spatial grounding"}
    assert json.loads(one(boxes).answer) == [1, 2, 3, 4]


@pytest.mark.parametrize("answer", [math.nan, math.inf, -math.inf, [1.0, math.nan]])
@pytest.mark.parametrize("kind", ["numerical", "OCR", "spatial grounding"])
def test_a_number_that_is_not_finite_is_no_answer(answer, kind):
    error = error_of({"problem": "2+2?", "answer": answer, "problem_type": kind})
    assert error.startswith(f"answer is {answer}; it must be a text")


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("numerical", "12:00"),
        ("numerical", "1/0"),
        ("regression", "3,5,7"),
        ("maths", "1/0"),
        ("maths", "7 5"),
        ("maths", "13=12"),
        ("open-ended", "?!"),
    ],
)
def test_an_answer_that_its_reward_would_not_accept_is_refused_with_its_line(write, kind, answer):
    row = {"problem": "What?", "answer": answer, "problem_type": kind, "task_type": "sums"}
    with pytest.raises(RunError) as caught:
        opened(write([*sums(3), row]))
    line = str(caught.value).splitlines()[1]
    assert f"sums.jsonl, line 4: answer of a {kind!r} record: truth is {answer!r}" in line


@pytest.mark.parametrize(
    ("kind", "truth", "answer"),
    [
        ("numerical", r"\$18.90", "18.9"),
        ("numerical", "√2", "1.414"),
        ("maths", r"\$18.90", "$18.90"),
        ("maths", "√2", r"\sqrt{2}"),
        ("maths", "½", "0.5"),
        ("regression", "½", "0.5"),
    ],
)
def test_answers_in_other_notations_are_read(kind, truth, answer):
    record = one({"problem": "What?", "answer": truth, "problem_type": kind})
    assert accuracy(record, answer) == 1


def test_several_answers_in_a_parquet_file(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table.from_pylist(
        [{**row, "answer": [row["answer"], "none"], "problem_type": "OCR"} for row in sums(4)]
    )
    path = tmp_path / "rows.parquet"
    parquet.write_table(table, path)
    records = records_of(opened(path))
    assert len(records) == 4
    assert all(accuracy(record, "none") == 1 for record in records)
