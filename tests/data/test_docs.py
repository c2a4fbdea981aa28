"""The examples of docs/data.md are read, and do what the page says."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

import g2rpo_trainer.data
from g2rpo.rewards import check_record
from g2rpo_trainer.config import Data
from g2rpo_trainer.data import open_source
from g2rpo_trainer.errors import RunError

from ..films import film
from .conftest import opened, records_of

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "data.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def objects(text):
    """Return the JSON objects of a block, which are broken into lines to fit the page."""
    decoder, found = json.JSONDecoder(), []
    while text := text.lstrip():
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:]
    return found


def test_the_smallest_file(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text(blocks("json")[0])
    source = opened(path)
    assert (source.tasks, len(source)) == (("sums",), 2)


@pytest.mark.parametrize("block", blocks("json")[1:])
def test_the_formats(block, write, tmp_path):
    Image.new("RGB", (60, 50)).save(tmp_path / "pets.png")
    (tmp_path / "dog.mp4").write_bytes(film(2, size=(60, 50)))
    (row,) = objects(block)
    other = json.loads(json.dumps(row).replace("cat", "lizard").replace("dog ", "cow "))
    record = records_of(opened(write([row, other])))[0]
    check_record(record.as_row())
    (shown,) = record.videos or record.images
    assert (shown.width, shown.height) == (60, 50)


def test_the_example_of_broken_records_has_the_words_of_the_program(write):
    head, image, kind, advice = blocks("text")[0].splitlines()
    good = {"problem": "2+2?", "answer": 4, "problem_type": "numerical"}
    rows = [good, {**good, "images": "a.png"}, {**good, "problem_type": "numercial"}]
    with pytest.raises(RunError) as caught:
        opened(write(rows))
    lines = str(caught.value).splitlines()
    assert (lines[0], lines[3]) == (head.replace("1000", "3"), advice)
    assert image.partition(": ")[2].rpartition(" ")[0] in lines[1]  # all but the folder
    shown = kind.partition(": ")[2].split("[…]")
    assert all(part in lines[2] for part in shown)


def test_the_shares_of_the_page():
    rows = [
        {"problem": f"{n}?", "answer": n, "problem_type": "numerical", "task_type": task}
        for task, count in (("large", 900), ("small", 90))
        for n in range(count)
    ]
    tasks = (
        open_source(Data.model_validate({"mixing": {"temperature": 1000}}), rows=rows)
        .summary()
        .tasks
    )
    assert tasks["small"].share == pytest.approx(0.5, abs=1e-3)


def test_the_reference_lists_every_public_name():
    page = (DOCS / "reference" / "data.md").read_text(encoding="utf-8")
    assert set(g2rpo_trainer.data.__all__) <= set(re.findall(r"\w+", page))
