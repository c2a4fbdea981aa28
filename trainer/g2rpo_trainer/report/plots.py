"""Plots of a run: rewards, lengths, entropies and gradient norms of each task over its steps."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from g2rpo_trainer.config import TrainConfig
from g2rpo_trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_plots"]

Records = Sequence[Mapping[str, float]]

Series = list[tuple[float, float, float]]
"""A band over the steps: step, lower and upper end; empty for none."""


def draw_plots(folder: RunFolder) -> list[Path]:
    """Draw ``reward.png``, ``length.png``, ``entropy.png`` and ``equity.png`` from the metrics.

    The first three have one panel a task: a thin line for every step, a thick one for a moving
    average, a shaded band for the target or bounds, dots for held-out rewards with their
    intervals. The last shows the norms of the tasks' gradients, if they were measured. Without
    metrics nothing is drawn.
    """
    records = folder.read_metrics()
    if not records:
        return []
    config, summary, path = folder.config, folder.read_summary(), folder.plots_path
    path.mkdir(exist_ok=True)
    tasks = config.data.tasks
    held_out = {task: _held_out(records, summary, task) for task in tasks}
    targets = {task: _length_target(records, task) for task in tasks}
    bounds = {task: _entropy_bounds(config, records, task) for task in tasks}
    reward, length, entropy = (path / f"{name}.png" for name in ("reward", "length", "entropy"))
    _draw(reward, "mean reward, held-out as dots", "reward/{}", records, tasks, dots=held_out)
    label = "mean length [tokens], target shaded"
    _draw(length, label, "completions/mean_length/{}", records, tasks, bands=targets)
    label = "mean entropy [nats], bounds shaded"
    _draw(entropy, label, "entropy/{}", records, tasks, bands=bounds)
    equity = _draw_equity(path / "equity.png", records, tasks)
    return [reward, length, entropy, *([equity] if equity else [])]


def _draw(
    path: Path,
    label: str,
    metric: str,
    records: Records,
    tasks: Sequence[str],
    *,
    bands: Mapping[str, Series] | None = None,
    dots: Mapping[str, Series] | None = None,
) -> None:
    """Draw a metric over the steps, one panel a task."""
    # Figure itself, not pyplot: no window, no global state, whatever backend the user has set.
    from matplotlib.figure import Figure

    columns = min(3, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for task, panel in zip(tasks, panels, strict=False):
        name = metric.format(task)
        points = [(record["step"], record[name]) for record in records if name in record]
        _draw_panel(panel, points, bands[task] if bands else [])
        if dots:
            _draw_held_out(panel, dots[task])
        panel.set_title(task, loc="left", fontsize="medium")
    for panel in list(panels)[len(tasks) :]:
        panel.set_axis_off()
    figure.supxlabel("step", fontsize="medium")
    figure.supylabel(label, fontsize="medium")
    figure.savefig(path, dpi=120)


def _draw_panel(panel: "Axes", points: Sequence[tuple[float, float]], band: Series) -> None:
    if band:
        steps, low, high = np.asarray(band, dtype=float).T
        panel.fill_between(steps, low, high, color="tab:green", alpha=0.12, linewidth=0)
    if points:
        steps, values = np.asarray(points, dtype=float).T
        panel.plot(steps, values, color="tab:blue", alpha=0.35, linewidth=0.7)
        panel.plot(steps, _smooth(values), color="tab:blue", linewidth=1.8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25, linewidth=0.5)


def _draw_held_out(panel: "Axes", measured: Series) -> None:
    if measured:
        steps, low, high = np.asarray(measured, dtype=float).T
        # Intervals are symmetric.
        panel.errorbar(
            steps, (low + high) / 2, (high - low) / 2, fmt=".", color="tab:orange", capsize=2
        )


def _held_out(records: Records, summary: Mapping[str, Any], task: str) -> Series:
    """Return the interval of each evaluation of a task: before the run, on the way, after it."""
    low, high = (f"eval_reward_{end}/{task}" for end in ("low", "high"))
    ends = [(each["step"], each[low], each[high]) for each in records if low in each]
    for step, when in ((0, "before"), (summary.get("steps"), "after")):
        interval = summary.get(f"interval_{when}", {}).get(task, [None])
        if None not in interval:
            ends.append((step, *interval))
    return sorted(set(ends))


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centred moving average over a tenth of the run; NaN counts as absent."""
    window = np.ones(2 * (len(values) // 20) + 1)
    present = np.isfinite(values)
    total = np.convolve(np.where(present, values, 0.0), window, mode="same")
    count = np.convolve(present, window, mode="same")
    smooth: NDArray[np.float64] = np.full_like(total, np.nan)
    np.divide(total, count, out=smooth, where=count > 0)
    return smooth


def _length_target(records: Records, task: str) -> Series:
    """Return the target as it was logged, because calibration changes it during the run."""
    low, high = (f"length_target/{end}/{task}" for end in ("low", "high"))
    return [(each["step"], each[low], each[high]) for each in records if low in each]


def _entropy_bounds(config: TrainConfig, records: Records, task: str) -> Series:
    entropy = config.entropy
    if not entropy.weight_of(task) and entropy.control == "fixed":
        return []
    return [(record["step"], *entropy.of(task)) for record in records]


def _draw_equity(path: Path, records: Records, tasks: Sequence[str]) -> Path | None:
    """Draw the norms of the tasks' gradients above their ratio; None if no step was measured."""
    measured = [record for record in records if "equity/ratio" in record]
    if not measured:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    norms, ratio = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for task in tasks:
        _line(norms, measured, f"equity/grad_norm/{task}", label=task)
    _line(ratio, measured, "equity/ratio", color="black")
    # At 1 the gradients of all tasks are equally large.
    ratio.axhline(1, color="tab:green", linewidth=3, alpha=0.3)
    norms.set_ylabel("norm of the task's gradient")
    ratio.set_ylabel("largest / smallest")
    ratio.set_xlabel("step")
    norms.legend(ncols=min(3, len(tasks)), fontsize="small", frameon=False)
    figure.savefig(path, dpi=120)
    return path


def _line(panel: "Axes", records: Records, name: str, **style: Any) -> None:
    """Draw a metric on a logarithmic scale, with gaps where it is not positive and finite."""
    steps = [record["step"] for record in records]
    values = [record.get(name, math.nan) for record in records]
    shown = [value if 0 < value < math.inf else math.nan for value in values]
    panel.plot(steps, shown, marker=".", linewidth=1.2, **style)
    panel.set_yscale("log")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25, linewidth=0.5)
