"""The course of a run, with an engine that only writes down what it is asked for."""

import json
import signal
from contextlib import contextmanager

import pytest

from g2rpo_trainer.config import load_config
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.run.evaluation import Evaluation
from g2rpo_trainer.run.folder import RunFolder
from g2rpo_trainer.run.interrupt import Interrupted
from g2rpo_trainer.run.loop import Run
from g2rpo_trainer.run.progress import Progress


class Noted(Run):
    """Notes what happens in `events`; a function in `during` acts when it does."""

    def __init__(self, config, processes=None, during=None):
        super().__init__(config, processes)
        self.events, self.during = [], during or {}

    def note(self, event):
        self.events.append(event)
        self.during.get(event, lambda: None)()

    def load(self, checkpoint):
        self.at_end.callback(self.note, "closed")
        self.note("load")
        if checkpoint:
            self.progress = Progress.from_json(json.loads((checkpoint / "state").read_text()))

    def take_step(self):
        self.progress.step += 1
        self.note(f"step {self.progress.step}")
        row = {"task": "sorting", "prompt": "3 1 2", "response": "1 2 3"}
        return {"reward": self.progress.step / 10}, [row]

    def evaluate(self, advance):
        self.note(f"evaluate after {self.progress.step}")
        advance(1)
        value = float(self.progress.step)
        row = {"items": 4, "low": value - 1, "high": value + 1}
        reward = {"sorting": value, "mean": value}
        return Evaluation(reward, {"sorting": 3.0}, dict.fromkeys(reward, row))

    def checkpoint(self):
        state = json.dumps(self.progress.to_json())

        def write(path):
            self.note(f"save {self.progress.step}")
            (path / "state").write_text(state)

        return write

    def finish(self):
        self.note("finish")


class Second:
    """The second of two processes, or the first; notes whether it is inside `together`."""

    size = 2

    def __init__(self, *, is_main):
        self.is_main, self.is_together, self.asked = is_main, False, 0

    def any(self, flag):
        self.asked += 1
        return flag

    @contextmanager
    def together(self):
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


def test_the_order_of_a_run(described, tmp_path):
    run = Noted(described())
    summary = run.train()
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
        "finish",
        "closed",
    ]
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["before"], summary["after"]) == (
        {"sorting": 0.0, "mean": 0.0},
        {"sorting": 3.0, "mean": 3.0},
    )
    assert summary["interval_after"] == {"sorting": [2.0, 4.0], "mean": [2.0, 4.0]}
    assert summary["items"] == {"sorting": 4, "mean": 4}
    lines = logged(run.config)
    assert [line["reward"] for line in lines] == [0.1, 0.2, 0.3]
    assert ["eval_reward" in line for line in lines] == [False, False, True]


def test_a_signal_saves_after_the_step_and_the_run_goes_on(described):
    stopped = Noted(described(), during={"step 1": lambda: signal.raise_signal(signal.SIGTERM)})
    with pytest.raises(Interrupted) as stop:
        stopped.train()
    assert (stop.value.step, stopped.events[-2:]) == (1, ["save 1", "closed"])
    resumed = Noted(described())
    summary = resumed.train(resume=True)
    # The evaluation before the run is not repeated.
    assert resumed.events[:3] == ["load", "step 2", "save 2"]
    assert [line["step"] for line in logged(resumed.config)] == [1, 2, 3]
    assert summary["before"]["mean"] == 0.0


def test_a_signal_in_the_last_evaluation_loses_nothing(described):
    asked = []

    def press():
        asked.append(None)
        if len(asked) == 2:  # the first is that of step 3 itself
            signal.raise_signal(signal.SIGINT)

    stopped = Noted(described(), during={"evaluate after 3": press})
    with pytest.raises(Interrupted):
        stopped.train()
    assert "finish" not in stopped.events
    resumed = Noted(described())
    resumed.train(resume=True)
    assert resumed.events == ["load", "evaluate after 3", "finish", "closed"]


def test_what_load_finds_wrong_leaves_nothing_behind(described, tmp_path):
    def refuse():
        raise RunError("no such model")

    run = Noted(described(), during={"load": refuse})
    with pytest.raises(RunError, match="no such model"):
        run.train()
    assert run.events == ["load", "closed"]
    assert not (tmp_path / "run").exists()


def test_an_error_in_a_step_says_how_the_run_goes_on(described):
    def fail():
        raise ZeroDivisionError

    run = Noted(described(), during={"step 3": fail})
    with pytest.raises(ZeroDivisionError) as failed:
        run.train()
    (note,) = failed.value.__notes__
    assert "it goes on from the checkpoint after step 2" in note
    assert run.events[-1] == "closed"


def test_the_first_of_several_processes_writes_for_all(described):
    processes = Second(is_main=True)
    seen = {}

    def look(event):
        seen[event] = processes.is_together

    events = ("load", "step 1", "evaluate after 0", "save 2", "finish")
    during = {event: lambda event=event: look(event) for event in events}
    Noted(described(), processes, during).train()
    # Loading, steps and evaluations wait for other processes by themselves.
    assert seen == {
        "load": False,
        "step 1": False,
        "evaluate after 0": False,
        "save 2": True,
        "finish": True,
    }


def test_the_other_processes_write_nothing_and_ask_as_often(described, tmp_path, capsys):
    second = Second(is_main=False)
    run = Noted(described(), second)
    summary = run.train()
    assert not (tmp_path / "run").exists()
    assert not [event for event in run.events if event.startswith(("save", "finish"))]
    assert summary["after"]["mean"] == 3.0
    assert "step" not in capsys.readouterr().err
    first = Second(is_main=True)
    Noted(described(), first).train()
    # Each question is one that all processes answer together.
    assert first.asked == second.asked > 0


class Drawing(Noted):
    """Draws two records a step, as a policy that reads no question longer than ten letters."""

    def load(self, checkpoint):
        super().load(checkpoint)
        self.source.refuse(lambda record: "is too long" if len(record.problem) > 10 else None)

    def take_step(self):
        position = 2 * self.progress.step
        self.source.training_records(seed=0, position=position, prompts=2)
        return super().take_step()


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


def skipped_counts(config):
    return [line["data/skipped"] for line in logged(config)]


def test_records_left_out_are_counted_in_every_step_and_named_at_the_end(
    described, own_records, tmp_path, capsys
):
    whole = Drawing(described(*own_records))
    whole.train()
    counts = skipped_counts(whole.config)
    assert counts == sorted(counts)
    assert counts[-1] > counts[0] > 0
    said = capsys.readouterr().err
    assert said.count(f"{counts[-1]:g} broken records are left out, such as:") == 1
    assert "is too long" in said

    # In a process of its own the same run counts the same, also from a checkpoint on.
    folder = f"output.dir={tmp_path / 'again'}"
    stop = {"step 1": lambda: signal.raise_signal(signal.SIGTERM)}
    with pytest.raises(Interrupted):
        Drawing(described(*own_records, folder), during=stop).train()
    resumed = Drawing(described(*own_records, folder))
    resumed.train(resume=True)
    assert skipped_counts(resumed.config) == counts
    assert f"{counts[-1]:g} broken records" in capsys.readouterr().err

    # The same data in the same process: a run that begins counts from the start.
    last = Drawing(described(*own_records, f"output.dir={tmp_path / 'last'}"), Second(is_main=True))
    last.train()
    assert skipped_counts(last.config) == counts


def test_other_processes_do_not_name_the_records_again(described, own_records, capsys):
    Drawing(described(*own_records), Second(is_main=False)).train()
    assert "broken" not in capsys.readouterr().err


def test_without_permission_nothing_is_counted(described):
    run = Noted(described())
    run.train()
    assert not any("data/skipped" in line for line in logged(run.config))
