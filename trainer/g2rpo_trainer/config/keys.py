"""Dotted keys of a run's configuration, such as ``rollout.limits.ocr``.

A name with a dot, an equals sign or a quote in it is written in brackets and quotes, as in Python:
``rollout.limits["v1.5"]``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import yaml

from g2rpo._shown import shown
from g2rpo_trainer.errors import RunError

QUOTING = 'a name with a dot in it stands in brackets and quotes: rollout.limits["v1.5"]=30'

_PLAIN = r"""(?:[^.=\[]|\[(?!["']))+"""
_QUOTED = r"""\["(?:[^"\\]|\\.)*"\]|\['[^']*'\]"""
_PART = re.compile(rf"{_QUOTED}|{_PLAIN}")
_KEY = re.compile(rf"{_PLAIN}(?:{_QUOTED}|\.{_PLAIN})*\s*")


def split_key(key: str) -> tuple[str, ...]:
    """Return the parts of a dotted key.

    Raises
    ------
    RunError
        If the text is no dotted key.

    Examples
    --------
    >>> split_key("rollout.limits.ocr"), split_key('rollout.limits["v1.5"]')
    (('rollout', 'limits', 'ocr'), ('rollout', 'limits', 'v1.5'))
    """
    if not _KEY.fullmatch(key) or not key.strip():
        raise RunError(f"{shown(key)} is no dotted key, such as optimization.steps; {QUOTING}")
    return tuple(_part(found) for found in _PART.findall(key))


def joined_key(parts: Iterable[object]) -> str:
    """Return the dotted key of its parts.

    Examples
    --------
    >>> joined_key(["rollout", "limits", "v1.5"])
    'rollout.limits["v1.5"]'
    """
    key = ""
    for part in map(str, parts):
        if re.fullmatch(_PLAIN, part) and part == part.strip():
            key += f".{part}" if key else part
        else:
            key += f"[{json.dumps(part, ensure_ascii=False)}]"
    return key


def parse_setting(text: str, option: str = "--set ") -> tuple[str, Any]:
    """Return the dotted key and the value of ``KEY=VALUE``; the value is read as YAML.

    Raises
    ------
    RunError
        If there is no ``=``, or the key or the value cannot be read. The text begins with
        ``option``, by which the setting was given.

    Examples
    --------
    >>> parse_setting('rollout.limits["a=b"]=30')
    ('rollout.limits["a=b"]', 30)
    """
    key = _KEY.match(text)
    if key is None or not key[0].strip() or text[key.end() : key.end() + 1] != "=":
        raise RunError(
            f"{option}{shown(text)} must be KEY=VALUE with a dotted key, such as "
            f"optimization.steps=50; {QUOTING}"
        )
    value = text[key.end() + 1 :]
    try:
        return joined_key(split_key(key[0])), yaml.safe_load(value)
    except yaml.YAMLError:
        raise RunError(f"{option}{shown(text)}: {shown(value)} is not a YAML value") from None


def _part(found: str) -> str:
    if found.startswith('["'):
        try:
            return str(json.loads(found[1:-1]))
        except ValueError:
            raise RunError(f"{found} in a dotted key is no text in quotes") from None
    return found[2:-2] if found.startswith("['") else found.strip()
