"""Output of all benchmarks: machine, versions, and tables in Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


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


def earlier_rows(output: Path | None, conditions: str) -> list[list[str]]:
    """Return the cells of the table in a report of the same conditions; [] without one."""
    text = output.read_text(encoding="utf-8") if output and output.exists() else ""
    lines = text.splitlines() if conditions in text else []
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]


def publish(text: str, output: Path | None) -> None:
    """Print a report, and write it if there is a file for it."""
    print(text)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")


def _version(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return ""
