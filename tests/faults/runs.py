"""Runs that are killed, damaged, or started twice."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.trainer import test_resume

from .count import Count


@contextmanager
def worker() -> Iterator[object]:
    """Yield the function that carries out an order in a process to be killed."""
    yield from test_resume.worker.__wrapped__()


def kills(share: float) -> Iterator[Count]:
    """Kill runs at random moments; the resumed run must be the uninterrupted one to the bit."""
    count = Count("a run killed by SIGKILL at a random moment resumes bit-equal")
    draw = random.Random(0)
    with worker() as carry_out, tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        whole = {}
        for variant in test_resume.VARIANTS:
            (folder / variant).mkdir()
            whole[variant] = test_resume.Whole(carry_out, folder / variant, variant)
        for number in range(max(2, int(50 * share))):
            variant = list(whole)[number % 2]
            stage = draw.choice([each for each, lines in whole[variant].lines.items() if lines])
            kill = test_resume.at_line(whole[variant], stage, draw.random())
            run = folder / "killed"
            with count.trying((variant, kill)):
                test_resume.kill_and_resume(carry_out, whole[variant], run, [kill])
            shutil.rmtree(run, ignore_errors=True)
    yield count


def damaged_checkpoints(share: float) -> Iterator[Count]:
    """Flip a byte, truncate or remove any file of a checkpoint: the run goes on from the last."""
    from g2rpo_trainer.run_folder import RunFolder

    count = Count("a damaged file of a checkpoint is found, and the checkpoint before is used")
    draw = random.Random(0)
    with worker() as carry_out, tempfile.TemporaryDirectory() as place:
        whole = test_resume.Whole(carry_out, Path(place), "gaussian")
        newest = RunFolder.open(whole.folder).checkpoints.all()[-1].path
        names = sorted(path.name for path in newest.iterdir() if path.is_file())
        for turn in range(max(3, int(200 * share))):
            copy = Path(place) / "copy"
            shutil.copytree(whole.folder, copy)
            file = copy / "checkpoints" / newest.name / draw.choice(names)
            how = ("flip", "truncate", "remove")[turn % 3]
            size = file.stat().st_size
            place_of_fault = draw.randrange(size)
            if how == "flip":
                with file.open("r+b") as content:
                    content.seek(place_of_fault)
                    byte = content.read(1)[0]
                    content.seek(place_of_fault)
                    content.write(bytes([byte ^ (1 << draw.randrange(8))]))
            elif how == "truncate":
                os.truncate(file, place_of_fault)
            else:
                file.unlink()
            with count.trying((how, file.name, place_of_fault)):
                run = RunFolder.open(copy)
                (text,) = run.checkpoints.set_damaged_aside()
                assert file.name in text or "checksums.json" in text
                left = run.checkpoints.latest()
                assert left is not None
                assert left.path.name < newest.name
            shutil.rmtree(copy)
    yield count


def two_in_one_folder(share: float) -> Iterator[Count]:
    """Start runs at the same moment in one folder: one trains, the others are refused."""
    count = Count("of two runs in one folder one trains, and the other is refused")
    with tempfile.TemporaryDirectory() as place:
        for turn in range(max(1, int(5 * share))):
            folder = Path(place) / str(turn)
            command = command_of(folder, 2)
            both = [start(command) for _ in range(2)]
            texts = [process.communicate(timeout=600)[0] for process in both]
            codes = sorted(process.returncode for process in both)
            with count.trying((turn, codes, texts)):
                assert codes == [0, 2]
                lines = (folder / "metrics.jsonl").read_text().splitlines()
                assert [json.loads(line)["step"] for line in lines] == [1, 2]
                assert any("in use" in text or "already holds" in text for text in texts)
    yield count


def one_of_two_processes_dies(share: float) -> Iterator[Count]:
    """Kill one of two processes in mid-run: the other ends soon, and the run resumes."""
    count = Count("when one of two processes is killed the other ends within 60 s")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    with tempfile.TemporaryDirectory() as place:
        for turn in range(max(1, int(4 * share))):
            folder = Path(place) / str(turn)
            command = [*launcher, "--nproc-per-node", "2", *command_of(folder, 500)[1:]]
            process = start(command)
            try:
                wait_for(folder / "checkpoints" / "step-000002", process)
                ranks = children(process.pid)
                os.kill(ranks[turn % 2], signal.SIGKILL)
                began = time.monotonic()
                text, _ = process.communicate(timeout=200)
            finally:
                process.kill()
            with count.trying((turn, text[-300:])):
                assert time.monotonic() - began < 60
                assert process.returncode != 0
                assert not any(alive(rank) for rank in ranks)
                steps = 1 + int(max(os.listdir(folder / "checkpoints"))[5:])
                resumed = start([*command_of(folder, steps), "--resume"])
                text, _ = resumed.communicate(timeout=600)
                assert resumed.returncode == 0, text[-300:]
    yield count


def command_of(folder: Path, steps: int) -> list[str]:
    """Return the command of a run of a few seconds."""
    settings = [each for each in test_resume.TINY if not each.startswith("optimization.steps")]
    settings = [*settings, "output.save_steps=1", "output.equity_steps=0"]
    pairs = [part for each in settings for part in ("--set", each)]
    return [
        sys.executable,
        *("-m", "g2rpo_cli", "train", "--steps", str(steps), "--output-dir", str(folder)),
        *pairs,
    ]


def start(command: list[str]) -> subprocess.Popen[str]:
    """Start a command; its output is one text."""
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a file is there; raise if the process ends before, or after five minutes."""
    until = time.monotonic() + 300
    while not path.exists():
        if process.poll() is not None or time.monotonic() > until:
            raise AssertionError(f"{path} did not appear: {process.communicate()[0][-500:]}")
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """Return the processes that a launcher has started."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return sorted(int(child) for child in text.split())


def alive(pid: int) -> bool:
    """Tell whether a process runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
