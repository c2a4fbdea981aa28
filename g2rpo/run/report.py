"""What a run leaves for people: the table of before and after, and pictures of its course."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from g2rpo.data import summary_table
from g2rpo.run.description import RunDescription
from g2rpo.run.equity_plot import draw_equity
from g2rpo.run.folder import RunFolder
from g2rpo.run.records import source_of
from g2rpo.run.sections import Length

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["before_after_table", "draw_plots", "results_table", "start_table"]

Series = list[tuple[float, float, float]]
"""A band over the steps: step, lower and upper end; empty for none."""

BandOf = Callable[[RunDescription, str, Sequence[Mapping[str, float]]], Series]


def start_table(description: RunDescription) -> Table:
    """Return the table that begins a run: what each task has, and how it is shaped.

    Parameters
    ----------
    description : RunDescription
        Its data, rollout, length and entropy sections; the tasks are named.
    """
    length, entropy = description.length, description.entropy
    limit_of = description.rollout.limit_of
    more: dict[str, dict[str, str]] = {}
    if length.mode != "off":
        more["length [tokens]"] = {
            task: _target_text(length, task, limit_of(task)) for task in description.data.tasks
        }
    if entropy.control == "adaptive" or any(map(entropy.weight_of, description.data.tasks)):
        more["entropy [nats]"] = {
            task: "{:g}–{:g}".format(*entropy.of(task)) for task in description.data.tasks
        }
    return summary_table(source_of(description.data).summary(), more)


def _target_text(length: Length, task: str, longest: int) -> str:
    target = length.target_of(task, longest)
    if target is None:
        return "calibrated" if length.calibrate else "–"
    return f"{'from ' if length.calibrate else ''}{target.low:g}–{target.high:g}"


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
            _number(before[task]),
            _number(after[task]),
            _change(after[task] - before[task]),
            f"{_number(lengths_before[task], 1)} → {_number(lengths_after[task], 1)}",
        )
    mean_before, mean_after = _mean(before, kinds), _mean(after, kinds)
    table.add_section()
    table.add_row(
        "mean",
        "",
        _number(mean_before),
        _number(mean_after),
        _change(mean_after - mean_before),
        f"{_number(_mean(lengths_before, kinds), 1)} → {_number(_mean(lengths_after, kinds), 1)}",
        style="bold",
    )
    return table


def results_table(
    kinds: Mapping[str, str],
    rewards: Mapping[str, float],
    lengths: Mapping[str, float],
    detail: Mapping[str, Mapping[str, Any]],
) -> Table:
    """Return the table of one evaluation: one row a task and a row of means.

    Parameters
    ----------
    kinds : mapping of str to str
        Task to the kind of its reward, in the order of the rows.
    rewards, lengths : mapping of str to float
        Task to its mean reward and the mean length of its responses in tokens; NaN for a task
        without held-out items. ``rewards`` has the mean over the tasks as ``"mean"``.
    detail : mapping of str to mapping
        Task, and ``"mean"``, to ``items``, ``generations``, the ends ``low`` and ``high`` of the
        interval, and the ``best`` of all responses to an item.
    """
    generations = max((detail[task]["generations"] for task in kinds), default=1)
    title = f"Held-out reward, {generations} responses an item, 95 % intervals"
    table = Table(title=title, title_justify="left")
    table.add_column("task")
    table.add_column("reward kind", style="dim")
    for heading in ("items", f"mean@{generations}", "interval", f"best@{generations}", "length"):
        table.add_column(heading, justify="right")
    for task, kind in kinds.items():
        table.add_row(
            escape(task),
            escape(kind),
            *_result(rewards[task], detail[task]),
            _number(lengths[task], 1),
        )
    table.add_section()
    mean = _result(rewards["mean"], detail["mean"])
    table.add_row("mean", "", *mean, _number(_mean(lengths, kinds), 1), style="bold")
    return table


def _result(reward: float, detail: Mapping[str, Any]) -> list[str]:
    interval = "–".join(_number(detail[end]) for end in ("low", "high"))
    known = not math.isnan(detail["low"])
    return [
        f"{detail['items']:,}",
        _number(reward),
        interval if known else "–",
        _number(detail["best"]),
    ]


def draw_plots(folder: RunFolder) -> list[Path]:
    """Draw ``reward.png``, ``length.png``, ``entropy.png`` and ``equity.png`` from the metrics.

    The first three have one panel a task: thin the value of every step, thick a moving average,
    shaded the band that the description asks for. The last shows the tasks' own gradients, where
    they were measured. Without metrics nothing is drawn.
    """
    records = folder.read_metrics()
    if not records:
        return []
    description = folder.description
    folder.plots_path.mkdir(exist_ok=True)
    figures: list[tuple[str, str, str, BandOf]] = [
        ("reward", "reward/{}", "mean reward", lambda *_: []),
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
        _draw(folder.plots_path / f"{name}.png", records, description, metric, label, of)
        for name, metric, label, of in figures
    ]
    equity = draw_equity(folder.plots_path / "equity.png", records, description.data.tasks)
    return [*pictures, equity] if equity else pictures


def _draw(
    path: Path,
    records: Sequence[Mapping[str, float]],
    description: RunDescription,
    metric: str,
    label: str,
    band_of: BandOf,
) -> Path:
    # Figure itself, not pyplot: no window, no global state, whatever backend the user has set.
    from matplotlib.figure import Figure

    tasks = description.data.tasks
    columns = min(3, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for task, panel in zip(tasks, panels, strict=False):
        name = metric.format(task)
        points = [(record["step"], record[name]) for record in records if name in record]
        _draw_panel(panel, points, band_of(description, task, records))
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


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centred moving average over a tenth of the run; NaN counts as absent."""
    window = np.ones(2 * (len(values) // 20) + 1)
    present = np.isfinite(values)
    total = np.convolve(np.where(present, values, 0.0), window, mode="same")
    count = np.convolve(present, window, mode="same")
    smooth: NDArray[np.float64] = np.full_like(total, np.nan)
    np.divide(total, count, out=smooth, where=count > 0)
    return smooth


def _length_band(
    description: RunDescription, task: str, records: Sequence[Mapping[str, float]]
) -> Series:
    """Return the target's course: as logged, for it may have been calibrated."""
    low, high = (f"length_target/{end}/{task}" for end in ("low", "high"))
    return [(each["step"], each[low], each[high]) for each in records if low in each]


def _entropy_band(
    description: RunDescription, task: str, records: Sequence[Mapping[str, float]]
) -> Series:
    entropy = description.entropy
    if not entropy.weight_of(task) and entropy.control == "fixed":
        return []
    return [(record["step"], *entropy.of(task)) for record in records]


def _mean(values: Mapping[str, float], tasks: Mapping[str, str]) -> float:
    known = [values[task] for task in tasks if not math.isnan(values[task])]
    return sum(known) / len(known) if known else math.nan


def _number(value: float, digits: int = 3) -> str:
    """Return a number as people read it; a task without items has none."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _change(change: float) -> Text:
    # What rounds to nothing is neither good nor bad.
    style = "green" if change >= 0.0005 else "red" if change <= -0.0005 else ""
    return Text("–" if math.isnan(change) else f"{change:+.3f}", style=style)
