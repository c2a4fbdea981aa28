"""The error of everything that a user can put right in a run's configuration or folder."""

__all__ = ["RunError", "SharedError"]


class RunError(ValueError):
    """A run cannot start as described; the text says what to change.

    The command line prints it without a traceback, so its text must stand alone.
    """


class SharedError(RunError):
    """An error that ends all processes of a run alike, so that one of them tells it."""
