"""Pictures of a run."""

import math

import numpy as np
import pytest
from PIL import Image

from g2rpo_trainer.config import load_config
from g2rpo_trainer.run.folder import RunFolder
from g2rpo_trainer.run.plots import _held_out, _smooth, draw_plots


@pytest.fixture
def folder(tmp_path):
    config = load_config(settings=["output.trackers=[]", "data.tasks=[grounding, maths, ocr, vqa]"])
    return RunFolder.create(tmp_path, config)


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


def test_held_out_rewards_are_those_of_the_metrics_and_the_summary(folder):
    between = {"eval_reward_low/maths": 0.5, "eval_reward_high/maths": 0.75}
    folder.log(1, {"reward/maths": 0.5} | between)
    folder.log(2, {"reward/maths": 0.5} | between)
    assert _held_out(folder.read_metrics(), folder.read_summary(), "maths") == [
        (1, 0.5, 0.75),
        (2, 0.5, 0.75),
    ]
    folder.write_summary(
        {
            "steps": 2,
            "interval_before": {"maths": [0.25, 0.375], "ocr": [math.nan, math.nan]},
            "interval_after": {"maths": [0.5, 0.75], "ocr": [math.nan, math.nan]},
        }
    )
    metrics, summary = folder.read_metrics(), folder.read_summary()
    # An evaluation after the last step is the one after the run.
    assert _held_out(metrics, summary, "maths") == [
        (0, 0.25, 0.375),
        (1, 0.5, 0.75),
        (2, 0.5, 0.75),
    ]
    assert _held_out(metrics, summary, "ocr") == []
    assert _held_out(metrics, {"steps": 2, "before": {"ocr": 0.5}}, "ocr") == []  # an older run


def test_held_out_rewards_are_in_the_picture(folder):
    for step in (1, 2):
        folder.log(step, {"reward/maths": 0.5})
    draw_plots(folder)
    path = folder.plots_path / "reward.png"
    without = np.asarray(Image.open(path).convert("RGB")).astype(int)
    interval = {"maths": [0.25, 0.75]}
    folder.write_summary({"steps": 2, "interval_before": interval, "interval_after": interval})
    draw_plots(folder)
    found = np.asarray(Image.open(path).convert("RGB")).astype(int)

    def orange(picture):
        return (picture[..., 0] - picture[..., 2] > 100).sum()

    assert orange(without) == 0
    assert orange(found) > 50
