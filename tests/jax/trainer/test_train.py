"""A run, its folder, its resumption, and what is refused before it begins."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from g2rpo.run import RunFolder, load_description
from g2rpo.run.description import RunDescription
from g2rpo.run.errors import RunError
from g2rpo.run.supported import refuse_unsupported
from g2rpo_cli.main import main
from g2rpo_jax.trainer import Interrupted, evaluate, train
from g2rpo_jax.trainer.device import resolve_device
from g2rpo_jax.trainer.options import SUPPORTED
from g2rpo_jax.trainer.policy_model import load_policy


def metrics_of(description) -> list[dict]:
    lines = (Path(description.output.dir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def comparable(metrics: list[dict]) -> list[dict]:
    """Leave out what the clock decides."""
    return [{name: value for name, value in line.items() if "time" not in name} for line in metrics]


def test_a_run_leaves_its_folder_behind(tiny_run, tmp_path):
    every = ("output.eval_steps=2", "output.equity_steps=2")
    description = tiny_run("output.plots=true", *every, "optimization.beta=0.1")
    summary = train(description)
    folder = tmp_path / "run"
    assert json.loads((folder / "summary.json").read_text()) == summary
    tasks = {*description.data.tasks, "mean"}
    assert set(summary["before"]) == set(summary["after"]) == tasks
    for when in ("before", "after"):
        for task, (low, high) in summary[f"interval_{when}"].items():
            assert low <= summary[when][task] <= high
    assert summary["items"] == dict.fromkeys(description.data.tasks, 2) | {"mean": 8}
    assert (summary["steps"], summary["seed"], summary["estimator"]) == (3, 0, "gaussian")
    plots = {path.name for path in (folder / "plots").iterdir()}
    assert plots >= {"reward.png", "length.png", "equity.png"}
    metrics = metrics_of(description)
    assert [line["step"] for line in metrics] == [1, 2, 3]
    for line in metrics:
        parts = sum(line[f"loss/{term}"] for term in ("policy", "length", "entropy", "kl"))
        assert line["loss/total"] == pytest.approx(parts, abs=1e-5)
        assert {f"reward/{task}" for task in description.data.tasks} <= set(line)
        assert all(value is None or math.isfinite(value) for value in line.values())
    assert "eval_reward" in metrics[1]
    assert ["equity/ratio" in line for line in metrics] == [False, True, False]
    assert metrics[-1]["loss/kl"] > 0
    (row, *_) = RunFolder.open(folder).read_completions()
    assert {"task", "prompt", "response", "reward", "advantage", "length", "ended"} <= set(row)


def test_a_checkpoint_is_weights_and_json_and_can_be_evaluated(tiny_run, tmp_path):
    description = tiny_run("output.keep_checkpoints=2")
    summary = train(description)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-000002", "step-000003"]
    newest = tmp_path / "run" / "checkpoints" / "step-000003"
    assert not [path for path in newest.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt")]
    samples: list[dict] = []
    result = evaluate(str(newest), description, on_samples=samples.extend)
    assert result["reward"] == summary["after"]
    assert [(each["task"], each["item"]) for each in samples] == [
        (task, item) for task in description.data.tasks for item in range(2)
    ]
    assert {"problem", "answer", "response", "reward", "accuracy", "ended"} <= set(samples[0])
    for task in description.data.tasks:
        own = [each for each in samples if each["task"] == task]
        mean = sum(each["reward"] for each in own) / len(own)
        assert mean == pytest.approx(result["reward"][task], abs=1e-6)


def test_the_command_evaluates_a_run_as_its_configuration_says(tiny_run, tmp_path, monkeypatch):
    summary = train(tiny_run("optimization.steps=1"))
    samples, output = tmp_path / "samples.jsonl", tmp_path / "result.json"
    files = ["--samples", str(samples), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["g2rpo", "eval", str(tmp_path / "run"), *files])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    result = json.loads(output.read_text())
    assert result["reward"] == summary["after"]
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(rows) == sum(result["detail"][task]["items"] for task in result["length"])


def test_best_of_n_and_likeliest_tokens(tiny_run, policy_folder):
    description = tiny_run("data.eval_generations=4", "data.eval_temperature=0")
    samples: list[dict] = []
    result = evaluate(str(policy_folder), description, on_samples=samples.extend)
    texts = [each["response"] for each in samples]
    # At a temperature of 0 all responses to an item are the same.
    assert all(len(set(texts[at : at + 4])) == 1 for at in range(0, len(texts), 4))
    assert set(result["detail"]["sorting"]["best_of"]) == {"1", "2", "4"}
    warm = evaluate(str(policy_folder), tiny_run("data.eval_generations=4"))
    assert warm["detail"]["mean"]["best"] >= warm["reward"]["mean"]


def test_an_evaluation_refuses_what_it_would_ignore(tiny_run, policy_folder):
    with pytest.raises(RunError, match=r"rollout\.stop is '</answer>', which the engine jax"):
        evaluate(str(policy_folder), tiny_run("rollout.stop=</answer>"))


@pytest.mark.parametrize(
    "settings",
    [
        ("length.calibrate=true", "length.calibration.warmup_steps=1", "entropy.control=adaptive"),
        ("estimator.name=ema-grpo", "optimization.beta=0.1", "optimization.updates_per_batch=2"),
    ],
)
def test_a_resumed_run_equals_the_uninterrupted_one(tiny_run, settings):
    whole = tiny_run(*settings, folder="whole")
    expected = train(whole)
    train(tiny_run(*settings, "optimization.steps=1", folder="parts"))
    parts = tiny_run(*settings, folder="parts")
    # A linear schedule depends on the number of steps, of which the first part had one.
    assert comparable(metrics_of(parts))[0] == comparable(metrics_of(whole))[0]
    summary = train(parts, resume=True)
    assert comparable(metrics_of(parts)) == comparable(metrics_of(whole))
    assert len(metrics_of(whole)) == 3
    assert (summary["before"], summary["after"]) == (expected["before"], expected["after"])
    first, *_, last = metrics_of(whole)
    assert last["entropy"] != first["entropy"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_and_goes_on(tiny_run, number):
    class Interrupts:
        """A display at which the signal comes during the first step."""

        def step(self, step, metrics):
            if step == 1:
                os.kill(os.getpid(), number)

        def phase(self, name, total):
            return nullcontext(lambda items: None)

    description = tiny_run("output.save_steps=100")
    with pytest.raises(Interrupted) as stopped:
        train(description, display=Interrupts())
    assert stopped.value.step == 1
    train(description, resume=True)
    assert [line["step"] for line in metrics_of(description)] == [1, 2, 3]


def test_text_records_of_ones_own(tiny_run, tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [{"problem": f"{n} plus 1?", "answer": n + 1, "task_type": "plus"} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    description = tiny_run(
        f"data.source={path}",
        "data.problem_type=numerical",
        "length.targets={plus: [0, 1, 2, 6]}",
        "optimization.steps=1",
    )
    assert set(train(description)["after"]) == {"plus", "mean"}


@pytest.mark.parametrize(
    "settings",
    [
        ["estimator.name=grpo"],
        ["estimator.name=gdpo", "length.mode=reward"],
        ["estimator.decoupled=true", "estimator.task_stage=null"],
        ["length.mode=off", "entropy.weight=0", "entropy.low=0", "data.tasks=[box]"],
        ["optimization.aggregation=constant", "optimization.loss_type=gspo"],
    ],
)
def test_variants_run(tiny_run, settings):
    description = tiny_run("optimization.steps=1", *settings)
    train(description)
    (line,) = metrics_of(description)
    assert math.isfinite(line["loss/total"])
    if description.length.mode != "term":
        assert line["loss/length"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.dtype=bfloat16"], "model.dtype is 'bfloat16', which the engine jax"),
        (["rollout.shared_prompts=off"], "rollout.shared_prompts is 'off'"),
        (["rollout.stop=</answer>"], "rollout.stop is '</answer>'.*leave it at None"),
        (["model.lora.rank=4"], "model.lora.rank is 4"),
        (["model.name=/no/such/model"], "--model is '/no/such/model'.*'builtin'"),
        (["data.source=builtin", "length.mode=off"], "has images, but the engine jax"),
        (["model.device=mps"], "--device is 'mps'"),
        (["model.device=cpu", "model.device=cuda:77"], "--device is 'cuda:77'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    tiny_run, tmp_path, settings, message
):
    with pytest.raises(RunError, match=message):
        train(tiny_run(*settings))
    assert not (tmp_path / "run").exists()


def test_lack_of_memory_advises_keys_that_this_engine_follows(tiny_run, monkeypatch):
    def too_large(*arguments):
        raise MemoryError

    monkeypatch.setattr("g2rpo_jax.trainer.loop.training_step", too_large)
    with pytest.raises(RunError, match="out of memory") as caught:
        train(tiny_run())
    advised = re.findall(r"--set ([a-z_.]+)=", str(caught.value))
    assert advised == ["optimization.micro_batch_tokens", "rollout.prompts_per_step"]
    assert set(advised) <= set(SUPPORTED)


def test_every_setting_that_is_refused_has_a_line():
    description = load_description(
        settings=["engine=jax", "model.dtype=bfloat16", "model.freeze_vision=true"]
    )
    with pytest.raises(RunError) as refused:
        refuse_unsupported(description, SUPPORTED)
    assert len(str(refused.value).splitlines()) == 2


def test_supported_keys_are_keys_of_the_description():
    for key in SUPPORTED:
        model = RunDescription
        *sections, last = key.split(".")
        for section in sections:
            model = model.model_fields[section].annotation
        assert last in model.model_fields, key


def test_unknown_task_names_the_text_tasks():
    with pytest.raises(RunError, match="'sortin'; did you mean 'sorting'"):
        load_description(settings=["engine=jax", "data.tasks=[sortin]"])


def test_a_folder_with_a_run_is_refused_and_nothing_to_resume_says_so(tiny_run):
    with pytest.raises(RunError, match="holds no run"):
        train(tiny_run(), resume=True)
    train(tiny_run("optimization.steps=1"))
    with pytest.raises(RunError, match="--resume"):
        train(tiny_run())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{}", "model_type must be"),
        ("config.json", '{"model_type": "g2rpo_jax_decoder", "depth": 1}', "depth"),
        ("config.json", '{"model_type": "g2rpo_jax_decoder", "vocab_size": 3}', "vocab_size is 3"),
        ("model.safetensors", "nonsense", "model.safetensors"),
        ("tokenizer.json", "[]", "must begin with"),
    ],
)
def test_a_damaged_model_is_told(policy_folder, tmp_path, name, content, message):
    for path in policy_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_text(content)
    with pytest.raises(RunError, match=message):
        load_policy(str(tmp_path), resolve_device("cpu"))


def test_weights_of_other_sizes_are_told(policy_folder, tmp_path):
    for path in policy_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"width": 32}))
    with pytest.raises(RunError, match="do not have the sizes"):
        load_policy(str(tmp_path), resolve_device("cpu"))


WITHOUT = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ("flax", "orbax"):
            return self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from g2rpo_cli.main import main
sys.argv = ["g2rpo", "train", "--engine", "jax", "-o", sys.argv[1]]
main()
"""


def test_a_missing_library_names_the_command(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert 'pip install "g2rpo[jax]"' in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_first_steps_of_the_default_run_raise_the_reward_of_every_task(tmp_path):
    description = load_description(
        settings=[
            "engine=jax",
            "model.device=cpu",
            "optimization.steps=60",
            "data.eval_items=48",
            f"output.dir={tmp_path / 'run'}",
        ]
    )
    summary = train(description)
    before, after = summary["before"], summary["after"]
    assert after["mean"] > before["mean"] + 0.05
    assert all(after[task] > before[task] for task in before), (before, after)
