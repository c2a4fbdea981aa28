"""``g2rpo config`` and ``g2rpo init``: what a configuration will do, and files to begin with."""

import json
import re

import pytest

from g2rpo_trainer.config import PRESETS, load_config

from ..trainer.model_sizes import text_config


@pytest.fixture
def model_folder(tmp_path):
    """Return the folder of a model of 1.7 billion parameters: its configuration, and no weights."""
    text_config("1.7B").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_values_come_with_their_origins(run, tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 7\n\nlength:\n  targets: {ocr: [0, 0, 10, 20]}\n")
    code, out, err = run(
        "config", "run.yaml", "rollout.temperature=0.5", "length.targets.vqa=direct"
    )
    assert code == 0, err
    assert re.search(r"^seed +7 +run\.yaml:1", out, flags=re.MULTILINE)
    assert re.search(r"^data\.mixing +\n  temperature +1\.0 +default", out, flags=re.MULTILINE)
    assert re.search(r"^  temperature +0\.5 +override", out, flags=re.MULTILINE)
    assert re.search(r"learning_rate +0\.00015 +preset builtin", out)
    assert "run.yaml:4, override" in " ".join(out.split())


def test_json_has_the_values_the_origins_and_the_estimate(run, model_folder):
    arguments = ["text", f"model.name={model_folder}", "rollout.batch_size=64", "--on", "H100"]
    code, out, err = run("config", *arguments, "--json")
    assert code == 0, err
    found = json.loads(out)
    expected = load_config(
        "text", {"model.name": str(model_folder), "rollout.batch_size": 64}
    ).model_dump(mode="json")
    assert found["config"] == expected
    assert found["origins"]["model.dtype"] == "preset text"
    assert found["origins"]["model.name"] == "override"
    estimate = found["estimate"]
    assert estimate["parameters"] == 1_720_574_976
    assert estimate["bytes"]["loss"]["weights"] == 2 * estimate["parameters"]
    assert estimate["verdict"] == "fits"
    assert set(estimate["step_seconds"]) == {"prefill", "decode", "update"}


def test_what_fits_is_shown_for_this_device_or_another(run, model_folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    arguments = ["config", "text", f"model.name={model_folder}", "--on", "RTX 4090"]
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "Memory of RTX 4090 [GiB]" in out
    assert "it is likely not to fit" in out
    tables = out.partition("the run takes")[0]
    assert all(len(line) <= 60 for line in tables.splitlines())
    code, out, err = run(*arguments, "optimization.beta=0.1")
    assert code == 1, err
    assert "weights and optimiser alone take about 25.6 GiB, but 23.5 GiB are free" in out
    assert "model.lora.rank: 16" in out
    code, out, _ = run("config", "builtin", "--changed")
    assert code == 0
    assert "Memory of the cpu [GiB]" in out
    assert "it fits" in out
    assert "seed" not in out


def test_several_gpus_divide_a_model(run, model_folder):
    arguments = ["config", "vlm-fsdp", f"model.name={model_folder}", "model.freeze_vision=false"]
    found = {}
    for gpus in ("1", "8"):
        code, out, err = run(*arguments, "--on", "H100", "--gpus", gpus, "--json")
        assert code == 0, err
        found[gpus] = json.loads(out)["estimate"]["bytes"]["loss"]
    assert found["8"]["optimiser"] == found["1"]["optimiser"] // 8
    assert "gathered weights" in found["8"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["nowhere.yaml"], ["nowhere.yaml", "cannot be read", "vlm-fsdp"]),
        (["."], [".: cannot be read (Is a directory)"]),
        (["vml"], ["did you mean 'vlm'?"]),
        (["text", "rollout.num_generation=3"], ["rollout.num_generation", "'num_generations'"]),
        (["text", "steps"], ["'steps' must be KEY=VALUE"]),
        (["text", "seed=["], ["'seed=['", "YAML"]),
        (["builtin", "length.targets.orc=direct"], ["length.targets", "'orc'", "'ocr'"]),
        (["text", "--on", "H1000"], ["--on: unknown GPU 'H1000'; did you mean 'H100'?"]),
        (["bad.yaml"], ["bad.yaml: seed is 'x'", "whole number"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, tmp_path, arguments, parts):
    (tmp_path / "bad.yaml").write_text("seed: x\n")
    code, out, err = run("config", *arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert all(part in line for part in parts), err


@pytest.mark.parametrize("name", ["owner/no-such-model", "./no-such-folder"])
def test_a_model_that_is_not_there_costs_the_estimate_alone(run, name):
    code, out, err = run("config", "text", f"model.name={name}", "--changed")
    assert code == 0, err
    assert "no estimate of the memory" in out
    assert name in out.partition("no estimate")[2]
    _, out, _ = run("config", "text", f"model.name={name}", "--json")
    found = json.loads(out)
    assert found["estimate"] is None
    assert name in found["no_estimate"]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_file_of_init_passes_config_and_is_its_preset(run, tmp_path, preset):
    code, out, err = run("init", preset, "-o", "runs/my run.yaml")
    assert code == 0, err
    assert "g2rpo config 'runs/my run.yaml'" in out
    path = tmp_path / "runs" / "my run.yaml"
    assert load_config(path) == load_config(preset)
    assert run("config", str(path), "--changed")[0] == 0
    text = path.read_text(encoding="utf-8")
    # Without its marks of comments it says the same: every key is there, with its value.
    everything = re.sub(r"^#( *\w+:)", r"\1", text, flags=re.MULTILINE)
    (tmp_path / "all.yaml").write_text(everything)
    assert load_config(tmp_path / "all.yaml") == load_config(preset)
    assert len(re.findall(r"^ *\w+:", everything, flags=re.MULTILINE)) > 90
    assert max(map(len, text.splitlines())) <= 100
    assert "# sampling temperature" in text


def test_init_replaces_a_file_only_by_force(run, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("mine")
    code, _, err = run("init")
    assert code == 2
    assert "run.yaml exists; name another file by -o, or replace it by --force" in err
    assert path.read_text() == "mine"
    assert run("init", "--force")[0] == 0
    assert load_config(path) == load_config("builtin")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["vlm-lroa"], ["'vlm-lroa'", "did you mean 'vlm-lora'?"]),
        (["-o", "."], [". is a folder; name a file, such as run.yaml"]),
        (["-o", "file/run.yaml"], ["file/run.yaml", "cannot be written"]),
    ],
)
def test_init_says_what_is_wrong(run, tmp_path, arguments, parts):
    (tmp_path / "file").write_text("")
    code, out, err = run("init", *arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert all(part in line for part in parts), err
