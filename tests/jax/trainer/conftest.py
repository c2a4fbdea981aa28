"""A decoder without any skill, for everything that does not need one."""

from __future__ import annotations

import pytest
from flax import nnx

from g2rpo.run.description import load_description
from g2rpo.tasks import TEXT_TASKS
from g2rpo_jax.policy.decoder import Decoder, DecoderConfig
from g2rpo_jax.policy.files import save_sizes, save_weights
from g2rpo_jax.policy.vocabulary import build_tokenizer
from g2rpo_jax.trainer.device import resolve_device
from g2rpo_jax.trainer.policy_model import load_policy
from g2rpo_jax.trainer.prompts import encode_prompts


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


def save_decoder(folder, tokenizer, layers):
    config = DecoderConfig(len(tokenizer), width=16, layers=layers, heads=2, feed_forward=16)
    save_sizes(folder, config, tokenizer)
    save_weights(folder, nnx.state(Decoder(config, rngs=nnx.Rngs(0))))
    return folder


@pytest.fixture(scope="session")
def policy_folder(tokenizer, tmp_path_factory):
    """Return a decoder of one layer, which is compiled fast."""
    return save_decoder(tmp_path_factory.mktemp("policy"), tokenizer, 1)


@pytest.fixture(scope="session")
def policy(tokenizer, tmp_path_factory):
    """Return a decoder of two layers, the second of which sees what the first has kept."""
    folder = save_decoder(tmp_path_factory.mktemp("deep"), tokenizer, 2)
    return load_policy(str(folder), resolve_device("cpu"))


@pytest.fixture(scope="session")
def records():
    """One record of every task, whose questions differ in length."""
    return [task.item(0, 0).record for task in TEXT_TASKS.values()]


@pytest.fixture(scope="session")
def prompts(policy, records):
    return encode_prompts(policy, records)


@pytest.fixture
def tiny_run(tmp_path, policy_folder):
    """Return a function that describes a run of a few seconds, in which lengths give a signal."""

    def describe(*settings: str, folder: str = "run"):
        return load_description(
            settings=[
                "engine=jax",
                f"model.name={policy_folder}",
                "model.device=cpu",
                "data.eval_items=2",
                "data.eval_generations=1",
                "rollout.prompts_per_step=4",
                "rollout.num_generations=3",
                "rollout.max_completion_length=6",
                "length.only_right=false",
                "length.targets={arithmetic: [0, 1, 2, 6], box: [0, 5, 6, 8]}",
                "optimization.steps=3",
                "optimization.warmup_steps=0",
                "optimization.learning_rate=1e-2",
                "output.save_steps=1",
                "output.plots=false",
                f"output.dir={tmp_path / folder}",
                *settings,
            ]
        )

    return describe
