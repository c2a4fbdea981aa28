"""Several processes at one run folder at the same time."""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .count import Count
from .processes import assert_same_result, end_of, start, steps_in, train, wait_until


def races(share: float) -> Iterator[Count]:
    """Start two runs, or two that resume, in one folder; report and resume what is there."""
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        text = end_of(process := start(train(whole)))
        assert process.returncode == 0, text[-500:]
        tries = max(1, int(5 * share))
        yield _two_runs(Path(place), tries)
        yield _two_resumes(Path(place), whole, tries)
        yield _resume_of_a_finished_run(Path(place), whole, tries)
        yield _reports(Path(place), whole, tries, draw)


def _two_runs(place: Path, tries: int) -> Count:
    count = Count("of two runs in one folder one trains, and the other is refused")
    for turn in range(tries):
        folder = place / f"two-{turn}"
        _one_of_two(count, folder, train(folder))
        shutil.rmtree(folder)
    return count


def _two_resumes(place: Path, whole: Path, tries: int) -> Count:
    count = Count("of two --resume in one folder one goes on bit-equal, and the other is refused")
    for turn in range(tries):
        folder = place / f"resumed-{turn}"
        shutil.copytree(whole, folder)
        for name in ("summary.json", "checkpoints/step-000006"):
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        _one_of_two(count, folder, train(folder, resume=True))
        with count.trying((turn, "the run that went on")):
            assert_same_result(folder, whole)
        shutil.rmtree(folder)
    return count


def _one_of_two(count: Count, folder: Path, command: list[str]) -> None:
    """Start a command twice at the same moment: one must succeed, the other say why not."""
    both = [start(command) for _ in range(2)]
    texts = [end_of(process) for process in both]
    ended = sorted(zip((process.returncode for process in both), texts, strict=True))
    with count.trying([(code, text[-200:]) for code, text in ended]):
        assert [code for code, _ in ended] == [0, 2]
        # One that comes late meets a run that has ended.
        said = ("is in use", "already holds a run", "has done all its")
        assert any(each in ended[1][1] for each in said)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def _resume_of_a_finished_run(place: Path, whole: Path, tries: int) -> Count:
    count = Count("--resume of a finished run is refused, and no byte of it changes")
    for _ in range(tries):
        before = _contents(whole)
        process = start(train(whole, resume=True))
        text = end_of(process)
        with count.trying(text[-300:]):
            assert process.returncode == 2
            assert "has done all its 6 steps" in text
            assert _contents(whole) == before
    return count


def _reports(place: Path, whole: Path, tries: int, draw: random.Random) -> Count:
    count = Count("g2rpo report of a run that is being written is a page, and the run is unharmed")
    for turn in range(tries):
        folder = place / f"reported-{turn}"
        process = start(train(folder))
        wait_until(lambda folder=folder: steps_in(folder), process)
        while process.poll() is None:
            page = place / "page.html"
            page.unlink(missing_ok=True)
            command = [sys.executable, "-m", "g2rpo_cli", "report", str(folder)]
            report = start([*command, "--output", str(page)])
            text = end_of(report)
            with count.trying(text[-300:]):
                assert report.returncode == 0
                assert page.read_text(encoding="utf-8").rstrip().endswith("</html>")
            time.sleep(draw.random())
        with count.trying(end_of(process)[-300:]):
            assert process.returncode == 0
            assert_same_result(folder, whole)
        shutil.rmtree(folder)
    return count


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
