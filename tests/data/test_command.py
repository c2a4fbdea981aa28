import re
from functools import partial

import pytest

from .conftest import sums


@pytest.fixture
def show(g2rpo, monkeypatch):
    """Return a function that runs ``g2rpo data show``: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "90")
    return partial(g2rpo, "data", "show")


def rows_of(out):
    lines = [line.strip() for line in out.splitlines()]
    start = next(number for number, line in enumerate(lines, 1) if line.startswith("──"))
    return [re.split(" {2,}", line) for line in lines[start : lines.index("", start)]]


def test_a_file(write, show):
    many = [{**row, "problem": f"{row['problem']} " + "x" * 99} for row in sums(1999, "b[i]g")]
    code, out, err = show(write([*sums(20), *many]), "-s", "data.mixing.temperature=1e9")
    assert (code, err) == (0, "")
    (first, second) = rows_of(out)
    assert (first[0], first[1], first[4]) == ("sums", "numerical", "50.0%")
    assert (second[0], second[4]) == ("b[i]g", "50.0%")
    assert int(first[2]) + int(first[3]) == 20
    assert int(second[2].replace(",", "")) + int(second[3]) == 1999
    assert "\nsums: What is " in out
    assert "xxx… → " in out


def test_broken_records_are_told(write, show):
    path = write([*sums(3), "{"])
    code, out, err = show(path)
    assert (code, out) == (2, "")
    assert err.startswith("error: 1 of 4 records cannot be used:")
    code, out, err = show(path, "-s", "data.skip_broken=true")
    assert (code, err) == (0, "")
    assert "1 broken record is left out, such as:\n" in out
    assert "line 4: is not JSON" in out


def test_several_problem_types(write, show):
    rows = [{**row, "problem_type": kind} for row in sums(3) for kind in ("numerical", "maths")]
    _, out, _ = show(write([{**row, "problem": f"{n}?"} for n, row in enumerate(rows)]))
    assert rows_of(out)[0][1] == "numerical (3), maths (3)"


def test_tasks_that_are_drawn(show):
    _, out, _ = show("builtin")
    assert rows_of(out)[0] == ["grounding", "spatial grounding", "∞", "∞", "16.7%"]
    assert "grounding: [56 × 56] " in out
    _, out, _ = show("reasoning-gym:leg_counting")
    assert rows_of(out) == [["leg_counting", "reasoning-gym", "∞", "∞", "100.0%"]]
    assert "→ {" not in out


def test_a_task_whose_held_out_images_are_damaged(write, show, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    code, out, _ = show(
        write([{**row, "images": "a.png"} for row in sums(3)]), "-s", "data.skip_broken=true"
    )
    assert code == 0
    assert "sums: no held-out record can be used" in out


def test_images_of_messages_and_float_pictures_are_shown(write, show, tmp_path):
    import numpy as np
    from PIL import Image

    Image.fromarray(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)).save(tmp_path / "a.tif")
    rows = []
    for row in sums(3):
        prompt = [{"role": "user", "content": f"In <image>: {row.pop('problem')}"}]
        rows.append({**row, "messages": prompt, "images": ["a.tif"]})
    code, out, err = show(write(rows))
    assert (code, err) == (0, "")
    assert "sums: [4 × 3] In : What is " in out
    rows[1]["messages"][0]["content"] += " <image>"
    code, out, err = show(write(rows))
    assert (code, out) == (2, "")
    assert "line 2: the prompt has places for 2 images, but the record has 1" in err


def test_tasks_with_dots_have_settings(write, show):
    path = write([*sums(9, "v1.5"), *sums(9, "v2")])
    weights = ['data.mixing.weights["v1.5"]=3', "data.mixing.weights['v2']=1"]
    code, out, err = show(path, *(part for text in weights for part in ("-s", text)))
    assert (code, err) == (0, "")
    assert [(row[0], row[4]) for row in rows_of(out)] == [("v1.5", "75.0%"), ("v2", "25.0%")]
    code, _, err = show(path, "-s", "data.mixing.weights.v1.5=3")
    assert code == 2
    assert (
        "data.mixing.weights.v1 is {'5': 3}, but must be a valid number; a name with a dot" in err
    )


def test_help_says_how_a_name_with_a_dot_is_written(show):
    code, out, _ = show("--help")
    assert code == 0
    assert 'rollout.limits["v1.5"]=30' in "".join(out.replace("│", "").split())
