"""What a run depends on outside of its process: reward workers, trackers, other ranks."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.trainer.test_resume import logged

from .count import Count
from .processes import alive, children, end_of, start, steps_in, train, wait_until

UNREACHABLE = Path(__file__).with_name("unreachable")
OTHER_RANK_ENDS = 60.0  # seconds


def reward_workers(share: float) -> Iterator[Count]:
    """Train with rewards that end or hang their process, and kill processes from outside."""
    inside = Count("a reward that ends or hangs its process costs that reward alone, and counts")
    outside = Count("a reward process that is killed from outside changes no number of the run")
    left = Count("no reward process is left when a run has ended")
    draw = random.Random(0)
    faults = kills = 0
    with tempfile.TemporaryDirectory() as place:
        for turn in range(max(1, int(10 * share))):
            folder = Path(place) / f"inside-{turn}"
            settings = (
                "rewards.functions={character OCR: 'tests.faults.crashing_rewards:score'}",
                "rewards.workers=2",
                "rewards.timeout=1",
                f"seed={turn}",
            )
            process = start(train(folder, *settings))
            wait_until(lambda folder=folder: steps_in(folder), process)
            workers = children(process.pid)
            text = end_of(process)
            with inside.trying((turn, text[-300:])):
                assert process.returncode == 0
                lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
                assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
                names = ("rewards/crashes", "rewards/timeouts")
                faults += int(sum(line[name] for line in lines for name in names))
                assert all(line["rewards/errors"] == 0 for line in lines)
            left.expect(not any(alive(worker) for worker in workers), (turn, workers))
        inside.figure = f"{faults} rewards lost"
        if not faults:
            inside.broken.append("no answer ended or hung its process, so that nothing was tried")
        whole = _whole(Path(place) / "whole", "rewards.workers=2")
        for turn in range(max(1, int(10 * share))):
            folder = Path(place) / f"outside-{turn}"
            process = start(train(folder, "rewards.workers=2"))
            workers, step = [], 0
            while wait_until(lambda folder=folder, step=step: steps_in(folder) > step, process):
                step = steps_in(folder)
                time.sleep(draw.uniform(0, 0.3))
                workers = [each for each in children(process.pid) if _is_worker(each)]
                # Once a step: processes that are killed whenever they start are an error.
                kills += sum(_kill(each) for each in workers)
            text = end_of(process)
            with outside.trying((turn, text[-300:])):
                assert process.returncode == 0
                assert logged(folder) == logged(whole)
            left.expect(not any(alive(worker) for worker in workers), (turn, workers))
            shutil.rmtree(folder)
        outside.figure = f"{kills} processes killed"
    yield from (inside, outside, left)


def _is_worker(pid: int) -> bool:
    """Return whether a process scores, and is not what watches over semaphores."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"spawn_main" in command


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _whole(folder: Path, *settings: str) -> Path:
    process = start(train(folder, *settings))
    text = end_of(process)
    assert process.returncode == 0, text[-500:]
    return folder


def trackers(share: float) -> Iterator[Count]:
    """Lose the server of a tracker at its start, in a step, at the end."""
    start_count = Count("a tracker that cannot be reached at the start is refused with the remedy")
    later = Count("a tracker that is lost later is named once, and the run is that without it")
    with tempfile.TemporaryDirectory() as place:
        whole = _whole(Path(place) / "whole")
        # The stand-in must be found before a package of that name.
        path = os.pathsep.join([str(UNREACHABLE), os.environ.get("PYTHONPATH", ""), *sys.path])
        for turn in range(max(1, int(4 * share))):
            for lost_at in ("init", "1", "4", "finish"):
                folder = Path(place) / f"{lost_at}-{turn}"
                command = train(folder, "output.trackers=[wandb]")
                process = start(command, G2RPO_TEST_LOST_AT=lost_at, PYTHONPATH=path)
                text = end_of(process)
                if lost_at == "init":
                    with start_count.trying(text[-300:]):
                        assert process.returncode == 2
                        assert "wandb does not start (ConnectionRefusedError" in text
                        assert "Traceback" not in text
                        steps = ("--set", "output.trackers=[]")
                        again = start([*train(folder, resume=True), *steps])
                        text = end_of(again)
                        assert again.returncode == 0, text[-300:]
                        assert logged(folder) == logged(whole)
                    continue
                with later.trying((lost_at, text[-300:])):
                    assert process.returncode == 0
                    assert text.count("wandb gets no more metrics") == 1
                    assert "Connection refused" in text
                    assert logged(folder) == logged(whole)
    yield from (start_count, later)


def one_of_two_processes_dies(share: float) -> Iterator[Count]:
    """Kill one of two processes in mid-run: the other ends soon, and the run resumes."""
    count = Count("when one of two processes is killed the other ends within 60 s and says why")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    slowest = 0.0
    with tempfile.TemporaryDirectory() as place:
        for turn in range(max(1, int(4 * share))):
            folder = Path(place) / str(turn)
            settings = ("optimization.steps=500", "output.save_steps=1", "output.equity_steps=0")
            command = [*launcher, "--nproc-per-node", "2", *train(folder, *settings)[1:]]
            process = start(command)
            assert wait_until((folder / "checkpoints" / "step-000002").exists, process)
            ranks = [each for each in children(process.pid) if _is_rank(each)]
            os.kill(ranks[turn % 2], signal.SIGKILL)
            began = time.monotonic()
            text = end_of(process, 200)
            seconds = time.monotonic() - began
            slowest = max(slowest, seconds)
            with count.trying((turn, text[-300:])):
                assert len(ranks) == 2
                assert seconds < OTHER_RANK_ENDS
                assert process.returncode != 0
                assert "SIGKILL" in text or "Signal 9" in text
                assert not any(alive(rank) for rank in ranks)
                steps = 1 + int(max(os.listdir(folder / "checkpoints"))[5:])
                more = ("--steps", str(steps))
                resumed = start([*train(folder, resume=True), *more])
                text = end_of(resumed)
                assert resumed.returncode == 0, text[-300:]
                lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
                assert [line["step"] for line in lines] == list(range(1, steps + 1))
    count.figure = f"ended within {slowest:.1f} s"
    yield count


def _is_rank(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"g2rpo_cli" in command and b"torch.distributed.run" not in command
