"""Values and texts for error messages, shortened."""

from collections.abc import Iterable
from reprlib import Repr

__all__ = ["clipped", "error_text", "listed", "shown", "visible"]

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_LONGEST = 400
_NAMES = 20
# Tab and line feed stay. C1 controls, with which some terminals begin a command too, have no
# symbols of their own.
_SYMBOLS = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}
_SYMBOLS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def shown(value: object) -> str:
    """Return ``repr(value)``, shortened, on one line.

    Examples
    --------
    >>> shown("a.png"), len(shown("x" * 10**6)), shown(list(range(9)))
    ("'a.png'", 200, '[0, 1, 2, 3, 4, 5, ...]')
    """
    try:
        return clipped(" ".join(_SHORT.repr(value).splitlines()))
    except ValueError:  # a whole number with too many digits to be written
        return f"a number of type {type(value).__name__}"


def clipped(text: str, longest: int = _LONGEST) -> str:
    """Return a text without its middle if it is too long; the end often names the remedy.

    Examples
    --------
    >>> clipped("0123456789", 5), clipped("01234", 5)
    ('01…89', '01234')
    """
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}…{text[-half:]}"


def error_text(error: BaseException, longest: int = _LONGEST) -> str:
    r"""Return the text of an error on one line, shortened; the name of its type if it has none.

    Examples
    --------
    >>> error_text(ValueError("bad\n  value")), error_text(MemoryError())
    ('bad value', 'MemoryError')
    """
    return clipped(" ".join(str(error).split()), longest) or type(error).__name__


def typed_error_text(error: BaseException) -> str:
    """Return the name of an error's type and its text, on one line and shortened.

    Examples
    --------
    >>> typed_error_text(KeyError("colour"))
    "KeyError: 'colour'"
    """
    return f"{type(error).__name__}: {error_text(error)}"


def listed(names: Iterable[object]) -> str:
    """Return names with commas between them, the first ones of many.

    Examples
    --------
    >>> listed(["ocr", "maths"]), listed(range(100))[-14:]
    ('ocr, maths', '19 and 80 more')
    """
    texts = [clipped(str(name), 60) for name in names]
    more = f" and {len(texts) - _NAMES} more" if len(texts) > _NAMES else ""
    return ", ".join(texts[:_NAMES]) + more


def visible(text: str) -> str:
    r"""Return a text that can be shown: control characters as symbols, so that none is obeyed.

    Examples
    --------
    >>> visible("\x1b[31mred\r\nnext\x9b\udc80"), visible("a\tb")
    ('␛[31mred\nnext�?', 'a\tb')
    """
    text = text.replace("\r\n", "\n").translate(_SYMBOLS)
    # Half a pair of surrogates, which JSON can hold, cannot be written.
    return text.encode("utf-8", "replace").decode("utf-8")
