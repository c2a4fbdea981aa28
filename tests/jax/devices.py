"""A process with eight devices on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(script: Path, *arguments: str) -> str:
    """Run a script and return what it prints; fail if it fails."""
    settings = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    result = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout
