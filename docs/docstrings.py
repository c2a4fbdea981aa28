"""Read the markup of docstrings: roles such as ``:func:`x``` and formulas become Markdown."""

import re
import textwrap
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?([^`]+)`")
_INLINE = re.compile(r":math:`([^`]+)`")
# The formula follows on the same line and on lines that are indented further.
_BLOCK = re.compile(r"^( *)\.\. math::(.*(?:\n\1 +.*)*)", re.MULTILINE)


class Markup(griffe.Extension):
    """Rewrite every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """Return a docstring with Markdown in place of roles and formulas."""
    text = _BLOCK.sub(lambda found: f"{found[1]}$${_joined(found[2])}$$", text)
    text = _INLINE.sub(lambda found: f"${_joined(found[1])}$", text)
    return _ROLE.sub(_link, text)


def _joined(formula: str) -> str:
    return " ".join(textwrap.dedent(formula).split())


def _link(found: re.Match[str]) -> str:
    # A link where the name has a place on the site, its text alone otherwise.
    name = found[1]
    return f'<autoref identifier="{name}" optional><code>{name}</code></autoref>'
