"""No text of a data set or a model is obeyed by the terminal, whichever command shows it."""

import json
import re

import pytest

HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m[red]x[/red]"
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

ROWS = [
    {"problem": f"{n} + 1? {HOSTILE}", "answer": f"{n + 1}", "problem_type": "numerical"}
    for n in range(9)
] + [
    {"problem": f"{n}? {HOSTILE}", "answer": f"{n} {HOSTILE}", "problem_type": "open-ended"}
    for n in range(9)
]
FIGURES = [
    {"group": f"{n // 4}{HOSTILE}", "task": f"t{HOSTILE}", "reward": n / 8, "length": n}
    for n in range(8)
]
OWN = """
def raises(answer, truth):
    raise ValueError("cannot score \\x1b[31m" + answer)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "show", "rows.jsonl"],
        ["data", "show", "broken.jsonl"],
        ["data", "show", "broken.jsonl", "--set", "data.skip_broken=true"],
        ["advantages", "figures.jsonl"],
        ["compare", "figures.jsonl"],
        [
            *("eval", "builtin", "--set", "data.source=rows.jsonl", "--items", "1"),
            *("--set", "rewards.functions.numerical=own:raises", "--set", "rewards.workers=0"),
        ],
    ],
    ids=lambda arguments: " ".join(arguments[:3]),
)
def test_control_characters_are_shown_and_markup_is_text(run, tmp_path, arguments):
    broken = [{**row, "answer": None, f"x{HOSTILE}": HOSTILE} for row in ROWS[:1]]
    for name, rows in (("rows", ROWS), ("broken", ROWS + broken), ("figures", FIGURES)):
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    (tmp_path / "own.py").write_text(OWN)
    code, out, err = run(*arguments)
    assert code in (0, 2), err
    # Rows that are piped on are data, and stay as they are.
    assert arguments[0] == "advantages" or not OBEYED.search(out), out
    assert not OBEYED.search(err), err
    if "rows.jsonl" in arguments or "figures.jsonl" in arguments:
        assert "␛" in out + err
