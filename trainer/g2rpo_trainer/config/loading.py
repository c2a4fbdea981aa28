"""Read a run's configuration: presets, YAML files and single values, in layers.

Later layers win: the defaults of :class:`TrainConfig`, presets, files, ``KEY=VALUE`` settings, and
values of the caller. A mapping such as ``length.targets`` in a file replaces the one below it; a
dotted key (``length.targets.ocr=direct``) changes one entry.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from g2rpo._shown import clipped, shown
from g2rpo._suggest import did_you_mean
from g2rpo_trainer.errors import RunError

from .keys import QUOTING, joined_key, parse_setting, split_key
from .section import Section
from .train_config import TASK_KEYS, TrainConfig

_FOLDER = Path(__file__).parent / "presets"

PRESETS = {
    name: _FOLDER / f"{name}.yaml" for name in ("builtin", "text", "vlm", "vlm-lora", "vlm-fsdp")
}
"""Name of a preset -> its YAML file."""

_ADAPTER_RATE = 1e-5

_Paths: TypeAlias = str | Path | Sequence[str | Path] | None


class _Value(NamedTuple):
    """A value with the parts of its dotted key and where it comes from."""

    parts: tuple[str, ...]
    value: Any
    origin: str
    """Prefix of messages."""
    place: str
    """File with line, preset or option, for a table."""


def load_config(
    path: _Paths = None,
    overrides: Mapping[str, Any] | None = None,
    settings: Iterable[str] = (),
) -> TrainConfig:
    """Read a run's configuration: presets and files, then `settings`, then `overrides`.

    Parameters
    ----------
    path : path or sequence of path, optional
        YAML files or names of presets (:data:`PRESETS`); keys that all of them leave out have their
        defaults. Without a preset, the policy inside the package (``model.name: builtin``) starts
        from the preset ``builtin``, any other model from the defaults of :class:`TrainConfig`.
    overrides : mapping of str to object, optional
        Values by dotted key, such as ``{"optimization.steps": 50}``; a name with a dot in it stands
        in brackets and quotes, ``'rollout.limits["v1.5"]'``.
    settings : iterable of str
        The same as text, ``"optimization.steps=50"``; the right side is read as YAML.

    Returns
    -------
    TrainConfig

    Raises
    ------
    RunError
        One line for each thing that is wrong: where it stands, the dotted key, what it is, what it
        must be.

    Examples
    --------
    >>> load_config(settings=["data.tasks=[maths, ocr]"]).data.tasks
    ['maths', 'ocr']
    >>> load_config("vlm-lora").model.lora.rank
    16
    """
    return _validated(_layers(path, overrides, settings), path)


def config_origins(
    path: _Paths = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[TrainConfig, dict[str, str]]:
    """Read a run's configuration, and tell where each of its values comes from.

    Parameters
    ----------
    path, overrides
        As of :func:`load_config`.

    Returns
    -------
    config : TrainConfig
    origins : dict of str to str
        Dotted key of each value -> ``"default"``, ``"preset NAME"``, ``"FILE:LINE"`` or
        ``"override"``; several where the entries of a mapping come from several places.

    Raises
    ------
    RunError
        As :func:`load_config`.

    Examples
    --------
    >>> _, origins = config_origins("vlm", {"seed": 3})
    >>> origins["seed"], origins["model.dtype"], origins["entropy.low"]
    ('override', 'preset vlm', 'default')
    """
    given = _layers(path, overrides)
    config = _validated(given, path)
    return config, {joined_key(parts): _origin(parts, given) for parts in _keys()}


def _layers(
    path: _Paths, overrides: Mapping[str, Any] | None, settings: Iterable[str] = ()
) -> list[_Value]:
    """Return all values that are given; later ones win."""
    presets, files = _presets_and_files(path)
    given = [value for file in files for value in _file_values(file, str(file))]
    for key, value in map(parse_setting, settings):
        given += _values(value, "--set ", "--set", split_key(key))
    for key, value in (overrides or {}).items():
        given += _values(value, "", "override", split_key(key))
    given = [*_preset_values(presets, given), *given]
    if _at(_merged(given), "model", "lora", "rank"):
        rate = ("optimization", "learning_rate")
        given.insert(0, _Value(rate, _ADAPTER_RATE, "", "default of adapters"))
    return given


def _presets_and_files(path: _Paths) -> tuple[list[str], list[Path]]:
    paths = [path] if isinstance(path, str | Path) else list(path or ())
    presets = [str(each) for each in paths if each in PRESETS]
    return presets, [Path(each) for each in paths if each not in PRESETS]


def _validated(given: Sequence[_Value], path: _Paths) -> TrainConfig:
    try:
        return TrainConfig.model_validate(_merged(given))
    except ValidationError as error:
        files = _presets_and_files(path)[1]
        place = f"{', '.join(map(str, files))}: " if files else ""
        lines = [_explain(details, given, place) for details in error.errors()]
        # Two values that a tuple lacks are two errors to Pydantic and one to a reader.
        raise RunError("\n".join(dict.fromkeys(lines))) from None


def dump_config(config: TrainConfig) -> str:
    """Return the configuration as YAML that `load_config` reads back to an equal one.

    Examples
    --------
    >>> dump_config(load_config(settings=["seed=7"])).splitlines()[0]
    'seed: 7'
    """
    values = config.model_dump(mode="json")
    return str(yaml.dump(values, Dumper=Dumper, sort_keys=False, width=100))


class Dumper(yaml.SafeDumper):
    """Writes mappings as blocks and lists on one line."""


Dumper.add_representer(
    list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, True)
)


def _file_values(path: Path, name: str) -> list[_Value]:
    """Return the values of a YAML file, each with its line."""
    content, lines = _read_yaml(path)
    return [
        value._replace(place=f"{name}:{lines[value.parts]}" if value.parts in lines else name)
        for value in _values(content, f"{name}: ", name)
    ]


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """Return the content of a YAML file, and the line of each of its fields and sections."""
    try:
        text = path.read_text(encoding="utf-8")
        values, lines = yaml.safe_load(text), dict(_lines(yaml.compose(text, yaml.SafeLoader)))
    except OSError as error:
        hint = did_you_mean(str(path), PRESETS)
        raise RunError(
            f"{path}: cannot be read ({error.strerror}); name a YAML file, or a preset"
            f"{hint} ({', '.join(PRESETS)})"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if values is None:  # an empty file changes nothing
        return {}, {}
    if not isinstance(values, dict):
        raise RunError(f"{path}: holds a {type(values).__name__}, but must hold keys with values")
    return values, lines


def _lines(
    node: yaml.Node | None, parts: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield the parts of the key of each field and section of a document, and its line from 1."""
    if isinstance(node, yaml.MappingNode) and _section(parts) is not None:
        for key, value in node.value:
            inner = (*parts, str(key.value))
            yield inner, key.start_mark.line + 1
            yield from _lines(value, inner)


def _preset_values(names: Sequence[str], given: Sequence[_Value]) -> list[_Value]:
    """Return the values of the presets, or of the one that belongs to the model in `given`."""
    if not names and _at(_merged(given), "model", "name") in (None, "builtin"):
        names = ["builtin"]
    values = [
        value._replace(place=f"preset {name}")
        for name in names
        for value in _file_values(PRESETS[name], name)
    ]
    source = _at(_merged(values), "data", "source")
    if _at(_merged([*values, *given]), "data", "source") == source:
        return values
    # Tasks of other data may have the same names, with answers of other lengths.
    return [value for value in values if joined_key(value.parts) not in TASK_KEYS]


def _values(content: Any, origin: str, place: str, parts: tuple[str, ...] = ()) -> Iterator[_Value]:
    """Yield the fields of a section one by one; anything else, such as a mapping, is one value."""
    if _section(parts) is None or not isinstance(content, dict):
        yield _Value(parts, content, origin, place)
        return
    for key, value in content.items():
        yield from _values(value, origin, place, (*parts, key))


def _merged(values: Iterable[_Value]) -> dict[str, Any]:
    """Return a nested mapping in which later values replace earlier ones."""
    merged: dict[str, Any] = {}
    for (*parents, last), value, *_ in values:
        place: Any = merged
        for parent in parents:
            place = place.setdefault(parent, {}) if isinstance(place, dict) else None
        if isinstance(place, dict):  # otherwise validation refuses the value in its place
            place[last] = deepcopy(value)
    return merged


def _origin(parts: tuple[str, ...], given: Iterable[_Value]) -> str:
    """Return where a value comes from: the last that gave it, and who changed entries of it."""
    found = ["default"]
    for each in given:
        if each.parts == parts[: len(each.parts)]:
            found = [each.place]
        elif each.parts[: len(parts)] == parts:
            found.append(each.place)
    return ", ".join(dict.fromkeys(found))


def _keys(section: type[Section] = TrainConfig, parts: tuple[str, ...] = ()) -> Iterator[Any]:
    """Yield the parts of the key of every value of a configuration."""
    for name in section.model_fields:
        inner = _section((*parts, name))
        if inner is None:
            yield (*parts, name)
        else:
            yield from _keys(inner, (*parts, name))


def _at(values: Any, *parts: str) -> Any:
    """Return a value of a nested mapping, or None."""
    for part in parts:
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _section(parts: Iterable[str]) -> type[Section] | None:
    """Return the section that a dotted key names, or None if it is another value or unknown."""
    section: type[Section] = TrainConfig
    for part in parts:
        field = section.model_fields.get(part)
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, Section)):
            return None
        section = annotation
    return section


def _explain(details: ErrorDetails, given: Sequence[_Value], files: str) -> str:
    """Return a line for one of Pydantic's errors: origin, key, value, and what it must be."""
    loc = tuple(str(part) for part in details["loc"])
    key = clipped(joined_key(loc))
    origins = [each.origin for each in given if loc[: len(each.parts)] == each.parts]
    where = origins[-1] if origins else files
    context = details.get("ctx", {})
    # A dot in a name took it apart, so that there is a mapping where its value belongs.
    is_split = _section(loc) is None and any(loc == each.parts[: len(loc)] for each in given)
    is_deeper = is_split and isinstance(details["input"], dict) and "." in key
    hint = f"; {QUOTING}" if is_deeper else ""
    if details["type"] == "extra_forbidden":
        section = _section(loc[:-1]) or TrainConfig
        return f"{where}{key}: unknown key{did_you_mean(loc[-1], section.model_fields)}"
    if details["type"] == "value_error":  # our own text, complete in itself
        text = clipped(str(context["error"]), 800)
        if key:
            return f"{where}{key}: {text}{hint}"
        return "\n".join(f"{files}{line}" for line in text.splitlines())
    value = shown(details["input"])
    if details["type"] == "literal_error":
        return f"{where}{key} is {value}, but must be {context['expected']}"
    if details["type"] == "missing":  # the only fields without a default are those of a tuple
        return f"{where}{joined_key(loc[:-1])} is {value}, but has too few values"
    wish = _WISHES.get(details["type"]) or details["msg"].replace("Input should ", "must ")
    return f"{where}{key} is {value}, but {wish}{hint}"


_WISHES = {
    "list_type": "must be a list, such as [maths, ocr]",
    "model_type": "must be a section with keys of its own",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "too_short": "must have at least one entry",
    "too_long": "has too many values",
}
