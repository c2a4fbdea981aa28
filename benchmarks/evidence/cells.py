"""Results of settings at chunks of seeds, kept as JSON files, so that a broken run goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.progress import Progress

from .policies import cold_start
from .simulator import Setting, run
from .world import Floats, World

CHUNK = 20  # seeds of one cell
BATCH = 6  # cells of one job: they share their cold start


class Cells:
    """A cell is one setting at ``CHUNK`` seeds, for a number of steps.

    Parameters
    ----------
    folder : Path
        Of the files.
    steps : int
        Of training.
    workers : int
        Processes.
    """

    def __init__(self, folder: Path, steps: int, workers: int) -> None:
        self.folder, self.steps, self.workers = folder, steps, workers
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, setting: Setting, first: int) -> Path:
        """Return the file of a cell."""
        return self.folder / f"{key(setting)}-{self.steps}-{first}.json"

    def fill(self, settings: Iterable[Setting], firsts: Iterable[int]) -> None:
        """Run the cells that have no file, chunk by chunk."""
        settings = list(settings)
        missing: dict[int, dict[str, Setting]] = defaultdict(dict)
        for first in firsts:
            for setting in settings:
                if not self.path(setting, first).exists():
                    missing[first][key(setting)] = setting
        jobs = [
            (list(found.values())[start : start + BATCH], first)
            for first, found in missing.items()
            for start in range(0, len(found), BATCH)
        ]
        with Progress(disable=not jobs) as progress:
            task = progress.add_task("cells", total=sum(len(batch) for batch, _ in jobs))
            for finished in self._finished(jobs):
                progress.advance(task, finished)

    def _finished(self, jobs: list[tuple[list[Setting], int]]) -> Iterator[int]:
        """Run jobs, and yield the number of cells of each when it is done."""
        if self.workers == 1:
            yield from (self.run_cells(*job) for job in jobs)
            return
        # PyTorch's threads do not survive a fork.
        with ProcessPoolExecutor(self.workers, get_context("spawn")) as pool:
            futures = [pool.submit(self.run_cells, *job) for job in jobs]
            yield from (future.result() for future in as_completed(futures))

    def run_cells(self, settings: list[Setting], first: int) -> int:
        """Run settings from the same cold start, write each when it is done, and count them."""
        import torch

        torch.set_num_threads(1)  # one core a process
        world = World(range(first, first + CHUNK))
        start = cold_start(world)
        for setting in settings:
            found = measure(setting, world, start, self.steps)
            path = self.path(setting, first)
            partial = path.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps({n: v.tolist() for n, v in found.items()}), "utf-8")
            partial.replace(path)
        return len(settings)

    def read(self, setting: Setting, seeds: int, first: int = 0) -> dict[str, Floats]:
        """Return the columns of a setting, a row a seed."""
        parts = [
            json.loads(self.path(setting, number).read_text("utf-8"))
            for number in range(first, first + seeds, CHUNK)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def measure(setting: Setting, world: World, start: Floats, steps: int) -> dict[str, Floats]:
    """Train, and return the columns that the tables are made of, a row a seed.

    ``tasks`` (S, K) is the held-out reward in the end, ``curve`` (S, E) its mean over tasks,
    ``norms`` (S, K) the mean gradient norm of each task, ``entropy`` (S, E) the mean over tasks
    every ten steps, ``outside`` (S,) how far tasks end from the entropy band, in nats.
    """
    found = run(setting, world, start, steps)
    low, high = setting.entropy_band
    last = found["entropy"][:, -10:].mean(axis=1)
    return {
        "tasks": found["curve"][:, -1].round(6),
        "curve": found["curve"].mean(axis=2).round(6),
        "norms": found["norms"].mean(axis=1).round(8),
        "entropy": found["entropy"][:, ::10].mean(axis=2).round(5),
        "last_entropy": last.mean(axis=1).round(5),
        "outside": np.maximum(0, np.maximum(last - high, low - last)).mean(axis=1).round(5),
        "length": found["length"][:, -1].round(4),
        "no_signal": found["no_signal"].mean(axis=1).round(5),
        "misplaced": found["misplaced"].round(5),
        "sampled": found["sampled"].round(4),
        "w1": found["distance"][..., 0].mean(axis=1).round(5),
    }


def key(setting: Setting) -> str:
    """Return the name of a setting among files, from what differs from the defaults."""
    usual = asdict(Setting())
    changed = {name: value for name, value in asdict(setting).items() if value != usual[name]}
    text = json.dumps(changed, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
