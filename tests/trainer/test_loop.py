"""The order of a run and what it writes, with stand-ins for everything that needs a policy."""

import json
import signal
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from g2rpo_trainer import Interrupted, loop, train
from g2rpo_trainer.answers import Evaluation
from g2rpo_trainer.config import load_config
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.model.policy_model import Shortcuts
from g2rpo_trainer.record import BrokenRecord
from g2rpo_trainer.run_folder import RunFolder
from g2rpo_trainer.step import StepResult


@dataclass(frozen=True)
class StandIn:
    """A policy without a model."""

    model: None = None
    has_adapter: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    shortcuts: Shortcuts = field(default_factory=Shortcuts)


class Noted:
    """Stands in for the policy of a run, and notes in `events` what is asked of it.

    A function in `during` is called at its event. With `draws` every step draws two records, for a
    policy that takes no question longer than ten letters.
    """

    def __init__(self, monkeypatch, processes, during, draws):
        self.events, self.during, self.draws, self.steps = [], during, draws, 0
        stand_ins = {
            "load_run_policy": self.load,
            "trained_share": lambda model: None,
            "make_optimizer": lambda policy, options: None,
            "open_sampler": self.open_sampler,
            "choose_shortcuts": lambda policy, *_, **__: policy,
            "training_step": self.take_step,
            "Evaluator": lambda *_: self,
            "staged_shards": lambda folder, policy, optimizer, ranks: nullcontext(),
            "save_checkpoint": self.save,
            "restore_checkpoint": self.restore,
            "export_merged": lambda checkpoint, folder, model: self.note("export"),
            **({"join_ranks": processes.joined} if processes else {}),
        }
        for name, stand_in in stand_ins.items():
            monkeypatch.setattr(loop, name, stand_in)

    def note(self, event):
        self.events.append(event)
        self.during.get(event, lambda: None)()

    def load(self, config, name, *, ranks):
        self.note("load")
        return StandIn()

    @contextmanager
    def open_sampler(self, config, policy, ranks):
        try:
            yield None
        finally:
            self.note("closed")

    def use(self, record):
        if len(record.problem) > 10:
            raise BrokenRecord("is too long")

    def take_step(self, collector, learner, output, progress):
        if self.draws:
            source = collector.source
            for slot in source.slots(seed=0, position=2 * progress.step, prompts=2):
                source.read(slot, self.use)
        progress.step += 1
        self.steps = progress.step
        self.note(f"step {self.steps}")
        row = {"task": "sorting", "prompt": "3 1 2", "response": "1 2 3"}
        return StepResult({"reward": self.steps / 10}, [row])

    def evaluate(self, policy, *, advance, on_samples):
        self.note(f"evaluate after {self.steps}")
        advance(1)
        value = float(self.steps)
        row = {"items": 4, "low": value - 1, "high": value + 1}
        reward = {"sorting": value, "mean": value}
        of_items = {"sorting": [value - 1, value, value + 1]}
        return Evaluation(reward, {"sorting": 3.0}, dict.fromkeys(reward, row), of_items)

    def save(self, path, policy, optimizer, state, gathered):
        self.note(f"save {self.steps}")
        (path / "state").write_text(json.dumps(state))

    def restore(self, path, policy, optimizer):
        state = json.loads((path / "state").read_text())
        self.steps = state["progress"]["step"]
        return state


@pytest.fixture
def noted(monkeypatch):
    """Return a function that puts the stand-ins in place, and returns them."""
    return lambda processes=None, during=None, draws=False: Noted(
        monkeypatch, processes, during or {}, draws
    )


class Second:
    """One of two ranks; notes whether it is inside `raise_on_all_ranks`."""

    size = 2

    def __init__(self, *, is_main):
        self.is_main, self.is_together, self.asked = is_main, False, 0

    @contextmanager
    def joined(self):
        yield self

    def any(self, flag):
        self.asked += 1
        return flag

    def gather_objects(self, value):
        self.asked += 1
        return [value, value]

    @contextmanager
    def raise_on_all_ranks(self):
        assert not self.is_together  # one that waits inside would wait for ever
        self.is_together = True
        yield
        self.is_together = False


@pytest.fixture
def described(tmp_path):
    def describe(*settings):
        return load_config(
            settings=[
                "data.source=builtin-text",
                "data.tasks=[sorting]",
                "length.targets={}",
                "optimization.steps=3",
                "output.save_steps=2",
                "output.eval_steps=3",
                "output.trackers=[]",
                "output.plots=false",
                f"output.dir={tmp_path / 'run'}",
                *settings,
            ]
        )

    return describe


def logged(config):
    return RunFolder.open(config.output.dir).read_metrics()


def test_the_order_of_a_run(described, noted, tmp_path):
    run, config = noted(), described()
    summary = train(config)
    assert run.events == [
        "load",
        "evaluate after 0",
        "step 1",
        "step 2",
        "save 2",
        "step 3",
        "evaluate after 3",
        "save 3",
        "evaluate after 3",
        "export",
        "closed",
    ]
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["before"], summary["after"]) == (
        {"sorting": 0.0, "mean": 0.0},
        {"sorting": 3.0, "mean": 3.0},
    )
    assert summary["interval_after"] == {"sorting": [2.0, 4.0], "mean": [2.0, 4.0]}
    assert summary["interval_change"] == {"sorting": [3.0, 3.0], "mean": [3.0, 3.0]}
    assert summary["items"] == {"sorting": 4, "mean": 4}
    lines = logged(config)
    assert [line["reward"] for line in lines] == [0.1, 0.2, 0.3]
    assert ["eval_reward" in line for line in lines] == [False, False, True]


def test_a_signal_saves_after_the_step_and_the_run_goes_on(described, noted):
    config = described()
    stopped = noted(during={"step 1": lambda: signal.raise_signal(signal.SIGTERM)})
    with pytest.raises(Interrupted) as stop:
        train(config)
    assert (stop.value.step, stopped.events[-2:]) == (1, ["save 1", "closed"])
    resumed = noted()
    summary = train(config, resume=True)
    # The evaluation before the run is not repeated.
    assert resumed.events[:3] == ["load", "step 2", "save 2"]
    assert [line["step"] for line in logged(config)] == [1, 2, 3]
    assert summary["before"]["mean"] == 0.0


def test_a_signal_in_the_last_evaluation_loses_nothing(described, noted):
    asked = []

    def press():
        asked.append(None)
        if len(asked) == 2:  # the first is that of step 3 itself
            signal.raise_signal(signal.SIGINT)

    stopped = noted(during={"evaluate after 3": press})
    with pytest.raises(Interrupted):
        train(described())
    assert "export" not in stopped.events
    resumed = noted()
    train(described(), resume=True)
    assert resumed.events == ["load", "evaluate after 3", "export", "closed"]


def test_a_model_that_does_not_load_leaves_nothing_behind(described, noted, tmp_path):
    def refuse():
        raise RunError("no such model")

    run = noted(during={"load": refuse})
    with pytest.raises(RunError, match="no such model"):
        train(described())
    assert run.events == ["load"]
    assert not (tmp_path / "run").exists()


def test_an_error_in_a_step_says_how_the_run_goes_on(described, noted):
    def fail():
        raise ZeroDivisionError

    run = noted(during={"step 3": fail})
    with pytest.raises(ZeroDivisionError) as failed:
        train(described())
    (note,) = failed.value.__notes__
    assert "it goes on from the checkpoint after step 2" in note
    assert run.events[-1] == "closed"


def test_the_first_of_several_processes_writes_for_all(described, noted):
    processes = Second(is_main=True)
    seen = {}

    def look(event):
        seen[event] = processes.is_together

    events = ("load", "step 1", "evaluate after 0", "save 2", "export")
    during = {event: lambda event=event: look(event) for event in events}
    noted(processes, during)
    train(described())
    # Loading, steps and evaluations wait for other processes by themselves.
    assert seen == {
        "load": False,
        "step 1": False,
        "evaluate after 0": False,
        "save 2": True,
        "export": True,
    }


def test_the_other_processes_write_nothing_and_ask_as_often(described, noted, tmp_path, capsys):
    second = Second(is_main=False)
    run = noted(second)
    summary = train(described())
    assert not (tmp_path / "run").exists()
    assert not [event for event in run.events if event.startswith(("save", "export"))]
    assert summary["after"]["mean"] == 3.0
    assert "step" not in capsys.readouterr().err
    first = Second(is_main=True)
    noted(first)
    train(described())
    # Each question is one that all processes answer together.
    assert first.asked == second.asked > 0


@pytest.fixture
def own_records(tmp_path):
    rows = [
        {
            "problem": f"{n} + 1?" + " Really?" * (n % 2),
            "answer": n + 1,
            "problem_type": "numerical",
            "task_type": "sorting",
        }
        for n in range(40)
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return [f"data.source={path}", "data.skip_broken=true"]


def test_a_run_goes_on_only_with_the_tasks_that_it_began_with(described, noted, own_records):
    config = described(*own_records, "data.tasks=[]")
    noted(during={"step 1": lambda: signal.raise_signal(signal.SIGTERM)})
    with pytest.raises(Interrupted):
        train(config)
    assert load_config(Path(config.output.dir) / "config.yaml").data.tasks == []
    path = Path(config.data.source)
    kept = path.read_text()
    path.write_text(kept.replace('"sorting"', '"new"', 9))
    noted()
    with pytest.raises(RunError, match=r"tasks of the data are new, sorting, .* trained sorting;"):
        train(config, resume=True)
    path.write_text(kept)
    assert train(config, resume=True)["steps"] == 3


def skipped_counts(config):
    return [line["data/skipped"] for line in logged(config)]


def test_records_left_out_are_counted_in_every_step_and_named_at_the_end(
    described, noted, own_records, tmp_path, capsys
):
    noted(draws=True)
    whole = described(*own_records)
    train(whole)
    counts = skipped_counts(whole)
    assert counts == sorted(counts)
    assert counts[-1] > counts[0] > 0
    said = capsys.readouterr().err
    assert said.count(f"{counts[-1]:g} broken records are left out, such as:") == 1
    assert "is too long" in said

    # In a process of its own the same run counts the same, also from a checkpoint on.
    again = described(*own_records, f"output.dir={tmp_path / 'again'}")
    stop = {"step 1": lambda: signal.raise_signal(signal.SIGTERM)}
    noted(during=stop, draws=True)
    with pytest.raises(Interrupted):
        train(again)
    noted(draws=True)
    train(again, resume=True)
    assert skipped_counts(again) == counts
    assert f"{counts[-1]:g} broken records" in capsys.readouterr().err

    # The same data in the same process: a run that begins counts from the start.
    last = described(*own_records, f"output.dir={tmp_path / 'last'}")
    noted(Second(is_main=True), draws=True)
    train(last)
    assert skipped_counts(last) == counts


def test_other_processes_do_not_name_the_records_again(described, noted, own_records, capsys):
    noted(Second(is_main=False), draws=True)
    train(described(*own_records))
    assert "broken" not in capsys.readouterr().err


def test_without_skip_broken_nothing_is_counted(described, noted):
    config = described()
    noted()
    train(config)
    assert not any("data/skipped" in line for line in logged(config))
