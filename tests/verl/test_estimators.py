"""The estimators as verl calls them: by its own functions, in the order in which its rows come."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.protocol import DataProto
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

import g2rpo
from g2rpo_verl import estimators
from g2rpo_verl.estimators import Handover, handed_over
from g2rpo_verl.options import read_options
from g2rpo_verl.shaping import Shaping

PROMPTS, GROUP, TOKENS = 6, 4, 5
NAMES = ("count", "first", "tail")


@pytest.fixture(autouse=True)
def _warnings_anew():
    estimators._warn_once.cache_clear()


def make_batch(seed: int = 0, sizes: tuple[int, ...] = (GROUP,) * PROMPTS) -> DataProto:
    """Return rows in an order of their own; prompt i is of task i modulo 3."""
    draw = np.random.default_rng(seed)
    prompts = draw.permutation(np.repeat(np.arange(len(sizes)), sizes))
    size = len(prompts)
    lengths = torch.from_numpy(draw.integers(1, TOKENS + 1, size))
    mask = (torch.arange(TOKENS) < lengths[:, None]).long()
    rewards = torch.zeros(size, TOKENS)
    rewards[torch.arange(size), lengths - 1] = torch.from_numpy(
        draw.integers(0, 5, size) / 4
    ).float()
    columns = {
        "uid": np.asarray([f"prompt-{p}" for p in prompts], dtype=object),
        "data_source": np.asarray([NAMES[p % 3] for p in prompts], dtype=object),
        "accuracy": draw.integers(0, 2, size).astype(object),
        "few": draw.random(size).astype(object),
    }
    fields = {"token_level_rewards": rewards, "response_mask": mask}
    return DataProto(TensorDict(fields, batch_size=size), columns)


def algorithm(**options: object) -> object:
    return OmegaConf.create({"g2rpo": options})


def by_row(data: DataProto) -> np.ndarray:
    """Return the advantage of each row, which all its tokens have."""
    advantages, mask = data.batch["advantages"], data.batch["response_mask"]
    assert torch.equal(advantages, advantages[:, :1] * mask)
    return advantages[:, 0].numpy()


def numbers(data: DataProto) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    columns = data.non_tensor_batch
    rewards = data.batch["token_level_rewards"].sum(dim=1).double().numpy()
    groups, _ = g2rpo.encode_labels(columns["uid"].tolist())
    tasks, _ = g2rpo.encode_labels(columns["data_source"].tolist())
    return rewards, groups, tasks


def run(data: DataProto, name: str = "g2rpo", **options: object) -> np.ndarray:
    return by_row(compute_advantage(data, adv_estimator=name, config=algorithm(**options)))


def test_advantages_equal_those_of_the_core():
    data = make_batch()
    expected = g2rpo.gaussian_advantages(*numbers(data))
    assert np.array_equal(run(data), expected.astype(np.float32))


@pytest.mark.parametrize("name", sorted(set(g2rpo.ESTIMATORS) - {"ema-grpo", "gdpo"}))
def test_every_estimator_of_the_core_has_a_name(name):
    data = make_batch()
    rewards, groups, tasks = numbers(data)
    lengths = {}
    if g2rpo.advantages.takes_lengths(g2rpo.ESTIMATORS[name]):
        lengths = {"lengths": data.batch["response_mask"].sum(dim=1).numpy()}
    expected = g2rpo.ESTIMATORS[name](rewards, groups, tasks, **lengths)
    assert np.array_equal(run(data, f"g2rpo-{name}"), expected.astype(np.float32))


def test_options_of_the_estimator_reach_it():
    data = make_batch()
    expected = g2rpo.gaussian_advantages(*numbers(data), task_stage=None, resolution=0.5)
    estimator = {"task_stage": None, "resolution": 0.5}
    assert np.array_equal(run(data, estimator=estimator), expected.astype(np.float32))


def test_components_are_matched_one_by_one():
    data = make_batch()
    _, groups, tasks = numbers(data)
    columns = [data.non_tensor_batch[name].astype(float) for name in ("accuracy", "few")]
    expected = g2rpo.gaussian_advantages(
        np.stack(columns, axis=1), groups, tasks, decoupled=True, component_weights=[0.9, 0.1]
    )
    found = run(
        data, estimator={"decoupled": True}, rewards={"weights": {"accuracy": 0.9, "few": 0.1}}
    )
    assert np.array_equal(found, expected.astype(np.float32))


def test_weights_of_tasks_multiply_their_advantages():
    plain, data = run(make_batch()), make_batch()
    found = run(data, tasks=list(NAMES), task_weights={"weights": {"tail": 0.5}})
    tail = data.non_tensor_batch["data_source"] == "tail"
    assert np.array_equal(found, np.where(tail, 0.5, 1.0) * plain)


def test_groups_may_differ_in_size():
    data = make_batch(sizes=(2, 3, 4, 5, 6, 7))
    expected = g2rpo.gaussian_advantages(*numbers(data))
    assert np.array_equal(run(data), expected.astype(np.float32))


def test_a_reward_that_is_not_a_number_is_absent():
    data = make_batch()
    data.batch["token_level_rewards"][3, 0] = torch.nan
    expected = g2rpo.gaussian_advantages(*numbers(data))
    found = run(data)
    assert found[3] == 0.0
    assert np.array_equal(found, expected.astype(np.float32))


def test_padding_rows_change_nothing():
    data = make_batch()
    expected = run(make_batch())
    padding = data.select_idxs([0, 0, 0])
    padding.batch["response_mask"].zero_()
    padding.batch["token_level_rewards"].zero_()
    padding.non_tensor_batch["uid"] = np.asarray(["pad"] * 3, dtype=object)
    found = run(DataProto.concat([padding, data]))
    assert np.array_equal(found, np.concatenate([np.zeros(3), expected]).astype(np.float32))


def test_a_session_of_several_turns_counts_once():
    single = make_batch()
    size = len(single)
    options = read_options({})
    tasks, names = estimators.tasks_of(single.non_tensor_batch, options, size)
    expected = run(make_batch())
    # Every third session has an earlier turn, of one more row, with the same reward.
    turns = np.arange(0, size, 3)
    keys = [f"{uid}_{i}_{int(i in turns)}" for i, uid in enumerate(single.non_tensor_batch["uid"])]
    keys = [f"{single.non_tensor_batch['uid'][i]}_{i}_0" for i in turns] + keys
    rows = np.concatenate([turns, np.arange(size)])
    data = single.select_idxs(rows)
    handover = Handover(Shaping(options, TOKENS, names), tasks[rows], {}, keys)
    with handed_over(handover):
        data = compute_advantage_for_multi_trajectories(
            data, keys, "g2rpo", config=algorithm(), num_repeat=GROUP
        )
    assert names == NAMES
    assert np.array_equal(by_row(data), expected[rows])


def test_order_of_the_rows_does_not_matter():
    data, expected = make_batch(), run(make_batch())
    order = np.random.default_rng(1).permutation(len(data))
    assert np.array_equal(run(data.select_idxs(order)), expected[order])


def test_without_labels_groups_are_matched_and_one_warning_says_so(caplog):
    data = make_batch()
    rewards, groups, _ = numbers(data)
    expected = g2rpo.gaussian_advantages(rewards, groups, task_stage=None)
    columns = {"uid": data.non_tensor_batch["uid"]}
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            found = run(DataProto(data.batch, columns))
    assert np.array_equal(found, expected.astype(np.float32))
    assert sum("set trainer.v1.trainer_mode=g2rpo_sync" in text for text in caplog.messages) == 1


def test_a_missing_column_is_one_task_and_one_warning_says_so(caplog):
    data = make_batch()
    rewards, groups, _ = numbers(data)
    expected = g2rpo.gaussian_advantages(rewards, groups, np.zeros_like(groups))
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            found = run(data, task_column="family")
    assert np.array_equal(found, expected.astype(np.float32))
    assert sum("no column 'family'" in text for text in caplog.messages) == 1


def test_estimators_of_verl_are_left_alone():
    data = make_batch()
    found = by_row(compute_advantage(data, adv_estimator="grpo_vectorized", config=algorithm()))
    rewards, groups, _ = numbers(data)
    expected = g2rpo.grpo_advantages(rewards, groups)
    assert np.allclose(found, expected, atol=1e-4)


def test_length_term_ranks_the_lengths():
    data = make_batch()
    options = read_options(
        {"g2rpo": {"tasks": list(NAMES), "length": {"targets": {"tail": [0, 0, 1, 5]}}}}
    )
    columns = data.non_tensor_batch
    tasks, _ = estimators.tasks_of(columns, options, len(data))
    handover = Handover(Shaping(options, TOKENS), tasks, {"accuracy": columns["accuracy"]})
    estimate = get_adv_estimator_fn("g2rpo")
    with handed_over(handover):
        estimate(
            token_level_rewards=data.batch["token_level_rewards"],
            response_mask=data.batch["response_mask"],
            config=algorithm(),
            index=columns["uid"],
        )
    _, groups, tasks = numbers(data)
    lengths = data.batch["response_mask"].sum(dim=1).double().numpy()
    reward = g2rpo.length_reward(
        lengths, g2rpo.LengthTarget(0, 0, 1, 5), right=columns["accuracy"] > 0
    )
    reward = np.where(tasks == 2, reward, np.nan)
    assert np.array_equal(handover.result[2], g2rpo.gaussian_advantages(reward, groups, tasks))


def test_length_in_the_reward_leaves_absent_rewards_absent():
    data = make_batch()
    data.batch["token_level_rewards"][3, 0] = torch.nan
    length = {"mode": "reward", "weight": 0.5, "only_right": False}
    length["targets"] = {name: [0, 0, 1, 5] for name in NAMES}
    options = read_options({"g2rpo": {"tasks": list(NAMES), "length": length}})
    rewards, groups, tasks = numbers(data)
    with handed_over(Handover(Shaping(options, TOKENS), tasks)):
        found = run(data)
    lengths = data.batch["response_mask"].sum(dim=1).double().numpy()
    shaped = g2rpo.length_reward(lengths, g2rpo.LengthTarget(0, 0, 1, 5))
    both = np.stack([rewards, np.where(np.isnan(rewards), np.nan, shaped)], axis=1)
    expected = g2rpo.gaussian_advantages(both, groups, tasks, component_weights=[1.0, 0.5])
    assert found[3] == 0.0
    assert np.array_equal(found, expected.astype(np.float32))


def test_ema_grpo_goes_on_from_its_saved_state():
    options = read_options({"g2rpo": {"tasks": list(NAMES)}}, "g2rpo-ema-grpo")
    state = g2rpo.EMAState.start(3, np.zeros(1))
    shaping = Shaping(options, TOKENS)
    for seed in range(3):
        data = make_batch(seed)
        rewards, groups, tasks = numbers(data)
        expected, state = g2rpo.ema_grpo_advantages(rewards, groups, tasks, state)
        with handed_over(Handover(shaping, tasks)):
            found = run(data, "g2rpo-ema-grpo", tasks=list(NAMES))
        assert np.array_equal(found, expected.astype(np.float32))
        saved, shaping = shaping.state_dict(), Shaping(options, TOKENS)
        shaping.load_state_dict(saved)


def test_calibrated_targets_go_on_from_their_saved_state():
    calibration = {"warmup_steps": 1, "min_samples": 1, "max_change": 1.0, "decay": 0.0}
    length = {"calibrate": True, "calibration": calibration, "targets": {"tail": [0, 0, 1, 5]}}
    options = read_options({"g2rpo": {"tasks": list(NAMES), "length": length}})
    assert options.components == ["accuracy"]
    thresholds = g2rpo.LengthTargets({}).table(NAMES) * np.nan
    thresholds[2] = (0, 0, 1, 5)
    shaping = Shaping(options, TOKENS)
    for seed in range(3):
        data = make_batch(seed)
        _, groups, tasks = numbers(data)
        columns = data.non_tensor_batch
        lengths = data.batch["response_mask"].sum(dim=1).double().numpy()
        right = columns["accuracy"].astype(float) > 0
        known = right & ~np.isnan(thresholds[tasks, 0]) & (seed > 0)
        reward = g2rpo.length_reward(lengths, thresholds[tasks], right=known)
        with handed_over(Handover(shaping, tasks, {"accuracy": columns["accuracy"]})) as handover:
            run(data)
        expected = g2rpo.gaussian_advantages(reward, groups, tasks)
        assert np.array_equal(handover.result[2], expected)
        thresholds = g2rpo.calibrate_lengths(
            thresholds, lengths, right, tasks, max_change=1.0, decay=0.0, min_samples=1
        )
        assert np.array_equal(shaping.length_thresholds, thresholds, equal_nan=True)
        saved, shaping = json.loads(json.dumps(shaping.state_dict())), Shaping(options, TOKENS)
        shaping.load_state_dict(saved)
