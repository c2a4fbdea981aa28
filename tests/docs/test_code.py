"""The code of the README and of every page runs, page by page, and prints what the page shows.

Each page runs in a folder of its own, block after block, with one namespace. A block with a title
is written to the file of that name. Shell blocks run whole on the pages in ``SHELL``. Elsewhere the
``g2rpo`` commands of ``QUICK`` run by themselves, on the files of ``write_inputs``; the others
train or evaluate a model, so only their names and options are checked. A block that cannot run here
stands after a comment ``<!--- skip: next "why" -->``, and one that prepares the next is
``invisible-code``.
"""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from glob import glob
from pathlib import Path
from unittest import SkipTest

import pytest
import typer
from sybil import Document, Region
from sybil.parsers.markdown import CodeBlockParser, SkipParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer
from typer.testing import CliRunner

from g2rpo.testing import INVARIANTS
from g2rpo_cli.app import app

from ..cli.written_runs import write_run

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Python that needs another environment or several devices is run by the tests beside its subject.
ELSEWHERE = {f"docs/{name}.md" for name in ("jax", "trl", "tunix", "verl")}
SHELL = {"docs/first-run.md", "docs/your-data.md", "docs/your-reward.md", "docs/skill/SKILL.md"}
# Command: words that are added to keep it quick.
QUICK = dict.fromkeys(["info", "init", "config", "report", "compare", "advantages"], "")
QUICK |= dict.fromkeys(["data show", "data convert", "tasks show"], "")
QUICK |= {"verify": "--examples 3", "export": "-s optimization.steps=1 -s data.eval_items=1"}
# Exit status 1 of these is a finding: an invariant fails, a run does not fit on the device.
FIND = {"config", "verify"}
TITLED = RawFencedCodeBlockLexer(re.compile(r'\w+ title="(?P<name>[^"]+)"$\n', re.MULTILINE))


def run_python(example):
    """Run a block; what it prints is what the comments behind its prints say."""
    code = "\n" * (example.line + example.parsed.line_offset) + example.parsed
    names, printed = example.document.namespace, io.StringIO()
    with redirect_stdout(printed):
        exec(compile(code, example.path, "exec"), names)
    lines, shown = printed.getvalue().splitlines(), re.findall(r"print\(.*\)  +# (.*)", code)
    assert len(lines) == len(shown), f"{example.path}:{example.line} printed {lines}"
    for line, expected in zip(lines, shown, strict=True):
        pattern = ".*".join(map(re.escape, expected.partition(", since")[0].split("…")))
        assert re.fullmatch(pattern, line), (
            f"{example.path}:{example.line} {line!r}, not {expected!r}"
        )


def run_shell(example):
    script = f"set -euo pipefail\n{example.parsed}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{example.path}:{example.line}\n{done.stdout}\n{done.stderr}"
    example.document.namespace["printed"] = done.stdout + done.stderr


def compare_output(example):
    """Find a ``text`` block's lines in what the shell block before it printed, but for numbers."""
    printed = set(map(without_numbers, example.document.namespace["printed"].splitlines()))
    missing = [line for line in example.parsed.splitlines() if without_numbers(line) not in printed]
    assert not missing, f"{example.path}:{example.line}: not printed: {missing}"


def without_numbers(line):
    return " ".join(re.sub(r"[-+]?[\d.,]+(±[\d.]+)?", "0", line).split())


def check_commands(example):
    """Run the quick ``g2rpo`` commands of a block, and parse the others as the program does."""
    for line in example.parsed.replace("\\\n", " ").splitlines():
        for words in commands(line):
            parse(words)
            for command in QUICK.keys() & {words[0], " ".join(words[:2])}:
                write_inputs(command, words)
                files = [name for word in words for name in sorted(glob(word)) or [word]]
                done = CliRunner().invoke(app, [*files, *QUICK[command].split()])
                fault = f"{example.path}:{example.line} {words}\n{done.output}"
                assert done.exit_code in ({0, 1} if command in FIND else {0}), fault
                assert done.exception is None or isinstance(done.exception, SystemExit), fault
                assert "no estimate of the memory" not in done.output, fault


def write_inputs(command, words):
    """Write the files, models and runs that a command of the pages takes and no block wrote."""
    if command == "init":
        return  # it writes what it names
    rewards = [{"group": row // 4, "reward": row % 4 / 3} for row in range(32)]
    sums = [
        {"problem": f"{row} + 1?", "answer": str(row + 1), "problem_type": "numerical"}
        for row in range(64)
    ]
    table = [",".join(map(str, row.values())) for row in rewards]
    files = {
        "rewards.jsonl": map(json.dumps, rewards),
        "rewards.csv": ["group,reward", *table],
        "my-data.jsonl": map(json.dumps, sums),
        "run.yaml": ["model: {name: Qwen/Qwen3-4B}"],
        "my_package.advantages:mine": ["def mine(rewards, groups):", "    return 0 * rewards"],
    }
    for name in files.keys() & set(words):
        module, _, function = name.partition(":")
        path = Path(f"{module.replace('.', '/')}.py" if function else name)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join(files[name]), encoding="utf-8")
    for name in ("g2rpo", "grpo", "gaussian-0", "grpo-0"):
        if command == "report" and not Path("runs", name).exists():
            write_run(Path("runs", name))
    if command == "config":
        write_model_configurations()


def write_model_configurations():
    """Write the configurations of models, which `g2rpo config` would take from the hub."""
    from transformers import Qwen2_5_VLConfig, Qwen3Config

    for name in ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"):
        Qwen2_5_VLConfig(text_config={"num_hidden_layers": 2}).save_pretrained(name)
    Qwen3Config(num_hidden_layers=2).save_pretrained("Qwen/Qwen3-4B")


def commands(line):
    """Yield the arguments of each ``g2rpo`` in a line of shell."""
    line = re.sub(r"\d>", ">", line)  # 2> is no argument
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, "#"
    words, inside = [], False
    for word in [*lexer, ";"]:
        if set(word) <= set("();<>|&"):
            if inside:
                yield words
            words, inside = [], False
        elif inside:
            words.append(word)
        elif word == "g2rpo":
            inside = True


def parse(words):
    command, context = typer.main.get_command(app), None
    while hasattr(command, "resolve_command"):
        context = command.make_context(command.name or "g2rpo", list(words), parent=context)
        _, command, words = command.resolve_command(context, context._protected_args + context.args)
    command.make_context(command.name, list(words), parent=context)


def write_file(example):
    Path(example.parsed[0]).write_text(example.parsed[1], encoding="utf-8")


def titled_files(document):
    """Parse blocks with a title; a parser of Sybil's."""
    for found in TITLED(document):
        parsed = found.lexemes["name"], found.lexemes["source"]
        yield Region(found.start, found.end, parsed, write_file)


def examples(page):
    name = page.relative_to(ROOT).as_posix()
    shell = run_shell if name in SHELL else check_commands
    parsers = [SkipParser(), titled_files]
    parsers += [CodeBlockParser(language, shell) for language in ("sh", "bash")]
    if name in SHELL:
        parsers.append(CodeBlockParser("text", compare_output))
    if name not in ELSEWHERE:
        parsers.append(CodeBlockParser("python", run_python))
    document = Document.parse(str(page), *parsers)
    document.namespace["__name__"] = "__main__"
    return list(document.examples())


WITH_CODE = {page.relative_to(ROOT).as_posix(): page for page in PAGES if examples(page)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory that Python and its children import from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    binaries = [str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("PATH", os.pathsep.join(binaries))
    known = dict(INVARIANTS)
    yield tmp_path
    INVARIANTS.clear()
    INVARIANTS.update(known)


# They train; SKILL.md, which does all that a user does, stays among the quick tests.
SLOW = {"docs/first-run.md", "docs/your-data.md"}
CASES = [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in WITH_CODE]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", CASES)
def test_code_of_a_page_runs(name):
    for example in examples(WITH_CODE[name]):
        with suppress(SkipTest):  # the page says why
            example.evaluate()


def test_blocks_are_found_where_they_are():
    found = {name: len(examples(page)) for name, page in WITH_CODE.items()}
    for name, page in WITH_CODE.items():
        text = page.read_text(encoding="utf-8")
        languages = "sh|bash" if name in ELSEWHERE else "sh|bash|python"
        fences = re.findall(rf"^ *```(?:{languages})\b", text, flags=re.MULTILINE)
        assert found[name] >= len(fences), name


@pytest.mark.parametrize(
    "line", ["g2rpo train --estimatr grpo", "g2rpo tarin", "cat x | g2rpo data show --wrong"]
)
def test_a_command_with_a_wrong_name_or_option_is_found(line):
    (words,) = commands(line)
    with pytest.raises(Exception, match="No such"):
        parse(words)


@pytest.mark.parametrize(
    "line",
    [
        "g2rpo verify nowhere:function",
        "g2rpo config nowhere.yaml",
        "g2rpo config text model.name=./nowhere",
        "g2rpo export trl --output trl-run",  # the embedded policy
    ],
)
def test_a_command_that_fails_is_found(line, folder):
    (folder / "page.md").write_text(f"```sh\n{line}\n```\n")
    document = Document.parse(str(folder / "page.md"), CodeBlockParser("sh", check_commands))
    with pytest.raises(AssertionError, match="page"):
        next(iter(document.examples())).evaluate()


@pytest.mark.parametrize(
    "text",
    [
        "```python\nprint(1 + 1)  # 3\n```\n",
        "```python\nprint(1 + 1)\n```\n",
        "```sh\nfalse\n```\n",
        "```sh\necho a 1\n```\n\n```text\na 2\nb 1\n```\n",
    ],
)
def test_a_block_that_does_other_than_the_page_says_is_found(text, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    runs = {"python": run_python, "sh": run_shell, "text": compare_output}
    document = Document.parse(str(page), *(CodeBlockParser(*each) for each in runs.items()))
    *before, last = document.examples()
    for example in before:
        example.evaluate()
    with pytest.raises(AssertionError, match="page"):
        last.evaluate()
