import io
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import g2rpo

GOLDEN = [
    ([0, 0, 0, 0, 1], [-0.3204, -0.3204, -0.3204, -0.3204, 1.2816]),
    ([0, 0, 1, 1, 1], [-0.9030, -0.9030, 0.6020, 0.6020, 0.6020]),
    ([0.1, 0.1, 0.1, 0.2, 1], [-0.6020, -0.6020, -0.6020, 0.5244, 1.2816]),
    ([0.81, 0.81, 0.82, 0.82, 0.83], [-0.9030, -0.9030, 0.2622, 0.2622, 1.2816]),
]


@pytest.fixture
def golden(tmp_path):
    """Write the four groups, shuffled between each other, and return what they should become."""
    rows, expected = [], []
    for position in range(5):
        for name, (rewards, advantages) in zip("abcd", GOLDEN, strict=True):
            rows.append({"id": len(rows), "group": name, "reward": rewards[position]})
            expected.append(advantages[position])
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "golden.jsonl").write_text(text)
    lines = ["id,group,reward", *(",".join(map(str, row.values())) for row in rows)]
    (tmp_path / "golden.csv").write_text("\n".join(lines) + "\n")
    return rows, expected


def rows_of(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("name", ["golden.jsonl", "golden.csv"])
def test_the_paper_s_values_to_a_file(run, golden, tmp_path, name):
    rows, expected = golden
    code, out, err = run("advantages", name, "--set", "task_stage=null", "-o", "new/out.jsonl")
    assert (code, err) == (0, "")
    after = rows_of((tmp_path / "new/out.jsonl").read_text())
    np.testing.assert_allclose([row.pop("advantage") for row in after], expected, atol=5e-5)
    assert after == rows
    assert "Advantages by gaussian" in out
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("name", g2rpo.ESTIMATORS)
def test_every_estimator_on_stdout(run, golden, name):
    rows, _ = golden
    lengths = ["--length", "id"] if name == "opo" else []
    code, out, err = run("advantages", "golden.jsonl", "--estimator", name, *lengths)
    assert code == 0
    found = [row["advantage"] for row in rows_of(out)]
    groups = np.asarray(["abcd".index(row["group"]) for row in rows])
    rewards = np.asarray([row["reward"] for row in rows])
    options = {"lengths": np.asarray([row["id"] for row in rows])} if name == "opo" else {}
    expected = g2rpo.ESTIMATORS[name](rewards, groups, np.zeros_like(groups), **options)
    assert found == expected.tolist()
    assert f"Advantages by {name}" in err
    assert max(map(len, err.splitlines())) <= 80


def test_csv_stays_csv_on_stdout(run, golden):
    code, out, _ = run("advantages", "golden.csv", "-o", "-")
    assert code == 0
    assert out.splitlines()[0] == "id,group,reward,advantage"
    assert out.splitlines()[1].startswith("0,a,0,-0.")


def test_standard_input(run, monkeypatch):
    text = b'{"reward": 0, "group": 1}\n{"reward": 2, "group": 1}\n'
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text)))
    code, out, _ = run("advantages", "-")
    assert code == 0
    assert [row["advantage"] for row in rows_of(out)] == [-1, 1]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"{")))
    assert run("advantages", "-")[2].startswith("error: standard input, line 1: is not JSON")


def test_a_pipe_that_closes_early_is_no_error(tmp_path):
    rows = "".join(f'{{"reward": {i % 7}, "group": {i // 8}}}\n' for i in range(20_000))
    (tmp_path / "a.jsonl").write_text(rows)
    command = f"{sys.executable} -m g2rpo_cli advantages a.jsonl | head -n 1"
    result = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert rows_of(result.stdout)[0]["reward"] == 0
    assert result.stderr == ""


def test_components_and_weights(run, tmp_path):
    rng = np.random.default_rng(0)
    rewards, groups = rng.random((20, 2)), np.arange(20) // 5
    lines = [f"{a},{b},p{g}" for (a, b), g in zip(rewards.tolist(), groups, strict=True)]
    (tmp_path / "a.csv").write_text("\n".join(["accuracy,format,prompt", *lines]))
    columns = ["--reward", "accuracy", "--reward", "format", "--group", "prompt"]
    weights = ["--weight", "0.9", "--weight", "0.1"]
    code, _, err = run("advantages", "a.csv", *columns, *weights, "--decoupled", "-o", "b.jsonl")
    assert code == 0, err
    expected = g2rpo.gaussian_advantages(
        rewards, groups, component_weights=[0.9, 0.1], decoupled=True
    )
    found = [row["advantage"] for row in rows_of((tmp_path / "b.jsonl").read_text())]
    assert found == expected.tolist()


def test_output_and_column_that_exist(run, golden, tmp_path):
    assert run("advantages", "golden.csv", "-o", "out.csv")[0] == 0
    before = (tmp_path / "out.csv").read_bytes()
    code, _, err = run("advantages", "golden.csv", "-o", "out.csv")
    assert (code, err) == (
        2,
        "error: --output out.csv: exists already; overwrite it with --force\n",
    )
    assert (tmp_path / "out.csv").read_bytes() == before
    code, out, err = run("advantages", "out.csv")
    assert (code, out) == (2, "")
    assert "out.csv: has a column 'advantage' already; replace it with --force, or name" in err
    assert run("advantages", "out.csv", "--column", "again", "-o", "golden.csv", "--force")[0] == 0
    assert (tmp_path / "golden.csv").read_text().startswith("id,group,reward,advantage,again\n")
    code, out, _ = run("advantages", "out.csv", "--force", "--estimator", "dr-grpo")
    assert code == 0
    assert out.splitlines()[0] == "id,group,reward,advantage"
    assert out.splitlines()[1].split(",")[-1] == "-0.2"
    code, _, err = run("advantages", "out.csv", "-o", "./out.csv", "--force")
    assert (code, err) == (2, "error: --output out.csv: is the file to read; name another\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.csv"], "no.csv: cannot be read (No such file or directory)"),
        (["golden.txt"], "golden.txt: unknown suffix '.txt' (there are: .jsonl, "),
        (["golden.csv", "-o", "out.txt"], "out.txt: unknown suffix '.txt' (there are: .jsonl, "),
        (["golden.csv", "--reward", "x"], "golden.csv, line 1: unknown column 'x' (there are: id"),
        (["golden.csv", "--task", "grp"], "golden.csv, line 1: unknown column 'grp'; did you mean"),
        (["golden.csv", "--reward", "group"], "golden.csv, line 2, column 'group': is 'a', but"),
        (["golden.jsonl", "--group", "reward"], "golden.jsonl, line 3, column 'reward': is 0.1"),
        (["golden.csv", "--estimator", "grp"], "unknown estimator 'grp'; did you mean 'grpo'?"),
        (["golden.csv", "--set", "x=1"], "estimator 'gaussian' has no option 'x' (it takes "),
        (["golden.csv", "--set", "ties=x"], "estimator 'gaussian': ties must be one of 'midpoint'"),
        (["golden.csv", "--set", "ties"], "option 'ties' must be KEY=VALUE"),
        (["golden.csv", "--weight", "2"], "--weight needs several --reward"),
        (["golden.csv", "--decoupled"], "--decoupled needs several --reward"),
        (
            ["golden.csv", "--reward", "id", "--reward", "reward", "--weight", "2"],
            "--weight is given 1 times, but --reward 2 times",
        ),
        (
            ["golden.csv", "--reward=id", "--reward=reward", "--decoupled", "--estimator=rloo"],
            "--decoupled: estimator 'rloo' has no such option (gaussian has; gdpo always",
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(run, golden, tmp_path, arguments, message):
    before = sorted(tmp_path.iterdir())
    output = [] if "-o" in arguments else ["-o", "out.csv"]
    code, out, err = run("advantages", *arguments, *output)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_hundred_thousand_rows(run, tmp_path):
    rng = np.random.default_rng(0)
    rewards = rng.random(100_000).round(3)
    with (tmp_path / "a.jsonl").open("w") as file:
        for i, reward in enumerate(rewards.tolist()):
            row = {
                "reward": reward,
                "group": i // 8,
                "task": f"task-{i // 8 % 5}",
                "text": "y" * 40,
            }
            file.write(json.dumps(row) + "\n")
    assert run("advantages", "a.jsonl", "-o", "b.parquet")[0] == 0
    import pyarrow.parquet as pq

    groups = np.arange(100_000) // 8
    expected = g2rpo.gaussian_advantages(rewards, groups, groups % 5)
    found = pq.read_table(tmp_path / "b.parquet").column("advantage").to_numpy()
    np.testing.assert_array_equal(found, expected)


def test_missing_extra(without):
    result = without(["rich"], "advantages", "a.csv")
    assert result.returncode == 2
    assert 'g2rpo advantages needs rich; run: pip install "g2rpo[cli]"' in result.stderr


def test_help_teaches(run):
    code, out, _ = run("advantages", "--help")
    assert code == 0
    assert "Examples" in out
    assert "g2rpo advantages rewards.jsonl -o advantages.jsonl" in out
    assert max(map(len, out.splitlines())) <= 80
