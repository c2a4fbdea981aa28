"""What test_step.py runs in a process of its own: a step on one device and on two, compared."""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from g2rpo.run.description import load_description
from g2rpo.run.progress import Progress
from g2rpo.run.records import with_tasks
from g2rpo.run.scorer import Scorer
from g2rpo.run.shaping import Shaping
from g2rpo_jax.policy.decoder import Decoder, DecoderConfig
from g2rpo_jax.policy.files import save_sizes, save_weights
from g2rpo_jax.policy.vocabulary import build_tokenizer
from g2rpo_jax.trainer.device import Placement
from g2rpo_jax.trainer.optimizer import AdamW
from g2rpo_jax.trainer.policy_model import load_policy
from g2rpo_jax.trainer.step import training_step
from g2rpo_jax.trainer.update import Trained


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, tokenizer = Path(name), build_tokenizer()
        config = DecoderConfig(len(tokenizer), width=16, layers=1, heads=2, feed_forward=16)
        save_sizes(folder, config, tokenizer)
        save_weights(folder, nnx.state(Decoder(config, rngs=nnx.Rngs(0))))
        one, two = (step_on(folder, jax.devices()[:count]) for count in (1, 2))
    assert two.trained.policy.params["head"][...].sharding.num_devices == 2
    for ours, theirs in zip(*(jax.tree.leaves(each.trained) for each in (one, two)), strict=True):
        if isinstance(ours, jax.Array) and jnp.issubdtype(ours.dtype, jnp.floating):
            a, b = (jax.device_get(x) for x in (ours, theirs))
            assert abs(a - b).max() < 1e-5
    assert [row["response"] for row in one.completions] == [
        row["response"] for row in two.completions
    ]
    print("same")


def step_on(folder: Path, devices: list[jax.Device]):
    description = with_tasks(
        load_description(
            settings=[
                "engine=jax",
                "rollout.prompts_per_step=4",
                "rollout.num_generations=2",
                "rollout.max_completion_length=6",
                "length.only_right=false",
                "length.targets={arithmetic: [0, 1, 2, 6], box: [0, 5, 6, 8]}",
                "optimization.learning_rate=1e-3",
            ]
        )
    )
    policy = load_policy(str(folder), Placement(devices))
    trained = Trained(policy, AdamW.of(description.optimization).start(policy.params))
    with Scorer(description) as scorer:
        return training_step(trained, Shaping(description), description, Progress(), scorer)


if __name__ == "__main__":
    main()
