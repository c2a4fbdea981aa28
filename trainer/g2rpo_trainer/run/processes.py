"""What the shared loop asks of the processes that carry out a run together."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Processes(Protocol):
    """The processes that run the same code in the same order, seen from one of them."""

    @property
    def size(self) -> int:
        """Return how many there are."""
        ...

    @property
    def is_main(self) -> bool:
        """Return whether this one shows the run and writes its folder."""
        ...

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is set on any process; all of them have to ask."""
        ...

    def together(self) -> AbstractContextManager[None]:
        """Let all processes fail if one does, and wait for each other at the end."""
        ...


class OneProcess:
    """A process that trains by itself.

    Examples
    --------
    >>> alone = OneProcess()
    >>> alone.size, alone.is_main, alone.any(False)
    (1, True, False)
    """

    size = 1
    is_main = True

    def any(self, flag: bool) -> bool:
        """Return the flag."""
        return flag

    def together(self) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()
