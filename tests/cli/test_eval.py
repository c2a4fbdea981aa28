import json

import pytest


def test_builtin_policy_by_default(run, trainer):
    code, out, _ = run("eval", "--items", "3", "-t", "ocr")
    assert code == 0
    ((model, config),) = trainer.calls
    assert model == "builtin"
    assert (config.data.tasks, config.data.eval_items) == (["ocr"], 3)
    assert "0.500" in out


def test_run_folder_is_its_newest_checkpoint_under_its_own_description(run, trainer, tmp_path):
    run("train", "-t", "maths", "--steps", "2", "-o", "a")
    code, _, err = run("eval", "a", "--output", "result.json")
    assert code == 0, err
    model, config = trainer.calls[-1]
    assert model == "a/checkpoints/step-000002"
    assert config.data.tasks == ["maths"]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["model"] == model
    assert (result["reward"], result["length"]) == ({"maths": 0.5, "mean": 0.5}, {"maths": 0.5})
    assert result["detail"]["maths"]["items"] == 3


def test_two_models_are_one_too_many(run, trainer):
    code, _, err = run("eval", "a", "--model", "b")
    assert code == 2
    assert err.startswith("error: MODEL is 'a' and --model is 'b'")


def test_run_without_checkpoint(run, trainer, tmp_path):
    trainer.raises = KeyboardInterrupt()
    run("train", "-o", "a")
    code, _, err = run("eval", "a")
    assert code == 2
    assert "no checkpoint" in err


def test_table_has_the_interval_and_the_best(run, trainer):
    code, out, _ = run("eval", "-t", "ocr", "-n", "8")
    assert code == 0
    assert all(text in out for text in ("mean@8", "0.250–0.750", "best@8", "0.875"))


def test_every_response_is_kept_as_a_line(run, trainer, tmp_path):
    code, _, err = run("eval", "-t", "ocr", "-t", "maths", "--samples", "samples.jsonl")
    assert code == 0, err
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["task"] for line in lines] == ["ocr", "maths"]


def test_flags_reach_the_description(run, trainer):
    flags = ["-n", "4", "--temperature", "0", "--batch-size", "7", "--seed", "3"]
    code, _, err = run("eval", *flags, "--set", "rewards.timeout=2", "--reward", "ocr=json:loads")
    assert code == 0, err
    ((_, config),) = trainer.calls
    data = config.data
    assert (data.eval_generations, data.eval_temperature, data.eval_batch_size) == (4, 0, 7)
    assert (config.seed, config.rewards.timeout) == (3, 2)
    assert config.rewards.functions == {"ocr": "json:loads"}


def test_other_data_take_the_place_of_all_that_a_run_says_of_its_own(run, trainer, tmp_path):
    run("train", "-t", "maths", "--set", "data.level=2", "--steps", "1", "-o", "a")
    rows = [{"problem": f"{n}+1?", "answer": n + 1, "task_type": "sums"} for n in range(9)]
    lines = "".join(json.dumps({**row, "problem_type": "numerical"}) + "\n" for row in rows)
    (tmp_path / "own.jsonl").write_text(lines)
    code, _, err = run("eval", "a", "--data", "own.jsonl", "--items", "2")
    assert code == 0, err
    _, config = trainer.calls[-1]
    data = config.data
    assert (data.tasks, data.level, data.eval_items) == ([], None, 2)
    assert trainer.tasks == ("sums",)
    code, _, err = run("eval", "a", "--data", "builtin")
    assert trainer.calls[-1][1].data.level == 2


def test_some_tasks_of_a_run_are_evaluated_without_what_it_says_of_others(run, trainer):
    settings = ["rollout.limits={ocr: 30, vqa: 45}", "entropy.weights={vqa: 0.1}"]
    settings.append("data.mixing.weights={ocr: 1, vqa: 2}")
    said = [part for setting in settings for part in ("--set", setting)]
    code, _, err = run("train", "-t", "ocr", "-t", "vqa", "--steps", "1", "-o", "a", *said)
    assert code == 0, err
    code, _, err = run("eval", "a", "-t", "ocr")
    assert code == 0, err
    _, config = trainer.calls[-1]
    assert config.data.tasks == ["ocr"]
    assert config.rollout.limits == {"ocr": 30}
    assert config.entropy.weights == config.data.mixing.weights == {}
    assert list(config.length.targets) == ["ocr"]


def test_records_left_out_are_told(run, trainer, tmp_path):
    rows = [{"problem": f"{n}+1?", "answer": n + 1, "task_type": "sums"} for n in range(9)]
    lines = "".join(json.dumps({**row, "problem_type": "numerical"}) + "\n" for row in rows)
    (tmp_path / "own.jsonl").write_text(lines + "no json\n")
    code, out, err = run("eval", "--data", "own.jsonl", "--set", "data.skip_broken=true")
    assert code == 0, err
    assert "1 broken record is left out, such as:\nown.jsonl, line 10: " in out


@pytest.mark.parametrize("command", ["train", "eval"])
def test_the_option_engine_is_gone(run, trainer, command):
    code, _, err = run(command, "--engine", "jax")
    assert code == 2
    assert "No such option" in err


@pytest.mark.parametrize("text", ["colour", "colour=", "=a:b", "colour=module", "a.b=module:f"])
def test_a_reward_is_a_type_and_an_import_path(run, trainer, text):
    code, _, err = run("eval", "--reward", text)
    assert code == 2
    assert "TYPE=MODULE:FUNCTION" in err


def test_a_reward_that_leads_nowhere_is_an_error_of_one_line(run, trainer):
    code, _, err = run("eval", "--reward", "ocr=no_such_module_here:f")
    assert code == 2
    assert err.startswith("error: rewards.functions:")
    assert err.count("\n") == 1


def write_sums(path, *tasks):
    rows = [
        {"problem": f"{n}+1?", "answer": n + 1, "problem_type": "numerical", "task_type": task}
        for n, task in enumerate(tasks * 4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("command", ["eval", "train"])
@pytest.mark.parametrize("name", ["mean", "a/b"])
def test_a_task_that_would_take_the_place_of_something_else_is_refused_at_the_start(
    run, trainer, tmp_path, command, name
):
    write_sums(tmp_path / "own.jsonl", "sums", name)
    code, _, err = run(command, "--data", "own.jsonl")
    assert code == 2
    assert f"own.jsonl, line 2: task {name!r} has " in err
    assert trainer.calls == []


def test_a_setting_of_a_task_with_a_dot(run, trainer, tmp_path):
    write_sums(tmp_path / "own.jsonl", "sums", "v1.5")
    code, out, err = run("eval", "--data", "own.jsonl", "--set", 'rollout.limits["v1.5"]=30')
    assert code == 0, err
    assert trainer.calls[0][1].rollout.limits == {"v1.5": 30}
    assert "v1.5" in out
    code, _, err = run("eval", "--data", "own.jsonl", "--set", "rollout.limits.v1.5=30")
    assert code == 2
    assert 'a name with a dot in it stands in brackets and quotes: rollout.limits["v1.5"]=30' in err


def test_help_says_how_a_name_with_a_dot_is_written(run, trainer):
    for command in ("eval", "train"):
        _, out, _ = run(command, "--help")
        assert 'rollout.limits["v1.5"]=30' in "".join(out.replace("│", "").split())
