"""A run that goes on from a checkpoint repeats what it would have done, estimator included."""

from __future__ import annotations

import numpy as np
import pytest

from .conftest import batches, history, letters, make_config, short

EMA = {"estimator": "ema-grpo", "estimator_options": {"decay": 0.5}}
ADAPTS = EMA | {
    "entropy_control": "adaptive",
    "entropy_bounds": (0.0, 0.5),
    "length_mode": "term",
    "length_targets": {"count": (0, 0, 1, 6)},
    "length_only_right": "short",
    "length_calibrate": True,
    "length_calibration": {"warmup_steps": 1, "min_samples": 1, "max_change": 0.5},
}


@pytest.mark.parametrize("options", [EMA, ADAPTS])
def test_resume_gives_the_same_losses(train, tmp_path, options):
    data, rewards = batches(4), [letters, short]
    whole = train(make_config(**options), data, steps=4, rewards=rewards)
    first = train(make_config(**options), data, steps=2, root=tmp_path, rewards=rewards)
    second = train(make_config(**options), data, steps=4, root=tmp_path, rewards=rewards)
    assert len(second.losses) == 2
    np.testing.assert_allclose(whole.losses, first.losses + second.losses, rtol=1e-5)
    assert min(map(abs, whole.losses)) > 0
    for record, whole_example in zip(second.examples, whole.examples[2:], strict=True):
        np.testing.assert_array_equal(record[2].advantages, whole_example[2].advantages)
    states = [each.learner.reward_manager.shaping.state_dict() for each in (first, whole, second)]
    assert states[0] != states[1] == states[2]
    assert history(second, "actor", "loss").shape == (2,)


def test_the_last_checkpoint_has_the_state_too(train, tmp_path):
    import orbax.checkpoint as ocp

    seldom = ocp.CheckpointManagerOptions(save_interval_steps=100)
    record = train(make_config(**EMA), steps=2, root=tmp_path, checkpointing_options=seldom)
    again = train(make_config(**EMA), batches(3), steps=3, root=tmp_path)
    assert len(again.losses) == 1
    assert again.learner.rl_cluster.global_steps == 3
    before = record.learner.reward_manager.shaping.state_dict()["ema"]["mean"]
    assert before != again.learner.reward_manager.shaping.state_dict()["ema"]["mean"]


def test_a_checkpoint_of_other_tasks_is_refused(train, tmp_path):
    train(make_config(**EMA), steps=1, root=tmp_path)
    with pytest.raises(ValueError, match=r"must be that of the tasks \['count', 'other'\]"):
        train(make_config(tasks=("count", "other"), **EMA), steps=2, root=tmp_path)


def test_evaluation_changes_nothing(train):
    def means(**options):
        record = train(make_config(**EMA), steps=3, **options)
        return record, record.learner.reward_manager.shaping.state_dict()

    plain, state = means()
    evaluated, same_state = means(evaluation=batches(2))
    assert [mode for mode, *_ in evaluated.examples].count("eval") > 0
    assert state == same_state
    np.testing.assert_allclose(plain.losses, evaluated.losses, rtol=1e-5)
    assert np.isfinite(history(evaluated, "global", "reward", "eval")).all()
