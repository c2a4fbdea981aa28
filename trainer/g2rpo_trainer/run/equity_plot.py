"""The picture of gradient equity: each task's own gradient over the steps, and their ratio."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_equity"]

Records = Sequence[Mapping[str, float]]


def draw_equity(path: Path, records: Records, tasks: Sequence[str]) -> Path | None:
    """Draw the norms of the tasks' gradients, one line each, over the largest divided by the least.

    Parameters
    ----------
    path : Path
        Where the picture goes.
    records : sequence of mapping
        Metrics, of which some steps have ``equity/ratio``.
    tasks : sequence of str
        Names of the tasks.

    Returns
    -------
    Path or None
        None if no step was measured.
    """
    measured = [record for record in records if "equity/ratio" in record]
    if not measured:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    norms, ratio = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for task in tasks:
        _line(norms, measured, f"equity/grad_norm/{task}", label=task)
    _line(ratio, measured, "equity/ratio", color="black")
    # At 1 all tasks pull equally hard.
    ratio.axhline(1, color="tab:green", linewidth=3, alpha=0.3)
    norms.set_ylabel("norm of the task's gradient")
    ratio.set_ylabel("largest / smallest")
    ratio.set_xlabel("step")
    norms.legend(ncols=min(3, len(tasks)), fontsize="small", frameon=False)
    figure.savefig(path, dpi=120)
    return path


def _line(panel: "Axes", records: Records, name: str, **style: Any) -> None:
    """Draw a metric, with gaps where it is no positive number: such have no logarithm."""
    steps = [record["step"] for record in records]
    values = [record.get(name, math.nan) for record in records]
    shown = [value if 0 < value < math.inf else math.nan for value in values]
    panel.plot(steps, shown, marker=".", linewidth=1.2, **style)
    panel.set_yscale("log")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25, linewidth=0.5)
