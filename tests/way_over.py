"""Records for the ways from `g2rpo train` to other trainers."""

import json

#: Problem type: right answer, and responses that are right, wrong or of another form.
ANSWERS = {
    "numerical": ("7", ["<answer>7</answer>", "<answer>8</answer>", "7"]),
    "OCR": (["colour", "color"], ["<think>c</think><answer>color</answer>", "<answer>c</answer>"]),
    "spatial grounding": (
        '{"boxes": [0, 0, 10, 10]}',
        ['<think>b</think><answer>{"boxes": [0, 0, 10, 5]}</answer>', "<answer>[0]</answer>"],
    ),
    "multiple choice": ("B", ["<answer>dog</answer>", "<answer>B</answer>", "<answer>A</answer>"]),
}


def write(path, rows):
    """Write rows as JSON lines, and return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of_every_kind(count=3, *, kinds=tuple(ANSWERS)):
    """Return rows of every kind of answer, among them one that is a list of texts."""
    rows = []
    for kind in kinds:
        row = {"answer": ANSWERS[kind][0], "problem_type": kind, "task_type": kind.split()[0]}
        row |= {"options": ["cat", "dog"]} if kind == "multiple choice" else {}
        rows += [{**row, "problem": f"{kind} {number}?"} for number in range(count)]
    return rows


def rows_of_two_tasks(problem="{} + 1?", count=20):
    """Return numerical rows of the tasks ``sums`` and ``box`` in turn."""
    return [
        {
            "problem": problem.format(number),
            "answer": str(number + 1),
            "problem_type": "numerical",
            "task_type": ("sums", "box")[number % 2],
        }
        for number in range(count)
    ]
