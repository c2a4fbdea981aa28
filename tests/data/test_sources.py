import json
import subprocess
import sys
from collections import defaultdict
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from g2rpo.rewards import components, with_own
from g2rpo_trainer.config import Data
from g2rpo_trainer.data import open_source, tables
from g2rpo_trainer.errors import RunError

from .conftest import opened, records_of, sums
from .test_images import encoded

IMAGE = {"bytes": encoded("blue"), "path": "blue.png"}


def problems(source):
    return sorted(record.problem for record in records_of(source))


EXPECTED = sorted(row["problem"] for row in sums(20))


def test_json_lines(write):
    source = opened(write(["", *sums(20), " "]))
    assert (problems(source), source.tasks) == (EXPECTED, ("sums",))
    places = {record.place.rpartition(" ")[2] for record in records_of(source)}
    assert places == {str(number) for number in range(2, 22)}  # the lines of the file


def test_json_lines_with_a_byte_order_mark_and_the_other_line_end(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, sums(20))).encode())
    assert problems(opened(path)) == EXPECTED


@pytest.mark.parametrize(
    "text", [json.dumps(sums(20), indent=1), "\n".join(map(json.dumps, sums(20)))]
)
def test_json(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text("\ufeff \n" + text if text[0] == "[" else text, encoding="utf-8")
    assert problems(opened(path)) == EXPECTED


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    return path


@pytest.mark.parametrize("in_memory", [2**30, 0])
def test_parquet(tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(tables, "_IN_MEMORY", in_memory)
    rows = [{**row, "images": [IMAGE], "options": None} for row in sums(20)]
    source = opened(write_parquet(tmp_path / "a.parquet", rows))
    assert problems(source) == EXPECTED
    record = records_of(source)[0]
    assert record.images[0].getpixel((0, 0)) == (0, 0, 255)
    assert ", record " in record.place


def test_large_parquet_is_mapped_and_its_file_goes_away(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_IN_MEMORY", 0)
    table = tables.read_table(write_parquet(tmp_path / "a.parquet", sums(2000)))
    folder = table._keep.name
    before = pa.total_allocated_bytes()
    assert sum(1 for _ in table.scan()) == 2000
    assert table.row(1999)["answer"] == "2000"
    assert pa.total_allocated_bytes() == before  # rows come from the mapping
    del table
    assert not tables.Path(folder).exists()


def test_lines_are_not_held_in_memory(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"problem": "x" * 10_000, "n": n}) for n in range(2000)))
    code = (
        "import tracemalloc; from pathlib import Path;"
        "from g2rpo_trainer.data.tables import read_table;"
        f"tracemalloc.start(); table = read_table(Path({str(path)!r}));"
        "assert sum(1 for _ in table.scan()) == 2000; assert table.row(1234)['n'] == 1234;"
        "print(tracemalloc.get_traced_memory()[1])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < path.stat().st_size / 10


def test_a_folder_of_files(write, tmp_path):
    write(sums(6, "maths"), "d/b.jsonl")
    (tmp_path / "d" / "a.json").write_text(
        json.dumps([{"problem": "Read.", "answer": f"{n}", "problem_type": "OCR", "images": IMAGES}
                    for n, IMAGES in enumerate([["p.png"], ["q.png"]])])
    )  # fmt: skip
    for name in ("p.png", "q.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / "d" / name)
    write(["no data"], "d/readme.txt")
    write(["no data"], "d/.hidden.jsonl")
    source = opened(tmp_path / "d")
    assert source.tasks == ("a", "maths")  # files in the order of their names
    assert len(source) == 8
    expected = ["Read."] * 2 + [row["problem"] for row in sums(6)]
    assert problems(source) == sorted(expected)
    assert {r.place.rpartition("/")[2] for r in source.held_out_records("a", 9)} < {
        "a.json, record 1", "a.json, record 2",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["b.csv", "B.TSV", "b.ndjson", "b.jsonl.gz", "b.csv.zip", "b.xlsx"]
)
def test_a_file_of_another_format_in_a_folder_is_not_left_out_in_silence(write, tmp_path, name):
    write(sums(6), "d/a.jsonl")
    write(["problem,answer", "2+2?,4"], f"d/{name}")
    with pytest.raises(RunError) as caught:
        opened(tmp_path / "d")
    assert str(caught.value) == (
        f"{tmp_path / 'd'}: {name} cannot be read; save the records as .jsonl, .json or .parquet, "
        "or move the file out of the folder"
    )
    (tmp_path / "d" / name).unlink()
    for other in ("notes.txt", ".hidden.csv", "pictures.zip", "p.png"):
        write(["no records"], f"d/{other}")
    (tmp_path / "d" / "sub.csv").mkdir()
    assert len(opened(tmp_path / "d")) == 6


def test_a_file_is_read_once_when_it_is_opened(write, monkeypatch):
    paths, open_file = [], tables._opened
    monkeypatch.setattr(tables, "_opened", lambda path: paths.append(path) or open_file(path))
    path = write(sums(20))
    opened(path)
    assert paths == [path]


def test_an_answer_is_checked_once(write, monkeypatch):
    checked = []
    monkeypatch.setattr(
        "g2rpo_trainer.data.source.check_record", lambda record, functions: checked.append(record)
    )
    source = opened(write(sums(20)), skip_broken=True)
    assert len(checked) == 20
    assert len(records_of(source)) == 20
    assert len(checked) == 20


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.jsonl", "", "has no records"),
        ("a.jsonl", " \n\n", "has no records"),
        ("a.json", "", "has no records"),
        ("a.json", "[]", "has no records"),
        ("a.json", "[{},\n}", "line 2: is not JSON (Expecting value)"),
        ("a.json", "[" * 100_000, "cannot be read (maximum recursion"),
        ("a.json", "[3, {}]", "record 1: is 3, but must be an object with columns"),
        ("a.jsonl", "3", "line 1: is a JSON int, but must be an object"),
        ("a.jsonl", "\xff", "line 1: is not UTF-8 (byte 0xff); save the file as UTF-8"),
        ("a.jsonl", '{"a":' + "1" * 5000 + "}", "line 1: cannot be read (Exceeds the limit"),
        ("a.parquet", "", "is not a Parquet file (Parquet file size is 0 bytes)"),
        ("a.parquet", "hello hello hello", "is not a Parquet file (Parquet magic bytes not found"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, text):
    path = tmp_path / name
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(RunError) as caught:
        opened(path)
    assert str(path) in str(caught.value)
    assert text in str(caught.value)


def test_sources_that_do_not_exist(tmp_path):
    with pytest.raises(RunError, match=r"a.jsonl: cannot be read \(No such file or directory\)"):
        opened(tmp_path / "a.jsonl")
    with pytest.raises(RunError, match=r"has no \.jsonl, \.json or \.parquet file"):
        opened(tmp_path)
    with pytest.raises(
        RunError, match=r"data\.source: unknown source 'biltin'; did you mean 'builtin'"
    ):
        opened("biltin")


@pytest.mark.parametrize("name", ["split", "subset", "revision"])
def test_files_have_no_splits(write, name):
    with pytest.raises(RunError, match=rf"data\.{name} is 'x', but data.source .* which has none"):
        opened(write(sums(3)), **{name: "x"})


@pytest.fixture
def hub():
    """Return the library datasets with a set of two splits, images among its columns."""
    import datasets

    datasets.disable_progress_bars()
    images = [[Image.new("RGB", (4, 3), "blue")] for _ in range(20)]
    columns = {key: [row[key] for row in sums(20)] for key in sums(1)[0]}
    features = datasets.Features(
        {
            **{key: datasets.Value("string") for key in columns},
            "images": datasets.List(datasets.Image()),
        }
    )
    whole = datasets.Dataset.from_dict({**columns, "images": images}, features=features)
    return datasets.DatasetDict(train=whole, test=whole.select(range(5)))


def test_a_folder_saved_by_datasets(hub, tmp_path):
    hub.save_to_disk(str(tmp_path / "both"))
    hub["train"].save_to_disk(str(tmp_path / "one"))
    assert problems(opened(tmp_path / "one")) == EXPECTED
    source = opened(tmp_path / "both")
    assert problems(source) == EXPECTED
    assert records_of(source)[0].images[0].getpixel((0, 0)) == (0, 0, 255)
    assert records_of(source)[0].place.startswith(f"{tmp_path / 'both'} (train), record ")
    assert len(opened(tmp_path / "both", split="test")) == 5
    with pytest.raises(RunError, match=r"data\.split: unknown split 'tst'; did you mean 'test'"):
        opened(tmp_path / "both", split="tst")
    with pytest.raises(RunError, match=r"data\.split is 'test', but .* was saved without splits"):
        opened(tmp_path / "one", split="test")
    with pytest.raises(RunError, match="for data sets of the hub alone"):
        opened(tmp_path / "one", revision="main")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(RunError, match=r"one: cannot be read \("):
        opened(tmp_path / "one")


def test_a_data_set_of_the_hub(hub, monkeypatch):
    import datasets

    asked = []

    def load_dataset(path, **options):
        asked.append((path, options))
        return hub[options["split"]]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = opened("owner/name", split="test", subset="easy", revision="v1")
    # Nothing else: no code of the data set's own may run.
    assert asked == [("owner/name", {"name": "easy", "split": "test", "revision": "v1"})]
    assert (len(source), source.tasks) == (5, ("sums",))
    assert records_of(source)[0].place.startswith("owner/name (test), record ")


def test_a_data_set_that_the_hub_does_not_give(monkeypatch):
    import datasets

    def load_dataset(path, **options):
        raise ConnectionError("Couldn't reach\n'owner/name' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(RunError) as caught:
        opened("owner/name")
    assert str(caught.value) == (
        "data.source 'owner/name' is no file or folder, and as a data set of the hub it cannot be "
        "loaded (Couldn't reach 'owner/name' on the Hub)"
    )


def test_rows_may_be_a_data_set(hub):
    assert problems(open_source(rows=hub["train"])) == EXPECTED


def test_a_format_keeps_the_columns_that_it_shows(hub):
    shown = [name for name in hub["train"].column_names if name != "images"]
    for form in ("numpy", "torch", None):
        record = records_of(open_source(rows=hub["train"].with_format(form, shown)))[0]
        assert (record.images, record.as_row()["data_type"]) == ([], "text")
    assert problems(open_source(rows=hub["train"].with_format("torch"))) == EXPECTED


def test_a_transform_is_applied(hub):
    def shout(batch):
        return {**batch, "problem": [text.upper() for text in batch["problem"]]}

    loud = sorted(text.upper() for text in EXPECTED)
    for rows in (hub["train"].with_transform(shout), hub["train"].select(range(20))):
        if rows.format["type"] is None:
            rows.set_transform(shout)
        source = open_source(rows=rows)
        assert problems(source) == loud
        assert records_of(source)[0].images[0].getpixel((0, 0)) == (0, 0, 255)


def test_a_transform_that_fails_is_told(hub):
    def fail(batch):
        raise KeyError("question")

    with pytest.raises(RunError) as caught:
        open_source(rows=hub["train"].with_transform(fail))
    assert str(caught.value) == "rows, record 1: cannot be read (KeyError: 'question')"


def test_what_is_no_sequence_of_records_is_told_with_the_remedy(hub):
    import pandas

    frame = pandas.DataFrame(sums(3))
    table = pa.Table.from_pylist(sums(3))
    for rows, kind, remedy in (
        (hub, "DatasetDict", "hand over one of its entries, such as a split (train, test)"),
        (sums(1)[0], "dict", "hand over one of its entries, such as a split (problem, answer,"),
        (hub["train"].to_iterable_dataset(), "IterableDataset", "records are looked up by number;"),
        (iter(sums(3)), "list_iterator", "records are looked up by number; hand over list(rows)"),
        (frame, "DataFrame", "hand over datasets.Dataset.from_pandas(rows)"),
        (table, "Table", "hand over rows.to_pylist()"),
        ("train.csv", "str", "name a file, a folder or a data set of the hub by data.source"),
    ):
        with pytest.raises(RunError) as caught:
            open_source(rows=rows)
        assert str(caught.value).startswith(f"rows is of type {kind}; {remedy}")
    with pytest.raises(RunError, match=r"^rows: has no records$"):
        open_source(rows=[])


def test_the_remedies_are_right(hub):
    import datasets
    import pandas

    frame, table = pandas.DataFrame(sums(20)), pa.Table.from_pylist(sums(20))
    iterable = hub["train"].to_iterable_dataset()
    for rows in (datasets.Dataset.from_pandas(frame), table.to_pylist(), list(iterable)):
        assert problems(open_source(rows=rows)) == EXPECTED


def test_rows_of_arrays(tmp_path):
    import pandas

    rows = [{**row, "images": [IMAGE], "answer": n + 1} for n, row in enumerate(sums(20))]
    path = write_parquet(tmp_path / "a.parquet", rows)
    # pandas makes NumPy arrays and numbers of lists and numbers.
    records = pandas.read_parquet(path).to_dict("records")
    assert type(records[0]["images"]).__name__ == "ndarray"
    assert problems(open_source(rows=records)) == EXPECTED


def test_decimal_numbers_are_answers(tmp_path):
    texts = ["3.00", "12.50", "-0.10", "123456789012345678901234567890.12"]
    answers = pa.array([Decimal(text) for text in texts], pa.decimal128(38, 2))
    box = [Decimal(edge) for edge in ("0.50", "2", "4.25", "8")]
    boxes = pa.array([box] * 4, pa.list_(pa.decimal128(5, 2)))
    columns = {"problem": pa.array([f"{n}?" for n in range(4)])}
    for cells, kind, expected in (
        (answers, "numerical", ["3", "12.5", "-0.1", texts[3]]),
        (boxes, "spatial grounding", ["[0.5, 2, 4.25, 8]"] * 4),
    ):
        pq.write_table(pa.table({**columns, "answer": cells}), tmp_path / "a.parquet")
        found = records_of(opened(tmp_path / "a.parquet", problem_type=kind))
        assert [r.answer for r in sorted(found, key=lambda r: r.problem)] == expected
    for text in ("NaN", "sNaN", "Infinity"):
        rows = [{**row, "answer": Decimal(text)} for row in sums(2)]
        with pytest.raises(RunError, match="must be a text or a finite number"):
            open_source(rows=rows)


BOX = [0, 0, 10, 10]
OBJECTS = {
    "tracking": [
        {"boxes": {"1": BOX, "2": BOX}},
        {"boxes": {"3": BOX}},
    ],
    "spatial-temporal grounding": [
        {"time": [0, 2], "boxes": {"1": BOX}},
        {"time": [1, 3], "boxes": {"2": BOX}},
    ],
    "segmentation": [
        {"boxes": BOX, "positive_points": [[1, 1]], "negative_points": [[9, 9]], "time": 2},
        {"boxes": BOX, "positive_points": [[1, 1]], "negative_points": [[9, 9]]},
    ],
}


@pytest.mark.parametrize("form", ["parquet", "saved", "rows", "list"])
@pytest.mark.parametrize("kind", OBJECTS)
def test_keys_that_other_rows_have_are_absent(kind, form, tmp_path):
    import datasets

    rows = [
        {"problem": f"{number}?", "answer": answer, "problem_type": kind, "task_type": "t"}
        for number, answer in enumerate(OBJECTS[kind])
    ]
    path = tmp_path / "rows.parquet"
    if form == "parquet":
        source = opened(write_parquet(path, rows))
    elif form == "saved":
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
        source = opened(path)
    else:
        table = datasets.Dataset.from_list(rows)
        source = open_source(rows=table if form == "rows" else table.to_list())
    found = sorted(records_of(source), key=lambda record: record.problem)
    for record, answer in zip(found, OBJECTS[kind], strict=True):
        assert json.loads(record.answer) == answer
        right = f"<think>x</think><answer>{json.dumps(answer)}</answer>"
        assert components(record.as_row(), right).accuracy == 1


@pytest.mark.parametrize("name", ["a.csv", "a.ndjson", "a.jsonl.gz", "a.tsv", "data", "sub/a.csv"])
def test_a_file_of_another_format(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / name).write_text("problem,answer\n")
    for source in (name, str(tmp_path / name)):
        with pytest.raises(RunError) as caught:
            opened(source)
        assert str(caught.value) == (
            f"data.source: {source!r} is a file, but not of a format that is read here; save its "
            "records as .jsonl, .json or .parquet"
        )


@pytest.mark.parametrize(
    ("source", "module"), [("o/n", "datasets"), ("reasoning-gym:x", "reasoning_gym")]
)
def test_a_missing_library(monkeypatch, source, module):
    monkeypatch.setattr("g2rpo._extras.find_spec", lambda name: None)
    with pytest.raises(RunError) as caught:
        open_source(Data(source=source))
    assert str(caught.value) == (
        f'data.source {source!r} needs {module}; run: pip install "g2rpo[data]"'
    )


def test_what_opening_a_file_loads(write):
    code = (
        "import sys; from g2rpo_trainer.data import open_source;"
        "from g2rpo_trainer.config import Data;"
        f"open_source(Data(source={str(write(sums(3)))!r})); print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert "g2rpo" in loaded
    assert not loaded & {"torch", "jax", "datasets", "pandas", "reasoning_gym", "PIL", "pyarrow"}


GYM = "reasoning-gym:chain_sum, leg_counting"


def test_reasoning_gym():
    source = opened(GYM)
    assert source.tasks == ("chain_sum", "leg_counting")
    records = source.training_records(seed=0, position=6, prompts=6)
    assert [record.task for record in records] == list(source.tasks) * 3
    assert records == opened(GYM).training_records(seed=0, position=6, prompts=6)
    assert records != source.training_records(seed=1, position=6, prompts=6)
    functions = with_own(source.reward_functions)
    for record in records:
        right = f"<think>so</think><answer>{record.answer['answer']}</answer>"
        assert components(record.as_row(), right, functions).accuracy == 1
        assert components(record.as_row(), "<answer>no</answer>", functions).accuracy < 0.1


def test_reasoning_gym_holds_out_by_the_question():
    source = opened("reasoning-gym:leg_counting", eval_fraction=0.5)
    held = source.held_out_records("leg_counting", 40)
    assert held == source.held_out_records("leg_counting", 40)
    trained = source.training_records(seed=0, position=0, prompts=40)
    assert not {r.problem for r in held} & {r.problem for r in trained}


def test_reasoning_gym_with_too_few_questions(monkeypatch):
    from g2rpo_trainer.data import streams

    same = {"question": "2+2?", "answer": "4", "metadata": {}}
    monkeypatch.setattr(streams, "_dataset", lambda name: defaultdict(lambda: same))
    source = opened("reasoning-gym:chain_sum")
    sides = []
    for draw in (
        lambda: source.held_out_records("chain_sum", 1),
        lambda: source.training_records(seed=0, position=0, prompts=1),
    ):
        try:
            draw()
        except RunError as error:
            sides.append(str(error))
    (text,) = sides  # the one question lies on one side
    assert text.startswith("reasoning-gym:chain_sum has too few different questions: 1000 draws")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "reasoning-gym:chain_sun",
            "data.source: unknown data set of reasoning-gym 'chain_sun'; did you mean 'chain_sum'?",
        ),
        ("reasoning-gym:", "data.source: 'reasoning-gym:' must be reasoning-gym:NAME"),
        ("reasoning-gym:composite", "data.source: reasoning-gym:composite cannot be made (Must "),
        ("reasoning-gym:a,,b", "must be reasoning-gym:NAME"),
        ("reasonin-gym:a", "unknown source 'reasonin-gym:a'; did you mean 'reasoning-gym:NAME'?"),
    ],
)
def test_unknown_data_sets_of_reasoning_gym(source, text):
    with pytest.raises(RunError) as caught:
        opened(source)
    assert text in str(caught.value)
