import json
import re
from pathlib import Path

import pytest
from PIL import Image

import g2rpo
from g2rpo_cli.comparison import TOPOLOGIES

FIGURE = {
    "0 0 0 0 1": "-0.3204 -0.3204 -0.3204 -0.3204 1.2816",
    "0 0 1 1 1": "-0.9030 -0.9030 0.6020 0.6020 0.6020",
    "0.1 0.1 0.1 0.2 1": "-0.6020 -0.6020 -0.6020 0.5244 1.2816",
    "0.81 0.81 0.82 0.82 0.83": "-0.9030 -0.9030 0.2622 0.2622 1.2816",
}


@pytest.fixture
def table(tmp_path):
    rows = [
        ("maths", 1, [0, 0, 1, 1]),
        ("maths", 2, [1, 1, 1, 1]),
        ("ocr", 3, [0, 0.1, 0.2, 9]),
        ("[odd]", 4, [1, "null", '"inf"', 0]),
    ]
    with (tmp_path / "a.jsonl").open("w") as file:
        for task, group, rewards in rows:
            for reward in rewards:
                file.write(f'{{"task": "{task}", "group": {group}, "reward": {reward}}}\n')
    return "a.jsonl"


def test_without_a_file(run, tmp_path):
    code, out, err = run("compare", "--picture", "pictures/a.png", "--output", "a.json")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    plain = [" ".join(line.split()) for line in out.splitlines()]
    for rewards, advantages in FIGURE.items():
        start = plain.index(f"rewards {rewards}")
        assert (
            f"gaussian:task_stage=null {advantages}"
            in plain[start : start + len(g2rpo.ESTIMATORS) + 3]
        )
    for name in TOPOLOGIES:
        assert f"{name}: 1024 rewards, 128 groups, " in out
    with Image.open(tmp_path / "pictures/a.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10
    content = json.loads((tmp_path / "a.json").read_text())
    assert list(content["estimators"]) == list(g2rpo.ESTIMATORS)
    assert list(content["tasks"]) == list(TOPOLOGIES)
    figure = content["figure"]["values"]["advantages"]["gaussian:task_stage=null"]
    assert " ".join(f"{value:.4f}" for value in figure) == " ".join(FIGURE.values())


def test_it_is_the_same_every_time(run):
    assert run("compare", "-o", "a.json")[1] == run("compare", "-o", "a.json")[1]


def test_with_a_file(run, table, tmp_path):
    code, out, err = run("compare", table, "--output", "a.json", "--picture", "a.svg")
    assert (code, err) == (0, "")
    assert out.splitlines()[-2:] == ["a.svg", "a.json"]
    assert max(map(len, out.splitlines())) <= 80
    assert "Figure 2" not in out
    assert "maths: 8 rewards, 2 groups, 1 without signal" in out
    assert "[odd]: 3 rewards, 1 group, 0 without signal, 1 absent, 1 infinite" in out
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["source"] == "a.jsonl"
    assert "figure" not in content
    assert content["estimators"]["gaussian"]["tasks"]["maths"]["variance"] == pytest.approx(1)
    assert content["estimators"]["grpo"]["tasks"]["[odd]"]["undefined"] == 3
    assert "ema-grpo" in (tmp_path / "a.svg").read_text()


def test_nan_is_counted_only_where_there_is_one(run, table):
    out = run("compare", table)[1]
    (row,) = re.findall(r"\[odd\].*?grpo-batch +(.*?)\n", out, flags=re.DOTALL)
    assert row.split() == ["–", "–", "–", "–", "0.000", "0.0%", "3"]
    assert "NaN" not in run("compare", table, "-e", "gaussian")[1]


def test_chosen_estimators_with_options(run, table):
    names = ["rloo", "gaussian", "gaussian:task_stage=match", "rloo"]
    code, out, _ = run("compare", table, *(f"--estimator={name}" for name in names))
    assert code == 0
    assert names[2] in out
    assert out.count("rloo") == 4  # a table a task, and one between them
    assert "dr-grpo" not in out


def test_many_tasks_fit(run, tmp_path):
    rows = [f"{i % 3},g{i // 4},a task with quite a long name {i // 8}" for i in range(160)]
    (tmp_path / "a.csv").write_text("\n".join(["reward,group,task", *rows]))
    code, out, _ = run("compare", "a.csv", "--picture", "a.png")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert out.count("without signal") == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.csv"], "no.csv: cannot be read (No such file or directory)"),
        (["a.jsonl", "--group", "x"], "a.jsonl, line 1: unknown column 'x' (there are: task, "),
        (["a.jsonl", "-e", "gausian"], "unknown estimator 'gausian'; did you mean 'gaussian'?"),
        (["-e", "grpo:x=1"], "estimator 'grpo' has no option 'x' (it takes scale, epsilon)"),
        (["-e", "grpo:scale=x"], "estimator 'grpo': scale must be one of 'group', 'batch', 'none'"),
        (["--picture", "a.pdf"], "--picture a.pdf: must end in .png or .svg"),
        (["--output", "."], "--output .: is a folder; name a file"),
        (["a.jsonl", "--output", "a.jsonl"], "--output a.jsonl: is the file to read; name another"),
        (["--reward", "x"], "column 'x' is of no file; name the FILE to compare on"),
        (["--group", "x"], "column 'x' is of no file; name the FILE to compare on"),
        (["a.jsonl", "--weight", "1"], "--weight needs several --reward"),
        (
            ["--picture", "a.png", *(f"-e{name}" for name in list(g2rpo.ESTIMATORS)[:6])],
            "--picture a.png: has room for 5 estimators, but 6 are named",
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(run, table, tmp_path, arguments, message):
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    outputs = [] if {"--picture", "--output"} & set(arguments) else ["--picture=a.png", "-o=a.json"]
    code, out, err = run("compare", *arguments, *outputs)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_documentation_shows_what_the_command_prints(run):
    page = Path(__file__).parents[2] / "docs" / "compare.md"
    blocks = re.findall(r"```text\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    printed = [line.rstrip() for line in run("compare")[1].splitlines()]
    shown = [line for block in blocks for line in block.splitlines() if line[:5] != "error"]
    assert len(shown) > 25
    assert [line for line in shown if line not in printed] == []


def test_lengths_come_from_a_column(run, tmp_path):
    rows = ["group,reward,length,tokens", "1,0,30,1", "1,1,10,1", "2,1,5,1", "2,0,5,1"]
    (tmp_path / "a.csv").write_text("\n".join(rows))
    values = {}
    for name, options in {"length": [], "tokens": ["--length", "tokens"]}.items():
        code, _, err = run("advantages", "a.csv", "--estimator", "opo", "-o", "b.jsonl", *options)
        assert (code, err) == (0, "")
        lines = (tmp_path / "b.jsonl").read_text().splitlines()
        values[name] = [json.loads(line)["advantage"] for line in lines]
        (tmp_path / "b.jsonl").unlink()
    assert values["length"] == pytest.approx([-0.25, 0.75, 0.5, -0.5])
    assert values["tokens"] == [-0.5, 0.5, 0.5, -0.5]
    code, out, err = run("compare", "a.csv")
    assert (code, err) == (0, "")
    assert " opo " in out
    assert "not compared" not in out


def test_without_lengths_an_estimator_that_needs_them_is_left_out_or_refused(run, tmp_path):
    (tmp_path / "a.csv").write_text("group,reward,length\n1,0,long\n1,1,short\n")
    code, out, err = run("compare", "a.csv")
    assert (code, err) == (0, "")
    assert "not compared without a column of lengths (--length): opo\n" in out
    code, out, err = run("compare", "a.csv", "-e", "opo")
    assert (code, out) == (2, "")
    assert err.startswith("error: estimator 'opo' needs the responses' lengths in tokens: a column")
    code, out, err = run("compare", "a.csv", "--length", "length")
    assert (code, out) == (2, "")
    message = "a.csv, line 2, column 'length': is 'long', but must be a length in tokens, a number"
    assert err.startswith(f"error: {message}")


def test_missing_extra(without):
    result = without(["yaml"], "compare")
    assert result.returncode == 2
    assert 'g2rpo compare needs yaml; run: pip install "g2rpo[cli]"' in result.stderr


def test_help_teaches(run):
    code, out, _ = run("compare", "--help")
    assert code == 0
    assert "g2rpo compare --picture compare.png" in out
    assert max(map(len, out.splitlines())) <= 80
