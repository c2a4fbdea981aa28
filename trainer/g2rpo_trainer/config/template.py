"""A commented YAML file to begin with: every key with its meaning, those of a preset set."""

from collections.abc import Iterator
from inspect import getdoc
from textwrap import indent, wrap

import yaml

from .keys import joined_key
from .loading import PRESETS, Dumper, config_origins
from .section import Section
from .train_config import TrainConfig

_WIDTH = 100
_HEADER = """
# Every key stands here with its meaning. Those behind a # have the value that they would have
# anyway; to set one, take the # away from it and from the name of its section.

"""


def config_template(preset: str) -> str:
    """Return a preset as a commented YAML file.

    Parameters
    ----------
    preset : str
        Name in :data:`PRESETS`.

    Returns
    -------
    str
        The keys that the preset sets, and all others behind a ``#``, each with its description.

    Examples
    --------
    >>> config_template("vlm").splitlines()[-2:]
    ['  # prompts of each task in such a measurement [prompts]', '#  equity_prompts: 2']
    """
    config, origins = config_origins(preset)
    chosen = {key for key, origin in origins.items() if origin == f"preset {preset}"}
    lines = [*_heading(preset), *_HEADER.splitlines()]
    lines += _section_lines(TrainConfig, config, (), chosen)
    return "\n".join(lines) + "\n"


def _heading(preset: str) -> Iterator[str]:
    """Yield the comment at the top of a preset."""
    for line in PRESETS[preset].read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return
        yield line


def _section_lines(
    section: type[Section], values: Section, parts: tuple[str, ...], chosen: set[str]
) -> Iterator[str]:
    """Yield the lines of the fields of a section, inner sections last."""
    margin = "  " * len(parts)
    fields = section.model_fields
    inner = {name for name in fields if isinstance(getattr(values, name), Section)}
    for name in sorted(fields, key=lambda name: name in inner):  # stable
        path, value = (*parts, name), getattr(values, name)
        if name not in inner:
            yield from _comment(fields[name].description or "", margin)
            entry = {name: values.model_dump(mode="json")[name]}
            text = yaml.dump(entry, Dumper=Dumper, sort_keys=False, width=_WIDTH)
            yield from _lines(text.rstrip(), margin, is_set=joined_key(path) in chosen)
            continue
        if not parts:
            yield ""
        yield from _comment((getdoc(type(value)) or "").splitlines()[0], margin)
        is_set = any(key.startswith(f"{joined_key(path)}.") for key in chosen)
        yield from _lines(f"{name}:", margin, is_set=is_set)
        yield from _section_lines(type(value), value, path, chosen)


def _comment(text: str, margin: str) -> Iterator[str]:
    for line in wrap(text, _WIDTH - len(margin) - 2):
        yield f"{margin}# {line}"


def _lines(text: str, margin: str, *, is_set: bool) -> Iterator[str]:
    yield from indent(text, margin if is_set else f"#{margin}").splitlines()
