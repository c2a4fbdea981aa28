"""Count what holds of the promises about faults and bad input, and write a table.

    python -m tests.faults                                             # minutes
    python -m tests.faults kills damage                                # some parts alone
    python -m tests.faults --long --output benchmarks/results/faults.md  # for the night

The exit status is 1 if any promise was broken.
"""

from __future__ import annotations

import argparse
import platform
import time
from datetime import date
from pathlib import Path

from rich.console import Console

from . import numbers, runs, text
from .count import Count, as_markdown, as_table

PARTS = {
    "batches": numbers.reward_batches,
    "losses": numbers.losses,
    "rewards": numbers.run_with_broken_rewards,
    "kills": runs.kills,
    "damage": runs.damaged_checkpoints,
    "races": runs.two_in_one_folder,
    "processes": runs.one_of_two_processes_dies,
    "responses": text.responses,
    "records": text.records,
    "images": text.images,
    "settings": text.settings,
    "folders": text.run_folders,
}


def main() -> int:
    """Run the parts in turn, show what each found, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(PARTS)}; all by default")
    parser.add_argument("--long", action="store_true", help="ten times as many tries")
    parser.add_argument("--share", type=float, default=1.0, help="part of the tries, for a look")
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    share = options.share * (10 if options.long else 1)
    console, counts = Console(), list[Count]()
    for name in options.parts or PARTS:
        started = time.monotonic()
        with console.status(f"{name} …"):
            found = list(PARTS[name](share))
        for count in found:
            for example in count.broken[:3]:
                console.print(f"{count.promise}: {example}", markup=False, style="red")
        console.print(f"{name}: {time.monotonic() - started:.0f} s", highlight=False)
        counts += found
    console.print(as_table(counts))
    if options.output:
        machine = f"{date.today()}, Python {platform.python_version()}, {platform.machine()}"
        options.output.write_text(as_markdown(counts, machine), encoding="utf-8")
    return int(any(count.broken for count in counts))


if __name__ == "__main__":
    raise SystemExit(main())
