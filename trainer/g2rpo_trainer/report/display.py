"""The progress of a run: a live table on a terminal, plain lines elsewhere, and its warnings."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from g2rpo._shown import visible
from g2rpo_trainer.report.live_table import LiveTable
from g2rpo_trainer.report.tables import completions_table
from g2rpo_trainer.report.watch import Bounds, Watch
from g2rpo_trainer.step_log import keep_some

# Without a terminal a line is printed after this many steps or seconds, whichever comes first.
_LINE_STEPS = 10
_LINE_SECONDS = 20.0
_SHOWN_RESPONSES = 4
# This many first steps without signal are reported; fewer can be chance.
_MUTE_STEPS = 3

# Meaning of each metric of failed scoring. Unreported, a reward function that never ends in time
# would look like a policy that is never right.
_FAILURES = {
    "timeouts": "took longer to score than rewards.timeout, and are worth 0",
    "crashes": "ended the process that scored them, and are worth 0",
    "errors": "made their reward function fail, and have no reward",
}


class Display:
    """Progress of a run; the run enters it as a context manager.

    Parameters
    ----------
    total_steps : int
        The step at which the run ends.
    tasks : sequence of str
        Names of the tasks, one line each.
    start_step : int
        Steps that a resumed run has done.
    console : Console, optional
        By default stderr: stdout stays free for results.
    bounds : mapping of str to tuple, optional
        Entropy bounds of the tasks that have some, in nats.
    quiet : bool
        Show warnings alone.

    Examples
    --------
    >>> import sys
    >>> with Display(2, ["maths"], console=Console(file=sys.stdout, width=80)) as display:
    ...     display.step(1, {"reward": 0.5, "reward/maths": 0.5})
    step 1/2 | reward 0.500 | maths 0.500
    """

    def __init__(
        self,
        total_steps: int,
        tasks: Sequence[str],
        start_step: int = 0,
        *,
        console: Console | None = None,
        bounds: Mapping[str, Bounds] | None = None,
        quiet: bool = False,
    ) -> None:
        self.total_steps = total_steps
        self.tasks = tuple(tasks)
        self._console = console or Console(stderr=True)
        self._is_quiet = quiet
        self._table = LiveTable(self.tasks, bounds)
        self._watch = Watch(self.tasks, bounds)
        self._metrics: Mapping[str, float] = {}
        self._printed = (-math.inf, -math.inf)  # step and time of the last plain line
        self._reported: set[str] = set()  # failures of scoring that were reported
        self._mute: int | None = 0  # number of first steps without signal; None after one with it
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            expand=True,
            # A step takes seconds, so the default half minute would hold a handful of samples.
            speed_estimate_period=180,
        )
        self._steps = self._progress.add_task(
            "training", total=total_steps, completed=start_step, start=False
        )
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._is_quiet:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def recall(self, records: Iterable[Mapping[str, float]]) -> None:
        """Take the metrics of the steps before a resumed run goes on; print nothing."""
        for record in records:
            self._table.step(record)
            self._watch.step(int(record["step"]), record)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show that `step` steps are done, and the metrics of the last one."""
        self._metrics = metrics
        self._table.step(metrics)
        self._progress.start_task(self._steps)
        self._progress.update(self._steps, completed=step)
        self._report_failures(step)
        self._report_mute_rewards(step)
        self._report_tasks(step)
        if not self._console.is_terminal:
            self._print_line(step)

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print a table of a few responses of a step, one to each task first."""
        if self._is_quiet:
            return
        shown = keep_some(rows, max(_SHOWN_RESPONSES, len(self.tasks)))
        self._console.print(completions_table(step, shown))

    def message(self, text: str) -> None:
        """Print a line that stays, above the live part."""
        if not self._is_quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """Print a line that stays, even if the display is quiet."""
        self._console.print(visible(text), markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show the progress of something beside the steps, such as an evaluation.

        Yields a function that is called with the number of items done since its last call.
        """
        started = time.monotonic()
        bar = self._progress.add_task(escape(name), total=total)
        yield lambda items: self._progress.advance(bar, items)
        self._progress.remove_task(bar)
        self.message(f"{name}: {total} items in {time.monotonic() - started:.0f} s")

    def _report_failures(self, step: int) -> None:
        for name, meaning in _FAILURES.items():
            count = self._metrics.get(f"rewards/{name}", 0)
            if count and name not in self._reported:
                self._reported.add(name)
                self.warn(
                    f"step {step}: {count:g} responses {meaning}; metrics.jsonl counts on in "
                    f"rewards/{name}"
                )

    def _report_mute_rewards(self, step: int) -> None:
        if self._mute is None:
            return
        self._mute = self._mute + 1 if self._metrics.get("frac_reward_zero_std") == 1 else None
        if self._mute == _MUTE_STEPS:
            self._mute = None
            self.warn(
                f"steps {step - _MUTE_STEPS + 1} to {step}: all responses to a prompt got the same "
                f"reward, whatever the prompt (mean {self._number('reward')}, "
                "frac_reward_zero_std 1), so the rewards teach nothing. Look at what the model "
                "says: output.show_completions_steps=1, or g2rpo eval MODEL --samples FILE. "
                "If it is never right, take an easier task or a stronger model, or look at the "
                "form of the answers and at the reward function; if it is cut off, raise "
                "rollout.max_completion_length; if it is always right, take a harder task; if it "
                "always says the same, raise rollout.temperature or rollout.num_generations"
            )

    def _report_tasks(self, step: int) -> None:
        begun, ended = self._watch.step(step, self._metrics)
        for warning in begun:
            self.warn(f"step {step}: {warning.task}: {warning.text}. To try: {warning.advice}")
        for warning in ended:
            self.message(f"step {step}: {warning.task}: no longer: {warning.text}")

    def _print_line(self, step: int) -> None:
        printed_step, printed_at = self._printed
        now = time.monotonic()
        due = step - printed_step >= _LINE_STEPS or now - printed_at >= _LINE_SECONDS
        if not due and step < self.total_steps:
            return
        self._printed = (step, now)
        parts = [f"step {step}/{self.total_steps}", f"reward {self._number('reward')}"]
        parts += [f"{task} {self._number(f'reward/{task}')}" for task in self.tasks]
        if "step_time" in self._metrics:
            parts.append(f"{self._metrics['step_time']:.1f} s a step")
        self.message(" | ".join(parts))

    def _render(self) -> Group:
        return Group(self._table.render(self._console, self._watch.active), self._progress)

    def _number(self, name: str, digits: int = 3) -> str:
        value = self._metrics.get(name, math.nan)
        return f"{value:.{digits}f}" if math.isfinite(value) else "–"
