"""A run that is killed anywhere and resumed equals an uninterrupted one, bit for bit."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("killed_runs.py")

# The embedded policy, because one without any skill gets no reward and no gradient from it.
TINY = [
    "model.device=cpu",
    "data.tasks=[grounding, ocr]",
    "data.eval_items=1",
    "data.eval_generations=1",
    "rollout.prompts_per_step=2",
    "rollout.num_generations=3",
    "rollout.max_completion_length=24",
    "optimization.steps=6",
    "optimization.learning_rate=1e-3",
    "optimization.warmup_steps=0",
    "output.save_steps=2",
    "output.plots=false",
    "output.trackers=[]",
    "output.equity_steps=3",
]
# Everything that carries state from step to step is on in one of them.
VARIANTS = {
    "gaussian": [
        "length.calibrate=true",
        "entropy.control=adaptive",
        "length.only_right=false",
        "task_weights.adapt=2",
    ],
    "ema-grpo": [
        "estimator.name=ema-grpo",
        "optimization.beta=0.01",
        "rollout.dynamic_sampling.mode=signal",
        "rollout.dynamic_sampling.max_tries=2",
    ],
}


@pytest.fixture(scope="module")
def worker():
    """Return a function that carries out an order in a process of its own, see the worker."""
    command = [sys.executable, str(WORKER)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def carry_out(settings: list[str], *, resume: bool = False, **how) -> dict:
            order = {"settings": settings, "resume": resume, **how}
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield carry_out
        process.stdin.close()


class Whole:
    """A run that nothing interrupts, and how many lines each of its stages executes."""

    def __init__(self, worker, folder: Path, variant: str) -> None:
        self.settings = [*TINY, *VARIANTS[variant]]
        self.folder = folder / "whole"
        counts = folder / "counts.json"
        settings = [*self.settings, f"output.dir={self.folder}"]
        ended = worker(settings, count=str(counts))
        assert (ended["signal"], ended["code"]) == (0, 0)
        self.lines = json.loads(counts.read_text())
        self.seconds = ended["seconds"]


@pytest.fixture(scope="module")
def whole_run(worker, tmp_path_factory):
    """Return a function that makes the uninterrupted run of a variant, once."""
    made: dict[str, Whole] = {}

    def make(variant: str) -> Whole:
        if variant not in made:
            made[variant] = Whole(worker, tmp_path_factory.mktemp(variant), variant)
        return made[variant]

    return make


def logged(folder: Path) -> list[dict]:
    """Return the metrics but those that the clock decides."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{key: value for key, value in each.items() if "time" not in key} for each in records]


def without_seconds(path: Path) -> dict:
    content = json.loads(path.read_text())
    content.pop("seconds", None)
    content.get("progress", {}).pop("seconds", None)
    return content


def assert_equal_runs(one: Path, other: Path) -> None:
    assert logged(one) == logged(other)
    for name in ("completions.jsonl", "config.yaml"):
        expected = (other / name).read_text().replace(str(other), str(one))
        assert (one / name).read_text() == expected
    assert without_seconds(one / "summary.json") == without_seconds(other / "summary.json")
    last = Path("checkpoints") / "step-000006"
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (one / last / name).read_bytes() == (other / last / name).read_bytes()
    state = last / "trainer_state.json"
    assert without_seconds(one / state) == without_seconds(other / state)
    names = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (one, other)]
    assert names[0] == names[1] == ["step-000004", "step-000006"]


def kill_and_resume(worker, whole: Whole, folder: Path, kills: list[dict]) -> None:
    """Start a run, kill it again and again, and let it end."""
    settings = [*whole.settings, f"output.dir={folder}"]
    for kill in kills:
        # A process that was killed at once has left no run to resume.
        resume = (folder / "config.yaml").exists()
        ended = worker(settings, resume=resume, **kill)
        # What is left of a run may not reach the second place, or end before the time is up.
        if kill is kills[0] and "seconds" not in kill:
            assert ended["signal"] in (signal.SIGKILL, signal.SIGXFSZ), (kill, ended)
        else:
            assert ended["signal"] or ended["code"] == 0, (kill, ended)
    resume = (folder / "config.yaml").exists()
    ended = worker(settings, resume=resume)
    assert (ended["signal"], ended["code"]) == (0, 0)
    assert_equal_runs(folder, whole.folder)


def at_line(whole: Whole, stage: str, share: float) -> dict:
    return {"stage": stage, "line": 1 + int(share * (whole.lines[stage] - 1))}


def test_the_runs_learn_something(whole_run):
    """Else everything below would be equal whatever was lost."""
    lines = logged(whole_run("gaussian").folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert sum(abs(line["loss/policy"]) + abs(line["loss/length"]) > 0 for line in lines) >= 3
    assert len({line["grad_norm"] for line in lines}) == 6
    assert len({line["reward"] for line in lines}) > 1


def test_killed_in_a_rollout_and_in_the_middle_of_a_checkpoint(worker, whole_run, tmp_path):
    whole = whole_run("gaussian")
    kills = [at_line(whole, "rollout", 0.7), {"in_checkpoint": 6}]
    kill_and_resume(worker, whole, tmp_path / "run", kills)


def random_kills(whole: Whole, number: int) -> list[dict]:
    """Return where the run of a number is killed: at one place, or at two one after another."""
    generator = random.Random(number)
    kinds = ["rollout", "update", "checkpoint", "file", "clock"] * 4
    kind = kinds[number]
    if kind == "file":
        first = {"in_checkpoint": generator.choice([2, 4, 6])}
    elif kind == "clock":
        first = {"seconds": generator.uniform(0.1, 0.6) * whole.seconds}
    else:
        first = at_line(whole, kind, generator.random())
    if generator.random() < 0.5:
        return [first]
    # What is left of the run may be short, so the second kill comes early in a stage.
    stage = generator.choice(["rollout", "scoring", "update", "log", "evaluation"])
    return [first, {"stage": stage, "line": generator.randint(1, 20)}]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("number", range(20))
def test_killed_at_random(worker, whole_run, tmp_path, number, variant):
    whole = whole_run(variant)
    kill_and_resume(worker, whole, tmp_path / "run", random_kills(whole, number))
