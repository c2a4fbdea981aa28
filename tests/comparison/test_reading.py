import json
import math
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from g2rpo_cli.comparison import read_rewards
from g2rpo_trainer.errors import RunError

FORMATS = ["a.jsonl", "a.ndjson", "a.json", "a.csv", "a.tsv", "a.parquet", "a.CSV"]


def text_of(error) -> str:
    return str(error.value)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_table(write, name):
    table = read_rewards(write(name.replace("CSV", "csv")).rename(write(name).with_name(name)))
    np.testing.assert_array_equal(table.rewards, [0, 0.5, 1, math.nan, 0.25, 0.75])
    assert table.groups.tolist() == [0, 0, 0, 1, 1, 1]
    assert table.tasks.tolist() == [0, 0, 0, 1, 1, 1]
    assert table.task_names == ("maths", "ocr")
    assert table.rewards.dtype == np.float64
    assert table.groups.dtype == table.tasks.dtype == np.int64
    assert len(table) == 6


def test_components_are_columns(write):
    table = read_rewards(write("a.jsonl"), reward=["reward", "id"])
    assert table.rewards.shape == (6, 2)
    assert table.reward_names == ("reward", "id")
    assert table.rewards[:, 1].tolist() == [1, 2, 3, 4, 5, 6]


def test_named_columns(write):
    rows = [{"score": 1, "prompt": 7, "kind": 3}, {"score": 2, "prompt": -2, "kind": 3}]
    table = read_rewards(write("a.parquet", rows), reward="score", group="prompt", task="kind")
    assert table.groups.tolist() == [1, 0]
    assert table.task_names == ("3",)


def test_integer_labels_are_in_numerical_order(write):
    rows = [{"reward": 1, "group": task, "task": task} for task in (10, 2, 10, -1)]
    table = read_rewards(write("a.jsonl", rows))
    assert table.task_names == ("-1", "2", "10")
    assert table.tasks.tolist() == [2, 1, 2, 0]


def test_task_is_optional_unless_named(write):
    path = write("a.jsonl", [{"reward": 1, "group": "a"}])
    assert read_rewards(path).task_names == ("all",)
    with pytest.raises(RunError, match=r"line 1: unknown column 'task' \(there are: reward, group"):
        read_rewards(path, task="task")


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("null", math.nan),
        ("NaN", math.nan),
        ('""', math.nan),
        ('"NaN"', math.nan),
        ('"null"', math.nan),
        ("Infinity", math.inf),
        ("-Infinity", -math.inf),
        ('"inf"', math.inf),
        ('"-inf"', -math.inf),
        ("true", 1.0),
        ("false", 0.0),
        ("3", 3.0),
        ('" 0.5 "', 0.5),
        ("1e-300", 1e-300),
    ],
)
def test_what_counts_as_a_reward(tmp_path, cell, value):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"reward": {cell}, "group": "a"}}\n')
    np.testing.assert_array_equal(read_rewards(path).rewards, [value])


def test_cells_of_a_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("reward,group\ntrue,a\nFALSE,a\n,a\ninf,a\n-Infinity,a\nnan,a\n1e3,a\n")
    values = [1, 0, math.nan, math.inf, -math.inf, math.nan, 1000]
    np.testing.assert_array_equal(read_rewards(path).rewards, values)


def test_byte_order_mark_windows_lines_and_blank_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfreward,group\r\n1,a\r\n\r\n2,a\r\n")
    assert read_rewards(path).rewards.tolist() == [1, 2]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"reward": 1, "group": "a"}\r\n\r\n{"reward": 2, "group": "a"}')
    assert read_rewards(path).rewards.tolist() == [1, 2]


def test_separators_inside_a_json_text_do_not_end_the_line(tmp_path):
    path = tmp_path / "a.jsonl"
    row = {"reward": 1, "group": "a\u2028b\x85c"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert len(read_rewards(path)) == 1


def test_a_cell_may_hold_a_long_response(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"reward,group,text\n1,a,{'x' * 300_000}\n")
    assert len(read_rewards(path)) == 1


@pytest.mark.parametrize("kind", [pa.float32(), pa.float16(), pa.int8(), pa.bool_()])
def test_types_of_parquet(tmp_path, kind):
    rewards = pa.array([0, 1, None], pa.int8()).cast(kind)
    labels = pa.array(["a", "a", "b"]).dictionary_encode()
    pq.write_table(pa.table({"reward": rewards, "group": labels}), tmp_path / "a.parquet")
    table = read_rewards(tmp_path / "a.parquet")
    np.testing.assert_array_equal(table.rewards, [0, 1, math.nan])
    assert table.groups.tolist() == [0, 0, 1]


BAD = [
    ("a.parqet", b"", "{}: unknown suffix '.parqet'; did you mean '.parquet'? (there are:"),
    ("a", b"", "{}: unknown suffix '' (there are: .jsonl, .ndjson, .json, .csv, .tsv, .parquet)"),
    ("a.jsonl", b"", "{}: has no rows"),
    ("a.csv", b" \n\n", "{}: has no rows"),
    ("a.csv", b"reward,group\n", "{}: has no rows"),
    (
        "a.jsonl",
        b'{"rewrd": 1, "group": "a"}\n',
        "{}, line 1: unknown column 'reward'; did you mean 'rewrd'? (there are: rewrd, group); "
        "name another with --reward",
    ),
    (
        "a.csv",
        b"reward,prompt\n1,a\n",
        "{}, line 1: unknown column 'group' (there are: reward, prompt); name another with --group",
    ),
    (
        "a.jsonl",
        b'{"reward": 1, "group": "a"}\n\n{"group": "a"}\n',
        "{}, line 3: has no column 'reward'",
    ),
    (
        "a.jsonl",
        b'{"reward": 1, "group": "a"}\n{"reward": "high", "group": "a"}\n',
        "{}, line 2, column 'reward': is 'high', but must be a number, or empty for no reward",
    ),
    (
        "a.jsonl",
        b'{"reward": [1], "group": "a"}\n',
        "{}, line 1, column 'reward': is [1], but must be a number, or empty for no reward",
    ),
    (
        "a.jsonl",
        b'{"reward": "1_0", "group": "a"}\n',
        "{}, line 1, column 'reward': is '1_0', but must be a number, or empty for no reward",
    ),
    (
        "a.jsonl",
        b'{"reward": 1%s, "group": "a"}\n' % (b"0" * 400),
        f"{{}}, line 1, column 'reward': is 1{'0' * 56}…, "
        "but must fit into a 64-bit floating-point number",
    ),
    (
        "a.csv",
        b'reward,group,text\n1,a,"two\nlines"\nx,a,\n',
        "{}, line 4, column 'reward': is 'x', but must be a number, or empty for no reward",
    ),
    (
        "a.jsonl",
        b'{"reward": 1, "group": 1.5}\n',
        "{}, line 1, column 'group': is 1.5, but must be a label: text, or a whole number",
    ),
    (
        "a.jsonl",
        b'{"reward": 1, "group": "a"}\n{"reward": 1, "group": null}\n',
        "{}, line 2, column 'group': is None, but must be a label: text, or a whole number",
    ),
    (
        "a.jsonl",
        b'{"reward": 1, "group": true}\n',
        "{}, line 1, column 'group': is True, but must be a label: text, or a whole number",
    ),
    (
        "a.jsonl",
        b'{"reward": 1, "group": "a", "task": ["x"]}\n',
        "{}, line 1, column 'task': is ['x'], but must be a label: text, or a whole number",
    ),
    (
        "a.csv",
        b"reward,group\n1,a\n1,\n",
        "{}, line 3, column 'group': is '', but must be a label: text, or a whole number",
    ),
    (
        "a.jsonl",
        b'{"reward": 1, "group": 1}\n{"reward": 1, "group": "b"}\n',
        "{}, line 2, column 'group': is 'b', but line 1 has 1; "
        "labels must be all text or all whole numbers",
    ),
    (
        "a.jsonl",
        b'{"reward": 1, "group": 1}\n{"reward": 1, "group": 9223372036854775808}\n',
        "{}, line 2, column 'group': is 9223372036854775808, but must fit into a 64-bit integer",
    ),
    (
        "a.csv",
        b"reward,group,task\n1,a,x\n1,b,y\n1,a,y\n",
        "{}, line 4: has task 'y', but its group has task 'x' in line 2; "
        "a group is the responses to one prompt, of one task",
    ),
    (
        "a.jsonl",
        b'{"reward": 1, "group": "a"}\n{"reward": 1,\n',
        "{}, line 2: is not JSON (Expecting property name enclosed in double quotes, "
        "character 14); a line must be an object",
    ),
    ("a.jsonl", b"[1, 2]\n", "{}, line 1: is a JSON list, but must be an object"),
    ("a.json", b"[1, 2]\n", "{}, record 1: is 1, but must be an object with columns"),
    ("a.json", b"[]", "{}: has no rows"),
    ("a.json", b'[{"reward": 1}, x]', "{}, line 1: is not JSON (Expecting value)"),
    ("a.jsonl", b"[" * 100_000, "{}, line 1: cannot be read (maximum recursion depth exceeded"),
    ("a.jsonl", b'{"reward": %s}' % (b"1" * 5000), "{}, line 1: cannot be read (Exceeds the limit"),
    (
        "a.csv",
        b"reward,group\n1,a\n1\n",
        "{}, line 3: has 1 column, but the header has 2: reward, group",
    ),
    (
        "a.csv",
        b"reward,group\n1,a,b\n",
        "{}, line 2: has 3 columns, but the header has 2: reward, group",
    ),
    ("a.csv", b"group,group\n", "{}, line 1: the column 'group' stands twice in the header"),
    ("a.csv", b'reward,group\n1,"a\n1,a\n', "{}, line 3: is not CSV (unexpected end of data)"),
    ("a.csv", b"reward,group\n1,\xff\n", "{}, line 2: is not UTF-8 (byte 0xff)"),
    ("a.jsonl", b'{"reward": 1}\n\n{"\xe9"}', "{}, line 3: is not UTF-8 (byte 0xe9)"),
    ("a.parquet", b"reward,group\n1,a\n", "{}: is not a Parquet file (Parquet magic bytes"),
    ("a.parquet", b"", "{}: is not a Parquet file (Parquet file size is 0 bytes)"),
]


@pytest.mark.parametrize(("name", "content", "expected"), BAD)
def test_bad_file(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RunError) as error:
        read_rewards(path)
    assert text_of(error).startswith(expected.format(path))
    assert "\n" not in text_of(error)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_file_that_cannot_be_opened(tmp_path, name):
    with pytest.raises(RunError, match=r"cannot be read \(No such file or directory\)"):
        read_rewards(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(RunError, match=r"cannot be read \(Is a directory\)"):
        read_rewards(tmp_path / name)


def test_parquet_names_the_row(write):
    rows = [{"reward": "1", "group": "a"}, {"reward": "x", "group": "a"}]
    with pytest.raises(RunError, match=r"a\.parquet, record 2, column 'reward': is 'x', but must"):
        read_rewards(write("a.parquet", rows))


def test_empty_parquet(tmp_path):
    pq.write_table(pa.table({"reward": pa.array([], pa.float64())}), tmp_path / "a.parquet")
    with pytest.raises(RunError, match=r"a\.parquet: has no rows"):
        read_rewards(tmp_path / "a.parquet")


def test_parquet_without_pyarrow(monkeypatch, write):
    path = write("a.parquet")
    monkeypatch.setattr("g2rpo._extras.find_spec", lambda name: None)
    with pytest.raises(RunError, match=r'needs pyarrow; run: pip install "g2rpo\[cli\]"'):
        read_rewards(path)


def test_a_list_of_objects(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[\n  {"reward": 1, "group": "a"},\n  {"reward": 2, "group": "a"}\n]\n')
    assert read_rewards(path).rewards.tolist() == [1, 2]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_file_that_opens_and_cannot_be_read(tmp_path, name):
    (tmp_path / name).symlink_to("/proc/self/mem")
    with pytest.raises(RunError, match=rf"{name}: cannot be read \(Input/output error\)"):
        read_rewards(tmp_path / name)


def test_two_columns_of_one_name_in_parquet(tmp_path):
    columns = [pa.array([1.0]), pa.array(["a"]), pa.array([2.0])]
    table = pa.Table.from_arrays(columns, names=["reward", "group", "reward"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(RunError, match=r"a\.parquet: has two columns 'reward'; rename one of them"):
        read_rewards(tmp_path / "a.parquet")


def test_the_core_does_not_load_it():
    code = "import g2rpo, sys; assert not any(n.startswith('g2rpo_cli') for n in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
