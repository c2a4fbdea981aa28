"""One HTML page about runs that needs nothing else: no network, no file beside it.

Texts of models and data are text: Jinja escapes them, the data of the charts hold no ``<``, and the
page's own policy lets no script run but the two that are named by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import g2rpo
from g2rpo._shown import visible
from g2rpo_cli.reporting.cards import cards
from g2rpo_cli.reporting.charts import advantage_plots, figure_plots
from g2rpo_cli.reporting.groups import Group, group_figures
from g2rpo_cli.reporting.plots import group_advantages
from g2rpo_cli.reporting.reading import Run
from g2rpo_cli.reporting.tables import result_tables, warning_rows
from g2rpo_trainer.config import dump_config
from g2rpo_trainer.report.plots import COLOURS

#: Size that a page does not exceed [bytes].
MOST_BYTES = 5_000_000
# Of these the lines may hold so many values, and the answers take what is left.
_MOST_VALUES = 60_000
_ROOM = 100_000  # bytes for the tags around an answer, and for being wrong

_HERE = Path(__file__).parent
_TITLES = {
    "reward": ("Reward", "Thin: mean of a step. Thick: moving average. Dots: held-out items."),
    "length": ("Length", "Mean tokens of a response; green: the target."),
    "entropy": ("Entropy", "Mean over the tokens, in nats; green: the bounds."),
    "gradient": (
        "Gradient equity",
        "Share of each task in the sum of the tasks' gradient norms; green: equal shares.",
    ),
}


def build_page(groups: Sequence[Group]) -> str:
    """Return the page of groups with the same tasks: HTML of at most `MOST_BYTES` bytes."""
    runs = [run for group in groups for run in group.runs]
    tasks = runs[0].tasks
    figures, plots = _figures(groups)
    context = {
        "title": _title(groups),
        "subtitle": _subtitle(groups),
        "notes": [note for run in runs for note in run.notes],
        "tasks": tasks,
        "tables": result_tables(groups),
        "warnings": warning_rows(runs),
        "figures": figures,
        "legend": _legend(groups),
        "runs": [_configuration(run) for run in runs],
        "version": g2rpo.__version__,
        "plots": _embedded(_bokeh_json(plots)),
        "style": (_HERE / "page.css").read_text(encoding="utf-8"),
    }
    scripts = [_bokeh_script(), (_HERE / "page.js").read_text(encoding="utf-8")]
    context |= {"scripts": scripts, "policy": _policy(scripts)}
    size = len(_render({**context, "samples": []}).encode())
    shown, dropped = cards(groups, MOST_BYTES - size - _ROOM)
    return _render({**context, "samples": shown, "dropped": dropped})


def _title(groups: Sequence[Group]) -> str:
    runs = [run for group in groups for run in group.runs]
    return f"Run {runs[0].path}" if len(runs) == 1 else f"{len(runs)} runs"


def _subtitle(groups: Sequence[Group]) -> str:
    if len(groups) == 1 and len(groups[0].runs) == 1:
        return _facts(groups[0].runs[0])
    parts = []
    for group in groups:
        seeds = ", ".join(map(str, group.seeds))
        parts.append(f"{group.label} ({'seed' if len(group.seeds) == 1 else 'seeds'} {seeds})")
    return "; ".join(parts)


def _facts(run: Run) -> str:
    total = run.config.optimization.steps
    facts = [
        "finished" if run.is_finished else "not finished",
        f"{run.step} of {total} steps",
        f"model {run.config.model.name}",
        f"data {run.config.data.source}",
        f"estimator {run.config.estimator.name}",
        f"seed {run.config.seed}",
    ]
    if run.is_finished and "seconds" in run.summary:
        facts.append(f"{run.summary['seconds']:.0f} s")
    return " · ".join(facts)


def _legend(groups: Sequence[Group]) -> list[dict[str, str]]:
    if len(groups) < 2:
        return []
    return [
        {"label": group.label, "colour": COLOURS[number % len(COLOURS)]}
        for number, group in enumerate(groups)
    ]


def _figures(groups: Sequence[Group]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the sections of the charts, and the plots by the element that each is drawn in."""
    tasks = groups[0].runs[0].tasks
    lines = 4 * len(tasks) * len(groups)
    multiples = group_figures(groups, max(40, min(400, _MOST_VALUES // (3 * lines))))
    sections: list[dict[str, Any]] = []
    plots: dict[str, Any] = {}
    for figure in multiples:
        title, caption = _TITLES[figure.name]
        sections.append(_section(figure.name, title, caption, tasks))
        plots |= zip(
            (panel["element"] for panel in sections[-1]["panels"]),
            figure_plots(figure),
            strict=True,
        )
    if counts := group_advantages(groups):
        title = "Distribution of the advantages"
        caption = "All steps, groups with signal. Line: density of N(0, 1)."
        sections.append(_section("advantages", title, caption, tasks))
        elements = (panel["element"] for panel in sections[-1]["panels"])
        plots |= zip(elements, advantage_plots(tasks, counts), strict=True)
    return sections, plots


def _section(name: str, title: str, caption: str, tasks: Sequence[str]) -> dict[str, Any]:
    # Names of tasks may hold anything, those of elements may not.
    panels = [
        {"task": task, "element": f"plot-{name}-{number}"} for number, task in enumerate(tasks)
    ]
    return {"name": name, "title": title, "caption": caption, "panels": panels}


def _configuration(run: Run) -> dict[str, Any]:
    names = list(dict.fromkeys(name for each in run.environments for name in each))
    rows = [[each.get(name, "") for name in names] for each in run.environments]
    table = {"names": names, "rows": rows} if rows else None
    return {
        "path": str(run.path),
        "facts": _facts(run),
        "config": dump_config(run.config),
        "environments": table,
    }


def _bokeh_json(plots: dict[str, Any]) -> dict[str, Any]:
    """Return what Bokeh's script needs to draw each plot, by its element.

    Each is a document of its own, so that the page draws those that are looked at.
    """
    from bokeh.core.types import ID
    from bokeh.embed import json_item

    return {element: json_item(plot, ID(element)) for element, plot in plots.items()}


def _bokeh_script() -> str:
    from bokeh.util.paths import bokehjs_path

    return (bokehjs_path() / "js" / "bokeh.min.js").read_text(encoding="utf-8")


def _embedded(value: Any) -> str:
    r"""Return JSON that no parser of HTML takes for a tag.

    Examples
    --------
    >>> _embedded("</script>&")
    '"\\u003c/script\\u003e\\u0026"'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _policy(scripts: Sequence[str]) -> str:
    """Return the content security policy: nothing is loaded, and no script runs but these."""
    hashes = (hashlib.sha256(script.encode()).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(each).decode()}'" for each in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:"


def _render(context: dict[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    return templates.get_template("page.html").render(context)
