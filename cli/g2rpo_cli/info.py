"""``g2rpo info``: versions, devices, and which extras are installed."""

import json
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Annotated, Any

import typer

from g2rpo_cli._errors import need, reported

# Beside the requirements of the extras: what a run or a bug report depends on.
_SHOWN = ("numpy", "torch", "transformers", "peft", "accelerate", "trl", "verl", "vllm", "jax")


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show versions, devices with their memory, and which extras are installed.

    For an extra that lacks something it names what, and the command that installs it.
    """
    need("g2rpo info", "packaging", "psutil", "rich", extra="cli")
    with reported():
        found = {
            "versions": _versions(),
            "devices": list(_devices()),
            "extras": _extras(),
        }
        if as_json:
            typer.echo(json.dumps(found, indent=2))
        else:
            _show(found)


def _versions() -> dict[str, str | None]:
    """Return the versions of this package, Python, the system, and of libraries; None if absent."""
    import g2rpo

    return {
        "g2rpo": g2rpo.__version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.platform(terse=True),
        **{name: _version(name) for name in _SHOWN},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[dict[str, Any]]:
    """Yield name and memory [bytes] of the CPU and of each GPU that PyTorch sees."""
    import psutil

    from g2rpo._extras import missing_modules

    memory, cores = psutil.virtual_memory(), f"{os.cpu_count()} cores"
    yield {"device": "cpu", "name": cores, "free": memory.available, "total": memory.total}
    if missing_modules("torch"):
        return
    import torch

    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        yield {"device": f"cuda:{number}", "name": name, "free": free, "total": total}
    if torch.backends.mps.is_available():
        yield {"device": "mps", "name": "shares the memory of the CPU"}


def _extras() -> dict[str, dict[str, Any]]:
    """Return of each extra what is missing, and the command that installs it; {} if unknown."""
    try:
        extras = metadata.metadata("g2rpo").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:  # run from its source, and not installed
        return {}
    found = {}
    for extra in extras:
        missing = list(dict.fromkeys(_missing(extra)))
        command = f'pip install "g2rpo[{extra}]"' if missing else None
        found[extra] = {"missing": missing, "command": command}
    return found


def _missing(extra: str) -> Iterator[str]:
    """Yield what an extra requires and is not installed, or not in a version that will do."""
    from packaging.requirements import Requirement

    for text in metadata.requires("g2rpo") or []:
        needed = Requirement(text)
        if needed.marker is None or not needed.marker.evaluate({"extra": extra}):
            continue
        if needed.name == "g2rpo":
            for inner in needed.extras:
                yield from _missing(inner)
            continue
        version = _version(needed.name)
        if version is None:
            yield needed.name
        elif not needed.specifier.contains(version, prereleases=True):
            yield f"{needed.name}{needed.specifier} ({version} is installed)"


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    versions = Table(box=None, show_header=False, pad_edge=False)
    versions.add_column()
    versions.add_column(overflow="fold")
    for name, version in found["versions"].items():
        versions.add_row(name, escape(version or "–"))
    devices = Table("device", "name", box=None, pad_edge=False)
    for heading in ("free", "of [GiB]"):
        devices.add_column(heading, justify="right")
    for each in found["devices"]:
        sizes = (f"{each[key] / 2**30:.1f}" if key in each else "–" for key in ("free", "total"))
        devices.add_row(each["device"], escape(each["name"]), *sizes)
    extras = Table("extra", box=None, pad_edge=False)
    extras.add_column("missing", overflow="fold")
    for name, extra in found["extras"].items():
        missing = escape(", ".join(extra["missing"]))
        text = f"{missing}\n{escape(extra['command'])}" if missing else "nothing"
        extras.add_row(name, text)
    for table in (versions, devices, extras):
        if table.row_count:
            console.print(table, "")
    if not found["extras"]:
        console.print("extras: unknown, as g2rpo is run from its source and is not installed")
