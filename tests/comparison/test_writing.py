import io
import json
import math
from datetime import date
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from g2rpo_cli.comparison import RewardTable, read_rewards, write_advantages
from g2rpo_trainer.errors import RunError

ADVANTAGES = [-1.5, 0.1 + 0.2, math.nan, math.inf, -math.inf, 1e-300]


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def added(write, source, target, **options):
    table = read_rewards(write(source))
    path = write(source).parent / target
    write_advantages(table, ADVANTAGES, path, **options)
    return path


def test_jsonl_keeps_rows_and_order(write):
    before = lines_of(write("a.jsonl"))
    after = lines_of(added(write, "a.jsonl", "b.jsonl"))
    assert [row.pop("advantage") for row in after] == [-1.5, 0.1 + 0.2, None, "inf", "-inf", 1e-300]
    assert after == before
    assert [list(row) for row in after] == [list(row) for row in before]


def test_jsonl_keeps_what_only_some_rows_have(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        '{"reward": 1, "group": "a", "x": {"y": [1, null]}, "n": 123456789012345678901234567890}',
        '{"group": "a", "reward": 1.5, "emoji": "😀", "half": "\\ud83d"}',
    ]
    path.write_text("\n".join(rows), encoding="utf-8")
    write_advantages(read_rewards(path), [0, 1], tmp_path / "b.jsonl")
    first, second = (tmp_path / "b.jsonl").read_text(encoding="utf-8").splitlines()
    assert first == rows[0][:-1] + ', "advantage": 0.0}'
    assert json.loads(second) == {**json.loads(rows[1]), "advantage": 1.0}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_csv_keeps_every_cell(write, name):
    import csv

    delimiter = "\t" if name == "a.tsv" else ","
    path = added(write, name, f"b{name[1:]}")
    with path.open(newline="", encoding="utf-8") as file:
        after = list(csv.reader(file, delimiter=delimiter))
    with write(name).open(newline="", encoding="utf-8") as file:
        before = list(csv.reader(file, delimiter=delimiter))
    assert [row[:-1] for row in after] == before
    values = ["advantage", "-1.5", "0.30000000000000004", "", "inf", "-inf", "1e-300"]
    assert [row[-1] for row in after] == values


def test_parquet_keeps_types_and_metadata(tmp_path):
    table = pa.table(
        {
            "reward": pa.array([1, 0], pa.float32()),
            "group": pa.array(["a", "a"]).dictionary_encode(),
            "when": [date(2026, 1, 2), None],
            "price": [Decimal("1.50"), Decimal("2.25")],
            "raw": [b"\x00", b"\xff"],
            "nested": [{"x": [1, 2]}, {"x": []}],
        }
    ).replace_schema_metadata({"made by": "hand"})
    pq.write_table(table, tmp_path / "a.parquet")
    write_advantages(read_rewards(tmp_path / "a.parquet"), [0.5, math.nan], tmp_path / "b.parquet")
    after = pq.read_table(tmp_path / "b.parquet")
    assert after.column("advantage").to_pylist() == [0.5, None]
    kept = after.drop_columns("advantage")
    assert kept.equals(pq.read_table(tmp_path / "a.parquet"), check_metadata=True)
    assert kept.schema.metadata[b"made by"] == b"hand"


FORMATS = ["jsonl", "csv", "parquet"]


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_any_format_to_any_other_and_back(write, source, target):
    path = added(write, f"a.{source}", f"b.{target}")
    there = read_rewards(path, reward=["reward", "id"])
    write_advantages(there, np.zeros(6), path.with_name(f"c.{source}"), column="zero")
    back = read_rewards(path.with_name(f"c.{source}"), reward=["reward", "id", "advantage", "zero"])
    expected = read_rewards(write(f"a.{source}"), reward=["reward", "id"])
    np.testing.assert_array_equal(back.rewards[:, :2], expected.rewards)
    np.testing.assert_array_equal(back.rewards[:, 2], ADVANTAGES)
    assert back.groups.tolist() == expected.groups.tolist()
    assert back.task_names == expected.task_names
    texts = [row.get("text") for row in back.rows.records]
    assert texts == ["no, “never”", "", "two\nlines", "x", "x,y", '"']


def test_a_csv_becomes_numbers_only_where_all_are(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        "reward,group,zip,mixed,count,gap,huge,none,id,endless\n"
        "0.5,1,007,1,3,1.5,99999999999999999999,,9223372036854775807,1e999\n"
        "1e2,1,008,x,-4,,1,,-9223372036854775807,1\n"
    )
    write_advantages(read_rewards(path), [0, 0], tmp_path / "b.jsonl")
    first, second = lines_of(tmp_path / "b.jsonl")
    assert first == {
        "reward": 0.5, "group": 1, "zip": "007", "mixed": "1", "count": 3, "gap": 1.5,
        "huge": 1e20, "none": "", "id": 2**63 - 1, "endless": "1e999", "advantage": 0.0,
    }  # fmt: skip
    assert (second["reward"], second["count"], second["gap"]) == (100.0, -4, None)
    assert isinstance(second["count"], int)


def test_json_to_csv_spells_out_what_csv_lacks(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"reward": true, "group": 1, "x": [1, {"ü": null}], "y": null}\n')
    write_advantages(read_rewards(path), [0.25], tmp_path / "b.csv")
    expected = 'reward,group,x,y,advantage\ntrue,1,"[1, {""ü"": null}]",,0.25\n'
    assert (tmp_path / "b.csv").read_text(encoding="utf-8") == expected


def test_open_file_gets_the_format_of_the_rows(write):
    for name, start in (("a.csv", b"id,"), ("a.jsonl", b'{"id"'), ("a.parquet", b'{"id"')):
        target = io.BytesIO()
        write_advantages(read_rewards(write(name)), ADVANTAGES, target)
        assert target.getvalue().startswith(start)
        assert not target.closed


def test_column_is_replaced_in_its_place(write):
    rows = [{"group": "a", "advantage": 9, "reward": 1}]
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        source = write(name, rows)
        table = read_rewards(source)
        target = source.with_name("b" + source.suffix)
        with pytest.raises(RunError, match="has a column 'advantage' already"):
            write_advantages(table, [0.5], target)
        assert not target.exists()
        write_advantages(table, [0.5], target, overwrite=True)
        after = read_rewards(target, reward=["advantage", "reward"])
        assert list(after.rows.names) == ["group", "advantage", "reward"]
        assert after.rewards.tolist() == [[0.5, 1]]


def refused(tmp_path, source, target, message):
    before = sorted(tmp_path.iterdir())
    table = read_rewards(source)
    with pytest.raises(RunError, match=message):
        write_advantages(table, np.zeros(len(table)), target)
    assert sorted(tmp_path.iterdir()) == before


def test_refused_outputs(write, tmp_path):
    source = write("a.jsonl")
    (tmp_path / "there.csv").write_text("kept")
    (tmp_path / "link.jsonl").symlink_to(source)
    refused(tmp_path, source, source, "is the file to read")
    refused(tmp_path, source, tmp_path / "link.jsonl", "is the file to read")
    refused(tmp_path, source, tmp_path / "there.csv", "exists already; overwrite it with --force")
    refused(tmp_path, source, tmp_path / "b.xlsx", "unknown suffix '.xlsx'")
    refused(tmp_path, source, tmp_path / "there.csv" / "b.csv", "cannot be written")
    assert (tmp_path / "there.csv").read_text() == "kept"
    (tmp_path / "folder.csv").mkdir()
    refused(tmp_path, source, tmp_path / "folder.csv", "is a folder")


def test_what_a_format_cannot_hold(tmp_path):
    rows = {"reward": [1.0], "group": ["a"], "raw": [b"\xff"], "when": [date(2026, 1, 2)]}
    source = tmp_path / "a.parquet"
    pq.write_table(pa.table(rows), source)
    refused(tmp_path, source, tmp_path / "b.jsonl", "column 'raw' cannot be written as JSON")
    refused(tmp_path, source, tmp_path / "b.csv", "column 'raw' holds bytes, which CSV cannot")
    pq.write_table(pa.table({**rows, "raw": [[date(2026, 1, 2)]]}), source)
    refused(tmp_path, source, tmp_path / "b.csv", "column 'raw' cannot be written as CSV")
    source = tmp_path / "c.jsonl"
    source.write_text('{"reward": 1, "group": "a", "x": 1}\n{"reward": 1, "group": "a", "x": "y"}')
    refused(tmp_path, source, tmp_path / "b.parquet", "column 'x' cannot be written as Parquet")
    source.write_text('{"reward": 1, "group": "a", "x": "\\ud83d"}')
    refused(tmp_path, source, tmp_path / "b.parquet", "column 'x' cannot be written as Parquet")
    refused(tmp_path, source, tmp_path / "b.csv", "half a surrogate pair cannot be written as CSV")


@pytest.mark.parametrize("name", ["b.jsonl", "b.csv"])
def test_interruption_leaves_nothing(write, tmp_path, monkeypatch, name):
    def interrupt(value):
        if value == ADVANTAGES[3]:
            raise KeyboardInterrupt
        return value

    table = read_rewards(write("a.jsonl"))
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("g2rpo_cli.comparison.rows.to_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_advantages(table, ADVANTAGES, tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before


def test_wrong_arguments(write, tmp_path):
    table = read_rewards(write("a.jsonl"))
    with pytest.raises(ValueError, match=r"advantages must have shape \(6,\), got \(5,\)"):
        write_advantages(table, ADVANTAGES[1:], tmp_path / "b.jsonl")
    bare = RewardTable(np.zeros(1), np.zeros(1, int), np.zeros(1, int))
    with pytest.raises(RunError, match="has no rows of a file"):
        write_advantages(bare, [0.0], tmp_path / "b.jsonl")
