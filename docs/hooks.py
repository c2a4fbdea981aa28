"""Write tables of the configuration and formulas into pages.

Tables come from the code, so that they cannot fall behind it. Formulas become MathML, which
browsers render themselves: the pages need no script and no other host.
"""

import html
import re
from collections.abc import Iterator
from typing import Any

import yaml
from latex2mathml.converter import convert
from pydantic import BaseModel

from g2rpo_trainer.config import PRESETS, TrainConfig, load_config

_KEYS = "<!-- table of the configuration -->"
_PRESETS = "<!-- table of the presets -->"
_FORMULA = re.compile(
    r'<(?:span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</(?:span|div)>', re.DOTALL
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks in a page by the tables; called by MkDocs."""
    if _KEYS in markdown:
        rows = [
            f"| `{key}` | {_code(default)} | {description} |"
            for key, default, description in _fields(TrainConfig)
        ]
        table = ["| key | default | meaning |", "|---|---|---|", *rows]
        markdown = markdown.replace(_KEYS, "\n".join(table))
    if _PRESETS in markdown:
        markdown = markdown.replace(_PRESETS, "\n".join(_preset_table()))
    return markdown


def on_page_content(content: str, **_: Any) -> str:
    """Write formulas as MathML; called by MkDocs."""
    return _FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    if found[1] == "(":
        return convert(html.unescape(found[2]))
    # A formula that is wider than a phone scrolls by itself.
    return f'<div class="formula">{convert(html.unescape(found[2]), display="block")}</div>'


def _preset_table() -> Iterator[str]:
    """Yield the rows of all keys that a preset changes."""
    yield f"| key | default | {' | '.join(f'`{name}`' for name in PRESETS)} |"
    yield f"|---|---|{'---|' * len(PRESETS)}"
    presets = [load_config(name) for name in PRESETS]
    for key, default, _ in _fields(TrainConfig):
        values = [_at(preset, key) for preset in presets]
        if key == "data.tasks" or all(value == default for value in values):
            continue  # the tasks follow from the source
        # A mapping by task is too long for a cell.
        cells = [
            "" if value == default else "by task" if isinstance(value, dict) else _code(value)
            for value in values
        ]
        yield f"| `{key}` | {_code(default)} | {' | '.join(cells)} |"


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield key, default and description of every field."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.default, (field.description or "").replace("[", r"\[")


def _at(config: BaseModel, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _code(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10_000)
    return f"`{text.splitlines()[0]}`"
