"""Answer the questions by simulation, and write tables and pictures with intervals.

    python -m benchmarks.evidence                                 # all
    python -m benchmarks.evidence equity ties --seeds 20          # some, for a look
    python -m benchmarks.evidence --output evidence.md --pictures images

A cell (a setting at some seeds) that is in ``--cache`` is read, not run again; after a change of
the code, name another folder. Differences are paired by seed; intervals are 95 %, by bootstrap over
seeds.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks._report import measured_on

from .cells import CHUNK, Cells
from .distribution import measure_all
from .distribution import section as distribution
from .pictures import draw
from .questions import QUESTIONS, RATES, Question
from .simulator import Setting
from .tables import LEGEND, section

CHOOSING = 10_000  # the first of the seeds that learning rates are chosen on


def main() -> None:
    """Run what is missing, and write the report."""
    names = (*QUESTIONS, "distribution")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="*", help=f"any of: {', '.join(names)}")
    parser.add_argument("--seeds", type=int, default=200, help=f"reported, in steps of {CHUNK}")
    parser.add_argument("--choosing", type=int, default=20, help="seeds to choose rates on")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--cache", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--output", type=Path, help="Markdown file; the numbers go beside it")
    parser.add_argument("--pictures", type=Path, help="folder")
    options = parser.parse_args()
    if unknown := set(options.questions) - set(names):
        parser.error(f"no question {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    for name in ("seeds", "choosing"):
        if (number := getattr(options, name)) < CHUNK or number % CHUNK:
            parser.error(f"--{name} must be a multiple of {CHUNK}, got {number}")
    asked = options.questions or names
    chosen = {name: QUESTIONS[name] for name in asked if name in QUESTIONS}
    cells = Cells(options.cache, options.steps, options.workers)
    final = run_questions(chosen, cells, options.seeds, options.choosing)
    found = {
        name: {label: cells.read(setting, options.seeds) for label, setting in of.items()}
        for name, of in final.items()
    }
    clean = {
        name: {label: cells.read(setting, options.seeds) for label, setting in of.clean.items()}
        for name, of in chosen.items()
    }
    texts = [section(name, chosen[name], final[name], found[name], clean[name]) for name in chosen]
    distances = measure_all() if "distribution" in asked else None
    if distances is not None:
        texts.append(distribution(distances))
    command = f"python -m benchmarks.evidence --seeds {options.seeds} --steps {options.steps}"
    conditions = f"`{command}`. {measured_on(packages=['numpy', 'torch'])}"
    page = "\n\n".join(["# Evidence by simulation", conditions, LEGEND, *texts]) + "\n"
    Console(width=250).print(page, markup=False, highlight=False)
    if options.output:
        options.output.write_text(page, encoding="utf-8")
        numbers = {
            name: {
                label: each["tasks"].mean(axis=1).round(3).tolist() for label, each in of.items()
            }
            for name, of in found.items()
        }
        record = {"steps": options.steps, "seeds": options.seeds, "rewards": numbers}
        options.output.with_suffix(".json").write_text(json.dumps(record), encoding="utf-8")
    if options.pictures:
        draw(options.pictures, found, distances)


def run_questions(
    questions: dict[str, Question], cells: Cells, seeds: int, choosing: int
) -> dict[str, dict[str, Setting]]:
    """Run all cells, and return the settings that are reported, at the rates that were chosen."""
    rated = [
        s for question in questions.values() if question.rates for s in question.settings.values()
    ]
    trials = [replace(setting, learning_rate=rate) for setting in rated for rate in RATES]
    cells.fill(trials, range(CHOOSING, CHOOSING + choosing, CHUNK))

    def best(setting: Setting) -> Setting:
        candidates = [replace(setting, learning_rate=rate) for rate in RATES]
        return max(candidates, key=lambda s: cells.read(s, choosing, CHOOSING)["tasks"].mean())

    final = {
        name: {n: best(s) if question.rates else s for n, s in question.settings.items()}
        for name, question in questions.items()
    }
    clean = [s for question in questions.values() for s in question.clean.values()]
    every = [s for settings in final.values() for s in settings.values()]
    cells.fill([*every, *clean], range(0, seeds, CHUNK))
    return final


if __name__ == "__main__":
    main()
