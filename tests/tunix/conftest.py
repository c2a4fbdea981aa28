"""A tiny random model of tunix's own classes on the CPU, and everything around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType
from tunix.models.qwen3 import model as qwen3
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig

from g2rpo_tunix import G2RPOConfig, G2RPOLearner

LETTERS = "abcdefghijklmnop"
TASKS = ("count", "first", "tail")
PROMPTS, GROUP, TOKENS = 4, 4, 6


class Letters:
    """One token a letter; 0 is padding, 1 the beginning, 2 the end."""

    def encode(self, text: str, **_: Any) -> list[int]:
        return [3 + LETTERS.index(letter) for letter in text]

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(LETTERS[i - 3] for i in ids if i >= 3)

    def bos_id(self) -> int:
        return 1

    def eos_id(self) -> int:
        return 2

    def pad_id(self) -> int:
        return 0


def tiny_model() -> nnx.Module:
    config = qwen3.ModelConfig(
        num_layers=1,
        vocab_size=3 + len(LETTERS),
        embed_dim=16,
        hidden_dim=32,
        num_heads=2,
        head_dim=8,
        num_kv_heads=1,
        rope_theta=10_000,
        norm_eps=1e-6,
        use_tied_embedding=True,
    )
    return qwen3.Qwen3(config, rngs=nnx.Rngs(0))


def make_mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)


def make_cluster(
    *,
    steps: int = 3,
    root: Any = None,
    reference: bool = False,
    mesh: Any = None,
    temperature: float = 1.0,
    logprobs: bool = False,
    tokenizer: Any = None,
    prompt: int = 4,
    tokens: int = TOKENS,
    **training: Any,
) -> RLCluster:
    mesh = mesh or make_mesh()
    saving = ocp.CheckpointManagerOptions(save_interval_steps=1, max_to_keep=10)
    options = {
        "eval_every_n_steps": 2,
        "max_steps": steps,
        "mini_batch_size": PROMPTS,
        "checkpoint_root_directory": None if root is None else str(root),
        "checkpointing_options": saving,
        "actor_optimizer": optax.adamw(1e-2),
    }
    config = ClusterConfig(
        role_to_mesh=dict.fromkeys((Role.ACTOR, Role.ROLLOUT, Role.REFERENCE), mesh),
        rollout_engine="vanilla",
        training_config=RLTrainingConfig(**options | training),
        rollout_config=RolloutConfig(
            max_tokens_to_generate=tokens,
            max_prompt_length=prompt,
            kv_cache_size=prompt + tokens,
            temperature=temperature,
            top_p=1.0,
            return_logprobs=logprobs,
        ),
    )
    return RLCluster(
        actor=tiny_model(),
        reference=tiny_model() if reference else None,
        tokenizer=tokenizer or Letters(),
        cluster_config=config,
    )


def letters(prompts: Any, completions: list[str], **_: Any) -> list[float]:
    """Return a dense reward: the share of the prompt's first letter."""
    pairs = zip(prompts, completions, strict=True)
    return [text.count(prompt[0]) / max(1, len(text)) for prompt, text in pairs]


def short(prompts: Any, completions: list[str], **_: Any) -> list[float]:
    """Return a binary reward: fewer letters than there may be."""
    return [float(len(text) < TOKENS) for text in completions]


def batches(count: int, tasks: tuple[str, ...] = TASKS) -> list[dict[str, np.ndarray]]:
    """Return ``count`` batches of prompts; each lacks another task."""
    rng = np.random.default_rng(7)
    found = []
    for number in range(count):
        prompts = ["".join(rng.choice(list(LETTERS), 3)) for _ in range(PROMPTS)]
        held = [task for task in tasks if len(tasks) == 1 or task != tasks[number % len(tasks)]]
        labels = rng.choice(held, PROMPTS)
        found.append({"prompts": np.asarray(prompts), "task": np.asarray(labels)})
    return found


def make_config(**options: Any) -> G2RPOConfig:
    return G2RPOConfig(**{"tasks": TASKS, "num_generations": GROUP, "sampling_seed": 3} | options)


class Recorder:
    """What a learner made of its rollouts and what its loss saw, in the order in which it came."""

    def __init__(self, learner: G2RPOLearner) -> None:
        self.learner = learner
        self.rewards: list[np.ndarray] = []
        self.length_rewards: list[np.ndarray | None] = []
        self.examples: list[Any] = []
        self.trained: list[Any] = []
        self.losses: list[float] = []
        make, update = learner._generate_and_compute_advantage, learner.rl_cluster.update_actor

        def recorded(training_input: Any, mode: Any) -> Any:
            example = make(training_input, mode)
            self.examples.append((str(mode), training_input, example))
            return example

        def updated(train_ds: Any, eval_ds: Any, skip_jit: bool) -> None:
            self.trained.extend(train_ds)
            update(train_ds, eval_ds, skip_jit)
            trainer = learner.rl_cluster.actor_trainer
            buffers = (trainer._buffered_train_metrics, trainer._prev_buffered_train_metrics)
            last = next(each for each in buffers if each is not None)
            self.losses.append(float(last.losses[-1]))

        learner._generate_and_compute_advantage = recorded
        learner.rl_cluster.update_actor = updated
        shaping = learner.reward_manager.shaping
        shape = shaping.advantages

        def shaped(rewards: Any, *rest: Any, **named: Any) -> Any:
            self.rewards.append(np.asarray(rewards).reshape(len(rewards), -1))
            found = shape(rewards, *rest, **named)
            self.length_rewards.append(found.length_reward)
            return found

        shaping.advantages = shaped


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compile what several tests run once: the same model and shapes come again and again."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def train() -> Callable[..., Recorder]:
    """Return a function that trains for a few steps and returns the record of it."""

    def run(
        config: G2RPOConfig | None = None,
        data: Any = None,
        *,
        rewards: Any = letters,
        evaluation: Any = None,
        **cluster: Any,
    ) -> Recorder:
        steps = cluster.get("steps", 3)
        learner = G2RPOLearner(make_cluster(**cluster), config or make_config(), rewards)
        record = Recorder(learner)
        learner.train(batches(steps) if data is None else data, evaluation)
        return record

    return run


def history(record: Recorder, prefix: str, name: str, mode: str = "train") -> np.ndarray:
    return record.learner.rl_cluster._rl_metrics_logger.get_metric_history(prefix, name, mode)
