"""Draw the pictures of the pages from the library itself, as SVG inside the page.

A page names a picture by ``<!-- picture: NAME -->``. Text and axes take the colour of the page's
text, so that one picture serves light and dark. Equal versions draw equal bytes.
"""

import io
import re
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import g2rpo
from g2rpo_cli.comparison import topology_rewards

_MARK = re.compile(r"<!-- picture: ([\w-]+) -->")
_INK = "#010203"  # becomes the colour of the page's text
_BLUE, _ORANGE, _GREEN, _GREY = "#3f87e5", "#e8701a", "#2f9e64", "#8c8c8c"
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "legend.frameon": False,
    "lines.linewidth": 2,
} | dict.fromkeys(
    ["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"], _INK
)
_STAGES = ("standardize", "match", "match-all", None)


def on_page_content(content: str, **_: Any) -> str:
    """Put pictures in the place of their marks; called by MkDocs."""
    return _MARK.sub(lambda found: svg(found[1]), content)


def svg(name: str) -> str:
    """Return a picture as HTML: its panels, side by side where there is room."""
    draw, panels = PICTURES[name]
    figures = [Figure(figsize=(4.3, 3.1), layout="constrained") for _ in range(panels)]
    with mpl.rc_context(_STYLE):
        draw(*(figure.subplots() for figure in figures))
        parts = [_element(figure, f"{name}-{index}") for index, figure in enumerate(figures)]
    alt = (draw.__doc__ or "").removeprefix("Draw ")
    style = "display: flex; flex-wrap: wrap; gap: 0.5rem; justify-content: center"
    return f'<div role="img" aria-label="{alt}" style="{style}">{"".join(parts)}</div>'


def _element(figure: Figure, salt: str) -> str:
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": salt}):  # names of clip paths are unique in a page
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    # Groups are named after what they hold, alike in every picture.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]*pt"', "", text)
    return text.replace("<svg", '<svg style="flex: 1 1 15rem; max-width: 26rem"', 1)


def scaling(*axes: Axes) -> None:
    """Draw eight rewards and the advantages that GRPO and matching make of them."""
    rewards = np.array([0.02, 0.03, 0.05, 0.06, 0.08, 0.1, 0.13, 1.0])
    for ax, name, color in zip(axes, ("grpo", "gaussian"), (_ORANGE, _BLUE), strict=True):
        groups, tasks = np.zeros((2, len(rewards)), int)
        advantages = g2rpo.ESTIMATORS[name](rewards, groups, tasks)
        for reward, advantage in zip(rewards, advantages, strict=True):
            # Rewards on the same scale as advantages, so that only their spacing differs.
            ax.plot([6 * reward - 3, advantage], [1, 0], "-o", color=color, linewidth=1)
        ax.set(yticks=[0, 1], yticklabels=["advantage", "reward"], ylim=(-0.25, 1.25))
        ax.set(xlim=(-3.3, 3.3), xlabel="advantage", title=name)
        ax.axvline(0, color=_GREY, linewidth=0.8, linestyle=":")


def matching(ax: Axes) -> None:
    """Draw a normal density in eight parts of equal area, and the advantage of each rank."""
    normal, count = NormalDist(), 8
    x = np.linspace(-3.2, 3.2, 400)
    ax.plot(x, [normal.pdf(each) for each in x], color=_BLUE)
    for index in range(count):
        low = -3.2 if index == 0 else normal.inv_cdf(index / count)
        high = 3.2 if index == count - 1 else normal.inv_cdf((index + 1) / count)
        part = np.linspace(low, high, 60)
        alpha = 0.15 if index % 2 else 0.4
        density = [normal.pdf(each) for each in part]
        ax.fill_between(part, density, color=_BLUE, alpha=alpha, linewidth=0)
    advantages = g2rpo.match_gaussian(np.arange(1.0, count + 1))
    ax.plot(advantages, np.zeros(count), "o", color=_ORANGE, clip_on=False, zorder=3)
    for rank, advantage in enumerate(advantages, 1):
        ax.annotate(str(rank), (advantage, 0.02), ha="center")
    ax.set(xlabel="advantage of each rank, worst to best", yticks=[], ylim=(0, 0.44))


def ties(left: Axes, right: Axes) -> None:
    """Draw how equal rewards share the mean of their quantiles."""
    for row, rewards in enumerate(([0, 0, 1, 1, 1], [0, 0, 0, 0, 1], [0, 1, 2, 3, 4])):
        values = np.asarray(rewards, float)
        quantiles = g2rpo.match_gaussian(np.arange(5.0))
        advantages = g2rpo.match_gaussian(values)
        left.plot(quantiles, [row] * 5, "o", color=_GREY, markersize=5)
        left.plot(advantages, [row + 0.18] * 5, "D", color=_BLUE, markersize=7)
        for quantile, advantage in zip(quantiles, advantages, strict=True):
            left.plot([quantile, advantage], [row, row + 0.18], color=_GREY, linewidth=0.8)
    labels = ["0 0 1 1 1", "0 0 0 0 1", "all differ"]
    left.set(yticks=range(3), yticklabels=labels, xlabel="advantage", ylim=(-0.3, 2.5))
    for name, color in (("grpo", _ORANGE), ("gaussian", _BLUE)):
        numbers = np.arange(1, 8)
        groups = np.repeat(numbers, 8)
        rewards = (np.arange(56) % 8 < groups).astype(float)
        options = {"task_stage": None} if name == "gaussian" else {}
        made = g2rpo.ESTIMATORS[name](rewards, groups, None, **options).reshape(7, 8)
        right.plot(numbers, made[:, 0], "-o", color=color, label=name)
        right.plot(numbers, made[:, -1], "--o", color=color, fillstyle="none")
    right.axhline(0, color=_GREY, linewidth=0.8)
    right.set(xlabel="right responses among 8", ylabel="advantage")
    right.legend()


def stages(left: Axes, right: Axes) -> None:
    """Draw the variance of four tasks, and the advantages of a group that is all wrong."""
    table = topology_rewards()
    names = [name.partition(" (")[0] for name in table.task_names]
    with_signal = g2rpo.has_signal(table.rewards, table.groups)
    # A hard task: two prompts without a right response, and ten with one or two of eight.
    right_ones = np.array([0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2])
    hard = (np.arange(8) < right_ones[:, None]).astype(float).ravel()
    for stage, color in zip(_STAGES, (_BLUE, _GREEN, _ORANGE, _GREY), strict=True):
        made = g2rpo.gaussian_advantages(table.rewards, table.groups, table.tasks, task_stage=stage)
        variances = [made[(table.tasks == task) & with_signal].var() for task in range(len(names))]
        left.plot(range(len(names)), variances, "o", color=color, markersize=8, alpha=0.8)
        hopeless = g2rpo.gaussian_advantages(hard, 8, task_stage=stage)[0]
        right.plot([0, hopeless], [str(stage)] * 2, color=color, linewidth=1)
        right.plot([hopeless], [str(stage)], "o", color=color, markersize=8)
    left.set(xticks=range(len(names)), ylabel="variance", ylim=(0, 1.15))
    left.set_xticklabels([name.replace(" ", "\n").replace(",", "") for name in names], fontsize=9)
    right.axvline(0, color=_GREY, linewidth=0.8)
    right.set(xlabel="advantage of responses to a prompt\nthat were all wrong", xlim=(-0.2, 1))


def length(ax: Axes) -> None:
    """Draw the length reward of a short and of a long target."""
    tokens = np.arange(0.0, 1200.0)
    targets = {
        "perception: 4, 16, 128, 256": (g2rpo.LengthTarget(4, 16, 128, 256), _ORANGE),
        "reasoning: 64, 256, 768, 1024": (g2rpo.LengthTarget(64, 256, 768, 1024), _BLUE),
    }
    for label, (target, color) in targets.items():
        ax.plot(tokens, g2rpo.length_reward(tokens, target), color=color, label=label)
    ax.set(xlabel="tokens of the response", ylabel="length reward", ylim=(0, 1.45))
    ax.legend(loc="upper right", fontsize=9)


def entropy(left: Axes, right: Axes) -> None:
    """Draw the entropy penalty and its slope, beside those of max(H, low) + min(H, high)."""
    low, high = 0.2, 0.6
    nats = np.linspace(0, 1, 501)
    bounds = np.full_like(nats, low), np.full_like(nats, high)
    # Each entropy is a task of its own; the penalty is a sum over tasks.
    penalty = np.array(
        [
            float(g2rpo.entropy_penalty(nats[i : i + 1], bounds[0][:1], bounds[1][:1]))
            for i in range(len(nats))
        ]
    )
    other = np.maximum(nats, low) + np.minimum(nats, high)
    both = (("bounds", penalty, _BLUE), ("max + min", other, _ORANGE))
    for label, values, color in both:
        left.plot(nats, values, color=color, label=label)
        right.plot(nats[1:], np.diff(values) / np.diff(nats), color=color, label=label)
    for ax in (left, right):
        ax.axvspan(low, high, color=_GREY, alpha=0.2, linewidth=0)
        ax.set(xlabel="entropy of the task, nats")
    left.set(ylabel="added to the loss")
    right.set(ylabel="slope", yticks=[-1, 0, 1, 2])
    right.axhline(0, color=_GREY, linewidth=0.8)
    left.legend()


def equity(ax: Axes) -> None:
    """Draw the pull of a task of 10 tokens a response and of one of 100, by aggregation."""
    tasks = np.repeat([0, 1], 8)
    lengths = np.where(tasks == 0, 10, 100)
    mask = np.arange(100) < lengths[:, None]
    advantages = g2rpo.gaussian_advantages(np.arange(16.0) % 8, 8, tasks)

    def pulls(**options: Any) -> np.ndarray:
        """Return how fast the loss falls when a task's better tokens become likelier."""
        found, step = [], 1e-4
        for task in (0, 1):
            move = step * np.sign(advantages)[:, None] * (mask & (tasks == task)[:, None])
            losses = [
                float(
                    g2rpo.policy_loss(
                        sign * move, np.zeros_like(move), advantages, mask, **options
                    )[0]
                )
                for sign in (1, -1)
            ]
            found.append((losses[1] - losses[0]) / (2 * step))
        return np.array(found)

    labelled = {"tasks": tasks, "num_tasks": 2}
    weights = np.ones(2)
    for _ in range(8):
        measured = pulls(**labelled, task_weights=weights)
        weights = g2rpo.adapt_task_weights(measured, weights)
    bars = {
        "token": pulls(),
        "sequence": pulls(aggregation="sequence"),
        "task": pulls(**labelled, aggregation="task"),
        "token,\nweights": pulls(**labelled, task_weights=weights),
    }
    place = np.arange(len(bars))
    for task, (label, color) in enumerate((("10 tokens", _ORANGE), ("100 tokens", _BLUE))):
        heights = [pair[task] for pair in bars.values()]
        ax.bar(place + 0.36 * task, heights, 0.34, color=color, label=label)
    ax.set(xticks=place + 0.18, xticklabels=list(bars), ylabel="pull on the policy")
    ax.legend(title="responses of")


#: Name of a picture -> the function that draws it, and its number of panels.
PICTURES: dict[str, tuple[Callable[..., None], int]] = {
    "scaling": (scaling, 2),
    "matching": (matching, 1),
    "ties": (ties, 2),
    "stages": (stages, 2),
    "length": (length, 1),
    "entropy": (entropy, 2),
    "equity": (equity, 1),
}
