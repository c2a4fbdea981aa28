"""Options, help and exit codes of every command.

The commands and options stand in ``interface.json``; ``python tests/cli/test_interface.py`` writes
it anew after one was added.
"""

import json
import os
import pty
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("interface.json")

HEAVY = {
    "torch", "transformers", "accelerate", "jax", "matplotlib", "datasets", "pyarrow", "pandas",
    "numpy", "scipy", "sklearn", "PIL", "hypothesis", "g2rpo", "g2rpo_trainer",
}  # fmt: skip


def commands():
    """Return every command and group by its name, such as ``g2rpo tasks show``."""
    from typer.main import get_command

    from g2rpo_cli.app import app

    def walk(command, name):
        found = {name: command}
        for key, inner in getattr(command, "commands", {}).items():
            found |= walk(inner, f"{name} {key}")
        return found

    return walk(get_command(app), "g2rpo")


def parameters_of(command):
    """Return the arguments and options of a command."""
    names = []
    for parameter in command.params:
        is_argument = parameter.param_type_name == "argument"
        names += [parameter.name] if is_argument else parameter.opts + parameter.secondary_opts
    return sorted(names)


def interface():
    return {name: parameters_of(command) for name, command in commands().items()}


def test_no_command_and_no_option_has_disappeared():
    now = interface()
    listed = json.loads(LIST.read_text(encoding="utf-8"))
    gone = [name for name in listed if name not in now]
    gone += [
        f"{name} {parameter}"
        for name, parameters in listed.items()
        for parameter in parameters
        if parameter not in now.get(name, ())
    ]
    assert gone == []


def test_every_command_and_option_is_listed():
    listed = json.loads(LIST.read_text(encoding="utf-8"))
    assert listed == interface(), "after adding one, run: python tests/cli/test_interface.py"


@pytest.fixture(scope="module")
def helps():
    """Return a function that shows the help of every command at a width, and what is loaded."""

    @cache
    def at(columns):
        code = f"""
import sys
from g2rpo_cli.app import app
for name in {list(commands())}:
    print("help of", name)
    try:
        app([*name.split()[1:], "--help"], prog_name="g2rpo")
    except SystemExit as ended:
        assert not ended.code
print("loaded", *sys.modules)
"""
        result = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": str(columns)},
        )
        assert result.returncode == 0, result.stderr
        text, _, loaded = result.stdout.rpartition("loaded ")
        parts = (part.partition("\n") for part in text.split("help of ")[1:])
        return {name: help for name, _, help in parts}, {
            name.partition(".")[0] for name in loaded.split()
        }

    return at


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_help_is_readable_at_any_width(helps, columns):
    texts, _ = helps(columns)
    assert list(texts) == list(commands())
    for name, text in texts.items():
        assert max(map(len, text.splitlines())) <= columns
        # An option that is cut or folded over two lines cannot be copied.
        words = {word.strip("│,") for word in text.split()}
        options = [option for option in parameters_of(commands()[name]) if option[0] == "-"]
        assert [option for option in options if option not in words] == []


def test_help_loads_nothing_heavy(helps):
    _, loaded = helps(80)
    assert loaded & HEAVY == set()
    assert "typer" in loaded


def test_help_tells_the_exit_statuses(run):
    _, out, _ = run("--help")
    text = " ".join(out.split())
    assert (
        "Exit status: 0 if all went well; 1 if a run failed or a check did not hold; 2 if" in text
    )


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["tasks", "list"], 0),
        (["verify", "rloo", "-i", "increasing-maps"], 1),
        (["verify", "rloo", "-i", "increasing-map"], 2),
        (["verify", "--no-such-option"], 2),
        (["no-such-command"], 2),
        (["advantages"], 2),
    ],
)
def test_exit_statuses(run, arguments, status):
    assert run(*arguments)[0] == status


@pytest.mark.parametrize("way", ["option", "variable"])
def test_debug_shows_the_traceback_and_keeps_the_status(run, monkeypatch, way):
    monkeypatch.setenv("G2RPO_DEBUG", "1" if way == "variable" else "")
    option = ["--debug"] if way == "option" else []
    code, out, err = run(*option, "advantages", "no.csv")
    assert (code, out) == (2, "")
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("error: no.csv: cannot be read (No such file or directory)\n")
    monkeypatch.setenv("G2RPO_DEBUG", "")
    assert "Traceback" not in run("advantages", "no.csv")[2]


REWARDS = "group,reward,length\n1,0,9\n1,inf,9\n2,1,9\n2,0,9\n"


@pytest.mark.parametrize(
    "command",
    [
        "advantages a.csv -o b.csv --estimator grpo",
        "compare",
        "compare a.csv --picture a.png -o a.json",
        "data show builtin",
        "eval -t ocr",
        "tasks list",
        "tasks show -t ocr -t sorting",
        "verify rloo -i ties",
        "verify --list",
    ],
)
def test_json_in_place_of_tables(run, trainer, tmp_path, command):
    (tmp_path / "a.csv").write_text(REWARDS)

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    code, out, _ = run(*command.split(), "--json")
    assert code == 0
    content = json.loads(out, parse_constant=refuse)
    assert content
    assert run(*command.split(), *(["--force"] if "b.csv" in command else []))[1] != out


def test_numbers_of_json_are_those_of_the_tables(run, tmp_path):
    (tmp_path / "a.csv").write_text(REWARDS)
    content = json.loads(run("advantages", "a.csv", "-o", "b.csv", "--json")[1])
    task = content["estimators"]["gaussian"]["tasks"]["all"]
    assert (task["variance"], task["undefined"]) == (1.0, 0)
    task = json.loads(run("compare", "a.csv", "--json")[1])["estimators"]["grpo"]["tasks"]["all"]
    assert (task["undefined"], content["tasks"]["all"]["infinite"]) == (2, 1)
    (first, *_) = json.loads(run("verify", "rloo", "-i", "increasing-maps", "--json")[1])
    assert first["verdict"] == "fails"
    assert first["call"].startswith("rloo(np.asarray(")
    (item, *_) = json.loads(run("tasks", "show", "-t", "sorting", "--json")[1])
    assert sorted(item) == ["answer", "level", "question", "task"]


def test_rows_on_stdout_leave_the_summary_to_stderr(run, tmp_path):
    (tmp_path / "a.csv").write_text(REWARDS)
    code, out, err = run("advantages", "a.csv", "--json")
    assert code == 0
    assert out.startswith("group,reward,length,advantage\n")
    assert json.loads(err)["source"] == "a.csv"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("compare", "--picture"),
        ("compare", "--output"),
        ("advantages a.csv", "--output"),
        ("eval -t ocr", "--output"),
        ("eval -t ocr", "--samples"),
        ("tasks show -t ocr", "--output"),
    ],
)
def test_a_folder_in_place_of_a_file_to_write_is_refused_first(
    run, trainer, tmp_path, command, option
):
    (tmp_path / "a.csv").write_text(REWARDS)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.csv").mkdir()
    name = "folder.csv" if "a.csv" in command else "folder.png"
    code, out, err = run(*command.split(), option, name)
    assert (code, out) == (2, "")
    assert err == f"error: {option} {name}: is a folder; name a file\n"
    assert trainer.calls == []


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "a.csv/b.png"])
def test_a_file_that_cannot_be_written_is_named(run, tmp_path, name):
    (tmp_path / "a.csv").write_text(REWARDS)
    code, _, err = run("compare", "a.csv", "-e", "grpo", "--picture", name)
    assert code == 2
    assert err.startswith("error: ")
    assert f"{name}: cannot be written (" in err
    assert err.count("\n") == 1


def unreadable(folder):
    """Write files that cannot be read as what they are called, and return what is wrong."""
    (folder / "folder.jsonl").mkdir()
    (folder / "empty.jsonl").touch()
    (folder / "header.csv").write_text("group,reward\n")
    (folder / "binary.csv").write_bytes(b"group,reward\n\xff,1\n")
    (folder / "half.jsonl").write_text('{"group": 1, "reward": 0}\n{"group": 1, "rew')
    (folder / "text.parquet").write_text(REWARDS)
    (folder / "disk.csv").symlink_to("/proc/self/mem")  # opens, and fails to read
    (folder / "columns.csv").write_text("prompt,score\n1,0\n")
    (folder / "words.csv").write_text("group,reward\n1,good\n")
    (folder / "mixed.jsonl").write_text('{"group": 1, "reward": 0}\n{"group": "a", "reward": 0}\n')
    return {
        "missing.csv": ": cannot be read (No such file or directory)",
        "folder.jsonl": ": cannot be read (Is a directory)",
        "empty.jsonl": ": has no rows",
        "header.csv": ": has no rows",
        "binary.csv": ", line 2: is not UTF-8 (byte 0xff); save the file as UTF-8",
        "half.jsonl": ", line 2: is not JSON (",
        "text.parquet": ": is not a Parquet file (",
        "disk.csv": ": cannot be read (Input/output error)",
        "columns.csv": ", line 1: unknown column 'reward' (there are: prompt, score); name another",
        "words.csv": ", line 2, column 'reward': is 'good', but must be a number, or empty",
        "mixed.jsonl": ", line 2, column 'group': is 'a', but line 1 has 1; labels must be all",
        "rewards.xlsx": ": unknown suffix '.xlsx' (there are: .jsonl, .ndjson, .json, .csv, .tsv,",
    }


@pytest.mark.parametrize("command", ["advantages", "compare"])
def test_files_that_are_no_rewards_are_refused_in_one_line(run, tmp_path, command):
    for name, wrong in unreadable(tmp_path).items():
        before = sorted(tmp_path.iterdir())
        code, out, err = run(command, name, "--output", "out.json")
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {name}{wrong}")
        assert err.count("\n") == 1
        assert sorted(tmp_path.iterdir()) == before


def test_a_link_and_a_pipe_can_be_written_to(run, tmp_path):
    (tmp_path / "a.csv").write_text(REWARDS)
    (tmp_path / "link.json").symlink_to(tmp_path / "far.json")
    assert run("compare", "a.csv", "--output", "link.json")[0] == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "far.json").read_text())["source"] == "a.csv"
    result = subprocess.run(
        [sys.executable, "-m", "g2rpo_cli", "compare", "a.csv", "--json", "-o", "/dev/stderr"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert json.loads(result.stdout) == json.loads(result.stderr.removesuffix("/dev/stderr\n"))


@pytest.mark.parametrize(
    "command",
    ["compare", "tasks list", "data show builtin", "eval -t ocr", "verify --list", "train -t ocr"],
)
def test_tables_are_readable_in_60_columns(run, trainer, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "60")
    code, out, err = run(*command.split())
    assert code == 0, err
    lines = [line for line in out.splitlines() if line.startswith(" ")]
    tables = [line for line in lines if not line.startswith("  g2rpo ")]  # commands to copy
    assert len(tables) > 3
    assert max(map(len, tables)) <= 60
    assert "…" not in "".join(tables)
    # No number is folded: it would leave digits alone on a line.
    assert not any(re.fullmatch(r"[\d.\s]*\d[\d.\s]*", line) for line in tables)


def on_a_terminal(*arguments, **environment):
    """Run a command on a terminal of its own, and return what it prints there."""
    main, side = pty.openpty()
    variables = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment}
    command = [sys.executable, "-m", "g2rpo_cli", *arguments]
    process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=variables)
    os.close(side)
    chunks = []
    try:
        while chunk := os.read(main, 65536):
            chunks.append(chunk)
    except OSError:  # how the end of a terminal shows on Linux
        pass
    process.wait()
    os.close(main)
    return b"".join(chunks).decode()


@pytest.mark.parametrize(
    "arguments",
    [["advantages", "no.csv"], ["verify", "grpo", "-i", "ties"], ["no-such-command"], ["--help"]],
)
def test_colours_on_a_terminal_unless_no_color_is_set(arguments):
    # Codes 30 to 37 and 90 to 97; bold and dim are no colours.
    colour = re.compile(r"\x1b\[([0-9]+;)*[39][0-7]m")
    assert colour.search(on_a_terminal(*arguments, NO_COLOR=""))
    assert not colour.search(on_a_terminal(*arguments, NO_COLOR="1"))


def test_completion_of_the_shell():
    variables = {**os.environ, "COMP_WORDS": "g2rpo compare --pic", "COMP_CWORD": "2"}
    variables["_G2RPO_COMPLETE"] = "complete_bash"
    result = subprocess.run(
        [sys.executable, "-m", "g2rpo_cli"], capture_output=True, text=True, env=variables
    )
    assert result.stdout.split() == ["--picture"]
    assert "--install-completion" in interface()["g2rpo"]


if __name__ == "__main__":
    LIST.write_text(json.dumps(interface(), indent=1) + "\n", encoding="utf-8")
    print(LIST)
