import io

import pytest
from rich.console import Console

from g2rpo_trainer.report.display import Display
from g2rpo_trainer.report.tables import completions_table
from g2rpo_trainer.step_log import keep_some


def rows(*labels: str) -> list[dict]:
    """Return responses for labels such as "a1": task a, prompt 1."""
    return [
        {"task": label[0], "prompt": label, "response": f"response {number}"}
        for number, label in enumerate(labels)
    ]


def numbers(kept) -> list[int]:
    return [int(row["response"].split()[1]) for row in kept]


BATCH = rows("a1", "a1", "a2", "a2", "b1", "b1", "c1", "c1")


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, []),
        (2, [0, 4]),
        (4, [0, 4, 6, 2]),  # a second prompt comes before a second response to the first
        (7, [0, 4, 6, 2, 5, 7, 1]),
        (99, [0, 4, 6, 2, 5, 7, 1, 3]),
    ],
)
def test_tasks_take_turns(count, expected):
    assert numbers(keep_some(BATCH, count)) == expected


def test_of_nothing_nothing_is_kept():
    assert keep_some([], 3) == []


ROW = {
    "task": "vqa [b]",
    "prompt": "How many\n  [red] things? " + "x" * 500,
    "response": "<think>one</think>\n<answer>1</answer>",
    "reward": 1.0,
    "advantage": -0.25,
    "length": 12,
}


def test_the_table_holds_text_as_it_is_and_cuts_it():
    console = Console(file=io.StringIO(), width=120)
    console.print(completions_table(7, [ROW]))
    text = console.file.getvalue()
    for part in ("step 7", "vqa [b]", "How many [red]", "1.000", "-0.25", "12", "…"):
        assert part in text
    assert text.count("x") < 150


def test_of_a_long_response_the_answer_is_shown():
    console = Console(file=io.StringIO(), width=120)
    response = "<think>" + "y" * 999 + "</think><answer>42</answer>"
    console.print(completions_table(7, [{**ROW, "response": response}]))
    text = "".join(
        line.split("│")[3].strip() for line in console.file.getvalue().splitlines() if "│" in line
    )
    assert text.startswith("<think>y")
    assert text.endswith("<answer>42</answer>")


def test_a_display_shows_one_response_to_each_task():
    console = Console(file=io.StringIO(), width=120)
    batch = [{**ROW, "task": f"task{number % 6}", "prompt": str(number)} for number in range(24)]
    Display(9, [f"task{number}" for number in range(6)], console=console).completions(3, batch)
    text = console.file.getvalue()
    assert all(text.count(f"task{number}") == 1 for number in range(6))


def test_no_terminal_obeys_a_response():
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    hostile = dict.fromkeys(("task", "prompt", "response"), "\x1b[2J\x9b31m[red]x[/red]\x07")
    Display(9, ["vqa"], console=console).completions(3, [{**ROW, **hostile}])
    text = console.file.getvalue()
    assert not {"\x1b", "\x9b", "\a"} & set(text)
    assert text.count("[red]x[/red]") == 3
