"""From `g2rpo train` to verl: converted records, and an exported run that verl starts."""

from __future__ import annotations

import json
import os
import sys
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from conftest import Host, logged, start
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from test_examples import ADDED, OURS, known, leaves  # noqa: F401 - a fixture
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config
from verl.utils.dataset.rl_dataset import RLHFDataset

from g2rpo_trainer.config import load_config
from g2rpo_trainer.data import open_source
from g2rpo_trainer.record import FORMAT_INSTRUCTION
from g2rpo_trainer.scoring import Scorer
from g2rpo_verl.rewards import compute_score
from g2rpo_verl.trainers import check_config

from ..way_over import ANSWERS, rows_of_every_kind, rows_of_two_tasks, write


def read(file, **options):
    """Return verl's own data set of a file."""
    settings = {"filter_overlong_prompts": False, "cache_dir": str(file.parent)}
    config = OmegaConf.create(settings)
    return RLHFDataset(str(file), tokenizer=None, config=config, **options)


def test_rewards_of_converted_rows_are_those_of_the_reference_trainer(tmp_path, g2rpo):
    path = write(tmp_path / "mixed.jsonl", rows_of_every_kind())
    assert g2rpo("data", "convert", path, "--to", "verl", "-o", tmp_path / "out")[0] == 0
    settings = load_config(overrides={"data.source": str(path), "model.name": "any"})
    source = open_source(settings.data)
    records = list(source.stored_records(lambda record: record, held_out=False))
    data = read(tmp_path / "out" / "train.parquet")
    assert len(data) == len(records)
    with Scorer(settings.rewards, settings.data, source) as scorer:
        for number, record in enumerate(records):
            row = data[number]
            assert row["raw_prompt"] == [
                {"role": "system", "content": FORMAT_INSTRUCTION},
                {"role": "user", "content": record.problem},
            ]
            assert (row["data_source"], row["index"]) == (record.task, number)
            for text in ANSWERS[record.problem_type][1]:
                found = compute_score(
                    row["data_source"],
                    text,
                    row["reward_model"]["ground_truth"],
                    row["extra_info"],
                    workers=0,
                )
                expected = scorer([record], [text], dtype=np.float64)
                assert found["score"] == expected.reward[0]
                for name in ("accuracy", "format", "structure"):
                    assert found[name] == getattr(expected, name)[0]


def test_images_and_videos_stand_where_the_prompt_has_them(tmp_path, g2rpo):
    rows = []
    for number in range(9):
        values = np.random.default_rng(number).integers(0, 256, (4, 6, 3)).astype(np.uint8)
        Image.fromarray(values).save(tmp_path / f"{number}.png")
        row = {"answer": "1", "problem_type": "numerical"}
        video = {"frames": ["0.png", "1.png", "2.png"], "fps": 2}
        rows += [
            {**row, "problem": f"In <image> {number}?", "images": [f"{number}.png"]},
            {**row, "problem": f"When {number}?", "videos": [video]},
            {**row, "problem": f"Just the word <image> {number}?"},
        ]
    path = write(tmp_path / "seen.jsonl", rows)
    assert g2rpo("data", "convert", path, "--to", "verl", "-o", tmp_path / "out")[0] == 0
    records = list(
        open_source(load_config(overrides={"data.source": str(path)}).data).stored_records(
            lambda record: record, held_out=False
        )
    )
    data = read(tmp_path / "out" / "train.parquet", processor=SimpleNamespace())
    for number, record in enumerate(records):
        content = data[number]["raw_prompt"][-1]["content"]
        if record.images:
            text, image, rest = content
            assert (text["text"], rest["text"]) == ("In", record.problem.removeprefix("In "))
            assert np.array_equal(np.asarray(image["image"]), np.asarray(record.images[0]))
        elif record.videos:
            video, text = content
            clip = record.videos[0].read()
            files = [
                b64decode(uri.removeprefix("data:image/png;base64,")) for uri in video["video"]
            ]
            frames = [np.asarray(Image.open(BytesIO(file))) for file in files]
            assert np.array_equal(np.stack(frames), clip.frames)
            assert video["sample_fps"] == len(frames) / clip.duration == 2
            assert text == {"type": "text", "text": record.problem}
        else:
            assert content == record.problem


def test_words_that_verl_would_take_for_an_image_are_refused(tmp_path, g2rpo):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    rows = [
        {
            "problem": f"{n} <video>?",
            "images": ["a.png"],
            "answer": "1",
            "problem_type": "numerical",
        }
        for n in range(3)
    ]
    path = write(tmp_path / "words.jsonl", rows)
    code, _, error = g2rpo("data", "convert", path, "--to", "verl", "-o", tmp_path / "out")
    assert code == 2
    assert "has the word <video> in a text beside images or videos" in error
    assert not (tmp_path / "out").exists()


def exported(g2rpo, folder: Path, of: Path, **changes) -> Path:
    settings = {
        "model": {"name": str(of)},
        "data": {"eval_items": 2, "eval_generations": 2},
        "rollout": {
            "num_generations": 4,
            "prompts_per_step": 6,
            "max_prompt_length": 64,
            "max_completion_length": 6,
        },
        "optimization": {"steps": 1, "learning_rate": 0.01},
        "rewards": {"workers": 0, "weights": {"structure": 0.25}},
        "length": {"targets": {"sums": [0, 0, 2, 4]}, "only_right": False},
        "entropy": {"bounds": {"box": [0.0, 0.1]}},
        "output": {"dir": str(folder / "run"), "trackers": []},
    }
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(json.dumps(settings | changes))
    data = write(folder / "sums.jsonl", rows_of_two_tasks("a b {}"))
    out = folder / "export"
    flags = ("-c", folder / "run.yaml", "--data", data, "-o", out)
    assert g2rpo("export", "verl", *flags)[0] == 0
    return out


def composed(folder: Path):
    with initialize_config_dir(str(folder), version_base=None):
        return compose("config")


def test_an_exported_configuration_passes_the_checks_of_verl_and_of_the_plug_in(
    tmp_path,
    g2rpo,
    known,  # noqa: F811
):
    (tmp_path / "template.jinja").write_text("{{ messages }}")
    model = {
        "name": "some/model",
        "chat_template": str(tmp_path / "template.jinja"),
        "attention": "sdpa",
        "freeze_vision": True,
    }
    optimization = {"beta": 0.01, "schedule": "cosine", "min_learning_rate_ratio": 0.1}
    optimization |= {"loss_type": "dr-grpo", "warmup_steps": 0.1, "updates_per_batch": 2}
    rollout = {"engine": "vllm", "vllm_importance_sampling_mode": "token_truncate"}
    folder = exported(
        g2rpo,
        tmp_path / "x",
        tmp_path,
        model=model,
        optimization=optimization,
        rollout=rollout,
        estimator={"decoupled": True},
    )
    config = composed(folder)
    override = "actor_rollout_ref.model.override_config.attn_implementation"
    assert leaves(config) - known == {OURS, override}
    validate_config(config, need_reference_policy(config), need_critic(config))
    options = check_config(config)
    assert options.tasks == ["sums", "box"]
    assert options.entropy.bounds == {"box": [0.0, 0.1]}
    assert options.rewards.weights == {"accuracy": 0.9, "format": 0.1, "structure": 0.25}
    actor = config.actor_rollout_ref.actor
    assert (actor.loss_agg_mode, actor.loss_scale_factor) == ("seq-mean-token-sum-norm", 1024)
    assert (actor.ppo_mini_batch_size, config.data.train_batch_size) == (12, 24)
    assert config.actor_rollout_ref.model.custom_chat_template == "{{ messages }}"


def test_adapters_are_exported(tmp_path, g2rpo):
    model = {"name": "some/model", "lora": {"rank": 4, "target_modules": ["q_proj"]}}
    config = composed(exported(g2rpo, tmp_path / "x", tmp_path, model=model))
    found = config.actor_rollout_ref.model
    assert (found.lora_rank, found.lora_alpha, found.target_modules) == (4, 8, ["q_proj"])


def test_the_reward_file_scores_as_the_run_was_configured_to(tmp_path, g2rpo):
    folder = exported(g2rpo, tmp_path / "x", tmp_path)
    config = composed(folder)
    config.reward.custom_reward_function.path = str(folder / "rewards.py")
    score = get_custom_reward_fn(config)
    found = score(
        data_source="sums",
        solution_str="<think>7</think><answer>7</answer>",
        ground_truth="7",
        extra_info={"problem_type": "numerical", "options": []},
    )
    assert found == {"score": 0.9 + 0.1 + 0.25, "accuracy": 1.0, "format": 1.0, "structure": 1.0}


def test_an_exported_run_trains_a_step(host: Host, tmp_path, monkeypatch, g2rpo):
    folder = exported(g2rpo, tmp_path / "x", host.folder / "model")
    # What makes a machine without GPUs and an engine of random responses do.
    ours = ("actor_rollout_ref.actor.strategy", "trainer.total_training_steps")
    kept = {
        name: value
        for name, value in host.arguments.items()
        if name.startswith(("+", "transfer_queue", "reward.num_workers", "trainer.device"))
        or name.endswith(("use_remove_padding", "use_torch_compile", ".name", "agent.num_workers"))
        or name in ("data.dataloader_num_workers", "trainer.logger", "trainer.resume_mode")
    }
    assert not set(ours) & set(kept)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    result = start(["bash", str(folder / "run.sh")], tmp_path / "run", kept)
    assert result.returncode == 0, result.stderr[-5000:]
    steps = logged(tmp_path / "run")
    (step,) = [each for each in steps if "loss/total" in each]
    assert {"reward/sums", "reward/box", "entropy/box", "loss/entropy", "loss/length"} < step.keys()
    assert step["completions/mean_length"] > 0
    assert any(name.startswith("val-core/sums/") for each in steps for name in each)
