"""Rules for the keys of a run's configuration in another trainer, by a table of all keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from g2rpo_trainer.config import Section, TrainConfig


class Fate(NamedTuple):
    """Outcome of a key with its value."""

    status: Literal["carried", "not needed", "not carried"]
    text: str  # new place, or the reason
    options: Mapping[str, Any] = {}  # dotted option of the host -> value


Rule = Callable[[Any, TrainConfig], Fate]
"""Value of a key, and the whole configuration with its tasks named -> what becomes of it."""


class Settled(NamedTuple):
    """A key with its value and what became of it."""

    key: str
    value: Any
    fate: Fate


class Export(NamedTuple):
    """Rules and files by which runs are written for a trainer."""

    table: Mapping[str, Rule]  # every key of the configuration
    files_of: Callable[[TrainConfig, list[Settled]], dict[str, str]]  # name -> text
    files: tuple[str, ...]
    start: str  # command that starts the run in the folder


def carried(options: Mapping[str, Any], note: str = "") -> Fate:
    """Return the fate of a key that becomes options, which the text names."""
    return Fate("carried", ", ".join(f"`{name}`" for name in options) + note, options)


def option(
    *names: str, to: Callable[[Any, TrainConfig], Any] = lambda value, _: value, note: str = ""
) -> Rule:
    """Return the rule of a key that is one or more options of the host, with one value."""
    return lambda value, config: carried(dict.fromkeys(names, to(value, config)), note)


def of_tasks(name: str) -> Rule:
    """Return the rule of a mapping by task; tasks that are not trained are left out."""

    def rule(value: Any, config: TrainConfig) -> Fate:
        kept = {task: _plain(each) for task, each in value.items() if task in config.data.tasks}
        return carried({name: kept}) if kept else Fate("not needed", "names no trained task")

    return rule


def held(text: str) -> Rule:
    """Return the rule of a key that goes into a file."""
    return lambda value, config: Fate("carried", text)


def spare(text: str) -> Rule:
    """Return the rule of a key that the host does without: nothing is computed differently."""
    return lambda value, config: Fate("not needed", text)


def lost(text: str) -> Rule:
    """Return the rule of a key that the host has nothing for."""
    return lambda value, config: Fate("not carried", text)


def lost_unless(neutral: Any, text: str, off: str = "is off") -> Rule:
    """Return the rule of a key that the host has nothing for, unless its value asks for nothing."""

    def rule(value: Any, config: TrainConfig) -> Fate:
        return Fate("not needed", off) if value == neutral else Fate("not carried", text)

    return rule


def when(holds: Callable[[TrainConfig], Any], rule: Rule, otherwise: str) -> Rule:
    """Return a rule that counts only where another key says so; else the key is not needed."""
    return lambda value, config: (
        rule(value, config) if holds(config) else Fate("not needed", otherwise)
    )


def leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of everything in a configuration.

    Examples
    --------
    >>> [key for key, _ in leaves(TrainConfig())][:3]
    ['seed', 'model.name', 'model.gguf_file']
    """
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def settle(config: TrainConfig, table: Mapping[str, Rule]) -> list[Settled]:
    """Return what becomes of every key; a key that the table lacks is an error."""
    return [Settled(key, value, table[key](value, config)) for key, value in leaves(config)]


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by dotted name as nested mappings.

    Examples
    --------
    >>> nested({"data.shuffle": False, "data.files": ("a", "b")})
    {'data': {'shuffle': False, 'files': ['a', 'b']}}
    """
    tree: dict[str, Any] = {}
    for name, value in options.items():
        *sections, last = name.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = _plain(value)
    return tree


def options_of(settled: list[Settled]) -> dict[str, Any]:
    """Return the options of the host by dotted name."""
    return {name: value for each in settled for name, value in each.fate.options.items()}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
