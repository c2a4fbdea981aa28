"""Errors that a user can put right in a run's configuration or folder, and lack of memory."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["RunError", "SharedError", "memory_advice", "ran_out_of_memory"]

# Types of errors for lack of memory; other errors are recognised by their texts.
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


@contextmanager
def memory_advice(doing: str, *remedies: str) -> Iterator[None]:
    """Turn an out-of-memory error into a `RunError` with remedies.

    Parameters
    ----------
    doing : str
        Name of the work inside the context, such as ``"loading the model"``.
    *remedies : str
        Settings that take less memory, such as ``"model.dtype: bfloat16"``.

    Raises
    ------
    RunError
        In place of the error of PyTorch or Python.

    Examples
    --------
    >>> with memory_advice("counting", "count less"):
    ...     raise MemoryError
    Traceback (most recent call last):
        ...
    g2rpo_trainer.errors.RunError: out of memory in counting; try count less
    """
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        detail = str(error).partition(". ")[0].partition("\n")[0]
        text = f"out of memory in {doing}" + (f" ({detail})" if detail else "")
        raise RunError(f"{text}; try {', '.join(remedies)}") from error
