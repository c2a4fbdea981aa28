"""Count what holds of the promises about faults and bad input, and write a table.

    python -m tests.faults                                             # an hour or two
    python -m tests.faults kills damage                                # some parts alone
    python -m tests.faults --share .02                                 # a look, minutes
    python -m tests.faults --workers 2                                 # two parts at a time
    python -m tests.faults --long --output benchmarks/results/faults.md  # for the night

With ``--output PAGE.md`` the counts of each part are stored as it ends, in ``PAGE/PART.json``; the
page is made of all that are stored, so that parts may run one by one, or at the same time. With
``--continue`` parts that are stored already are left out. With ``--workers`` several parts run at
the same time, each in a process; ``soak`` measures time, so it runs alone in the end.

The exit status is 1 if any promise was broken, or could not be tried on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from . import broken_rewards, numbers, outside, races, runs, soak, stops, text
from .count import Count, NotPossible, Result, as_markdown, as_table

PARTS = {
    "batches": numbers.reward_batches,
    "losses": numbers.losses,
    "rewards": broken_rewards.run_with_broken_rewards,
    "kills": runs.kills,
    "damage": runs.damaged_checkpoints,
    "signals": stops.signals,
    "disk": stops.disk,
    "generation": stops.generation,
    "workers": outside.reward_workers,
    "trackers": outside.trackers,
    "processes": outside.one_of_two_processes_dies,
    "races": races.races,
    "responses": text.responses,
    "records": text.records,
    "images": text.images,
    "settings": text.settings,
    "folders": text.run_folders,
    "soak": soak.soak,
}
MEASURE_TIME = {"soak"}


def main() -> int:
    """Run the parts, show what each found, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(PARTS)}; all by default")
    parser.add_argument("--long", action="store_true", help="ten times as many tries")
    parser.add_argument("--share", type=float, default=1.0, help="part of the tries, for a look")
    parser.add_argument("--workers", type=int, default=1, help="parts that run at the same time")
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    parser.add_argument(
        "--continue", dest="goes_on", action="store_true", help="leave out parts that are stored"
    )
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if options.goes_on and not options.output:
        parser.error("--continue needs --output, whose stored parts it leaves out")
    # A shell starts background processes with Ctrl-C ignored, which the runs would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    names, results = options.parts or list(PARTS), list[Result]()
    folder = options.output and options.output.with_suffix("")
    if options.goes_on:
        names = [name for name in names if not (folder / f"{name}.json").exists()]
    for result in run_all(names, options.share * (10 if options.long else 1), options.workers):
        results.append(result)
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(result.to_json(), indent=2) + "\n"
            (folder / f"{result.part}.json").write_text(text, encoding="utf-8")
            write_page(options.output)
    Console().print(as_table([count for result in results for count in result.counts]))
    return int(any(result.is_broken for result in results))


def run_all(names: Sequence[str], share: float, workers: int) -> Iterator[Result]:
    """Yield the results of parts as they end; parts that measure time run alone."""
    together = [name for name in names if workers > 1 and name not in MEASURE_TIME]
    if together:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            for future in as_completed([pool.submit(run, name, share) for name in together]):
                yield future.result()
    for name in names:
        if name not in together:
            with Console().status(f"{name} …"):
                yield run(name, share)


def run(name: str, share: float) -> Result:
    """Return the counts of a part; show what it found."""
    console, started = Console(), time.monotonic()
    try:
        found = list(PARTS[name](share))
    except NotPossible as reason:
        found = [Count(f"{name}: not possible here", figure=str(reason))]
        console.print(f"NOT POSSIBLE HERE: {name}: {reason}", markup=False, style="red")
    except Exception as error:
        found = [Count(f"{name}: the test itself goes on to its end")]
        with found[0].trying():
            raise error
    for count in found:
        for example in count.broken[:3]:
            console.print(f"{count.promise}: {example}", markup=False, style="red")
    seconds = time.monotonic() - started
    console.print(f"{name}: {seconds:.0f} s", highlight=False)
    load = os.getloadavg()[1]
    place = (
        f"{date.today()}, Python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} cores, load {load:.1f}"
    )
    return Result(name, found, share, seconds, place)


def write_page(page: Path) -> None:
    """Write the page of all parts that are stored beside it, and of ``notes.md`` there."""
    files = {path.stem: path for path in page.with_suffix("").glob("*.json")}
    results = [
        Result.from_json(json.loads(files[name].read_text(encoding="utf-8")))
        for name in PARTS
        if name in files
    ]
    notes = page.with_suffix("") / "notes.md"
    text = notes.read_text(encoding="utf-8") if notes.exists() else ""
    page.write_text(f"{as_markdown(results)}{text and chr(10)}{text}", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
