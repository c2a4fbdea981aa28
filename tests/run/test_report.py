import io
import math

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from g2rpo.run import RunFolder, load_description
from g2rpo.run.report import _smooth, before_after_table, draw_plots, results_table, start_table

KINDS = {"grounding": "dense (IoU)", "ocr": "dense (1 - CER)", "maths": "binary"}
BEFORE = {"grounding": 0.25, "ocr": 0.5, "maths": 0.75, "mean": 0.5}
AFTER = {"grounding": 0.75, "ocr": 0.5001, "maths": 0.5, "mean": 0.58}
LENGTHS = {"grounding": 18.0, "ocr": 12.25, "maths": 40.0}


def text_of(table, **options) -> str:
    console = Console(file=io.StringIO(), width=80, **options)
    console.print(table)
    return console.file.getvalue()


def test_before_after_table():
    text = text_of(before_after_table(KINDS, BEFORE, AFTER, LENGTHS, LENGTHS))
    rows = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[0] == ["grounding", "dense (IoU)", "0.250", "0.750", "+0.500", "18.0 → 18.0"]
    assert cells[-1] == ["mean", "", "0.500", "0.583", "+0.083", "23.4 → 23.4"]
    assert "…" not in text


def test_change_has_a_colour_unless_it_rounds_to_nothing():
    table = before_after_table(KINDS, BEFORE, AFTER, LENGTHS, LENGTHS)
    text = text_of(table, force_terminal=True, color_system="standard")
    assert "\x1b[32m+0.500" in text
    assert "\x1b[31m-0.250" in text
    assert "m+0.000" not in text


def detail_of(items, low, high):
    return {"items": items, "low": low, "high": high, "best": 0.9, "generations": 4}


def test_results_table():
    detail = dict.fromkeys(AFTER, detail_of(128, 0.41, 0.62))
    text = text_of(results_table(KINDS, AFTER, LENGTHS, detail))
    assert all(part in text for part in ("0.580", "0.410–0.620", "mean@4", "best@4", "128"))


def test_a_task_without_items_has_a_dash_and_no_part_in_the_mean():
    nan = math.nan
    rewards, lengths = {**AFTER, "ocr": nan}, {**LENGTHS, "ocr": nan}
    detail = {**dict.fromkeys(AFTER, detail_of(5, 0.4, 0.6)), "ocr": detail_of(0, nan, nan)}
    texts = [
        text_of(results_table(KINDS, rewards, lengths, detail)),
        text_of(before_after_table(KINDS, rewards, rewards, lengths, lengths)),
    ]
    for text in texts:
        assert "nan" not in text
        assert "–" in next(line for line in text.splitlines() if "ocr" in line)
        assert "29.0" in text.splitlines()[-2]


def test_start_table_says_what_is_trained_and_how_it_is_shaped():
    settings = ["data.tasks=[ocr, vqa]", "length.targets={ocr: [0, 0, 10, 20]}", "entropy.high=2"]
    text = text_of(start_table(load_description(settings=settings)))
    rows = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    (ocr, vqa) = ([cell.strip() for cell in row] for row in rows)
    assert ocr == ["ocr", "character OCR", "∞", "∞", "50.0%", "0–10", "0.05–2"]
    assert vqa[-2:] == ["–", "0.05–2"]
    calibrated = load_description(settings=[*settings, "length.calibrate=true"])
    assert all(part in text_of(start_table(calibrated)) for part in ("from 0–10", "calibrated"))
    plain = load_description(settings=[*settings, "length.mode=off", "entropy.weight=0"])
    assert "tokens" not in text_of(start_table(plain))


@pytest.fixture
def folder(tmp_path):
    description = load_description(
        settings=["output.trackers=[]", "data.tasks=[grounding, maths, ocr, vqa]"]
    )
    return RunFolder.create(tmp_path, description)


@pytest.mark.parametrize("steps", [1, 50])
def test_plots(folder, steps):
    for step in range(1, steps + 1):
        metrics = {}
        for task in ("grounding", "maths"):  # the others have no rollouts, as in a tiny run
            metrics[f"reward/{task}"] = math.nan if step == 3 else step / 100
            metrics[f"completions/mean_length/{task}"] = 20.0
            metrics[f"entropy/{task}"] = 0.4
        folder.log(step, metrics)
    paths = draw_plots(folder)
    assert [path.name for path in paths] == ["reward.png", "length.png", "entropy.png"]
    for path in paths:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L"))
        assert pixels.std() > 5  # something is drawn


def test_without_metrics_nothing_is_drawn(folder):
    assert draw_plots(folder) == []
    assert not folder.plots_path.exists()


def test_smoothing_ignores_what_is_absent():
    values = np.array([1.0, np.nan, 3.0, *[2.0] * 37])
    smooth = _smooth(values)
    assert smooth.shape == values.shape
    assert smooth[0] == pytest.approx((1 + 3) / 2)
    assert smooth[-1] == 2
    assert np.isnan(_smooth(np.array([np.nan]))).all()
