import json

import pytest

from g2rpo_trainer import device_fit
from g2rpo_trainer.config import load_config
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.report import trackers


class Saved(KeyboardInterrupt):
    """As the trainer's own interruption."""


def one_line(text: str) -> str:
    (line,) = text.splitlines()
    assert line.startswith("error: ")
    return line


def test_no_option_at_all(run, trainer, tmp_path):
    code, out, _ = run("train")
    assert code == 0
    assert trainer.calls == [(load_config(), False)]
    assert all(task in out for task in load_config().data.tasks)
    assert "everything is in runs/g2rpo" in out


def test_flags_settings_and_file_reach_the_description(run, trainer, tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 7\nentropy: {weight: 0.5}\n")
    arguments = "-c run.yaml -o out/a -t ocr -t maths --estimator grpo --steps 3 --device cpu"
    code, _, err = run("train", *arguments.split(), "--set", "length.mode=off", "--model", "m")
    assert code == 0, err
    ((config, _),) = trainer.calls
    assert config.seed == 7
    assert config.entropy.weight == 0.5
    assert config.length.mode == "off"
    assert config.data.tasks == ["ocr", "maths"]
    assert (config.model.name, config.model.device) == ("m", "cpu")
    assert config.estimator.name == "grpo"
    assert config.optimization.steps == 3
    assert config.output.dir == "out/a"


def test_a_preset_lies_beneath_file_settings_and_options(run, trainer, tmp_path):
    (tmp_path / "run.yaml").write_text("rollout: {stop: <end>}\n")
    code, _, err = run("train", "-c", "run.yaml", "-c", "vlm", "--model", "m", "-s", "seed=4")
    assert code == 0, err
    ((config, _),) = trainer.calls
    assert (config.model.name, config.model.dtype, config.seed) == ("m", "bfloat16", 4)
    assert config.rollout.stop == "<end>"
    assert load_config(tmp_path / "runs" / "g2rpo" / "config.yaml") == config


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["-t", "math"], ["'math'", "'maths'", "grounding"]),
        (["--estimator", "grop"], ["'grop'", "'grpo'", "gaussian"]),
        (["--device", "gpu"], ["'gpu'", "cuda"]),
        (["--data", "web"], ["'web'", "builtin"]),
        (["--steps", "0"], ["optimization.steps is 0"]),
        (["--set", "sed=1"], ["sed", "'seed'"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "cannot be read"]),
        (["--config", "vlm-lroa"], ["'vlm-lora'", "builtin, text, vlm, vlm-lora"]),
        (["-t", "ocr", "-s", "length.targets.orc=direct"], ["length.targets", "'orc'", "'ocr'"]),
        (["-t", "ocr", "-s", "entropy.bounds.orc=[0, 1]"], ["entropy.bounds", "'orc'", "'ocr'"]),
        (["-t", "ocr", "-s", "rollout.limits.vqa=40"], ["rollout.limits.vqa", "(data.tasks: ocr)"]),
        (["--resume"], ["runs/g2rpo", "holds no run"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, trainer, arguments, parts):
    code, out, err = run("train", *arguments)
    assert (code, out) == (2, "")
    assert all(part in one_line(err) for part in parts), err
    assert trainer.calls == []


def test_bad_option_is_exit_code_2(run, trainer):
    code, _, err = run("train", "--steps", "many")
    assert code == 2
    assert "--steps" in err


def test_existing_run_is_refused(run, trainer):
    assert run("train")[0] == 0
    code, _, err = run("train")
    assert code == 2
    assert "--resume" in one_line(err)
    assert "--output-dir" in err


def test_resume_takes_the_configuration_from_the_folder(run, trainer):
    run("train", "--seed", "5", "--steps", "2", "-o", "a")
    code, _, err = run("train", "--resume", "-o", "a", "--steps", "4", "--seed", "5")
    assert code == 0, err
    config, resume = trainer.calls[-1]
    assert resume
    assert (config.seed, config.optimization.steps) == (5, 4)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--seed", "6", "--steps", "9"], ["seed is 6", "has 0", "--steps"]),
        (["--set", "rollout.temperature=0.5"], ["rollout.temperature is 0.5", "has 1.0"]),
        (["--config", "x.yaml"], ["--config"]),
        (["--steps", "1"], ["already has 2", "larger"]),
        ([], ["all its 2 steps", "--steps"]),
    ],
)
def test_resume_refuses_what_would_make_another_run(run, trainer, arguments, parts):
    run("train", "--steps", "2", "-o", "a")
    code, _, err = run("train", "--resume", "-o", "a", *arguments)
    assert code == 2
    assert all(part in one_line(err) for part in parts), err
    assert len(trainer.calls) == 1


@pytest.mark.parametrize(
    ("interruption", "said"), [(Saved("saved 3"), "saved 3"), (KeyboardInterrupt(), "stopped")]
)
def test_ctrl_c_says_how_to_go_on(run, trainer, interruption, said):
    trainer.raises = interruption
    code, _, err = run("train", "-o", "my runs/a")
    assert code == 130
    assert said in err
    assert "g2rpo train --resume --output-dir 'my runs/a'" in err


def test_errors_of_the_trainer(run, trainer, monkeypatch):
    trainer.raises = RunError("--device is 'cuda', but")
    assert run("train", "-o", "a")[0] == 2
    trainer.raises = RuntimeError("out of\nmemory")
    code, _, err = run("train", "-o", "b")
    assert code == 1
    assert "RuntimeError: out of memory" in one_line(err)
    monkeypatch.setenv("G2RPO_DEBUG", "1")
    code, _, err = run("train", "-o", "c")
    assert code == 1
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("error: RuntimeError: out of memory\n")


def test_resume_may_change_what_makes_no_other_run(run, trainer):
    run("train", "--steps", "2", "-o", "a")
    changed = ["output.save_steps=9", "optimization.micro_batch_tokens=64", "rollout.batch_size=8"]
    settings = [part for setting in changed for part in ("--set", setting)]
    code, _, err = run("train", "--resume", "-o", "a", "--steps", "4", *settings)
    assert code == 0, err
    config, _ = trainer.calls[-1]
    assert config.output.save_steps == 9
    assert config.optimization.micro_batch_tokens == 64
    assert config.rollout.batch_size == 8


def test_a_run_begins_with_the_table_of_its_data(run, trainer):
    code, out, err = run("train", "-t", "ocr", "--steps", "1")
    assert code == 0, err
    assert out.index("character OCR") < out.index("before")
    assert "0–10" in out  # the length target


def test_a_reward_of_ones_own_reaches_the_description(run, trainer, tmp_path):
    (tmp_path / "colours_of_mine.py").write_text("def match(answer, truth):\n    return 1.0\n")
    code, _, err = run("train", "-t", "ocr", "--reward", "colour=colours_of_mine:match")
    assert code == 0, err
    config = trainer.calls[0][0]
    assert config.rewards.functions == {"colour": "colours_of_mine:match"}


def on_a_device_of(mib, monkeypatch):
    memory = device_fit.DeviceMemory("cuda:0 (a GPU)", mib * 2**20, mib * 2**20)
    monkeypatch.setattr(device_fit, "device_memory", lambda name: memory)


def test_what_may_not_fit_is_said_before_the_run(run, trainer, monkeypatch):
    on_a_device_of(300, monkeypatch)
    code, _, err = run("train", "--set", "rollout.batch_size=512")
    assert code == 0
    assert err.startswith("warning: the run takes about 0.4 GiB in its rollout, most of it for its")
    assert "0.3 GiB are free on cuda:0 (a GPU)" in err
    assert "rollout.batch_size: " in err
    on_a_device_of(5000, monkeypatch)
    assert run("train", "-o", "b")[2] == ""


def test_a_run_whose_weights_and_optimizer_cannot_fit_is_refused(run, trainer, monkeypatch):
    on_a_device_of(10, monkeypatch)
    code, _, err = run("train")
    assert code == 2
    assert "weights and optimiser alone take about 14 MiB, but 10 MiB" in one_line(err)
    assert trainer.calls == []


def test_a_missing_tracker_is_named_before_anything_is_loaded(run, trainer, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    code, _, err = run("train", "--set", "output.trackers=[wandb]")
    assert code == 2
    assert "pip install wandb" in one_line(err)
    assert trainer.calls == []


def test_the_last_lines_say_where_all_is_and_what_to_do_next(run, trainer, tmp_path):
    code, out, err = run("train", "--steps", "2", "-o", "my runs/a")
    assert code == 0, err
    end = out.partition("everything is in my runs/a")[2]
    assert "checkpoint: my runs/a/checkpoints/step-000002" in end
    assert "plots" not in end  # this trainer draws none
    assert "g2rpo report 'my runs/a'  # writes my runs/a/report.html" in end
    assert "g2rpo eval 'my runs/a' --items 256" in end


def test_quiet_shows_the_result_and_warnings_alone(run, trainer, monkeypatch):
    noticed = {}
    plain = trainer.train

    def train(config, *, display, **options):
        display.message("a line of progress")
        noticed["metrics"] = {"reward/ocr": 0.5, "completions/clipped_ratio/ocr": 1.0}
        for step in range(1, 11):
            display.step(step, noticed["metrics"])
        return plain(config, display=display, **options)

    monkeypatch.setattr(trainer, "train", train)
    code, out, err = run("train", "-t", "ocr", "--quiet")
    assert code == 0
    (line,) = err.splitlines()
    assert line.startswith("step 10: ocr: 100% of the responses were cut off")
    assert "character OCR" not in out  # the table of the data
    assert "Held-out reward before and after" in out
    assert "everything is in runs/g2rpo" in out
    code, out, err = run("train", "-t", "ocr", "-o", "b")
    assert "a line of progress" in err
    assert "step 10/" in err or "step 1/" in err
    assert "character OCR" in out


def test_json_is_the_summary_alone_and_the_rest_goes_to_stderr(run, trainer, tmp_path):
    code, out, err = run("train", "-t", "ocr", "--steps", "2", "-o", "a", "--json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "a" / "summary.json").read_text())
    assert "character OCR" in err  # the table of the data
    assert "everything is in a" in err
    code, out, err = run("train", "-t", "ocr", "--steps", "2", "-o", "b", "--json", "--quiet")
    assert json.loads(out)["steps"] == 2
    assert "character OCR" not in err


def test_json_has_null_where_a_task_has_no_reward(run, trainer, monkeypatch):
    plain = trainer.train

    def train(config, **options):
        return {**plain(config, **options), "after": {"ocr": float("nan"), "mean": float("nan")}}

    monkeypatch.setattr(trainer, "train", train)
    _, out, _ = run("train", "-t", "ocr", "--json")
    assert json.loads(out)["after"] == {"ocr": None, "mean": None}
