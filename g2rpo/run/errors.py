"""The error of everything that a user can put right in a run's description or folder."""

__all__ = ["RunError"]


class RunError(ValueError):
    """A run cannot start as described; the text says what to change.

    The command line prints it without a traceback, so its text must stand alone.
    """
