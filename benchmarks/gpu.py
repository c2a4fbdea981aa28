"""All that is to be measured and checked on a GPU, in one command of at most eight minutes.

    python benchmarks/gpu.py                # on the first GPU
    python benchmarks/gpu.py --rehearse     # tiny sizes on the CPU: a test of this script
    python benchmarks/gpu.py --part head --part adamw

Each part runs in a process of its own under its own time limit, prints one line of JSON and depends
on no other. A part that lacks a package says so. No part needs the network.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Seconds of each part; together eight minutes.
LIMITS = {
    "versions": 15,
    "attention": 35,
    "tests": 60,
    "repeats": 50,
    "ratios": 30,
    "decoding": 40,
    "compiled": 45,
    "update": 35,
    "blocks": 45,
    "head": 40,
    "adamw": 25,
    "advantages": 15,
    "builtin": 45,
}
# A CPU takes longer to begin.
REHEARSAL = 240


def main() -> None:
    """Run the parts one after the other, or one of them in this process."""
    options = _options()
    if options.one:
        print(json.dumps(_measured(options.one, rehearse=options.rehearse)))
        return
    for name in options.part or LIMITS:
        print(json.dumps(_run(name, rehearse=options.rehearse)), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=LIMITS, action="append", help="this part; repeatable")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--one", choices=LIMITS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(name: str, *, rehearse: bool) -> dict[str, Any]:
    """Run a part in a process of its own; return what it found or why it did not."""
    command = [sys.executable, __file__, "--one", name, *(["--rehearse"] if rehearse else [])]
    root = Path(__file__).parents[1]
    folders = [str(root / each) for each in ("", "adapters", "trainer", "cli")]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")]),
    }
    limit = REHEARSAL if rehearse else LIMITS[name]
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=root,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"part": name, "error": f"not done after {limit} s"}
    seconds = round(time.monotonic() - started, 1)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"part": name, "seconds": seconds, "error": reason[:500]}
    return {"part": name, "seconds": seconds, **json.loads(lines[-1])}


def _measured(name: str, *, rehearse: bool) -> dict[str, Any]:
    from _gpu_parts import PARTS
    from _gpu_tools import Sizes

    try:
        return PARTS[name](Sizes.of(rehearse))
    except ImportError as error:
        return {"skipped": str(error)}


if __name__ == "__main__":
    main()
