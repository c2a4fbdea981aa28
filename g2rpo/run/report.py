"""What a run leaves for people: the table of before and after, and pictures of its course."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from g2rpo.run.description import RunDescription
from g2rpo.run.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["before_after_table", "draw_plots", "results_table"]

Band = tuple[float, float]


def before_after_table(
    kinds: Mapping[str, str],
    before: Mapping[str, float],
    after: Mapping[str, float],
    lengths_before: Mapping[str, float],
    lengths_after: Mapping[str, float],
) -> Table:
    """Return the table that ends a run: one row a task and a row of means.

    Parameters
    ----------
    kinds : mapping of str to str
        Task to the kind of its reward, in the order of the rows.
    before, after : mapping of str to float
        Task to its mean reward on the held-out items.
    lengths_before, lengths_after : mapping of str to float
        Task to the mean length of its responses in tokens.
    """
    table = Table(title="Held-out reward before and after", title_justify="left")
    table.add_column("task")
    table.add_column("reward kind", style="dim")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    table.add_column("length", justify="right")
    for task, kind in kinds.items():
        table.add_row(
            escape(task),
            escape(kind),
            f"{before[task]:.3f}",
            f"{after[task]:.3f}",
            _change(after[task] - before[task]),
            f"{lengths_before[task]:.1f} → {lengths_after[task]:.1f}",
        )
    mean_before, mean_after = _mean(before, kinds), _mean(after, kinds)
    table.add_section()
    table.add_row(
        "mean",
        "",
        f"{mean_before:.3f}",
        f"{mean_after:.3f}",
        _change(mean_after - mean_before),
        f"{_mean(lengths_before, kinds):.1f} → {_mean(lengths_after, kinds):.1f}",
        style="bold",
    )
    return table


def results_table(
    kinds: Mapping[str, str], rewards: Mapping[str, float], lengths: Mapping[str, float]
) -> Table:
    """Return the table of one evaluation: one row a task and a row of means."""
    table = Table(title="Held-out reward", title_justify="left")
    table.add_column("task")
    table.add_column("reward kind", style="dim")
    table.add_column("reward", justify="right")
    table.add_column("length", justify="right")
    for task, kind in kinds.items():
        table.add_row(escape(task), escape(kind), f"{rewards[task]:.3f}", f"{lengths[task]:.1f}")
    table.add_section()
    means = f"{_mean(rewards, kinds):.3f}", f"{_mean(lengths, kinds):.1f}"
    table.add_row("mean", "", *means, style="bold")
    return table


def draw_plots(folder: RunFolder) -> list[Path]:
    """Draw ``reward.png``, ``length.png`` and ``entropy.png`` from the folder's metrics.

    Each has one panel a task: thin the value of every step, thick a moving average, shaded the
    band that the description asks for. Without metrics nothing is drawn.
    """
    records = folder.read_metrics()
    if not records:
        return []
    description = folder.description
    folder.plots_path.mkdir(exist_ok=True)
    figures: list[tuple[str, str, str, Callable[[str], Band | None]]] = [
        ("reward", "reward/{}", "mean reward", lambda task: None),
        (
            "length",
            "completions/mean_length/{}",
            "mean length [tokens], target shaded",
            lambda task: _length_band(description, task),
        ),
        (
            "entropy",
            "entropy/{}",
            "mean entropy [nats], bounds shaded",
            lambda task: _entropy_band(description, task),
        ),
    ]
    return [
        _draw(folder.plots_path / f"{name}.png", records, description.data.tasks, metric, label, of)
        for name, metric, label, of in figures
    ]


def _draw(
    path: Path,
    records: Sequence[Mapping[str, float]],
    tasks: Sequence[str],
    metric: str,
    label: str,
    band_of: Callable[[str], Band | None],
) -> Path:
    # Figure itself, not pyplot: no window, no global state, whatever backend the user has set.
    from matplotlib.figure import Figure

    columns = min(3, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for task, panel in zip(tasks, panels, strict=False):
        name = metric.format(task)
        points = [(record["step"], record[name]) for record in records if name in record]
        _draw_panel(panel, points, band_of(task))
        panel.set_title(task, loc="left", fontsize="medium")
    for panel in list(panels)[len(tasks) :]:
        panel.set_axis_off()
    figure.supxlabel("step", fontsize="medium")
    figure.supylabel(label, fontsize="medium")
    figure.savefig(path, dpi=120)
    return path


def _draw_panel(panel: "Axes", points: Sequence[tuple[float, float]], band: Band | None) -> None:
    if band is not None:
        panel.axhspan(*band, color="tab:green", alpha=0.12, linewidth=0)
    if points:
        steps, values = np.asarray(points, dtype=float).T
        panel.plot(steps, values, color="tab:blue", alpha=0.35, linewidth=0.7)
        panel.plot(steps, _smooth(values), color="tab:blue", linewidth=1.8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25, linewidth=0.5)


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centred moving average over a tenth of the run; NaN counts as absent."""
    window = np.ones(2 * (len(values) // 20) + 1)
    present = np.isfinite(values)
    total = np.convolve(np.where(present, values, 0.0), window, mode="same")
    count = np.convolve(present, window, mode="same")
    smooth: NDArray[np.float64] = np.full_like(total, np.nan)
    np.divide(total, count, out=smooth, where=count > 0)
    return smooth


def _length_band(description: RunDescription, task: str) -> Band | None:
    target = description.length.targets.get(task)
    return None if target is None or description.length.mode == "off" else (target[1], target[2])


def _entropy_band(description: RunDescription, task: str) -> Band | None:
    return description.entropy.of(task) if description.entropy.weight > 0 else None


def _mean(values: Mapping[str, float], tasks: Mapping[str, str]) -> float:
    return sum(values[task] for task in tasks) / len(tasks)


def _change(change: float) -> Text:
    # What rounds to nothing is neither good nor bad.
    style = "green" if change >= 0.0005 else "red" if change <= -0.0005 else ""
    return Text(f"{change:+.3f}", style=style)
