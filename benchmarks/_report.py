"""Output of all benchmarks: machine, versions, and tables in Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version

__all__ = ["markdown_table", "measured_on"]


def measured_on(device: str = "cpu", packages: Iterable[str] = ()) -> str:
    """Return one sentence with the date, the machine and the versions of a measurement."""
    if device.startswith("cuda"):
        import torch

        machine = torch.cuda.get_device_name(device)
    else:
        machine = f"{os.cpu_count()} cores ({platform.machine()})"
    versions = ", ".join(found for name in packages if (found := _version(name)))
    return f"Measured on {date.today()} on {machine}" + (f" with {versions}." if versions else ".")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are figures."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *rows])


def _version(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return ""
