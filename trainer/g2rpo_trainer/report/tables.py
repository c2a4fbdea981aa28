"""Tables: the tasks at the start of a run, some responses, and the results at its end."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from g2rpo._shown import visible
from g2rpo_trainer.config import Length, TrainConfig
from g2rpo_trainer.data import Source, summary_table
from g2rpo_trainer.layout import PlainTable

# With fewer, Student's quantile is so large (12.7 for two) that an interval can reach far beyond
# anything a reward can be.
_FEWEST_ITEMS = 5

_KIND = "reward kind"
_PROMPT_CHARACTERS, _RESPONSE_CHARACTERS = 120, 320


def start_table(config: TrainConfig, source: Source) -> PlainTable:
    """Return the table before a run: records, length target and entropy bounds of each task."""
    length, entropy = config.length, config.entropy
    limit_of = config.rollout.limit_of
    more: dict[str, dict[str, str]] = {}
    if length.mode != "off":
        more["length [tokens]"] = {
            task: _target_text(length, task, limit_of(task)) for task in source.tasks
        }
    if entropy.kept_bounds(source.tasks):
        more["entropy [nats]"] = {
            task: "{:g}–{:g}".format(*entropy.of(task)) for task in source.tasks
        }
    return summary_table(source.summary(), more)


def _target_text(length: Length, task: str, longest: int) -> str:
    target = length.target_of(task, longest)
    if target is None:
        return "calibrated" if length.calibrate else "–"
    return f"{'from ' if length.calibrate else ''}{target.low:g}–{target.high:g}"


def completions_table(step: int, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of responses, rows of ``completions.jsonl``; long texts are shortened."""
    table = Table(title=f"Responses of step {step}", title_justify="left", show_lines=True)
    table.add_column("task")
    table.add_column("prompt", ratio=2, style="dim", overflow="fold")
    table.add_column("response", ratio=4, overflow="fold")
    for heading in ("reward", "advantage", "tokens"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            escape(visible(row["task"])),
            escape(_short(row["prompt"], _PROMPT_CHARACTERS)),
            escape(_short(row["response"], _RESPONSE_CHARACTERS)),
            f"{row['reward']:.3f}",
            f"{row['advantage']:+.2f}",
            str(row["length"]),
        )
    return table


def before_after_table(kinds: Mapping[str, str], summary: Mapping[str, Any]) -> PlainTable:
    """Return the table at the end of a run: one row a task and a row of means.

    `kinds` maps each task to the kind of its reward, in the order of the rows. The content of
    ``summary.json`` is shown with its intervals, which runs of older versions do not have, where
    there are enough items for them to say something.
    """
    columns = ("before", "after", "length_before", "length_after")
    sure = _sure(kinds, summary)
    known = ", ± 95 % interval" if sure else ""
    title = f"Held-out reward before and after{known}"
    headings = ("before", "after", "change", "length")
    table = PlainTable("task", _KIND, numbers=headings, optional=_KIND, title=title)
    for task, kind in kinds.items():
        values = [summary[column][task] for column in columns]
        table.add_row(escape(task), escape(kind), *_compared(values, summary, task, task in sure))
    table.add_section()
    means = [_mean(summary[column], kinds) for column in columns]
    table.add_row("mean", "", *_compared(means, summary, "mean", "mean" in sure), style="bold")
    return table


def _sure(kinds: Mapping[str, str], summary: Mapping[str, Any]) -> set[str]:
    """Return the tasks, and ``"mean"``, whose interval is shown."""
    if "interval_after" not in summary:
        return set()
    items = {task: summary.get("items", {}).get(task, _FEWEST_ITEMS) for task in kinds}
    sure = {task for task, count in items.items() if count >= _FEWEST_ITEMS}
    # One task with few items makes the mean over the tasks as unsure.
    few = any(0 < count < _FEWEST_ITEMS for count in items.values())
    return sure if few or not sure else {*sure, "mean"}


def _compared(
    values: Sequence[float], summary: Mapping[str, Any], task: str, is_sure: bool
) -> list[Text]:
    """Return the cells of before, after, change and length."""
    before, after, length_before, length_after = values
    known: Mapping[str, Any] = summary if is_sure else {}
    return [
        _with_interval(Text(_number(before)), known.get("interval_before", {}).get(task)),
        _with_interval(Text(_number(after)), known.get("interval_after", {}).get(task)),
        _with_interval(_change(after - before), known.get("interval_change", {}).get(task)),
        Text(f"{_number(length_before, 1)} → {_number(length_after, 1)}"),
    ]


def _with_interval(text: Text, ends: Sequence[float] | None) -> Text:
    """Append half of a number's interval, in two digits: a row has 80 columns."""
    if ends is not None and not math.isnan(ends[0]):
        half = f"{(ends[1] - ends[0]) / 2:.2f}"
        text.append(f"±{half.removeprefix('0')}", style="dim")
    return text


def results_table(
    kinds: Mapping[str, str],
    rewards: Mapping[str, float],
    lengths: Mapping[str, float],
    detail: Mapping[str, Mapping[str, Any]],
) -> PlainTable:
    """Return the table of one evaluation: one row a task and a row of means.

    `kinds` maps each task to the kind of its reward, in the order of the rows. Rewards and lengths
    [tokens] are means by task, NaN for a task without held-out items; rewards and details also have
    ``"mean"``. A detail has ``items``, ``generations``, the ends ``low`` and ``high`` of the
    interval, and the ``best`` of all responses to an item.
    """
    generations = max((detail[task]["generations"] for task in kinds), default=1)
    title = f"Held-out reward, {generations} responses an item, 95 % intervals"
    headings = ("items", f"mean@{generations}", "interval", f"best@{generations}", "length")
    table = PlainTable("task", _KIND, numbers=headings, optional=_KIND, title=title)
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


def _short(text: str, characters: int) -> str:
    """Return a text in one line, cut in its middle: an answer stands at the end."""
    text = visible(" ".join(text.split()))
    half = characters // 2
    return text if len(text) <= characters else f"{text[:half]} … {text[-half:]}"
