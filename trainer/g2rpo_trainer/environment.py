"""Versions and device with which a run is trained, for its report."""

from __future__ import annotations

import platform
import sys

import torch

import g2rpo

__all__ = ["environment"]

# Those that decide what a run computes.
_PACKAGES = ("numpy", "peft", "torch", "transformers", "vllm")


def environment(device: torch.device, processes: int) -> dict[str, str]:
    """Return versions by package, Python's and the system's, and the device, as texts.

    Examples
    --------
    >>> found = environment(torch.device("cpu"), 2)
    >>> found["device"], found["processes"], found["g2rpo"] == g2rpo.__version__
    ('cpu', '2', True)
    """
    modules = {name: sys.modules.get(name) for name in _PACKAGES}
    loaded = {
        name: str(getattr(module, "__version__", "unknown"))
        for name, module in modules.items()
        if module is not None
    }
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "g2rpo": g2rpo.__version__,
        **loaded,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": name,
        "processes": str(processes),
    }
