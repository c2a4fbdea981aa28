"""`examples/minimal_grpo.py`: it runs, and its update is that of the reference trainer."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from g2rpo import EntropyBounds, entropy_from_logits
from g2rpo_trainer import load_policy
from g2rpo_trainer.batch import Batch
from g2rpo_trainer.config import load_config
from g2rpo_trainer.data import open_run
from g2rpo_trainer.prompts.batching import collate, select_rows
from g2rpo_trainer.prompts.encoding import encode_prompts
from g2rpo_trainer.scoring import Rewards, Scorer
from g2rpo_trainer.shortcuts import choose_shortcuts
from g2rpo_trainer.tasks import TASKS
from tests.trainer import tiny_models
from tests.trainer.parts import learner_of, shaping_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "minimal_grpo.py"
NUMBER = r"-?\d+\.\d+"
ROW = re.compile(rf"^(\w+) +({NUMBER}) +({NUMBER}) +([+-]\d\.\d+)((?: +{NUMBER}){{4}})$", re.M)
N, PROMPTS, LONGEST = 4, 12, 48


def load_example():
    spec = importlib.util.spec_from_file_location("minimal_grpo", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


minimal = load_example()


def save_large_vocabulary(folder: Path) -> None:
    """Save a text model with a vocabulary for which the trainer makes no logits."""
    tiny_models.save("llama", folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(2304, mean_resizing=False)
    model.save_pretrained(folder)


@pytest.fixture(params=["builtin", "qwen2_5_vl", "gemma3", "llama", "large vocabulary"])
def model(request, tmp_path, monkeypatch) -> str:
    """Name of a policy: the embedded one, or a folder with a tiny random one."""
    if request.param == "builtin":
        return "builtin"
    if request.param == "large vocabulary":
        save_large_vocabulary(tmp_path)
    else:
        tiny_models.save(request.param, tmp_path)
    if request.param == "qwen2_5_vl":
        # Its own class wants videos, too, and with them torchvision.
        processor = tiny_models.build_processor(request.param)
        monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda _: processor)
    return str(tmp_path)


@pytest.fixture
def policy():
    return minimal.load_policy("builtin", LONGEST)


def roll_out(policy, rows: int = 20):
    """Return records and rollouts; by default three passes, the last one smaller."""
    records = minimal.draw(policy, 0, 0, PROMPTS)
    torch.manual_seed(0)
    return records, minimal.roll_out(policy, records, N, rows)


def gradient(model) -> torch.Tensor:
    """Return the gradient of all weights as one vector."""
    weights = [weight for weight in model.parameters() if weight.grad is not None]
    return torch.cat([weight.grad.flatten() for weight in weights])


def config_of(policy, name: str):
    """Return the trainer's configuration of the example's run."""
    targets = {task: "direct" if task in minimal.DIRECT else "reasoning" for task in policy.tasks}
    of_other_models = [
        f"data.source={'builtin' if policy.tasks.keys() == TASKS.keys() else 'builtin-text'}",
        f"length.targets={targets}",
        f"length.weight={minimal.LENGTH_WEIGHT}",
        f"rollout.max_completion_length={LONGEST}",
    ]
    return load_config(
        settings=[
            "model.device=cpu",
            f"model.name={name}",
            f"entropy.low={minimal.BOUNDS.low}",
            f"entropy.high={minimal.BOUNDS.high}",
            *(of_other_models if name != "builtin" else []),
        ]
    )


def trainer_update(name: str, policy, records, rollouts):
    """Return the trainer's loss of the same responses, and its model with the gradient.

    Advantages, passes and loss are the trainer's own.
    """
    config = config_of(policy, name)
    trained = load_policy(name, device="cpu", max_completion_length=LONGEST)
    trained = replace(trained, banned_ids=torch.tensor(policy.banned, dtype=torch.int64))
    encoded = [minimal.encode(policy, [record]) for record in records]
    prompts = collate(encoded, policy.tokenizer.pad_token_id)
    # The faster ways are what is held against the plain one.
    trained = choose_shortcuts(trained, "try", prompts=select_rows(prompts, slice(0, 1)))
    assert trained.shortcuts.packed_rows
    vocabulary = len(trained.model.get_output_embeddings().weight)
    assert trained.shortcuts.without_logits == (vocabulary > 2000)
    assert config.data.tasks == list(policy.tasks)
    components = (rollouts.rewards, rollouts.accuracies, rollouts.accuracies, rollouts.accuracies)
    rewards = Rewards(*(component.numpy() for component in components))
    lengths, tasks = rollouts.mask.sum(-1).numpy(), rollouts.tasks.numpy()
    advantages = shaping_of(config)(rewards, lengths, N, tasks)
    batch = Batch(
        prompts=prompts,
        groups=torch.arange(PROMPTS).repeat_interleave(N),
        tokens=rollouts.tokens,
        mask=rollouts.mask,
        logprobs=rollouts.logprobs,
        entropies=rollouts.entropies,
        advantages=torch.from_numpy(advantages.policy),
        length_advantages=torch.from_numpy(advantages.length),
        tasks=rollouts.tasks,
        task_names=policy.tasks,
    )
    learner = learner_of(trained, config)
    terms, _ = learner.loss(batch, learner.totals(batch))
    terms.total.backward()
    return terms, trained.model


def test_loss_and_gradient_are_those_of_the_trainer(model, monkeypatch):
    # So narrow that no task is inside.
    monkeypatch.setattr(minimal, "BOUNDS", EntropyBounds(0.3, 0.3))
    policy = minimal.load_policy(model, LONGEST)
    records, rollouts = roll_out(policy)
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(len(rollouts.rewards), generator=generator)
    noise = 0.2 * torch.randn(rollouts.logprobs.shape, generator=generator)
    lengths = torch.randint(1, LONGEST, (len(rewards), 1), generator=generator)
    rollouts = rollouts._replace(
        # A policy without skill has no rewards to learn from, and seldom comes to an end.
        mask=rollouts.mask & (torch.arange(rollouts.mask.shape[1]) < lengths),
        rewards=rewards,
        accuracies=(rewards > 0.2).float(),
        # As in a second update: with ratios of 1 the clip would be idle.
        logprobs=rollouts.logprobs + noise,
    )
    ours = minimal.accumulate_gradients(policy, rollouts, N)
    theirs, trained = trainer_update(model, policy, records, rollouts)
    for name in ("total", "policy", "length", "entropy"):
        term = float(getattr(ours, name))
        assert term != 0, name
        assert term == pytest.approx(float(getattr(theirs, name).detach()), abs=1e-6), name
    expected = gradient(trained)
    assert (gradient(policy.model) - expected).norm() < 1e-5 * expected.norm()


def test_settings_are_the_defaults_of_the_trainer(policy):
    config = load_config("builtin")
    optimization = config.optimization
    assert minimal.LOSS.resolved() == optimization.loss_options(
        config.rollout.max_completion_length
    )
    assert (minimal.BOUNDS.low, minimal.BOUNDS.high) == (config.entropy.low, config.entropy.high)
    weights = (config.length.weight, config.entropy.weight)
    assert weights == (minimal.LENGTH_WEIGHT, minimal.ENTROPY_WEIGHT)
    limits = (optimization.weight_decay, optimization.max_grad_norm)
    assert limits == (minimal.WEIGHT_DECAY, minimal.MAX_GRAD_NORM)
    targets = {task: config.length.target_of(task, LONGEST) for task in config.data.tasks}
    assert targets == minimal.BUILTIN_TARGETS


def test_rewards_are_those_of_the_trainer(policy):
    records, rollouts = roll_out(policy)
    responses = [row[own] for row, own in zip(rollouts.tokens, rollouts.mask, strict=True)]
    texts = policy.tokenizer.batch_decode(responses, skip_special_tokens=True)
    config = load_config("builtin")
    with Scorer(config.rewards, config.data, open_run(config)) as scorer:
        rewards = scorer(records, texts)
    assert rewards.reward.tolist() == rollouts.rewards.tolist()
    assert rewards.accuracy.tolist() == rollouts.accuracies.tolist()
    assert 0 < rewards.accuracy.mean() < 1


def test_prompts_and_banned_tokens_of_the_embedded_policy_are_those_of_the_trainer(policy):
    trained = load_policy("builtin", device="cpu")
    records = minimal.draw(policy, 0, 0, PROMPTS)
    ours, theirs = minimal.encode(policy, records), encode_prompts(trained, records)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert policy.banned == trained.banned_ids.tolist()
    assert policy.ends == list(trained.eos_ids)


def test_old_logprobs_are_those_of_the_distribution_that_was_sampled(model):
    policy = minimal.load_policy(model, 12)
    inputs = minimal.encode(policy, minimal.draw(policy, 0, 0, PROMPTS))
    torch.manual_seed(0)
    options = {"output_scores": True, "return_dict_in_generate": True}
    scores = torch.stack(policy.model.generate(**inputs, **options).scores, dim=1)
    torch.manual_seed(0)
    tokens, mask = minimal.sample(policy, inputs)
    logprobs, entropies = minimal.predict(policy, inputs, tokens, mask)
    sampled = scores.log_softmax(-1)
    expected = sampled.gather(-1, tokens[..., None])[..., 0]
    assert (logprobs - expected)[mask].abs().max() < 1e-4
    assert (entropies - entropy_from_logits(scores))[mask].abs().max() < 1e-4
    # No top-k and no top-p: all but the banned tokens may come.
    assert (sampled.isinf().sum(-1) == len(policy.banned))[mask].all()


def test_every_response_has_its_own_copy_of_its_prompt(policy):
    records, rollouts = roll_out(policy)
    assert [len(inputs["input_ids"]) for inputs in rollouts.inputs] == [20, 20, 8]
    prompts = minimal.encode(policy, records)["pixel_values"].repeat_interleave(N, 0)
    assert torch.equal(torch.cat([part["pixel_values"] for part in rollouts.inputs]), prompts)


def test_a_batch_in_several_passes_has_the_gradient_of_one_pass(policy):
    _, rollouts = roll_out(policy, rows=48)
    whole = minimal.accumulate_gradients(policy, rollouts, N)
    expected = gradient(policy.model)
    policy.model.zero_grad()
    (inputs,) = rollouts.inputs
    parts = [
        {name: value[start : start + 20] for name, value in inputs.items()} for start in (0, 20, 40)
    ]
    cut = minimal.accumulate_gradients(policy, rollouts._replace(inputs=parts), N)
    assert torch.allclose(torch.stack(cut), torch.stack(whole), atol=1e-6)
    assert (gradient(policy.model) - expected).norm() < 1e-5 * expected.norm()


def test_responses_end_at_their_end_token_and_hold_no_banned_one(policy):
    _, rollouts = roll_out(policy)
    ends = torch.tensor(policy.ends)
    for tokens, mask in zip(rollouts.tokens, rollouts.mask, strict=True):
        own = tokens[mask]
        assert not torch.isin(own, torch.tensor(policy.banned)).any()
        assert not torch.isin(own[:-1], ends).any()
        assert len(own) == LONGEST or own[-1] in ends


def test_a_gradient_that_is_not_finite_ends_the_run(policy):
    options = Namespace(
        steps=1, prompts=6, generations=2, rows=12, seed=0, learning_rate=1e-3, held_out=1
    )
    weight = policy.model.get_output_embeddings().weight
    weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(RuntimeError, match="non-finite"):
        minimal.train(policy, options)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_few_steps_end_in_a_table():
    options = ("--prompts", "6", "--generations", "2", "--rows", "6", "--held-out", "1")
    done = run("--steps", "2", *options)
    assert done.returncode == 0, done.stderr
    rows = ROW.findall(done.stdout)
    assert [row[0] for row in rows] == ["grounding", "vqa", "spatial", "chart", "ocr", "maths"]
    for term in ("reward", "total", "policy", "length", "entropy"):
        assert re.search(rf"step    1: .*{term} [+-]?\d", done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_rewards_rise():
    done = run()
    changes = {task: float(change) for task, _, _, change, _ in ROW.findall(done.stdout)}
    assert sum(changes.values()) / len(changes) > 0.05
    assert changes["maths"] > 0.1


def test_it_is_one_file_of_at_most_300_lines():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 300
