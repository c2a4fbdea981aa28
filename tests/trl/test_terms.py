"""The entropy and length terms in TRL's update, and their metrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import g2rpo

from .tiny import GROUP, TASKS, config, logs, save_model, table, trainer, vowels

# What TRL logs with each of these options.
LOGGED = {"beta": "kl", "entropy_coef": "entropy_coef", "router_aux_loss_coef": "aux_loss"}
WORKER = Path(__file__).with_name("worker.py")


def nothing(completions, **_):
    return [0.0] * len(completions)


def penalty(entry, low, high, weight):
    """Return the entropy term that follows from the logged entropies of the tasks."""
    found = np.asarray([entry[f"entropy/{task}"] for task in TASKS if f"entropy/{task}" in entry])
    bounds = np.full_like(found, low), np.full_like(found, high)
    return weight * float(g2rpo.entropy_penalty(found, *bounds))


def test_entropy_follows_its_bounds_and_nothing_else_moves_the_policy(tmp_path):
    def entropies(**options):
        made = trainer(tmp_path, reward_funcs=nothing, max_steps=6, **options)
        made.train()
        return [entry["entropy"] for entry in logs(made)], logs(made)[0]["grad_norm"]

    falls, norm = entropies(entropy_low=0.0, entropy_high=0.5, entropy_weight=1.0)
    assert norm > 0.01
    assert falls[-1] < falls[0] - 0.1
    rises, norm = entropies(entropy_low=2.8, entropy_high=3.0, entropy_weight=1.0)
    assert norm > 0.01
    assert rises[-1] > rises[0] + 0.1
    _, norm = entropies(entropy_low=0.0, entropy_high=3.0, entropy_weight=1.0)
    assert norm == 0
    _, norm = entropies(entropy_low=2.8, entropy_high=3.0, entropy_weight=0.0)
    assert norm == 0


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(("high", "weight", "expected"), [(3.0, 1, 0), (0.1, 0, 0), (0.1, 1, 1)])
def test_entropies_have_a_gradient_only_where_a_task_is_out_of_its_bounds(
    tmp_path, parts, high, weight, expected
):
    made = trainer(
        tmp_path,
        per_device_train_batch_size=24 // parts,
        gradient_accumulation_steps=parts,
        max_steps=2,
        entropy_low=0.0,
        entropy_high=high,
        entropy_weight=float(weight),
    )
    gradients, find = [], made._get_per_token_logps_and_entropies

    def watched(*args, **named):
        found = find(*args, **named)
        if found[1].requires_grad:
            found[1].register_hook(gradients.append)
        return found

    made._get_per_token_logps_and_entropies = watched
    made.train()
    assert len(gradients) == expected * 2 * parts


@pytest.mark.parametrize("steps_per_generation", [None, 1])
def test_entropy_term_is_that_of_the_means_of_the_whole_batch(tmp_path, steps_per_generation):
    made = trainer(
        tmp_path,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=3,
        steps_per_generation=steps_per_generation,
        entropy_bounds={"tail": [0.0, 0.1]},
        entropy_high=0.1,
        entropy_low=0.0,
    )
    made.train()
    if steps_per_generation == 1:  # each batch of rollouts is judged by itself
        assert logs(made)[0]["loss/entropy"] > 0
        return
    for entry in logs(made):
        assert entry["loss/entropy"] == pytest.approx(penalty(entry, 0.0, 0.1, 0.02), rel=1e-5)


def test_a_step_with_micro_batches_is_judged_by_the_entropies_of_the_step_before(tmp_path):
    """The policy stays as it is, so that both runs meet the same entropies."""

    def steps(high):
        made = trainer(
            tmp_path,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=3,
            learning_rate=0.0,
            max_steps=4,
            entropy_low=0.0,
            entropy_high=high,
            entropy_weight=1.0,
        )
        passes, find = [], made._get_per_token_logps_and_entropies
        made._get_per_token_logps_and_entropies = lambda *args, **named: (
            passes.append(1) or find(*args, **named)
        )
        made.train()
        return logs(made), len(passes)

    entries, _ = steps(0.1)
    high = float(np.mean([entry["entropy"] for entry in entries]))
    entries, passes = steps(high)
    assert passes == 4 * 3 + 1  # one pass more, before anything is known
    means, sides = {}, set()
    for entry in entries:
        now = {task: entry[f"entropy/{task}"] for task in TASKS if f"entropy/{task}" in entry}
        judged = {task: means.get(task, mean) for task, mean in now.items()}
        sides |= {(judged[task] > high, mean > high) for task, mean in now.items()}
        expected = sum(mean - high for task, mean in now.items() if judged[task] > high)
        assert entry["loss/entropy"] == pytest.approx(expected, abs=1e-5)
        means |= now
    assert len(sides) > 2  # some steps are judged otherwise than by themselves


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_update_is_the_same_however_the_batch_is_cut(tmp_path, num_iterations):
    """The bound lies between the entropies of micro-batches, the side is that of the batch."""
    found = []
    for parts in (1, 2, 6):
        made = trainer(
            tmp_path,
            per_device_train_batch_size=24 // parts,
            gradient_accumulation_steps=parts,
            num_iterations=num_iterations,
            max_steps=1,
            entropy_low=0.0,
            entropy_high=1.9,
            entropy_weight=1.0,
            length_targets={task: [0, 2, 4, 9] for task in TASKS},
        )
        made.train()
        entry = logs(made)[0]
        assert entry["loss/entropy"] > 0
        assert abs(entry["loss/length"]) > 1e-3
        names = [name for name in entry if name not in ("step_time", "epoch")]
        found.append({name: entry[name] for name in names})
    for other in found[1:]:
        # TRL's own extremes and loss are over micro-batches.
        assert other.keys() == found[0].keys()
        ours = [n for n in other if n.endswith(TASKS) or n.startswith(("loss/", "grad"))]
        assert {n: other[n] for n in ours} == pytest.approx(
            {n: found[0][n] for n in ours}, rel=1e-4
        )


def test_length_term_is_the_surrogate_of_the_matched_length_rewards(tmp_path):
    targets = {"count": [0, 1, 3, 6], "tail": [1, 4, 8, 8]}
    made = trainer(tmp_path, length_targets=targets, length_weight=0.5, length_only_right="vowels")
    made.train()
    # On policy, before the first update, all ratios are 1.
    shown, entry = table(tmp_path, 1), logs(made)[0]
    tokens, tasks = shown["tokens"].to_numpy(), (shown["number"] % 3).to_numpy()
    thresholds = np.asarray([targets.get(task, [np.nan] * 4) for task in TASKS])[tasks]
    right = (shown["vowels"].to_numpy() > 0) & (tasks != 1)
    reward = g2rpo.length_reward(tokens.astype(float), thresholds, right=right)
    advantages = g2rpo.gaussian_advantages(reward, GROUP, tasks)
    mask = np.arange(8) < tokens[:, None]
    expected, _ = g2rpo.policy_loss(np.zeros((24, 8)), np.zeros((24, 8)), advantages, mask)
    assert entry["loss/length"] == pytest.approx(0.5 * expected, rel=1e-4)
    assert entry["rewards/length/mean"] == pytest.approx(np.nanmean(reward), rel=1e-5)
    assert (entry["length_target/low/tail"], entry["length_target/high/tail"]) == (4, 8)
    assert "length_target/low/first" not in entry


def test_length_in_the_reward_is_one_more_component(tmp_path):
    target = g2rpo.LengthTarget(0, 1, 3, 6)
    made = trainer(
        tmp_path,
        length_mode="reward",
        length_weight=0.5,
        length_targets=dict.fromkeys(TASKS, target.thresholds),
        reward_funcs=vowels,
    )
    made.train()
    shown = table(tmp_path, 1)
    reward = g2rpo.length_reward(shown["tokens"].to_numpy(np.float32), target)
    components = np.column_stack([shown["vowels"].to_numpy(np.float32), reward])
    expected = g2rpo.gaussian_advantages(
        components, GROUP, (shown["number"] % 3).to_numpy(), component_weights=[1.0, 0.5]
    )
    np.testing.assert_array_equal(shown["advantage"].to_numpy(np.float32), expected)
    assert "loss/length" not in logs(made)[0]


def test_kinds_of_target_follow_from_the_longest_completion(tmp_path):
    args = config(tmp_path, length_targets={"a": "reasoning"}, max_completion_length=640)
    assert args.target_of("a") == g2rpo.LengthTarget.reasoning(640)


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "grpo"},
        {"loss_type": "dr_grpo"},
        {"loss_type": "bnpo", "delta": 2.0},
        {"loss_type": "cispo", "epsilon_high": 2.0},
        {"loss_type": "sapo"},
        {"loss_type": "vespo"},
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
        {"top_entropy_quantile": 0.5, "off_policy_mask_threshold": 0.5},
        {"mask_truncated_completions": True},
        {"entropy_coef": 0.01, "use_adaptive_entropy": True},
        {"beta": 0.1, "num_iterations": 2},
        {"beta": 0.1, "peft_config": LoraConfig(target_modules="all-linear")},
        {"peft_config": LoraConfig(), "num_iterations": 2, "gradient_checkpointing": True},
    ],
    ids=lambda options: "-".join(options),
)
def test_options_of_trl_stay(tmp_path, options):
    made = trainer(
        tmp_path,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=3,
        max_steps=4,
        length_targets={task: [0, 1, 4, 9] for task in TASKS},
        **options,
    )
    made.train()
    for entry in logs(made):
        assert np.isfinite(entry["loss"])
        assert np.isfinite(entry["loss/length"])
        assert entry["loss/entropy"] > 0
        assert entry["grad_norm"] > 0
    own = logs(made)[-1]
    clips = "loss_type" not in options or options["loss_type"] in (
        "grpo",
        "dr_grpo",
        "bnpo",
        "luspo",
    )
    assert any(name.startswith("clip_ratio/low_mean/") for name in own) == clips
    if options.get("beta"):
        assert {name for name in own if name.startswith("kl/")}


def test_clipped_shares_of_the_tasks_make_up_trls(tmp_path):
    made = trainer(
        tmp_path, num_iterations=4, max_steps=4, epsilon=0.02, beta=0.01, learning_rate=0.02
    )
    made.train()
    entry = logs(made)[-1]
    shown = table(tmp_path, 4)
    tokens = shown["tokens"].groupby(shown["number"] % 3).sum()
    for name in (
        "clip_ratio/low_mean",
        "clip_ratio/high_mean",
        "clip_ratio/region_mean",
        "entropy",
    ):
        parts = [tokens[k] * entry[f"{name}/{TASKS[k]}"] for k in tokens.index]
        assert entry[name] == pytest.approx(sum(parts) / tokens.sum(), rel=1e-5)
    assert entry["clip_ratio/region_mean"] > 0


def test_adaptive_weights_rise_outside_of_the_bounds(tmp_path):
    made = trainer(
        tmp_path,
        entropy_control="adaptive",
        entropy_high=0.1,
        entropy_low=0.0,
        entropy_weight=0.0,
        per_device_train_batch_size=12,
        gradient_accumulation_steps=2,
        max_steps=3,
    )
    made.train()
    entries, weights = logs(made), dict.fromkeys(TASKS, 0.0)
    for entry in entries:
        for task in TASKS:
            assert entry[f"entropy_weight/{task}"] == pytest.approx(weights[task], rel=1e-5)
            if f"entropy/{task}" in entry:
                weights[task] += 0.02 * (entry[f"entropy/{task}"] - 0.1)
    assert entries[1]["loss/entropy"] > 0


def test_evaluation_reports_tasks_and_changes_nothing(tmp_path):
    made = trainer(
        tmp_path,
        estimator="ema-grpo",
        entropy_control="adaptive",
        length_calibrate=True,
        length_only_right="vowels",
        length_calibration={"warmup_steps": 0, "min_samples": 1},
        eval_dataset=trainer(tmp_path).train_dataset.select(range(4)),
        num_generations_eval=2,
        save_strategy="steps",
        save_steps=2,
    )
    made.train()
    path = tmp_path / "checkpoint-2" / "g2rpo_state.json"
    before = json.loads(path.read_text())
    found = made.evaluate()
    assert {
        f"eval_{name}/{task}" for name in ("reward", "entropy") for task in TASKS
    } <= found.keys()
    made._save_checkpoint(made.model, None)
    assert json.loads(path.read_text()) == before
    assert set(before) == {"tasks", "ema", "entropy_weights", "length"}


def test_tokens_of_tools_count_in_no_length_and_no_entropy(tmp_path):
    """A rollout function whose every second token is the environment's."""

    def roll(prompts, made):
        tokens = [[2 + (k * number) % 16 for k in range(1, 7)] for number in range(len(prompts))]
        return {
            "prompt_ids": [made.processing_class(prompt)["input_ids"] for prompt in prompts],
            "completion_ids": tokens,
            "logprobs": [[-1.0] * 6 for _ in prompts],
            "env_mask": [[1, 0, 1, 0, 1, 0] for _ in prompts],
        }

    found = []
    for parts in (1, 3):
        made = trainer(
            tmp_path,
            rollout_func=roll,
            max_steps=1,
            per_device_train_batch_size=24 // parts,
            gradient_accumulation_steps=parts,
            length_targets={task: [2, 3, 3, 4] for task in TASKS},
        )
        made.train()
        (entry,) = logs(made)
        assert entry["rewards/length/mean"] == 1
        for task in TASKS:
            assert entry.get(f"completions/mean_length/{task}", 3) == 3
        found.append({k: entry[k] for k in entry if k.startswith(("entropy", "grad", "loss/"))})
        assert entry["loss/entropy"] == pytest.approx(penalty(entry, 0.05, 0.6, 0.02), rel=1e-5)
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def launch(folder, processes, **options):
    """Train in so many processes; return what they logged, and the completions of step 1."""
    folder.mkdir()
    save_model(folder / "model")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
    command += ["--num_processes", str(processes), "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--main_process_port", "0"]
    # accelerate names its launcher of several local processes so, whatever they run on.
    command += ["--multi_gpu"] if processes > 1 else ["--cpu"]
    done = subprocess.run(
        [*command, str(WORKER), str(folder), json.dumps(options)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads((folder / "logs.json").read_text()), table(folder, 1)


def test_two_processes_make_the_update_of_one(tmp_path):
    options = {
        "generation_kwargs": {"do_sample": False},
        "entropy_weight": 1.0,
        "entropy_low": 0.0,
        "entropy_high": 1.0,
        "max_steps": 1,
        "length_targets": {task: [0, 1, 4, 9] for task in TASKS},
    }
    made = trainer(tmp_path, per_device_train_batch_size=24, **options)
    made.train()
    cut = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2}
    (both,), _ = launch(tmp_path / "two", 2, **cut, **options)
    (alone,) = logs(made)
    names = [n for n in alone if n.endswith(TASKS) or n.startswith(("loss/", "grad"))]
    assert alone["grad_norm"] > 0.01
    expected = {name: alone[name] for name in names}
    assert {name: both[name] for name in names} == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_two_processes_share_the_statistics(tmp_path):
    entries, shown = launch(
        tmp_path / "two", 2, per_device_train_batch_size=6, gradient_accumulation_steps=2
    )
    rewards = shown[["vowels", "early"]].to_numpy(np.float32)
    tasks = (shown["number"] % 3).to_numpy()
    expected = g2rpo.gaussian_advantages(rewards, GROUP, tasks, component_weights=[1.0, 1.0])
    assert len(shown) == 24
    np.testing.assert_array_equal(shown["advantage"].to_numpy(np.float32), expected)
    for entry in entries:
        assert entry["loss/entropy"] == pytest.approx(penalty(entry, 0.05, 0.6, 0.02), rel=1e-5)
    assert torch.isfinite(torch.tensor(entries[1]["grad_norm"]))


@pytest.mark.parametrize(
    "options",
    [{"beta": 0.5}, {"entropy_coef": 0.5}, {"router_aux_loss_coef": 0.5}],
    ids=lambda options: "-".join(options),
)
def test_length_term_is_the_surrogate_alone(tmp_path, options):
    """Without the other terms of TRL's loss: lengths that are all right push nothing."""
    model = None
    if "router_aux_loss_coef" in options:
        model = Qwen3MoeForCausalLM(
            Qwen3MoeConfig(
                vocab_size=18,
                hidden_size=32,
                moe_intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                num_experts=4,
                num_experts_per_tok=2,
                pad_token_id=0,
                eos_token_id=1,
                bos_token_id=None,
            )
        )
        model.save_pretrained(tmp_path / "moe")
        model = str(tmp_path / "moe")
    targets = {task: [0, 0, 8, 8] for task in TASKS}
    made = trainer(tmp_path, model, max_steps=3, length_targets=targets, **options)
    made.train()
    entries = logs(made)
    assert [entry["loss/length"] for entry in entries] == [0, 0, 0]
    assert all(entry[LOGGED[name]] > 0 for name in options for entry in entries[1:])
