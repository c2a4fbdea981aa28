"""Runs of a few seconds, started by the command line as users start them."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.trainer import test_resume

CLI = ["-m", "g2rpo_cli"]
VARIANT = "gaussian"
SETTINGS = [*test_resume.TINY, *test_resume.VARIANTS[VARIANT]]


def train(folder: Path, *settings: str, resume: bool = False) -> list[str]:
    """Return the command that trains in a folder; settings of a resumed run are in the folder."""
    chosen = settings if resume else [*SETTINGS, *settings]
    pairs = [part for each in chosen for part in ("--set", each)]
    command = [sys.executable, *CLI, "train", "--output-dir", str(folder), *pairs]
    return [*command, "--resume"] if resume else command


class Forked:
    """The command line in a process that has imported everything; the interface of `Popen`."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self._output = tempfile.NamedTemporaryFile(mode="r", errors="replace")  # noqa: SIM115
        given = (list(arguments), self._output.name, environment)
        self._process = _server().Process(target=_command_line, args=given)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, or minus the signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.join()

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Wait for the end, and return what it has printed."""
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("g2rpo", timeout or 0)
        self._output.seek(0)
        return self._output.read(), None


Process = Forked | subprocess.Popen


@cache
def _server() -> Any:
    """Return what forks from a process that has imported the trainer, and nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["g2rpo_cli.main", "g2rpo_trainer", "tests.faults.imported"])
    return context


def _command_line(arguments: list[str], output: str, environment: dict[str, str]) -> None:
    """Run the command line of this project in a new process."""
    from g2rpo_cli.main import main

    # Processes that a run spawns import its main module, which is not that of the tests.
    sys.modules["__main__"] = importlib.import_module("g2rpo_cli.__main__")
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(output, "wb", buffering=0) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = ["g2rpo", *arguments]
    sys.path[:0] = [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
    main()


def start(command: Sequence[str], *, anew: bool = False, **environment: str) -> Process:
    """Start a command; its output is one text.

    A command of this project is forked from a process with all imports done, which take longer
    than such a run, unless ``anew``.
    """
    if command[1:3] == CLI and not anew:
        return Forked(command[3:], environment)
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def end_of(process: Process, seconds: float = 600) -> str:
    """Return the output of a process that ends by itself; kill one that does not."""
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        process.kill()


def finish(folder: Path) -> None:
    """Resume a run to its end."""
    process = start(train(folder, resume=True))
    text = end_of(process)
    assert process.returncode == 0, text[-300:]


def steps_in(folder: Path) -> int:
    """Return the number of steps that a run has logged."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_until(condition: Callable[[], object], process: Process, seconds: float = 300) -> bool:
    """Wait until a function returns true; return False if the process has ended before."""
    until = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            return False
        if time.monotonic() > until:
            process.kill()
            raise AssertionError(f"waited {seconds:g} s in vain: {process.communicate()[0][-500:]}")
        time.sleep(0.02)
    return True


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, at any depth."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    direct = [int(child) for child in path.read_text().split()] if path.exists() else []
    return sorted({*direct, *(each for child in direct for each in children(child))})


def alive(pid: int) -> bool:
    """Return whether a process runs."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def assert_same_result(folder: Path, whole: Path) -> None:
    """Compare with the uninterrupted run; a stop may have left a checkpoint between the regular."""
    assert test_resume.logged(folder) == test_resume.logged(whole)
    last = Path("checkpoints") / "step-000006"
    for name in ("completions.jsonl", last / "model.safetensors", last / "optimizer.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
