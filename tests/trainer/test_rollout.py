"""Sampling: what is recorded on the way is what a forward pass would have said."""

import dataclasses

import pytest
import torch

import g2rpo
from g2rpo_torch.trainer.forward import completion_logprobs
from g2rpo_torch.trainer.prompts import encode_prompts, select_rows
from g2rpo_torch.trainer.rollout import sample


@pytest.fixture(scope="module")
def rows(completions, prompts):
    each = len(completions.tokens) // len(prompts["input_ids"])
    return torch.arange(len(prompts["input_ids"])).repeat_interleave(each)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_first_update_has_ratio_one(random_policy, prompts, temperature):
    torch.manual_seed(1)
    completions = sample(
        random_policy,
        prompts,
        num_generations=3,
        max_completion_length=10,
        temperature=temperature,
    )
    rows = torch.arange(len(prompts["input_ids"])).repeat_interleave(3)
    logprobs, entropies = completion_logprobs(
        random_policy,
        prompts,
        rows,
        completions.tokens,
        completions.mask,
        temperature=temperature,
    )
    ratio = torch.exp(logprobs - completions.logprobs)[completions.mask]
    assert torch.all((ratio - 1).abs() < 2e-5)
    difference = (entropies - completions.entropies)[completions.mask]
    assert difference.abs().max() < 2e-5


def test_banned_tokens_are_never_sampled(random_policy, prompts):
    # A policy that wants nothing but placeholders must still say something else.
    head = random_policy.model.lm_head
    biased = torch.nn.Linear(head.in_features, head.out_features)
    with torch.no_grad():
        biased.weight.copy_(head.weight)
        biased.bias.zero_()
        biased.bias[random_policy.banned_ids] = 100.0
    random_policy.model.lm_head = biased
    try:
        completions = sample(random_policy, prompts, num_generations=4, max_completion_length=8)
    finally:
        random_policy.model.lm_head = head
    said = completions.tokens[completions.mask]
    assert not torch.isin(said, random_policy.banned_ids).any()
    image = random_policy.tokenizer.convert_tokens_to_ids("<image>")
    assert image in random_policy.banned_ids
    assert random_policy.tokenizer.eos_token_id not in random_policy.banned_ids


def test_mask_ends_with_the_end_token(random_policy, prompts):
    torch.manual_seed(0)
    eager_to_end = dataclasses.replace(random_policy, eos_ids=tuple(range(7, 30)))
    completions = sample(eager_to_end, prompts, num_generations=8, max_completion_length=10)
    is_end = torch.isin(completions.tokens, torch.tensor(eager_to_end.eos_ids))
    for row in range(len(completions.tokens)):
        length = int(completions.lengths[row])
        assert completions.mask[row, :length].all()
        assert not completions.mask[row, length:].any()
        assert not is_end[row, : length - 1].any()
        assert bool(is_end[row, length - 1]) == bool(completions.ended[row])
    assert completions.ended.any()
    assert not completions.ended.all()


def test_padding_is_zero_where_nothing_was_said(completions):
    assert (completions.logprobs[~completions.mask] == 0).all()
    assert (completions.entropies[~completions.mask] == 0).all()


def test_recorded_entropy_is_exact(random_policy, prompts, completions, rows):
    """The entropy of the first token, by the definition, from one plain forward pass."""
    with torch.no_grad():
        logits = random_policy.model(**select_rows(prompts, rows)).logits[:, -1]
    allowed = torch.ones(logits.shape[-1], dtype=torch.bool)
    allowed[random_policy.banned_ids] = False
    probabilities = logits[:, allowed].double().softmax(-1)
    expected = -(probabilities * probabilities.log()).sum(-1)
    assert torch.allclose(completions.entropies[:, 0].double(), expected, atol=1e-5)


def test_left_padding_does_not_change_logprobs(random_policy, records, completions, rows):
    """A prompt alone, without padding, gives the log-probabilities of the padded batch."""
    encoded = encode_prompts(random_policy, records)
    together, _ = completion_logprobs(
        random_policy, encoded, rows, completions.tokens, completions.mask
    )
    for row in (0, 4, 20):
        alone = encode_prompts(random_policy, [records[int(rows[row])]])
        single, _ = completion_logprobs(
            random_policy,
            alone,
            torch.tensor([0]),
            completions.tokens[[row]],
            completions.mask[[row]],
        )
        kept = completions.mask[row]
        assert torch.allclose(single[0][kept], together[row][kept], atol=2e-5)


def test_loss_reaches_every_part_of_the_policy(random_policy, prompts, completions, rows):
    logprobs, entropies = completion_logprobs(
        random_policy, prompts, rows, completions.tokens, completions.mask
    )
    terms, _ = g2rpo.g2rpo_loss(
        logprobs,
        completions.logprobs,
        torch.linspace(-1, 1, len(rows)),
        completions.mask,
        entropies=entropies,
        tasks=rows,
        entropy_low=torch.full((6,), 0.2),
        entropy_high=torch.full((6,), 0.6),
    )
    terms.total.backward()
    gradients = {name: p.grad for name, p in random_policy.model.named_parameters()}
    random_policy.model.zero_grad()
    for part in ("vision_tower", "multi_modal_projector", "language_model", "lm_head"):
        norms = [g.norm() for name, g in gradients.items() if part in name and g is not None]
        assert norms
        assert torch.stack(norms).isfinite().all()
        assert max(norms) > 0
