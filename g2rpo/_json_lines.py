"""Lines of JSON, as files of rewards and of records have them."""

from __future__ import annotations

import json
from typing import Any


def parse_object(line: str) -> dict[str, Any]:
    """Return the object that a line of JSON is; `ValueError` says what the line is instead.

    Examples
    --------
    >>> parse_object('{"problem": "2+2?"}')
    {'problem': '2+2?'}
    """
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, character {error.pos + 1}"
        raise ValueError(f"is not JSON ({reason}); a line must be an object") from None
    except (ValueError, RecursionError) as error:  # a number too long, lists too deep
        raise ValueError(f"cannot be read ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"is a JSON {type(row).__name__}, but must be an object")
    return row
