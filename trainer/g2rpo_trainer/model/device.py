"""Where the policy runs, and what to do when it does not fit there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from g2rpo_trainer.errors import RunError, ran_out_of_memory
from g2rpo_trainer.launch import Launch


def resolve_device(name: str) -> torch.device:
    """Return the device that a run's configuration names.

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
        If this machine does not have the device, or not one for each process.

    Notes
    -----
    Of several processes on a machine each takes a GPU of its own.
    """
    launch = Launch.read()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() and not launch.on_cpu else "cpu"
    device = torch.device(name)
    if launch.size > 1 and device.type != "cpu":
        return _own_device(name, device, launch)
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


def _own_device(name: str, device: torch.device, launch: Launch) -> torch.device:
    available = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.index is not None or launch.local_size > available:
        raise RunError(
            f"--device is {name!r} in {launch.local_size} processes on a machine with {available} "
            "cuda devices; start as many processes as it has devices and name cuda, or name cpu"
        )
    return torch.device("cuda", launch.local_rank)


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
