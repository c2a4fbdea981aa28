"""The command line with a trainer that only notes what it was asked for."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import g2rpo_trainer
from g2rpo_trainer.run_folder import RunFolder

TASKS = ("grounding", "vqa", "spatial", "chart", "ocr", "maths")


class FakeTrainer(ModuleType):
    """Stands in for `g2rpo_trainer`: writes a run's folder and returns a summary."""

    def __init__(self):
        super().__init__("g2rpo_trainer")
        self.__path__ = g2rpo_trainer.__path__  # its modules are the real ones
        self.calls = []
        self.raises = None

    def train(self, config, *, resume=False, display=None, source=None):
        path = config.output.dir
        folder = RunFolder.open(path) if resume else RunFolder.create(path, config)
        folder.update_config(config)
        self.calls.append((config, resume))
        if self.raises is not None:
            raise self.raises
        steps = config.optimization.steps
        folder.save_checkpoint(steps, lambda folder: (folder / "model").write_text(""))
        scores = dict.fromkeys(source.tasks, 0.5)
        summary = {
            "before": {**scores, "mean": 0.5},
            "after": {**scores, "mean": 0.5},
            "length_before": scores,
            "length_after": scores,
            "steps": steps,
            "seconds": 1.0,
        }
        folder.write_summary(summary)
        return summary

    def evaluate(self, model, config, display=None, *, source=None, on_samples=None):
        self.calls.append((model, config))
        self.tasks = source.tasks
        scores = dict.fromkeys(source.tasks, 0.5)
        row = {"items": 3, "low": 0.25, "high": 0.75, "best": 0.875, "generations": 8}
        if on_samples:
            on_samples([{"task": task, "response": "seven"} for task in scores])
        reward = {**scores, "mean": 0.5}
        return {"reward": reward, "length": scores, "detail": dict.fromkeys(reward, row)}


@pytest.fixture
def trainer(monkeypatch):
    fake = FakeTrainer()
    monkeypatch.setitem(sys.modules, "g2rpo_trainer", fake)
    return fake


@pytest.fixture
def run(g2rpo, monkeypatch, tmp_path):
    """Return a function that runs the command in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])  # the working folder is searched for modules
    monkeypatch.setenv("COLUMNS", "80")
    return g2rpo


@pytest.fixture
def without(tmp_path):
    """Return a function that runs the command in a process where modules are missing."""

    def command(modules: list[str], *arguments: str):
        # Not as None in sys.modules, where array_api_compat would take it for PyTorch.
        code = f"""
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {modules}:
            return self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
sys.argv = {["g2rpo", *arguments]}
from g2rpo_cli.main import main
main()
"""
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(tmp_path)
        )

    return command
