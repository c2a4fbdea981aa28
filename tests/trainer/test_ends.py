"""How a run ends before its last step: on request, by an error, for lack of memory."""

import json
import os
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from g2rpo_trainer import Interrupted, loop, train
from g2rpo_trainer.errors import RunError


class Watcher:
    """A display that does something when a step has ended, or when items are evaluated."""

    def __init__(self, on_step=lambda step: None, on_items=lambda name: None) -> None:
        self.on_step, self.on_items = on_step, on_items
        self.messages: list[str] = []

    def step(self, step, metrics):
        self.on_step(step)

    def phase(self, name, total):
        return nullcontext(lambda items: self.on_items(name))

    def message(self, text):
        self.messages.append(text)

    def recall(self, records):
        pass


def steps_of(config) -> list[int]:
    lines = (Path(config.output.dir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def saved(config) -> list[str]:
    folder = Path(config.output.dir) / "checkpoints"
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def long_run(tiny_run):
    """A run that would save at its end only."""
    return tiny_run("output.save_steps=100", "output.trackers=[]")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(long_run, number):
    watcher = Watcher(on_step=lambda step: step == 2 and os.kill(os.getpid(), number))
    with pytest.raises(Interrupted) as stopped:
        train(long_run, display=watcher)
    assert stopped.value.step == 2
    assert saved(long_run) == ["step-000002"]
    train(long_run, resume=True)
    assert steps_of(long_run) == [1, 2, 3]


def test_a_second_signal_stops_at_once(long_run):
    def press_twice(step):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        train(long_run, display=Watcher(on_step=press_twice))
    assert not isinstance(stopped.value, Interrupted)
    assert not (Path(long_run.output.dir) / "checkpoints").exists()


@pytest.mark.parametrize(("phase", "step"), [("before", 0), ("after training", 3)])
def test_a_signal_in_an_evaluation_does_not_wait_for_its_end(long_run, phase, step):
    seen = []

    def press(name):
        if phase in name:
            seen.append(name)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as stopped:
        train(long_run, display=Watcher(on_items=press))
    assert stopped.value.step == step
    assert len(seen) == 1
    assert train(long_run, resume=True)["steps"] == 3
    assert steps_of(long_run) == [1, 2, 3]


def test_an_evaluation_between_steps_ends_first(tiny_run):
    """Its metrics belong to a step that is done."""
    config = tiny_run("output.eval_steps=2", "output.trackers=[]")
    pressed = []

    def press(name):
        if "step 2" in name and not pressed:
            pressed.append(name)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(config, display=Watcher(on_items=press))
    lines = (Path(config.output.dir) / "metrics.jsonl").read_text().splitlines()
    assert "eval_reward" in json.loads(lines[1])
    assert len(lines) == 2


class HalfUpdated(Exception):
    pass


@pytest.fixture
def fails_in_step_two(monkeypatch):
    """Return a function that makes step 2 fail with an error once, after it changed a weight."""

    def arrange(error):
        real = loop.training_step

        def step(collector, learner, output, progress):
            if progress.step == 1:
                monkeypatch.setattr(loop, "training_step", real)
                with torch.no_grad():
                    next(learner.policy.model.parameters()).add_(1.0)
                raise error
            return real(collector, learner, output, progress)

        monkeypatch.setattr(loop, "training_step", step)

    return arrange


def test_an_error_in_a_step_saves_nothing_half_done(tiny_run, fails_in_step_two):
    whole = tiny_run("output.trackers=[]", folder="whole")
    expected = train(whole)
    config = tiny_run("output.trackers=[]", folder="parts")
    fails_in_step_two(HalfUpdated("no such key"))
    with pytest.raises(HalfUpdated) as failed:
        train(config)
    assert saved(config) == ["step-000001"]
    assert "it goes on from the checkpoint after step 1" in failed.value.__notes__[0]
    summary = train(config, resume=True)
    assert summary["after"] == expected["after"]
    whole_lines, lines = (
        (Path(each.output.dir) / "checkpoints/step-000003/model.safetensors").read_bytes()
        for each in (whole, config)
    )
    assert lines == whole_lines


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_reach_no_checkpoint(tiny_run, monkeypatch, value):
    """Else the run trains nothing to its end, and its checkpoints replace those before."""
    whole, config = (tiny_run("output.trackers=[]", folder=each) for each in ("whole", "broken"))
    expected = train(whole)
    real = loop.training_step

    def step(collector, *others):
        result = real(collector, *others)
        with torch.no_grad():
            next(collector.policy.model.parameters()).fill_(value)
        return result

    def first_step(collector, *others):
        monkeypatch.setattr(loop, "training_step", step)
        return real(collector, *others)

    monkeypatch.setattr(loop, "training_step", first_step)
    with pytest.raises(RunError, match="a weight of the policy is not finite") as failed:
        train(config)
    assert "it goes on from the checkpoint after step 1" in failed.value.__notes__[0]
    assert saved(config) == ["step-000001"]
    monkeypatch.undo()
    assert train(config, resume=True)["after"] == expected["after"]


def test_logits_that_are_not_finite_end_the_rollout(tiny_run, monkeypatch):
    config = tiny_run("output.trackers=[]", "output.save_steps=100")
    real = loop.training_step

    def step(collector, *others):
        with torch.no_grad():
            next(collector.policy.model.parameters()).fill_(torch.nan)
        return real(collector, *others)

    monkeypatch.setattr(loop, "training_step", step)
    with pytest.raises(RunError, match="logits are not finite, so nothing can be sampled"):
        train(config)


def test_lack_of_memory_in_a_step_says_what_to_change(tiny_run, fails_in_step_two):
    config = tiny_run("output.trackers=[]")
    fails_in_step_two(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    with pytest.raises(RunError, match=r"allocate 2.00 GiB.*micro_batch_tokens=") as failed:
        train(config)
    assert "had done 1 of 3 steps" in failed.value.__notes__[0]
    smaller = tiny_run("output.trackers=[]", "optimization.micro_batch_tokens=400")
    train(smaller, resume=True)
    assert steps_of(smaller) == [1, 2, 3]


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_in_half(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {
    "model.safetensors": (flip_a_byte, "model.safetensors does not have the checksum"),
    "optimizer.safetensors": (cut_in_half, "optimizer.safetensors does not have the checksum"),
    "trainer_state.json": (Path.unlink, "trainer_state.json is missing"),
    "checksums.json": (cut_in_half, "checksums.json is missing or damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(tiny_run, name):
    whole, config = (tiny_run("output.trackers=[]", folder=each) for each in ("whole", "damaged"))
    train(whole)
    train(tiny_run("output.trackers=[]", "optimization.steps=2", folder="damaged"))
    folder = Path(config.output.dir) / "checkpoints"
    damage, fault = DAMAGES[name]
    damage(folder / "step-000002" / name)
    watcher = Watcher()
    train(config, resume=True, display=watcher)
    assert fault in watcher.messages[0]
    assert "damaged-step-000002" in watcher.messages[0]
    assert saved(config) == ["damaged-step-000002", "step-000002", "step-000003"]
    assert steps_of(config) == [1, 2, 3]
    weights = [
        (Path(each.output.dir) / "checkpoints/step-000003/model.safetensors").read_bytes()
        for each in (whole, config)
    ]
    assert weights[0] == weights[1]


def test_a_run_without_a_whole_checkpoint_does_not_start_again_in_silence(tiny_run):
    config = tiny_run("output.trackers=[]", "optimization.steps=2")
    train(config)
    before = saved(config)
    for name in before:
        flip_a_byte(Path(config.output.dir) / "checkpoints" / name / "model.safetensors")
    for _ in range(2):
        with pytest.raises(RunError, match=r"every checkpoint .* is damaged .*step-000002.*copy"):
            train(tiny_run("output.trackers=[]"), resume=True)
        assert saved(config) == before


def test_a_folder_in_use_is_refused_and_stays_as_it_is(tiny_run):
    config = tiny_run("output.trackers=[]")
    refused = []

    def interfere(step):
        for resume in (True, False):
            with pytest.raises(RunError, match=r"is in use|already holds a run") as error:
                train(config, resume=resume)
            refused.append(str(error.value))

    train(config, display=Watcher(on_step=interfere))
    assert len(refused) == 6
    assert "is in use: another process trains there" in refused[0]
    assert steps_of(config) == [1, 2, 3]


def test_a_resumed_run_takes_the_shortcuts_that_it_took_before(tiny_run, monkeypatch):
    """They change results by rounding, so another choice would not be the same run."""
    from g2rpo_trainer import shortcuts

    config = tiny_run("output.trackers=[]", "optimization.steps=1")
    train(config)
    state = Path(config.output.dir) / "checkpoints/step-000001/trainer_state.json"
    assert json.loads(state.read_text())["shortcuts"]["shared_rollouts"] is True
    # Nothing is checked again.
    monkeypatch.setattr(shortcuts, "_check", None)
    train(tiny_run("output.trackers=[]", "optimization.steps=2"), resume=True)
