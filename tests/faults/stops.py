"""Runs that are stopped by a signal, a full disk, or a fault in the middle of generation."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from .count import Count, NotPossible
from .processes import (
    SETTINGS,
    assert_same_result,
    end_of,
    finish,
    start,
    steps_in,
    train,
    wait_until,
)

AT_ONCE = 30.0  # seconds, on a machine that does other things besides


@contextmanager
def whole_run() -> Iterator[tuple[Path, Path]]:
    """Yield an uninterrupted run, and a folder for others."""
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        process = start(train(whole))
        text = end_of(process)
        assert process.returncode == 0, text[-500:]
        yield whole, Path(place)


def signals(share: float) -> Iterator[Count]:
    """Send SIGTERM, or SIGINT once or twice, at random moments from the first import on."""
    once = Count("after SIGTERM or one SIGINT a run saves its step, says how to resume, and does")
    twice = Count("after a second SIGINT a run ends at once, and resumes from its last checkpoint")
    early = Count("a signal before the first step leaves no traceback, and no run or a whole one")
    draw = random.Random(0)
    slowest = {"once": 0.0, "twice": 0.0}
    with whole_run() as (whole, place):
        for turn in range(max(3, int(30 * share))):
            kind = (signal.SIGTERM, signal.SIGINT)[turn // 3 % 2]
            folder = place / f"run-{turn}"
            if turn % 3 == 0:
                _stop_early(early, folder, whole, kind, draw.uniform(0.1, 8.0))
            elif turn % 3 == 1:
                seconds = _stop(once, folder, whole, [kind], draw)
                slowest["once"] = max(slowest["once"], seconds)
            else:
                seconds = _stop(twice, folder, whole, [signal.SIGINT] * 2, draw)
                slowest["twice"] = max(slowest["twice"], seconds)
            shutil.rmtree(folder, ignore_errors=True)
    once.figure = f"ended within {slowest['once']:.1f} s"
    twice.figure = f"ended within {slowest['twice']:.1f} s"
    yield from (once, twice, early)


def _stop(
    count: Count, folder: Path, whole: Path, kinds: list[signal.Signals], draw: random.Random
) -> float:
    """Stop a run between its first step and its last, and resume it; return how long it took."""
    after, delay = draw.randrange(1, 5), draw.uniform(0, 0.3)
    process = start(train(folder))
    with count.trying((kinds, after, delay)):
        assert wait_until(lambda: steps_in(folder) >= after, process)
        time.sleep(delay)
        for kind in kinds:
            process.send_signal(kind)
            began = time.monotonic()
            time.sleep(0.01)
        text = end_of(process)
        seconds = time.monotonic() - began
        assert process.returncode == 130, (process.returncode, text[-300:])
        assert "Traceback" not in text, text[-500:]
        assert f"g2rpo train --resume --output-dir {folder}" in text, text[-300:]
        saved = [int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*")]
        if len(kinds) == 1:
            (said,) = re.findall(r"stopped after step (\d+)", text)
            assert max(saved) == int(said) == steps_in(folder)
        else:
            assert seconds < AT_ONCE, seconds
            # The step may have ended between the two signals.
            assert "stopped at once" in text or "stopped after step" in text, text[-300:]
            # A checkpoint every two steps; the one that was being written may be missing.
            assert max(saved, default=0) >= (after - 1) // 2 * 2
        finish(folder)
        assert_same_result(folder, whole)
        return seconds
    process.kill()
    return 0.0


def _stop_early(
    count: Count, folder: Path, whole: Path, kind: signal.Signals, delay: float
) -> None:
    process = start(train(folder), anew=True)
    with count.trying((kind, delay)):
        time.sleep(delay)
        process.send_signal(kind)
        text = end_of(process)
        assert "Traceback" not in text, text[-500:]
        assert process.returncode in (0, 130, -kind), (process.returncode, text[-300:])
        if (folder / "config.yaml").exists():
            if not (folder / "summary.json").exists():
                finish(folder)
            assert_same_result(folder, whole)
    process.kill()


def disk(share: float) -> Iterator[Count]:
    """Fill a small file system in the middle of a checkpoint; make room, and resume."""
    count = Count("a disk that is full in a checkpoint leaves the one before, and the run resumes")
    draw = random.Random(0)
    with whole_run() as (whole, place):
        sizes = [file.stat().st_size for file in whole.rglob("*") if file.is_file()]
        newest = whole / "checkpoints" / "step-000006"
        one = sum(file.stat().st_size for file in newest.iterdir())
        rest = sum(sizes) - 2 * one
        for turn in range(max(2, int(20 * share))):
            # Two checkpoints are kept while a third is written.
            size = int(rest + one * draw.uniform(1.1, 2.9))
            with small_disk(place / f"disk-{turn}", size) as mounted:
                folder = mounted / "run"
                process = start(train(folder), TMPDIR=str(place))
                text = end_of(process)
                with count.trying((size / one, text[-300:])):
                    assert process.returncode == 2
                    assert "cannot be written" in text
                    assert "No space left on device" in text
                    assert "make room" in text
                    assert "Traceback" not in text
                    (said,) = re.findall(r"the checkpoint after step (\d+)\n", text) or ["0"]
                    saved = [int(path.name[5:]) for path in (folder / "checkpoints").iterdir()]
                    assert max(saved, default=0) == int(said)
                    grow(mounted, size + 3 * one)
                    finish(folder)
                    assert_same_result(folder, whole)
    yield count


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[Path]:
    """Mount a file system in memory; raise `NotPossible` where that is not allowed."""
    path.mkdir()
    try:
        _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise NotPossible(f"a tmpfs cannot be mounted ({said.strip()}); run it as root") from None
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def grow(path: Path, size: int) -> None:
    """Give a small disk more room."""
    _mount("-o", f"remount,size={size}", str(path))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)


def generation(share: float) -> Iterator[Count]:
    """Let a random forward pass of the policy fail, or its weights become NaN."""
    from safetensors.torch import load_file

    from g2rpo_trainer import train as train_here
    from g2rpo_trainer.config import load_config
    from g2rpo_trainer.run_folder import RunFolder

    failing = Count("a generation or update that fails loses no checkpoint, and the run resumes")
    broken = Count("weights that become NaN end the run with an error, and reach no checkpoint")
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as text_place:
        place = Path(text_place)

        def config_of(folder: Path) -> Any:
            return load_config(settings=[*SETTINGS, f"output.dir={folder}"])

        whole = place / "whole"
        with at_pass(0, lambda model: None) as passes:
            train_here(config_of(whole))
        total = passes[0]
        for turn in range(max(2, int(40 * share))):
            folder, number = place / f"run-{turn}", draw.randrange(1, total + 1)
            count, fault = ((failing, raising(turn // 2)), (broken, poison))[turn % 2]
            with count.trying((number, fault)):
                error = None
                with at_pass(number, fault):
                    try:
                        train_here(config_of(folder))
                    except Exception as raised:
                        error = raised
                if error is None:  # the last pass, which no token was drawn from
                    assert fault is poison
                    assert_same_result(folder, whole)
                    continue
                notes = "".join(getattr(error, "__notes__", []))
                assert f"--resume --output-dir {folder}" in notes, (error, notes)
                assert fault is not poison or "not finite" in str(error), error
                for checkpoint in RunFolder.open(folder).checkpoints.all():
                    weights = load_file(checkpoint.path / "model.safetensors").values()
                    assert all(bool(weight.isfinite().all()) for weight in weights)
                train_here(config_of(folder), resume=True)
                assert_same_result(folder, whole)
            shutil.rmtree(folder, ignore_errors=True)
    yield from (failing, broken)


def raising(turn: int) -> Any:
    """Return a function that raises an error, of one kind or another."""
    errors = (RuntimeError("device-side assert"), MemoryError(), ValueError("bad shape"))
    error = errors[turn % len(errors)]

    def fault(model: Any) -> None:
        raise error

    return fault


def poison(model: Any) -> None:
    """Make a weight NaN, as a fault of the memory would."""
    import torch

    with torch.no_grad():
        next(iter(model.parameters())).fill_(float("nan"))


@contextmanager
def at_pass(number: int, fault: Any) -> Iterator[list[int]]:
    """Call a function of the model before a forward pass of a run; yield the number of passes."""
    from g2rpo_trainer import loop

    load, passes = loop.load_run_policy, [0]

    def loaded(*arguments: Any, **options: Any) -> Any:
        policy = load(*arguments, **options)

        def before(*_: Any) -> None:
            passes[0] += 1
            if passes[0] == number:
                fault(policy.model)

        policy.model.register_forward_pre_hook(before)
        return policy

    with mock.patch.object(loop, "load_run_policy", loaded):
        yield passes
