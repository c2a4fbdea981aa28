import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from g2rpo.rewards import check_record, score
from g2rpo.rewards.registry import EXAMPLES
from g2rpo_trainer.config import RECORD_COLUMNS, Data
from g2rpo_trainer.data import open_source
from g2rpo_trainer.data.columns import COLUMNS, Reading, read_row
from g2rpo_trainer.data.questions import lettered, with_options
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.record import BrokenRecord

from .conftest import opened, records_of, sums


def one(row, **settings):
    """Open two records, the second by the side of the one that counts, and return the first."""
    settings = {"problem_type": "numerical", **settings}
    task = row.get("task_type") if isinstance(row.get("task_type"), str) else "rows"
    other = {"problem": "other", "answer": 1, "problem_type": "numerical", "task_type": task}
    columns = settings.get("columns", {})
    rows = [row, {columns.get(key, key): value for key, value in other.items()}]
    found = records_of(open_source(Data(**settings), rows=rows))
    return next(record for record in found if record.place.endswith("record 1"))


def error_of(row, **settings):
    with pytest.raises(RunError) as caught:
        one(row, **settings)
    head, line, advice = str(caught.value).splitlines()
    assert head == "1 of 2 records cannot be used:"
    assert advice == "put them right, or set data.skip_broken: true"
    return line.removeprefix("rows, record 1: ")


QUESTION = {"problem": "2+2?", "answer": "4"}


def test_every_part_of_a_record_can_be_renamed():
    assert tuple(COLUMNS) == RECORD_COLUMNS


def test_the_papers_format():
    image = Image.new("RGB", (3, 2), "red")
    row = {
        "problem": "Which colour?",
        "images": [image],
        "answer": "B",
        "problem_type": "multiple choice",
        "data_type": "image",
        "task_type": "colours",
        "options": ["A. blue", "B. red"],
    }
    record = one(row)
    assert record.images[0].getpixel((0, 0)) == (255, 0, 0)
    problem = "Which colour?\nA. blue\nB. red"
    assert record.as_row() == {**row, "images": record.images, "problem": problem}
    assert record.place == "rows, record 1"
    assert score(record.as_row(), "<answer>B</answer>").accuracy == 1


@pytest.mark.parametrize("column", ["answer", "solution"])
def test_trls_format(column):
    prompt = [{"role": "user", "content": "Which colour?"}]
    record = one({"prompt": prompt, "image": Image.new("RGB", (3, 2)), column: "3"})
    assert (record.problem, record.answer, record.task) == (
        "Which colour?",
        "3",
        "rows",
    )
    assert (record.as_row()["data_type"], len(record.images)) == ("image", 1)
    assert record.messages is None


def test_a_prompt_that_is_a_text():
    assert one({"prompt": "2+2?", "answer": 4}).problem == "2+2?"


def test_a_conversation_is_kept_whole():
    prompt = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Hi", "image": None}]},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "2+2?"},
    ]
    record = one({"prompt": prompt, "images": [Image.new("L", (1, 1))], "answer": 4})
    assert record.problem == "2+2?"
    text = {"type": "text", "text": "Hi"}
    assert [message["role"] for message in record.messages] == [m["role"] for m in prompt]
    assert record.messages[1]["content"] == [{"type": "image"}, text]
    assert record.messages[0]["content"] == [{"type": "text", "text": "Be short."}]
    assert record.images[0].mode == "RGB"


@pytest.mark.parametrize("form", ["problem", "prompt"])
def test_images_in_the_middle_of_a_question(form):
    text = {"type": "text", "text": "From"}, {"type": "text", "text": "to"}
    parts = [text[0], {"type": "image"}, text[1], {"type": "image"}]
    rows = {
        "problem": "From <image> to\n<image>",
        "prompt": [{"role": "user", "content": parts}],
    }
    record = one({form: rows[form], "images": [Image.new("RGB", (1, 1))] * 2, "answer": 1})
    assert record.problem == "From to"
    assert record.messages == [{"role": "user", "content": parts}]


@pytest.mark.parametrize("problem", ["<image>\n<image> Same?", "Same?"])
def test_images_before_the_question_need_no_messages(problem):
    record = one({"problem": problem, "images": [Image.new("RGB", (1, 1))] * 2, "answer": 1})
    assert record.problem == "Same?"
    assert record.messages is None


def test_without_images_the_placeholder_is_a_word():
    assert one({"problem": "What is <image> in HTML?", "answer": 1}).problem.count("<image>") == 1


def test_columns_of_other_names():
    row = {"question": "2+2?", "gold": 4, "answer": "not this"}
    record = one(row, columns={"problem": "question", "answer": "gold"})
    assert (record.problem, record.answer) == ("2+2?", "4")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (4, "4"),
        (2.5, "2.5"),
        (" 4 ", "4"),
        ("<answer> 4 </answer>", "4"),
        ("<think>2+2</think><answer>4</answer>", "4"),
    ],
)
def test_answers_become_texts(answer, text):
    assert one({"problem": "2+2?", "answer": answer}).answer == text


def test_an_answer_that_is_an_object_stays_one_as_text():
    answer = {"boxes": [1, 2, 3, 4]}
    record = one({"problem": "Where?", "answer": answer, "problem_type": "spatial grounding"})
    assert json.loads(record.answer) == answer
    assert score(record.as_row(), '<answer>{"boxes": [1, 2, 3, 4]}</answer>').accuracy == 1


def test_an_option_by_its_text_becomes_its_letter():
    row = {"problem": "Which?", "options": ["cat", "dog"], "answer": "dog"}
    record = one({**row, "problem_type": "multiple choice"})
    assert (record.answer, record.options) == ("B", ["A. cat", "B. dog"])
    assert record.problem == "Which?\nA. cat\nB. dog"


@pytest.mark.parametrize(("answer", "letter"), [("2", "B"), ("B", "B"), (2, "B"), ("b", "b")])
def test_a_letter_wins_over_an_option_of_one_character(answer, letter):
    row = {"problem": "Which?", "options": ["1", "2"], "answer": answer}
    assert one({**row, "problem_type": "multiple choice"}).answer == letter


def test_options_that_the_question_has_are_not_repeated():
    assert with_options("A cat or B dog?", ["A cat", "B dog"]) == "A cat or B dog?"
    assert lettered(["(A) x", "(b) y"]) == ["(A) x", "(b) y"]
    assert lettered(["Apple", "Banana"]) == ["A. Apple", "B. Banana"]


def test_unicode_and_line_separators(write):
    text = "Straße\u2028💡\x85مرحبا\u0000?"
    rows = [*sums(1), {**QUESTION, "problem": text, "problem_type": "maths", "task_type": "sums"}]
    path = write([json.dumps(row, ensure_ascii=False) for row in rows], "ünï côdé.jsonl")
    assert text in {record.problem for record in records_of(opened(path))}


MESSAGE = {"role": "user", "content": "2+2?"}


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (
            {"text": "2+2?", "n": 1},
            "has no problem and no prompt, but the columns text, n; name the "
            "right one by data.columns.problem, or messages by data.columns.prompt",
        ),
        (
            {},
            "has no problem and no prompt, but the columns (none); name the right one by "
            "data.columns.problem, or messages by data.columns.prompt",
        ),
        ({**QUESTION, "problem": " "}, "problem is ' '; it must be a text"),
        ({**QUESTION, "problem": 3}, "problem is 3; it must be a text"),
        ({"problem": "2+2?"}, "answer is None; it must be a text or a number"),
        ({**QUESTION, "answer": True}, "answer is True; it must be a text or a number"),
        ({**QUESTION, "answer": ""}, "answer is ''; it must not be empty"),
        ({**QUESTION, "answer": [b"x"]}, "answer is [b'x']; it must be a text"),
        (
            {**QUESTION, "answer": "four"},
            "answer of a 'numerical' record: truth is 'four'; it must be a finite number",
        ),
        ({**QUESTION, "task_type": 3}, "task_type is 3; it must be a text"),
        ({**QUESTION, "options": "AB"}, "options is 'AB'; it must be a list of texts"),
        ({**QUESTION, "options": ["x"] * 27}, "has 27 options; letters tell 26 apart"),
        (
            {**QUESTION, "data_type": "image"},
            "data_type is 'image', but by its columns the record is 'text'",
        ),
        ({**QUESTION, "data_type": "sound"}, "data_type is 'sound'; it must be text, image, video"),
        (
            {**QUESTION, "video": "a.mp4"},
            "video 'a.mp4' is a path, but the source has no folder; set data.video_dir",
        ),
        (
            {**QUESTION, "videos": [3]},
            "a video is 3; it must be a path, {bytes, path}, or {frames, fps}",
        ),
        (
            {**QUESTION, "videos": {"frames": [], "fps": 1}},
            "frames is []; it must be a list of paths",
        ),
        (
            {**QUESTION, "videos": {"frames": ["0.png"], "fps": 0}},
            "fps is 0; it must be a number of frames a second above 0",
        ),
        (
            {**QUESTION, "videos": {"frames": ["0.png"]}},
            "fps is None; it must be a number of frames a second above 0",
        ),
        (
            {**QUESTION, "images": [3]},
            "an image is 3; it must be a path, a Pillow image, or {bytes, path}",
        ),
        (
            {**QUESTION, "images": [{"bytes": None, "path": None}]},
            "an image is None; it must be a path, a Pillow image, or {bytes, path}",
        ),
        (
            {**QUESTION, "images": "a.png"},
            "image 'a.png' is a path, but the source has no folder; set data.image_dir",
        ),
        ({"prompt": [], "answer": 4}, "prompt is []; it must be a text or a list of messages"),
        ({"prompt": ["hi"], "answer": 4}, "message 1 is 'hi'; it must have role and content"),
        (
            {"prompt": [{**MESSAGE, "role": "tool"}], "answer": 4},
            "message 1 has role 'tool'; it must be system, user, assistant",
        ),
        (
            {"prompt": [{**MESSAGE, "content": 3}], "answer": 4},
            "message 1 has content 3; it must be a text or a list of parts",
        ),
        (
            {"prompt": [{**MESSAGE, "content": [{"type": "audio"}]}], "answer": 4},
            "message 1 has part {'type': 'audio'}; its type must be image, video, or text "
            "with a text",
        ),
        (
            {"prompt": [MESSAGE, {**MESSAGE, "role": "assistant"}], "answer": 4},
            "prompt ends with role 'assistant'; it must end with user",
        ),
        (
            {"prompt": [{**MESSAGE, "content": [{"type": "image"}]}], "answer": 4},
            "the prompt has places for 1 image, but the record has 0",
        ),
        (
            {"prompt": [{**MESSAGE, "content": [{"type": "video"}] * 2}], "answer": 4},
            "the prompt has places for 2 videos, but the record has 0",
        ),
        (
            {"prompt": [{**MESSAGE, "content": " "}], "answer": 4},
            "the last message has no text; it must ask something",
        ),
    ],
)
def test_what_is_wrong_with_a_record(row, text):
    assert error_of(row) == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=9),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "bytes", "frames", "fps"]), children
        )
    ),
    max_leaves=6,
)
TYPE = st.sampled_from([*EXAMPLES, "user"])


@given(st.dictionaries(st.sampled_from([*RECORD_COLUMNS, "image", "solution"]), JSON | TYPE))
def test_whatever_a_row_holds_it_is_read_or_broken(values):
    reading = Reading("rows", "open-ended", {}, Path(), Path())
    for row in (values, {**QUESTION, **values}, {**values, **QUESTION}):
        try:
            read = read_row(row, reading)
            read.check(reading, check_record)
        except BrokenRecord:
            continue
        assert read.record.problem
        assert read.record.answer
        assert 0 <= read.digest() < 2**64


def test_half_a_surrogate_pair(write):
    path = write([*sums(3), '{"problem": "\\ud800?", "answer": 1, "problem_type": "numerical"}'])
    with pytest.raises(RunError, match="line 4: holds half of a surrogate pair"):
        opened(path)


def test_a_missing_library_is_no_fault_of_the_record(monkeypatch):
    def without(module):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("g2rpo.rewards.libraries.import_module", without)
    rows = [{**row, "problem_type": "OCR"} for row in sums(3)]
    with pytest.raises(RunError, match=r"needs rapidfuzz; run: pip install"):
        open_source(Data(skip_broken=True), rows=rows)


def test_numbers_of_places_and_images_differ():
    row = {"problem": "<image> or <image>?", "images": [Image.new("RGB", (1, 1))], "answer": 1}
    assert error_of(row) == "the prompt has places for 2 images, but the record has 1"
    assert error_of({**row, "problem": "<image>"}).startswith(
        "problem is '<image>'; it must have a text"
    )


def test_no_problem_type():
    with pytest.raises(
        RunError,
        match=r"has no problem_type; add the column, name it by data\.columns\.problem_type, or "
        r"set data\.problem_type",
    ):
        open_source(rows=[QUESTION] * 2)


def test_an_unknown_problem_type_has_a_near_one():
    text = error_of({**QUESTION, "problem_type": "numercial"})
    assert text.startswith("problem_type is 'numercial'; it must be one of [")
    assert text.endswith("; did you mean 'numerical'?")


def test_problem_types_of_ones_own():
    rows = [{**row, "problem_type": "colour"} for row in sums(3)]
    source = open_source(rows=rows, functions={"colour": "operator:eq"})
    assert source.summary().tasks["sums"].problem_types == {"colour": 3}
    assert source.reward_functions == {"colour": "operator:eq"}
    with pytest.raises(RunError, match=r"^rewards\.functions: .* has no 'eqq'"):
        open_source(rows=rows, functions={"colour": "operator:eqq"})


def test_an_unknown_part_of_a_record(write):
    with pytest.raises(
        RunError,
        match=r"data.columns: unknown part of a record 'problm'; did you mean "
        "'problem'",
    ):
        opened(write(sums(2)), columns={"problm": "question"})


def test_a_column_that_no_record_has(write):
    path = write([*sums(2), {**sums(3)[2], "pictures": None}])
    assert len(opened(path, columns={"images": "pictures"})) == 3
    with pytest.raises(RunError) as caught:
        opened(path, columns={"images": "picturs"})
    assert str(caught.value) == (
        "data.columns.images: unknown column 'picturs'; did you mean 'pictures'? "
        "(there are: problem, answer, problem_type, task_type, pictures)"
    )


def test_broken_records_are_counted_and_the_first_are_told(write):
    path = write([*sums(6), "{", "[]", '{"problem": 3}', "", "{}"])
    with pytest.raises(RunError) as caught:
        opened(path)
    assert str(caught.value).splitlines() == [
        "4 of 10 records cannot be used:",
        f"{path}, line 7: is not JSON (Expecting property name enclosed in double quotes, "
        "character 2); a line must be an object",
        f"{path}, line 8: is a JSON list, but must be an object",
        f"{path}, line 9: problem is 3; it must be a text",
        "… and 1 more",
        "put them right, or set data.skip_broken: true",
    ]
    source = opened(path, skip_broken=True)
    summary = source.summary()
    assert (len(source), summary.skipped, len(summary.examples)) == (6, 4, 3)
    assert summary.examples[1] == f"{path}, line 8: is a JSON list, but must be an object"


def test_if_all_records_are_broken_skipping_is_no_way_out(write):
    with pytest.raises(RunError) as caught:
        opened(write(["{}", "{}"]), skip_broken=True)
    assert str(caught.value).splitlines()[0] == "2 of 2 records cannot be used:"
    assert str(caught.value).endswith("\nput them right")
