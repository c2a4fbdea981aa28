"""A long run: whether memory, the time of a step, or the folder grow.

``G2RPO_SOAK_MINUTES`` is the length in minutes; by default 60 times the share of the tries.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from g2rpo_trainer.report.display import Display

from .count import Count, NotPossible

MIB = 2**20
WARM = 0.25  # part of the run in which caches fill
FEWEST = 20  # steps
MEMORY = 10.0  # MiB an hour
SLOWER = 0.1  # of the mean time of a step
FOLDER = 64 * 1024  # bytes a step: metrics, responses, histograms, events


class Row(NamedTuple):
    """State after a step: seconds (clock, processor), MiB, bytes of logs, and numbers."""

    clock: float
    cpu: float
    memory: float
    logs: float
    checkpoints: float
    threads: float
    files: float


class Watch(Display):
    """A display that notes the state after each step, and stops the run in the end."""

    def __init__(self, folder: Path, seconds: float, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, quiet=True, **options)
        self.rows: list[Row] = []
        self._folder, self._end = folder, time.monotonic() + seconds

    def step(self, step: int, metrics: Any) -> None:
        """Note the state after a step."""
        super().step(step, metrics)
        now = time.monotonic()
        logs = sum(path.stat().st_size for path in self._folder.glob("*") if path.is_file())
        saved = len(list(self._folder.glob("checkpoints/*")))
        threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
        self.rows.append(Row(now, time.process_time(), resident(), logs, saved, threads, files))
        if now > self._end:
            # The run then saves and ends, as after Ctrl-C.
            os.kill(os.getpid(), signal.SIGINT)


def resident() -> float:
    """Return the memory that this process holds, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return the slope of a line, and half the width of its 95 % interval.

    Errors of neighbouring steps are correlated, so means of up to 40 blocks are fitted.
    """
    blocks = np.array_split(np.arange(len(x)), min(40, max(3, len(x) // 5)))
    x, y = (np.asarray([values[block].mean() for block in blocks]) for values in (x, y))
    line = stats.linregress(x, y)
    return float(line.slope), float(stats.t.ppf(0.975, len(x) - 2) * line.stderr)


def soak(share: float) -> Iterator[Count]:
    """Train the built-in run for an hour; report slopes with intervals."""
    from g2rpo_trainer import Interrupted, train
    from g2rpo_trainer.config import load_config
    from g2rpo_trainer.data import open_run

    minutes = float(os.environ.get("G2RPO_SOAK_MINUTES", 60 * share))
    memory = Count("memory does not grow in a long run of the built-in policy")
    time_of = Count("a step takes as long at the end of a long run as at its beginning")
    growth = Count("the folder of a long run grows by its logs alone, at most 64 KiB a step")
    held = Count("threads and open files are as many at the end of a long run as before")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        settings = [
            "optimization.steps=1000000",
            # A policy that learns changes the lengths of its responses, and with them the times.
            "optimization.learning_rate=1e-7",
            "model.device=cpu",
            f"output.dir={folder}",
        ]
        config = load_config(["builtin"], settings=settings)
        source = open_run(config)
        watch = Watch(folder, 60 * minutes, config.optimization.steps, source.tasks)
        with suppress(Interrupted):
            train(config, display=watch, source=source)
    rows = watch.rows[int(WARM * len(watch.rows)) :]
    if len(rows) < FEWEST:
        raise NotPossible(f"{len(rows)} steps in {minutes:g} minutes are too few for a slope")
    state = Row(*np.asarray(rows).T)
    numbers = np.arange(len(rows))

    grown, width = slope(state.clock / 3600, state.memory)
    memory.figure = f"{grown:+.1f} ± {width:.1f} MiB an hour, of {state.memory[-1]:.0f} MiB"
    memory.expect(grown - width < MEMORY, memory.figure)

    texts = []
    for name, times in (("wall", state.clock), ("CPU", state.cpu)):
        seconds = np.diff(times)
        change, width = (len(rows) * value for value in slope(numbers[1:], seconds))
        mean = seconds.mean()
        texts.append(
            f"{name} {mean:.2f} s a step, {change:+.2f} ± {width:.2f} s from first to last"
        )
    time_of.figure = f"{len(watch.rows)} steps in {minutes:g} minutes; {'; '.join(texts)}"
    # The clock also measures what else the machine does; the last of both is the processor.
    time_of.expect(change - width < SLOWER * mean, time_of.figure)

    bytes_a_step = (state.logs[-1] - state.logs[0]) / (len(rows) - 1)
    growth.figure = (
        f"{bytes_a_step / 1024:.1f} KiB a step, at most {state.checkpoints.max():.0f} checkpoints"
    )
    growth.expect(bytes_a_step < FOLDER, growth.figure)
    growth.expect(state.checkpoints.max() <= config.output.keep_checkpoints, growth.figure)

    held.figure = f"{state.threads[-1]:.0f} threads, {state.files[-1]:.0f} files"
    held.expect(state.threads[-1] <= state.threads[0] + 2, (held.figure, state.threads[0]))
    held.expect(state.files[-1] <= state.files[0] + 4, (held.figure, state.files[0]))
    yield from (memory, time_of, growth, held)
