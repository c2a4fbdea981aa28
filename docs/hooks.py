"""Write the table of the configuration into its page, so that it cannot fall behind the code."""

from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from g2rpo_trainer.config import TrainConfig

_PLACE = "<!-- table of the configuration -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the mark in a page by the table; called by MkDocs."""
    if _PLACE not in markdown:
        return markdown
    rows = ["| key | default | meaning |", "|---|---|---|", *_rows(TrainConfig)]
    return markdown.replace(_PLACE, "\n".join(rows))


def _rows(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _rows(field.annotation, f"{prefix}{name}.")
            continue
        default = yaml.safe_dump(_plain(field.default), default_flow_style=True, width=10_000)
        yield f"| `{prefix}{name}` | `{default.splitlines()[0]}` | {field.description} |"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
