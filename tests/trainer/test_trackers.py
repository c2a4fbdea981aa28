import logging
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from g2rpo_trainer import train
from g2rpo_trainer.config import load_config
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.report.trackers import Trackers, require_trackers
from g2rpo_trainer.run_folder import RunFolder


class FakeLibrary(ModuleType):
    """Has the interface that wandb and trackio share, and notes what it is told."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.started: list[dict] = []
        self.logged: list[tuple[int, dict]] = []
        self.finished = 0
        self.fails_at: int | str | None = None

    def init(self, **options):
        if self.fails_at == "init":
            raise PermissionError("no API key")
        self.started.append(options)
        return self

    def log(self, metrics, step):
        if step == self.fails_at:
            raise ConnectionError("server is\ngone")
        self.logged.append((step, metrics))

    def finish(self):
        if self.fails_at == "finish":
            raise ConnectionError("server is gone")
        self.finished += 1


@pytest.fixture(params=["wandb", "trackio"])
def library(request, monkeypatch):
    fake = FakeLibrary(request.param)
    fake.__spec__ = ModuleSpec(request.param, None, origin="here")
    monkeypatch.setitem(sys.modules, request.param, fake)
    return fake


@pytest.fixture
def folder(tmp_path, library):
    settings = [f"output.trackers=[{library.__name__}]", "output.project=vision", "seed=7"]
    return RunFolder.create(tmp_path / "run", load_config(settings=settings))


def test_metrics_arrive_under_their_step(folder, library):
    trackers = Trackers(folder, 0)
    trackers.log(1, {"reward": 0.5, "reward/ocr": 0.25})
    trackers.close()
    assert library.logged == [(1, {"reward": 0.5, "reward/ocr": 0.25})]
    assert library.finished == 1
    (options,) = library.started
    assert options["project"] == "vision"
    assert options["config"]["seed"] == 7
    assert options["name"].startswith("run")


def test_a_resumed_run_goes_on_under_its_name(folder, library):
    Trackers(folder, 0).close()
    Trackers(RunFolder.open(folder.path), 3).close()
    first, second = library.started
    assert first == second | {"config": first["config"]}
    assert second["resume"] == "allow"


def test_two_runs_have_different_names(tmp_path, library):
    settings = [f"output.trackers=[{library.__name__}]"]
    for parent in ("a", "b"):
        folder = RunFolder.create(tmp_path / parent / "run", load_config(settings=settings))
        Trackers(folder, 0).close()
    key = "id" if library.__name__ == "wandb" else "name"
    assert len({options[key] for options in library.started}) == 2


def test_a_tracker_that_fails_is_given_up_with_one_warning(folder, library, caplog):
    library.fails_at = 2
    trackers = Trackers(folder, 0)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            trackers.log(step, {"a": step})
        trackers.close()
    assert [step for step, _ in library.logged] == [1]
    (warning,) = caplog.messages
    assert library.__name__ in warning
    assert "ConnectionError: server is gone" in warning


def test_a_tracker_that_fails_at_the_end_warns(folder, library, caplog):
    library.fails_at = "finish"
    Trackers(folder, 0).close()
    assert "server is gone" in caplog.text


def test_a_tracker_that_does_not_start_ends_the_run_at_once(folder, library):
    library.fails_at = "init"
    with pytest.raises(RunError, match=r"does not start \(PermissionError: no API key\)"):
        Trackers(folder, 0)


def test_trackers_that_had_started_are_ended_when_a_later_one_does_not(tmp_path, library):
    other = "trackio" if library.__name__ == "wandb" else "wandb"
    config = load_config(settings=[f"output.trackers=[{library.__name__}, {other}]"])
    folder = RunFolder(tmp_path, config)
    broken = FakeLibrary(other)
    broken.fails_at = "init"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, other, broken)
        with pytest.raises(RunError, match=f"{other} does not start"):
            Trackers(folder, 0)
    assert library.finished == 1


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_library_is_named_before_anything_is_written(
    tiny_run, tmp_path, monkeypatch, name
):
    monkeypatch.setattr("g2rpo_trainer.report.trackers.find_spec", lambda name: None)
    config = tiny_run(f"output.trackers=[{name}]")
    with pytest.raises(RunError, match=f"names {name}, .*pip install {name} "):
        train(config)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_that_name_is_no_library(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(RunError, match="pip install wandb "):
        require_trackers(["wandb"])


def test_an_unknown_tracker_and_a_repeated_one_are_errors():
    with pytest.raises(RunError, match=r"output\.trackers.0 is 'neptune', but must be"):
        load_config(settings=["output.trackers=[neptune]"])
    with pytest.raises(RunError, match="once"):
        load_config(settings=["output.trackers=[wandb, wandb]"])


def test_tensorboard_events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = RunFolder.create(tmp_path, load_config())
    trackers = Trackers(folder, 0)
    for step in (1, 2, 3):
        trackers.log(step, {"reward/maths": step / 2, "reward": 1.0})
    trackers.close()
    # A second process goes on after step 1, and the events of its steps hide the older ones.
    again = Trackers(RunFolder.open(tmp_path), 1)
    again.log(2, {"reward/maths": 9.0})
    again.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"reward", "reward/maths"}
    scalars = events.Scalars("reward/maths")
    assert [(event.step, event.value) for event in scalars] == [(1, 0.5), (2, 9.0)]


def test_tensorboard_needs_neither_pytorch_nor_jax(tmp_path):
    code = (
        "import sys\n"
        "from g2rpo_trainer.config import load_config\n"
        "from g2rpo_trainer.report.trackers import Trackers\n"
        "from g2rpo_trainer.run_folder import RunFolder\n"
        f"folder = RunFolder.create({str(tmp_path / 'run')!r}, load_config())\n"
        "trackers = Trackers(folder, 0); trackers.log(1, {'a': 1.0}); trackers.close()\n"
        "assert not {'torch', 'jax', 'tensorflow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert list((tmp_path / "run" / "tensorboard").iterdir())
