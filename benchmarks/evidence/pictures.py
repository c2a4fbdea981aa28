"""Pictures of the answers, as small SVG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._intervals import interval

from .distribution import ESTIMATORS, KINDS, SIZES
from .tables import Columns
from .world import TARGETS, TASKS, Floats

Found = Mapping[str, Mapping[str, Columns]]


def draw(folder: Path, found: Found, distances: Floats | None) -> list[Path]:
    """Draw each question's differences, and norms, entropies, lengths and distances."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [_differences(folder, name, of) for name, of in found.items()]
    if "equity" in found:
        made.append(_norms(folder, found["equity"]))
    made += [_entropy(folder, name, of) for name, of in found.items() if "entropy" in name]
    if "length" in found:
        made.append(_lengths(folder, found["length"]))
    if distances is not None:
        made.append(_distances(folder, distances))
    return made


def _differences(folder: Path, name: str, of: Mapping[str, Columns]) -> Path:
    """Draw the differences in mean reward to the first setting, with their intervals."""
    base, *others = of.items()
    figure, axes = _figure(6.4, 0.6 + 0.24 * len(others))
    rewards = [own["tasks"].mean(axis=1) for _, own in others]
    for place, values in enumerate(rewards):
        mean, low, high = interval(values - base[1]["tasks"].mean(axis=1))
        colour = "tab:blue" if low > 0 else "tab:red" if high < 0 else "tab:gray"
        axes.plot([low, high], [place, place], color=colour, lw=2)
        axes.plot(mean, place, "o", color=colour, ms=4)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(range(len(others)), [label for label, _ in others])
    axes.invert_yaxis()
    axes.set_xlabel(f"mean held-out reward, difference to {base[0]}")
    return _save(figure, folder, name)


def _norms(folder: Path, of: Mapping[str, Columns]) -> Path:
    figure, axes = _figure(6.4, 2.8)
    for label, own in of.items():
        if label.startswith("grpo"):  # lie on those of the same name
            continue
        relative = own["norms"] / own["norms"].mean(axis=1, keepdims=True)
        axes.plot(relative.mean(axis=0), "o-", ms=3, lw=1, label=label)
    axes.axhline(1, color="black", lw=0.8)
    axes.set_xticks(range(len(TASKS)), [task.name for task in TASKS])
    axes.set_ylabel("gradient norm / mean of tasks")
    _legend(axes)
    return _save(figure, folder, "gradient norms")


def _entropy(folder: Path, name: str, of: Mapping[str, Columns]) -> Path:
    figure, axes = _figure(6.4, 2.8)
    for label, own in of.items():
        means = own["entropy"].mean(axis=0)
        axes.plot(
            10 * np.arange(len(means)),
            means,
            lw=1.2,
            label=label,
            ls="--" if "sampled" in label else "-",
        )
    axes.axhspan(0.2, 0.6, color="tab:green", alpha=0.12)
    axes.set_xlabel("step")
    axes.set_ylabel("entropy [nats]")
    _legend(axes)
    return _save(figure, folder, f"{name} through training")


def _lengths(folder: Path, of: Mapping[str, Columns]) -> Path:
    import matplotlib as mpl

    figure, axes = _figure(6.4, 3.0)
    axes.set_prop_cycle(color=mpl.colormaps["tab20"].colors)
    for place, (label, own) in enumerate(of.items()):
        shift = (place - len(of) / 2) * 0.06
        axes.plot(np.arange(len(TASKS)) + shift, own["length"].mean(axis=0), "o", ms=3, label=label)
    for place, (_, low, high, _) in enumerate(TARGETS):
        axes.fill_between([place - 0.42, place + 0.42], low, high, color="tab:green", alpha=0.15)
    axes.set_xticks(range(len(TASKS)), [task.name for task in TASKS])
    axes.set_ylabel("length at the end [tokens]")
    _legend(axes)
    return _save(figure, folder, "lengths by task")


def _distances(folder: Path, found: Floats) -> Path:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(KINDS), figsize=(8.4, 2.4), sharey=True)
    means = found.mean(axis=0)[..., 0]
    for number, (kind, axes) in enumerate(zip(KINDS, panels, strict=True)):
        for place, label in enumerate(ESTIMATORS):
            axes.plot(SIZES, means[:, place, number], "o-", ms=2.5, lw=1, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(SIZES, SIZES)
        axes.set_title(kind, fontsize=8)
    panels[0].set_ylabel("W1 to N(0, 1)")
    _legend(panels[-1])
    return _save(figure, folder, "distribution")


def _legend(axes: Any) -> None:
    axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height))


def _save(figure: Any, folder: Path, name: str) -> Path:
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    words = "".join(c if c.isalnum() else " " for c in name).split()
    path = folder / f"{'-'.join(words)}.svg"
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "evidence"}):
        figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return path
