"""verl's own launcher and trainers train with the plug-in: Ray, gloo, a tiny model, no GPU."""

from __future__ import annotations

import json

import pytest
from conftest import PROMPTS, TASKS, Host, logged, train

OURS = {
    "algorithm.adv_estimator": "g2rpo",
    "trainer.v1.trainer_mode": "g2rpo_sync",
    "+algorithm.g2rpo.tasks": f"[{','.join(TASKS)}]",
    "+algorithm.g2rpo.entropy.high": 1.0,
    "+algorithm.g2rpo.entropy.weight": 0.5,
    "+algorithm.g2rpo.length.targets": "{mining: [0, 0, 2, 4], first: [1, 2, 3, 5]}",
    "+algorithm.g2rpo.length.only_right": False,
}


@pytest.fixture(scope="module")
def run(host: Host):
    """Two steps on one worker, with a checkpoint of the first."""
    changes = {"trainer.save_freq": 1, "+algorithm.g2rpo.entropy.control": "adaptive"}
    result = train(host, host.folder / "one", OURS | changes)
    assert result.returncode == 0, result.stderr[-5000:]
    return result, logged(host.folder / "one")


def test_trainer_runs_its_steps_and_says_that_it_computes_entropies(run):
    result, steps = run
    assert [step["training/global_step"] for step in steps] == [1, 2]
    assert "calculate_entropy is set to True" in result.stdout + result.stderr


def test_every_task_has_its_metrics(run):
    _, (step, _) = run
    names = ["reward", "reward_std", "frac_reward_zero_std", "rewards/length/mean", "entropy"]
    names += ["rewards/accuracy/mean", "rewards/few/std"]
    names += ["completions/mean_length", "completions/clipped_ratio", "kl_old", "ratio/max"]
    names += ["clip_ratio/low_mean", "entropy_weight"]
    for task in TASKS:
        for name in names:
            if (name, task) != ("rewards/length/mean", "tail"):  # which has no target
                assert f"{name}/{task}" in step, name
    assert "rewards/length/mean/tail" not in step
    assert step["reward"] == pytest.approx(step["critic/score/mean"], rel=1e-5)
    assert step["completions/mean_length"] == pytest.approx(step["response_length/mean"])


def test_entropy_term_is_the_distance_to_the_bound_summed_over_tasks(run):
    for step in run[1]:
        distances = [step[f"entropy_weight/{t}"] * (step[f"entropy/{t}"] - 1.0) for t in TASKS]
        # The term is computed from the update's own bfloat16 entropies.
        assert step["loss/entropy"] == pytest.approx(sum(distances), rel=5e-3)


def test_loss_is_the_sum_of_its_terms(run):
    for step in run[1]:
        terms = step["loss/policy"] + step["loss/length"] + step["loss/entropy"]
        assert step["loss/total"] == pytest.approx(terms, rel=1e-5)
        assert step["actor/loss"] == pytest.approx(terms, rel=1e-5)
        assert step["loss/length"] != 0.0


def test_entropy_falls_towards_its_bound_and_its_weight_rises(run):
    first, second = run[1]
    for task in TASKS:
        assert second[f"entropy_weight/{task}"] > first[f"entropy_weight/{task}"] > 0.5
    assert second["entropy"] < first["entropy"]


@pytest.mark.slow
def test_checkpoint_holds_the_state_and_a_resumed_run_goes_on_from_it(run, host: Host):
    folder = host.folder / "checkpoints" / "global_step_1"
    state = json.loads((folder / "g2rpo.json").read_text(encoding="utf-8"))
    weights = [run[1][0][f"entropy_weight/{task}"] for task in TASKS]
    assert state["entropy_weights"] == pytest.approx(weights)
    resumed = {
        "+algorithm.g2rpo.entropy.control": "adaptive",
        "trainer.resume_mode": "resume_path",
        "trainer.resume_from_path": folder,
    }
    result = train(host, host.folder / "resumed", OURS | resumed)
    assert result.returncode == 0, result.stderr[-5000:]
    (step,) = logged(host.folder / "resumed")
    assert step["training/global_step"] == 2
    for task, weight in zip(TASKS, weights, strict=True):
        risen = weight + 0.02 * (step[f"entropy/{task}"] - 1.0)
        assert step[f"entropy_weight/{task}"] == pytest.approx(risen, rel=1e-4)


@pytest.mark.slow
def test_two_ray_workers_compute_the_same_step_as_one(run, host: Host):
    changes = {
        "trainer.n_gpus_per_node": 2,
        "+ray_kwargs.ray_init.num_gpus": 2,
        "trainer.total_training_steps": 1,
        "+algorithm.g2rpo.entropy.control": "adaptive",
    }
    result = train(host, host.folder / "two", OURS | changes)
    assert result.returncode == 0, result.stderr[-5000:]
    (two,), one = logged(host.folder / "two"), run[1][0]
    names = [name for name in two if name.startswith(("loss/", "entropy", "reward", "kl_old"))]
    assert len(names) > 20
    for name in [*names, "actor/grad_norm"]:
        assert two[name] == pytest.approx(one[name], rel=0.02, abs=1e-4), name


@pytest.fixture(scope="module")
def padded(host: Host):
    """A step of two updates of four prompts each, of which two are padding."""
    assert PROMPTS % 4 != 0
    changes = {
        "actor_rollout_ref.actor.ppo_mini_batch_size": 4,
        "trainer.total_training_steps": 1,
        "+algorithm.g2rpo.entropy.control": "adaptive",
    }
    result = train(host, host.folder / "padded", OURS | changes)
    assert result.returncode == 0, result.stderr[-5000:]
    (step,) = logged(host.folder / "padded")
    return step


@pytest.mark.slow
def test_padding_rows_and_mini_batches_change_no_statistic(run, padded):
    one = run[1][0]
    assert padded["num_tokens"] == one["num_tokens"]
    names = [n for n in one if n.startswith(("reward", "entropy", "completions/"))]
    assert len(names) > 30
    for name in names:
        assert padded[name] == pytest.approx(one[name], rel=1e-5), name


@pytest.mark.slow
def test_metrics_of_a_task_are_means_whatever_its_name(padded):
    # verl takes the smallest of the updates' values where a name holds "min".
    assert any("min" in task for task in TASKS)
    lengths = {task: padded[f"completions/mean_length/{task}"] for task in TASKS}
    for name in ("kl_old", "ratio/mean"):
        weighted = sum(padded[f"{name}/{task}"] * length for task, length in lengths.items())
        assert padded[name] == pytest.approx(weighted / sum(lengths.values()), rel=1e-4)
    assert padded["kl_old"] > 0


@pytest.mark.slow
def test_trainer_of_verl_warns_once_and_matches_groups(host: Host):
    changes = {"algorithm.adv_estimator": "g2rpo", "trainer.total_training_steps": 2}
    result = train(host, host.folder / "plain", changes)
    assert result.returncode == 0, result.stderr[-5000:]
    text = result.stdout + result.stderr
    assert text.count("passes no task labels on") == 1
    assert "set trainer.v1.trainer_mode=g2rpo_sync" in text


@pytest.mark.slow
def test_legacy_trainer_gets_the_task_labels(host: Host):
    changes = {
        "algorithm.adv_estimator": "g2rpo",
        "trainer.use_v1": False,
        "+algorithm.g2rpo.tasks": f"[{','.join(TASKS)}]",
    }
    result = train(host, host.folder / "legacy", changes)
    assert result.returncode == 0, result.stderr[-5000:]
    text = result.stdout + result.stderr
    assert text.count("the legacy trainer of verl gets advantages by task") == 1
    assert "passes no task labels on" not in text


@pytest.mark.slow
def test_asynchronous_trainer_of_one_pool_has_the_terms_and_metrics_too(host: Host):
    changes = {"trainer.v1.trainer_mode": "g2rpo_colocate_async"}
    result = train(host, host.folder / "async", OURS | changes)
    assert result.returncode == 0, result.stderr[-5000:]
    for step in logged(host.folder / "async"):
        # A step takes what prompts are ready, and may have none of a task.
        tasks = [task for task in TASKS if f"reward/{task}" in step]
        distances = [0.5 * (step[f"entropy/{task}"] - 1.0) for task in tasks]
        assert step["loss/entropy"] == pytest.approx(sum(distances), rel=5e-3)


@pytest.mark.slow
def test_label_that_is_no_task_ends_the_run_with_a_sentence(host: Host):
    changes = {"+algorithm.g2rpo.tasks": "[mining, first]", "+algorithm.g2rpo.length.mode": "off"}
    changes["+algorithm.g2rpo.length.targets"] = "{}"
    result = train(host, host.folder / "label", OURS | changes)
    assert result.returncode != 0
    assert "column 'data_source': unknown task 'tail' (there are: mining, first)" in result.stderr
