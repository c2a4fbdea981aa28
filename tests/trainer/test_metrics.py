"""What a step reports, and that the page on metrics lists it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import g2rpo
from g2rpo_trainer import train
from g2rpo_trainer.metrics import Update, rollout_metrics, update_metrics
from g2rpo_trainer.scoring import Rewards

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
_ROW = re.compile(r"\| (`.*?) \|.*\| (too|only|no) \|")


def documented(tasks) -> set[str]:
    """Return the names that the page lists, with the tasks written out."""
    names = set()
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if row := _ROW.fullmatch(line):
            for name in re.findall(r"`([^`]+)`", row[1]):
                names |= {name} if row[2] != "only" else set()
                names |= {f"{name}/{task}" for task in tasks} if row[2] != "no" else set()
    return names


def test_the_page_lists_every_metric_and_no_other(tiny_run, tmp_path):
    config = tiny_run(
        "model.name=builtin",
        "data.skip_broken=true",
        "optimization.steps=2",
        "optimization.beta=0.01",
        "optimization.mask_truncated_completions=loss",
        "optimization.top_entropy_quantile=0.5",
        "optimization.updates_per_batch=2",
        "optimization.off_policy_mask_threshold=0.5",
        "task_weights.adapt=1",
        "output.eval_steps=2",
        "output.equity_steps=1",
        "output.trackers=[]",
        "rollout.dynamic_sampling.mode=signal",
        "rollout.dynamic_sampling.max_tries=2",
        "rollout.num_generations=4",
        "rollout.max_completion_length=48",
        "length.only_right=false",
        "length.targets={grounding: [0, 0, 4, 80], vqa: [0, 0, 4, 80], spatial: [0, 0, 4, 80], "
        "chart: [0, 0, 4, 80], ocr: [0, 0, 4, 80], maths: [0, 0, 4, 80]}",
    )
    train(config)
    logged = set()
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        logged |= json.loads(line).keys()
    listed = documented(config.data.tasks)
    only_with_vllm = {name for name in listed if name.startswith("sampler/")}
    assert len(only_with_vllm) == 7
    assert logged - {"step"} == listed - only_with_vllm


def test_no_name_of_a_task_makes_one_metric_of_two():
    rows = [
        row
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if (row := _ROW.fullmatch(line))
    ]
    names = {name: row[2] for row in rows for name in re.findall(r"`([^`]+)`", row[1])}
    by_task = {name for name, kind in names.items() if kind != "no"}
    # Tasks have no slash in their names, so that `name/task` has one way to be taken apart.
    assert [name for name in names if name.rpartition("/")[0] in by_task] == []


def outcomes(lengths, entropies=None):
    """Return responses of so many tokens; each token has an entropy of 1, or its response's."""
    lengths = np.asarray(lengths)
    entropies = lengths * np.asarray(entropies or [1.0] * 4)
    return {"lengths": lengths, "ended": lengths < 9, "entropies": entropies}


LABELS = {
    "groups": np.asarray([0, 0, 1, 1]),
    "tasks": np.asarray([0, 0, 1, 1]),
    "names": ["ocr", "maths", "absent"],
}


def measured(rewards, lengths=(1, 3, 5, 9), **options):
    rewards = np.asarray(rewards, np.float32)
    components = Rewards(rewards, rewards, np.ones(4), np.zeros(4))
    return rollout_metrics(components, **outcomes(lengths), **LABELS, **options)


def test_means_over_all_and_over_each_task():
    metrics = measured([0.0, 1.0, 0.5, 0.5])
    assert (metrics["reward"], metrics["reward/ocr"], metrics["reward/maths"]) == (0.5, 0.5, 0.5)
    assert metrics["rewards/accuracy/std/ocr"] == 0.5
    assert metrics["reward_std"] == 0.25
    assert (metrics["frac_reward_zero_std/ocr"], metrics["frac_reward_zero_std/maths"]) == (0, 1)
    lengths = [metrics[f"completions/{kind}_length"] for kind in ("mean", "min", "max")]
    assert lengths == [4.5, 1, 9]
    assert metrics["completions/max_length/ocr"] == 3
    assert metrics["completions/clipped_ratio/maths"] == 0.5
    assert metrics["num_tokens"] == 18
    assert not [name for name in metrics if name.endswith("absent")]


def test_entropy_is_a_mean_over_tokens():
    found = outcomes([1, 3, 5, 9], [2.0, 1.0, 0.0, 0.0])
    metrics = rollout_metrics(Rewards(*np.zeros((4, 4))), **found, **LABELS)
    assert metrics["entropy/ocr"] == pytest.approx((2 * 1 + 1 * 3) / 4)
    assert metrics["entropy"] == pytest.approx(5 / 18)


def test_what_has_no_reward_enters_no_mean():
    metrics = measured([float("nan"), 1.0, float("nan"), float("nan")])
    assert metrics["reward"] == metrics["reward/ocr"] == 1
    assert metrics["rewards/accuracy/mean"] == 1
    assert "rewards/accuracy/mean/maths" not in metrics
    assert metrics["frac_reward_zero_std"] == 1
    length = np.asarray([0.25, 0.75, float("nan"), float("nan")])
    metrics = measured([0.0, 1.0, 0.0, 0.0], length_reward=length)
    assert metrics["rewards/length/mean"] == metrics["rewards/length/mean/ocr"] == 0.5
    assert "rewards/length/mean/maths" not in metrics


UPDATE_TASKS = ["ocr", "max"]


def test_updates_are_averaged_and_of_maxima_the_largest_is_taken():
    """A task counts in the updates that it is in, also one that is called like a statistic."""
    first = {
        "kl": 1.0,
        "ratio/max": 3.0,
        "tasks/ratio/max": [3.0, 0.0],
        "tasks/ratio/mean": np.asarray([1.5, 0.0]),
        "entropy": 0.3,
        "tasks/entropy": [0.3, 0.0],
    }
    second = first | {"kl": 2.0, "ratio/max": 2.0, "tasks/ratio/max": [2.0, 2.0]}
    second["tasks/ratio/mean"] = np.asarray([1.0, 0.5])
    third = second | {"tasks/ratio/mean": np.asarray([0.5, 1.5])}
    found = update_metrics(
        [Update(first, [7, 0]), Update(second, np.asarray([2.0, 1.0])), Update(third, [1, 1])],
        UPDATE_TASKS,
    )
    assert found == {
        "kl": 5 / 3,
        "ratio/max": 3.0,
        "ratio/max/ocr": 3.0,
        "ratio/max/max": 2.0,
        "ratio/mean/ocr": 1.0,
        "ratio/mean/max": 1.0,
    }
    assert all(type(value) is float for value in found.values())


def test_a_task_may_be_called_old():
    batch = np.zeros((1, 2)), np.zeros((1, 2)), np.ones(1), np.ones((1, 2), bool)
    _, metrics = g2rpo.g2rpo_loss(
        *batch, ref_logprobs=np.ones((1, 2)), tasks=np.zeros(1, int), num_tasks=1
    )
    names = list(update_metrics([Update(metrics, [2])], ["old"]))
    assert len(names) == len(metrics)
    assert {"kl", "kl/old", "kl_old", "kl_old/old"} <= set(names)


def test_a_task_without_tokens_in_any_update_has_no_metric():
    assert update_metrics([Update({"tasks/kl": [0.0, 2.0]}, [0, 3])], UPDATE_TASKS) == {
        "kl/max": 2.0
    }
