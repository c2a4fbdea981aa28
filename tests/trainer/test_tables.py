import io
import math

from rich import box
from rich.console import Console

from g2rpo_trainer.config import load_config
from g2rpo_trainer.data import open_run
from g2rpo_trainer.report.tables import before_after_table, results_table, start_table
from g2rpo_trainer.tasks import TASKS

KINDS = {"grounding": "dense (IoU)", "ocr": "dense (1 - CER)", "maths": "binary"}
BEFORE = {"grounding": 0.25, "ocr": 0.5, "maths": 0.75, "mean": 0.5}
AFTER = {"grounding": 0.75, "ocr": 0.5001, "maths": 0.5, "mean": 0.58}
CHANGE = {task: AFTER[task] - BEFORE[task] for task in AFTER}
LENGTHS = {"grounding": 18.0, "ocr": 12.25, "maths": 40.0}
SUMMARY = {
    "before": BEFORE,
    "after": AFTER,
    "interval_before": {task: [value - 0.041, value + 0.041] for task, value in BEFORE.items()},
    "interval_after": {task: [value - 1.25, value + 1.25] for task, value in AFTER.items()},
    "interval_change": {name: [gain - 0.03, gain + 0.03] for name, gain in CHANGE.items()},
    "length_before": LENGTHS,
    "length_after": LENGTHS,
}
OLDER = {name: values for name, values in SUMMARY.items() if "interval" not in name}


def text_of(table, **options) -> str:
    console = Console(file=io.StringIO(), width=80, **options)
    console.print(table)
    return console.file.getvalue()


def cells_of(table) -> list[list[str]]:
    table.box = box.HEAVY_HEAD  # draws lines between the cells
    lines = [line for line in text_of(table).splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def test_before_after_table():
    cells = cells_of(before_after_table(KINDS, OLDER))
    assert cells[0] == ["grounding", "dense (IoU)", "0.250", "0.750", "+0.500", "18.0 → 18.0"]
    assert cells[-1] == ["mean", "", "0.500", "0.583", "+0.083", "23.4 → 23.4"]


def test_before_after_table_says_how_sure_it_is():
    cells = cells_of(before_after_table(KINDS, SUMMARY))
    assert cells[0][2:5] == ["0.250±.04", "0.750±1.25", "+0.500±.03"]
    assert cells[-1][2:5] == ["0.500±.04", "0.583±1.25", "+0.083±.03"]


def test_an_interval_from_few_items_is_left_out():
    few = SUMMARY | {"items": {"grounding": 5, "ocr": 4, "maths": 0}}
    cells = cells_of(before_after_table(KINDS, few))
    assert [row[2] for row in cells] == ["0.250±.04", "0.500", "0.750", "0.500"]
    assert cells[1][3] == "0.500"
    enough = SUMMARY | {"items": {"grounding": 5, "ocr": 9, "maths": 0}}
    cells = cells_of(before_after_table(KINDS, enough))
    assert [row[2] for row in cells] == ["0.250±.04", "0.500±.04", "0.750", "0.500±.04"]
    none = SUMMARY | {"items": dict.fromkeys(KINDS, 2)}
    assert "±" not in text_of(before_after_table(KINDS, none))


def test_the_table_of_the_builtin_tasks_fits_a_terminal():
    kinds = {task: each.reward_kind for task, each in TASKS.items()}
    rewards, ends = dict.fromkeys([*kinds, "mean"], 0.5), [0.45, 0.55]
    summary = {
        "before": rewards,
        "after": rewards,
        "interval_before": dict.fromkeys(rewards, ends),
        "interval_after": dict.fromkeys(rewards, ends),
        "interval_change": dict.fromkeys(rewards, ends),
        "length_before": dict.fromkeys(kinds, 12.0),
        "length_after": dict.fromkeys(kinds, 12.0),
    }
    cells = cells_of(before_after_table(kinds, summary))
    assert [row[0] for row in cells] == [*kinds, "mean"]  # no row takes two lines
    assert [row[1] for row in cells] == [*kinds.values(), ""]


def test_change_has_a_colour_unless_it_rounds_to_nothing():
    table = before_after_table(KINDS, SUMMARY)
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
    same = {"before": rewards, "after": rewards, "length_before": lengths, "length_after": lengths}
    unsure = {"interval_after": {**SUMMARY["interval_after"], "ocr": [nan, nan]}}
    texts = [
        text_of(results_table(KINDS, rewards, lengths, detail)),
        text_of(before_after_table(KINDS, same | unsure)),
    ]
    for text in texts:
        assert "nan" not in text
        assert "–" in next(line for line in text.splitlines() if "ocr" in line)
        assert "29.0" in text.splitlines()[-2]


def test_start_table_says_what_is_trained_and_how_it_is_shaped():
    settings = ["data.tasks=[ocr, vqa]", "length.targets={ocr: [0, 0, 10, 20]}", "entropy.high=2"]
    shaped = load_config(settings=settings)
    ocr, vqa = cells_of(start_table(shaped, open_run(shaped)))
    assert ocr == ["ocr", "character OCR", "∞", "∞", "50.0%", "0–10", "0.05–2"]
    assert vqa[-2:] == ["–", "0.05–2"]
    calibrated = load_config(settings=[*settings, "length.calibrate=true"])
    assert all(
        part in text_of(start_table(calibrated, open_run(calibrated)))
        for part in ("from 0–10", "calibrated")
    )
    plain = load_config(settings=[*settings, "length.mode=off", "entropy.weight=0"])
    assert "tokens" not in text_of(start_table(plain, open_run(plain)))
