import json


def test_builtin_policy_by_default(run, trainer):
    code, out, _ = run("eval", "--items", "3", "-t", "ocr")
    assert code == 0
    ((model, description),) = trainer.calls
    assert model == "builtin"
    assert (description.data.tasks, description.data.eval_items) == (["ocr"], 3)
    assert "0.500" in out


def test_run_folder_is_its_newest_checkpoint_under_its_own_description(run, trainer, tmp_path):
    run("train", "-t", "maths", "--steps", "2", "-o", "a")
    code, _, err = run("eval", "a", "--output", "result.json")
    assert code == 0, err
    model, description = trainer.calls[-1]
    assert model == "a/checkpoints/step-000002"
    assert description.data.tasks == ["maths"]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == {
        "model": model,
        "reward": {"maths": 0.5, "mean": 0.5},
        "length": {"maths": 0.5},
    }


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
