"""The configurations of examples/verl have no key that verl does not know, and pass its checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.utils.config import omega_conf_to_dataclass, validate_config

from g2rpo_verl.trainers import check_config

FOLDER = Path(__file__).parents[2] / "examples" / "verl"
FILES = sorted(path.stem for path in FOLDER.glob("qwen*.yaml"))
OURS = "algorithm.g2rpo"
#: Keys that verl reads although its own configuration leaves them out.
ADDED = {"reward.custom_reward_function.reward_kwargs"}


def leaves(config: Any, prefix: str = "") -> set[str]:
    found = set()
    for key, value in config.items_ex(resolve=False):
        name = f"{prefix}{key}"
        nested = isinstance(value, DictConfig) and len(value) and name not in {OURS, *ADDED}
        found |= leaves(value, f"{name}.") if nested else {name}
    return found


def composed(name: str) -> Any:
    with initialize_config_dir(str(FOLDER), version_base=None):
        return compose(name)


@pytest.fixture(scope="module")
def known():
    with initialize_config_module("verl.trainer.config", version_base=None):
        return leaves(compose("ppo_trainer"))


def test_there_is_one_for_one_node_and_one_for_four():
    assert [composed(name).trainer.nnodes for name in FILES] == [4, 1]


@pytest.mark.parametrize("name", FILES)
def test_no_key_is_unknown_to_verl(name, known):
    assert leaves(composed(name)) - known == {OURS, *ADDED}


def test_this_check_can_fail(known):
    config = composed(FILES[0])
    OmegaConf.set_struct(config, False)
    config.actor_rollout_ref.actor.entropy_chekpointing = True
    assert "actor_rollout_ref.actor.entropy_chekpointing" in leaves(config) - known


@pytest.mark.parametrize("name", FILES)
def test_verl_and_the_plug_in_accept_it(name):
    config = composed(name)
    validate_config(config, need_reference_policy(config), need_critic(config))
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert actor.strategy == "fsdp2"
    options = check_config(config)
    assert set(options.length.targets) == set(options.tasks)
    assert get_trainer_cls(config.trainer.v1.trainer_mode)
