"""Errors that a user can put right in a run's configuration or folder, and lack of memory."""

__all__ = ["RunError", "SharedError", "ran_out_of_memory"]

# The types that libraries raise for lack of memory; others can only be told by their texts.
_MEMORY_TYPES = {"MemoryError", "OutOfMemoryError"}
_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "RESOURCE_EXHAUSTED")


class RunError(ValueError):
    """A run cannot start or go on as configured; the text names the remedy.

    The command line prints it without a traceback, so its text must stand alone.
    """


class SharedError(RunError):
    """An error that ends all ranks of a run alike, so that one of them reports it."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether the memory of the device or of the machine ran out.

    Examples
    --------
    >>> ran_out_of_memory(RuntimeError("CUDA error: out of memory"))
    True
    >>> ran_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    False
    """
    types = {kind.__name__ for kind in type(error).__mro__}
    return bool(types & _MEMORY_TYPES) or any(text in str(error) for text in _MEMORY_TEXTS)
