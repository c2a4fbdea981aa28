"""Where the policy runs, and what to do when it does not fit there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from g2rpo.run.errors import RunError
from g2rpo.run.failures import ran_out_of_memory


def resolve_device(name: str) -> torch.device:
    """Return the device that a run's description names.

    Parameters
    ----------
    name : str
        ``"auto"`` for a GPU if there is one and the CPU otherwise, or a PyTorch device.

    Returns
    -------
    torch.device

    Raises
    ------
    RunError
        If this machine does not have the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    available = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= available:
        raise RunError(
            f"--device is {name!r}, but this machine has {available} {device.type} devices; "
            "leave it out, or name cpu"
        )
    return device


@contextmanager
def memory_advice(doing: str, *remedies: str) -> Iterator[None]:
    """Turn an out-of-memory error into one that says what to change.

    Parameters
    ----------
    doing : str
        What happens inside, such as ``"loading the model"``.
    *remedies : str
        What takes less memory, such as ``"model.dtype: bfloat16"``.

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
    g2rpo.run.errors.RunError: out of memory in counting; try count less
    """
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        detail = str(error).partition(". ")[0].partition("\n")[0]
        text = f"out of memory in {doing}" + (f" ({detail})" if detail else "")
        raise RunError(f"{text}; try {', '.join(remedies)}") from error
