"""Pictures of a run: rewards, lengths and entropies of each task over its steps."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from g2rpo_trainer.config import TrainConfig
from g2rpo_trainer.run.equity_plot import draw_equity
from g2rpo_trainer.run.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_plots"]

Records = Sequence[Mapping[str, float]]

Series = list[tuple[float, float, float]]
"""A band over the steps: step, lower and upper end; empty for none."""

BandOf = Callable[[TrainConfig, str, Records], Series]


def draw_plots(folder: RunFolder) -> list[Path]:
    """Draw ``reward.png``, ``length.png``, ``entropy.png`` and ``equity.png`` from the metrics.

    The first three have one panel a task: thin the value of every step, thick a moving average,
    shaded the band that the configuration asks for, as dots the held-out rewards with their
    intervals. The last shows the tasks' own gradients, where they were measured. Without metrics
    nothing is drawn.
    """
    records = folder.read_metrics()
    if not records:
        return []
    config = folder.config
    folder.plots_path.mkdir(exist_ok=True)
    summary = folder.read_summary()
    figures: list[tuple[str, str, str, BandOf]] = [
        ("reward", "reward/{}", "mean reward, held-out as dots", lambda *_: []),
        (
            "length",
            "completions/mean_length/{}",
            "mean length [tokens], target shaded",
            _length_band,
        ),
        (
            "entropy",
            "entropy/{}",
            "mean entropy [nats], bounds shaded",
            _entropy_band,
        ),
    ]
    pictures = [
        _draw(folder.plots_path / f"{name}.png", records, summary, config, metric, label, of)
        for name, metric, label, of in figures
    ]
    equity = draw_equity(folder.plots_path / "equity.png", records, config.data.tasks)
    return [*pictures, equity] if equity else pictures


def _draw(
    path: Path,
    records: Records,
    summary: Mapping[str, Any],
    config: TrainConfig,
    metric: str,
    label: str,
    band_of: BandOf,
) -> Path:
    # Figure itself, not pyplot: no window, no global state, whatever backend the user has set.
    from matplotlib.figure import Figure

    tasks = config.data.tasks
    columns = min(3, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for task, panel in zip(tasks, panels, strict=False):
        name = metric.format(task)
        points = [(record["step"], record[name]) for record in records if name in record]
        _draw_panel(panel, points, band_of(config, task, records))
        if metric == "reward/{}":
            _draw_held_out(panel, _held_out(records, summary, task))
        panel.set_title(task, loc="left", fontsize="medium")
    for panel in list(panels)[len(tasks) :]:
        panel.set_axis_off()
    figure.supxlabel("step", fontsize="medium")
    figure.supylabel(label, fontsize="medium")
    figure.savefig(path, dpi=120)
    return path


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


def _length_band(config: TrainConfig, task: str, records: Records) -> Series:
    """Return the target's course: as logged, for it may have been calibrated."""
    low, high = (f"length_target/{end}/{task}" for end in ("low", "high"))
    return [(each["step"], each[low], each[high]) for each in records if low in each]


def _entropy_band(config: TrainConfig, task: str, records: Records) -> Series:
    entropy = config.entropy
    if not entropy.weight_of(task) and entropy.control == "fixed":
        return []
    return [(record["step"], *entropy.of(task)) for record in records]
