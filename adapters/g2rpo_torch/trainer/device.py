"""Where the policy runs."""

from __future__ import annotations

import torch

from g2rpo.run.errors import RunError


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
