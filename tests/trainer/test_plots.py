"""Pictures of a run."""

import math

import numpy as np
import pytest
from PIL import Image

from g2rpo_trainer.config import load_config
from g2rpo_trainer.report.figures import held_out, smoothed
from g2rpo_trainer.report.plots import draw_plots
from g2rpo_trainer.run_folder import RunFolder

TASKS = ["grounding", "maths", "ocr", "vqa"]


@pytest.fixture
def folder(tmp_path):
    config = load_config(settings=["output.trackers=[]", f"data.tasks={TASKS}"])
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
    paths = draw_plots(folder, TASKS)
    assert [path.name for path in paths] == ["reward.png", "length.png", "entropy.png"]
    for path in paths:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L"))
        assert pixels.std() > 5  # something is drawn


def test_without_metrics_nothing_is_drawn(folder):
    assert draw_plots(folder, TASKS) == []
    assert not folder.plots_path.exists()


def test_smoothing_ignores_what_is_absent():
    values = np.array([1.0, np.nan, 3.0, *[2.0] * 37])
    smooth = smoothed(values)
    assert smooth.shape == values.shape
    assert smooth[0] == pytest.approx((1 + 3) / 2)
    assert smooth[-1] == 2
    assert np.isnan(smoothed(np.array([np.nan]))).all()


def test_held_out_rewards_are_those_of_the_metrics_and_the_summary(folder):
    between = {"eval_reward_low/maths": 0.5, "eval_reward_high/maths": 0.75}
    folder.log(1, {"reward/maths": 0.5} | between)
    folder.log(2, {"reward/maths": 0.5} | between)
    assert held_out(folder.read_metrics(), folder.read_summary(), "maths") == [
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
    assert held_out(metrics, summary, "maths") == [
        (0, 0.25, 0.375),
        (1, 0.5, 0.75),
        (2, 0.5, 0.75),
    ]
    assert held_out(metrics, summary, "ocr") == []
    assert held_out(metrics, {"steps": 2, "before": {"ocr": 0.5}}, "ocr") == []  # an older run


def test_held_out_rewards_are_in_the_picture(folder):
    for step in (1, 2):
        folder.log(step, {"reward/maths": 0.5})
    draw_plots(folder, TASKS)
    path = folder.plots_path / "reward.png"
    without = np.asarray(Image.open(path).convert("RGB")).astype(int)
    interval = {"maths": [0.25, 0.75]}
    folder.write_summary({"steps": 2, "interval_before": interval, "interval_after": interval})
    draw_plots(folder, TASKS)
    found = np.asarray(Image.open(path).convert("RGB")).astype(int)

    def orange(picture):
        return (picture[..., 0] - picture[..., 2] > 100).sum()

    assert orange(without) == 0
    assert orange(found) > 50


def gradients(**norms):
    return {"reward/maths": 0.5, "equity/ratio": 2.0} | {
        f"equity/grad_norm/{task}": norm for task, norm in norms.items()
    }


def orange_of_equity_plot(folder):
    draw_plots(folder, TASKS)
    with Image.open(folder.plots_path / "equity.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    return (abs(pixels - (255, 127, 14)).sum(-1) < 30).sum()


def test_the_gradient_norm_of_every_task_has_its_line(folder):
    folder.log(1, {"reward/maths": 0.5})
    for step in (10, 20, 30):
        folder.log(step, gradients(grounding=0.1))
    without = orange_of_equity_plot(folder)  # the second task's colour, in the legend alone
    for step in (40, 50, 60):
        folder.log(step, gradients(grounding=0.1, maths=step / 10))
    assert orange_of_equity_plot(folder) > without + 100


def test_gradient_norms_without_a_logarithm_leave_gaps(folder):
    folder.log(10, gradients(grounding=0.0, maths=1.0) | {"equity/ratio": math.inf})
    folder.log(20, gradients(grounding=math.nan))
    assert "equity.png" in [path.name for path in draw_plots(folder, TASKS)]


def test_without_measured_gradients_there_is_no_equity_plot(folder):
    folder.log(1, {"reward/maths": 0.5})
    assert "equity.png" not in [path.name for path in draw_plots(folder, TASKS)]
    assert not (folder.plots_path / "equity.png").exists()
