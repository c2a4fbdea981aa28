"""Runs that are killed, and checkpoints that are damaged."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
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
                # A name in the list of checksums may be what was changed.
                assert file.name in text or file.name == "checksums.json"
                left = run.checkpoints.latest()
                assert left is not None
                assert left.path.name < newest.name
            shutil.rmtree(copy)
    yield count
