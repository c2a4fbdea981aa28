"""A record that says something twice must agree with itself; images stand at their words."""

import pytest
from PIL import Image

from g2rpo_trainer.config import Data
from g2rpo_trainer.data import open_source
from g2rpo_trainer.errors import RunError

from .conftest import opened, records_of, sums
from .test_formats import error_of, one
from .test_images import encoded

RED, BLUE = Image.new("RGB", (1, 1), "red"), Image.new("RGB", (1, 1), "blue")
PROMPT = [{"role": "user", "content": "2+2?"}]
QUESTION = {"problem": "2+2?", "answer": 4}


def text(words):
    return {"type": "text", "text": words}


IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


def user(content):
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("From <image> to <image>?", [text("From"), IMAGE, text("to"), IMAGE, text("?")]),
        ([text("From <image>"), text("to <image>")], [text("From"), IMAGE, text("to"), IMAGE]),
    ],
)
def test_an_image_stands_where_the_word_stands_in_a_message(content, parts):
    record = one({"prompt": [user(content)], "images": [RED, BLUE], "answer": 4})
    assert record.messages == [user(parts)]
    assert "<image>" not in record.problem


def test_a_message_and_a_problem_with_the_same_words_are_the_same():
    for words in ("<image>Larger than <image>?", "<image><image> Same?", "Same?"):
        row = {"images": [RED, BLUE], "answer": 4}
        of_message = one({**row, "prompt": [user(words)]})
        of_problem = one({**row, "problem": words})
        assert of_message.problem == of_problem.problem
        assert of_message.messages == of_problem.messages


def test_places_in_several_messages():
    prompt = [
        user("First <image>."),
        {"role": "assistant", "content": "Yes?"},
        user("<image>Now this?"),
    ]
    record = one({"prompt": prompt, "images": [RED, BLUE], "answer": 4})
    contents = [message["content"] for message in record.messages]
    assert contents == [
        [text("First"), IMAGE, text(".")],
        [text("Yes?")],
        [IMAGE, text("Now this?")],
    ]


def test_without_images_the_word_is_a_word_in_a_message():
    record = one({"prompt": [user("What is <image> in HTML?")], "answer": 4})
    assert record.problem == "What is <image> in HTML?"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("<image> or <image>?", "the prompt has places for 2 images, but the record has 1"),
        (
            [IMAGE, text("In <image>?")],
            "the prompt has places for images as parts and as the word <image>; it must have one "
            "sort",
        ),
        ([IMAGE, IMAGE, text("?")], "the prompt has places for 2 images, but the record has 1"),
        (
            [{**IMAGE, "image": "a.png"}, text("?")],
            "message 1 has a part of type image whose image is 'a.png'; texts stand in parts of "
            "type text, images and videos in columns of their own",
        ),
        (
            [{**IMAGE, "text": "Look"}, text("?")],
            "message 1 has a part of type image whose text is 'Look'; texts stand in parts of "
            "type text, images and videos in columns of their own",
        ),
    ],
)
def test_places_that_are_refused(content, reason):
    assert error_of({"prompt": [user(content)], "images": [RED], "answer": 4}) == reason


def test_a_column_messages_is_a_prompt():
    assert one({"messages": PROMPT, "answer": 4}).problem == "2+2?"
    assert one({"messages": PROMPT, "prompt": PROMPT, "answer": 4}).problem == "2+2?"


def test_the_advice_for_messages_of_another_name_works():
    row = {"chat": PROMPT, "answer": 4}
    assert error_of(row).endswith(
        "name the right one by data.columns.problem, or messages by data.columns.prompt"
    )
    assert one(row, columns={"prompt": "chat"}).problem == "2+2?"
    rows = [{"problem": PROMPT, "answer": 4}, {"problem": "3+3?", "answer": 6}]
    with pytest.raises(RunError, match=r"messages are named by data\.columns\.prompt"):
        open_source(rows=rows)


@pytest.mark.parametrize("empty", [None, [], "", {}, {"bytes": None, "path": None}])
def test_an_empty_column_hides_no_other(empty):
    record = one({**QUESTION, "images": empty, "image": RED})
    assert len(record.images) == 1


@pytest.mark.parametrize("empty", [None, [], ""])
def test_an_empty_prompt_or_answer_hides_no_other(empty):
    assert one({**QUESTION, "prompt": empty, "solution": empty}).problem == "2+2?"
    row = {"problem": empty, "prompt": PROMPT, "answer": empty, "solution": 4}
    assert (one(row).problem, one(row).answer) == ("2+2?", "4")


PAIRS = [
    ("answer", "solution", 4, 5, 4),
    ("images", "image", [RED], BLUE, RED),
    ("prompt", "messages", PROMPT, [user("3+3?")], PROMPT),
]


@pytest.mark.parametrize(("first", "second", "one_value", "other", "same"), PAIRS)
def test_two_columns_for_one_part_must_agree(first, second, one_value, other, same):
    row = {"prompt": PROMPT, "answer": 4, first: one_value, second: other}
    reason = error_of(row)
    assert reason.startswith(f"{first} is ")
    assert f" and {second} is " in reason
    assert reason.endswith(f"; name the right column by data.columns.{first}")
    assert one({**row, second: same}).problem == "2+2?"
    for column in (first, second):
        assert one(row, columns={first: column})


def test_the_named_one_of_two_columns_is_taken():
    row = {"problem": "2+2?", "answer": 4, "solution": "The sum is 4."}
    assert error_of(row) == (
        "answer is 4 and solution is 'The sum is 4.'; name the right column by data.columns.answer"
    )
    assert one(row, columns={"answer": "answer"}).answer == "4"
    assert one({**row, "solution": "4 "}).answer == "4"


def test_a_problem_and_a_prompt_must_ask_the_same():
    row = {"problem": "2+2?", "prompt": [user("2 + 2 = ?")], "answer": 4}
    assert error_of(row).endswith(
        "; name the right column by data.columns.problem or data.columns.prompt"
    )
    assert one(row, columns={"problem": "problem"}).problem == "2+2?"
    assert one(row, columns={"prompt": "prompt"}).problem == "2 + 2 = ?"
    assert one({**row, "prompt": PROMPT}).problem == "2+2?"
    assert one({**row, "prompt": "2+2?"}).problem == "2+2?"


def test_a_data_uri_is_an_image():
    from base64 import b64encode

    uri = "data:image/png;base64," + b64encode(encoded("blue")).decode()
    for value in (uri, {"bytes": None, "path": uri}):
        assert one({**QUESTION, "image": value}).images[0].getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("uri", ["data:image/png;base64,&", "data:,hello", "data:" + "A" * 10**6])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_data_uri_without_a_file(uri, kind):
    reason = error_of({**QUESTION, kind: uri})
    assert reason.startswith(f"{kind} 'data:")
    assert reason.endswith(f"holds no file; it must be data:{kind}/…;base64, and base64 text")


LONG = "x" * 10**6
MANY = {f"column {number}": number for number in range(10**4)}


@pytest.mark.parametrize(
    "row",
    [
        {**QUESTION, "image": LONG},
        {**QUESTION, "image": [[LONG] * 99] * 99},
        {**QUESTION, "video": LONG},
        {**QUESTION, "problem": [LONG] * 99},
        {**QUESTION, "answer": {LONG: [LONG] * 99}},
        {**QUESTION, "solution": LONG},
        {**QUESTION, "task_type": LONG},
        {**QUESTION, "problem_type": LONG},
        {**QUESTION, "options": LONG},
        {**QUESTION, "data_type": LONG},
        {"prompt": [{"role": LONG, "content": LONG}], "answer": 4},
        {"prompt": [user([{"type": LONG}])], "answer": 4},
        {"prompt": {"deep": [[[[[[[MANY]]]]]]], **MANY}, "answer": 4},
        MANY,
        [LONG],
    ],
)
def test_no_message_is_longer_than_a_screen(row, tmp_path):
    data = Data(problem_type="numerical", image_dir=str(tmp_path))
    rows = [row, {"problem": "?", "answer": 1, "task_type": "rows"}] * 9
    with pytest.raises(RunError) as caught:
        open_source(data, rows=rows)
    assert len(str(caught.value)) < 2000
    assert len(str(caught.value).splitlines()) < 20


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mean", "has the name of the mean over the tasks"),
        (" mean ", "has the name of the mean over the tasks"),
        ("a/b", "has a slash in its name, which divides the names of metrics"),
        ("a\nb", "has characters in its name that cannot be printed"),
        ("a\x1b[31mb", "has characters in its name that cannot be printed"),
        ("a\u200bb", "has characters in its name that cannot be printed"),
        ("x" * 101, "has a name of 101 characters; there can be 100"),
    ],
)
def test_names_that_no_task_may_have(name, reason, write):
    with pytest.raises(RunError) as caught:
        opened(write(sums(3, name)))
    first = str(caught.value).splitlines()[1]
    assert ", line 1: task '" in first
    assert first.endswith(f" {reason}; name it otherwise in the column task_type")


def test_names_that_tasks_may_have(write):
    for name in (
        "spatial grounding",
        "v1.5",
        "Größe",
        "数学",
        "mean reward",
        "x" * 100,
        "old",
        "std",
    ):
        assert opened(write(sums(3, name))).tasks == (name,)


def test_a_file_whose_name_is_no_task(write):
    rows = [{**row, "task_type": None} for row in sums(3)]
    with pytest.raises(RunError, match="task 'mean' has the name of the mean over the tasks"):
        opened(write(rows, "mean.jsonl"))
    assert opened(write(sums(3), "mean.jsonl")).tasks == ("sums",)


def test_lists_too_deep_are_refused():
    deep = []
    for _ in range(10**5):
        deep = [deep]
    assert error_of({**QUESTION, "options": deep}) == (
        "holds lists or objects that lie too deep in each other"
    )
    assert len(records_of(open_source(rows=sums(3)))) == 3
