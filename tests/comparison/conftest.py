"""Small files of rewards in every format."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROWS = [
    {"id": 1, "reward": 0.0, "group": "a", "task": "maths", "text": "no, “never”"},
    {"id": 2, "reward": 0.5, "group": "a", "task": "maths", "text": ""},
    {"id": 3, "reward": 1.0, "group": "a", "task": "maths", "text": "two\nlines"},
    {"id": 4, "reward": None, "group": "b", "task": "ocr", "text": "x"},
    {"id": 5, "reward": 0.25, "group": "b", "task": "ocr", "text": "x,y"},
    {"id": 6, "reward": 0.75, "group": "b", "task": "ocr", "text": '"'},
]


@pytest.fixture
def write(tmp_path):
    """Return a function that writes rows in the format of the suffix."""

    def to(name, rows=ROWS):
        path = tmp_path / name
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif path.suffix in (".csv", ".tsv"):
            from csv import writer

            with path.open("w", newline="", encoding="utf-8") as file:
                table = writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
                table.writerow(rows[0])
                table.writerows([row.values() for row in rows])
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return to
