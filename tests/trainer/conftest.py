"""A policy without any skill, for everything that does not need one."""

import pytest
import torch

from g2rpo_trainer.config import load_config
from g2rpo_trainer.data import open_run
from g2rpo_trainer.model.policy_model import make_policy
from g2rpo_trainer.policy.build import build_model, build_processor
from g2rpo_trainer.prompts.encoding import encode_prompts
from g2rpo_trainer.sampling import sample
from g2rpo_trainer.scoring import Scorer
from g2rpo_trainer.tasks import TASKS

from . import tiny_models


def scorer_of(config):
    """Return the scorer of a run."""
    return Scorer(config.rewards, config.data, open_run(config))


@pytest.fixture(scope="session")
def random_policy():
    processor = build_processor()
    return make_policy(build_model(processor.tokenizer, seed=0).eval(), processor)


@pytest.fixture(scope="session")
def random_policy_folder(random_policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    random_policy.save(folder)
    return folder


@pytest.fixture(scope="session")
def records():
    """One record of every task, whose questions differ in length."""
    return [task.item(0, 0).record for task in TASKS.values()]


@pytest.fixture(scope="session")
def prompts(random_policy, records):
    return encode_prompts(random_policy, records)


@pytest.fixture(scope="session")
def completions(random_policy, prompts):
    torch.manual_seed(0)
    return sample(random_policy, prompts, num_generations=4, max_completion_length=12)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Return a function that makes the folder of a family's model once."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            tiny_models.save(family, made[family])
        return made[family]

    return folder


@pytest.fixture
def tiny_run(tmp_path, random_policy_folder):
    """Return a function that describes a run of a few seconds."""

    def describe(*settings: str, folder: str = "run"):
        return load_config(
            settings=[
                f"model.name={random_policy_folder}",
                "model.device=cpu",
                "data.eval_items=2",
                "data.eval_generations=1",
                "rollout.prompts_per_step=6",
                "rollout.num_generations=2",
                "rollout.max_completion_length=8",
                "length.only_right=true",
                "length.targets={maths: [2, 4, 6, 8], grounding: [0, 0, 4, 8]}",
                "optimization.steps=3",
                "output.plots=false",
                "output.save_steps=1",
                f"output.dir={tmp_path / folder}",
                *settings,
            ]
        )

    return describe
