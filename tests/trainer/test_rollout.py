"""Sampling: what is recorded on the way is what a forward pass would have said."""

import dataclasses
from dataclasses import replace

import pytest
import torch

import g2rpo
from g2rpo_trainer import stopping
from g2rpo_trainer.draws import draw
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.logprobs import completion_logprobs
from g2rpo_trainer.prompts.batching import select_rows
from g2rpo_trainer.prompts.encoding import encode_prompts
from g2rpo_trainer.sampling import sample


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


def test_tokens_are_drawn_as_often_as_they_are_likely():
    """Evenly spaced numbers in place of random ones: each count is right to within one."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(50)
    logits[[0, 7, 49]] = -torch.inf
    logprobs, draws = logits.log_softmax(-1), 10_000
    uniforms = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    counts = draw(logprobs.expand(draws, -1), uniforms).bincount(minlength=50)
    assert (counts - draws * logprobs.exp()).abs().max() <= 1
    assert (counts[[0, 7, 49]] == 0).all()
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(logprobs.expand(2, -1), ends).tolist() == [1, 48]


@pytest.fixture(scope="module")
def long_completions(random_policy, prompts):
    return drawn(random_policy, prompts)


def drawn(policy, prompts, **options):
    torch.manual_seed(5)
    return sample(policy, prompts, num_generations=4, max_completion_length=20, **options)


def assert_beginnings_of(found, whole):
    """The same tokens and values, as far as the responses go."""
    width = found.tokens.shape[1]
    assert (found.lengths <= whole.lengths).all()
    for name in ("tokens", "logprobs", "entropies"):
        ours, theirs = getattr(found, name), getattr(whole, name)[:, :width]
        torch.testing.assert_close(ours[found.mask], theirs[found.mask], rtol=0, atol=1e-5)
        assert (ours[~found.mask] == 0).all() or name == "tokens"


def test_each_task_has_its_own_limit(random_policy, prompts, long_completions):
    limits = [3, 20, 1, 7, 99, 20]
    found = drawn(random_policy, prompts, limits=limits)
    assert_beginnings_of(found, long_completions)
    longest = torch.tensor(limits).repeat_interleave(4)
    assert torch.equal(found.lengths, long_completions.lengths.minimum(longest))
    complete = long_completions.ended & (long_completions.lengths <= longest)
    assert torch.equal(found.ended, complete)
    assert not found.ended.all()


def test_an_end_token_at_the_limit_is_an_end(random_policy, prompts):
    ends = dataclasses.replace(random_policy, eos_ids=tuple(range(7, 60)))
    free = drawn(ends, prompts)
    assert free.ended.any()
    row = int((free.ended & (free.lengths > 1)).nonzero()[0])
    length = int(free.lengths[row])
    for limit, ended in ((length, True), (length - 1, False)):
        found = drawn(ends, prompts, limits=[limit] * 6)
        assert int(found.lengths[row]) == limit
        assert bool(found.ended[row]) == ended


@pytest.mark.parametrize("batch_size", [None, 8])
def test_a_response_ends_where_a_text_is_complete(
    random_policy, prompts, long_completions, batch_size
):
    decode = random_policy.tokenizer.decode
    # A text over several tokens, from the middle of one response.
    stop = decode(long_completions.tokens[2, 4:7]).strip()
    assert len(stop) > 1
    found = drawn(random_policy, prompts, stop=stop, batch_size=batch_size)
    assert_beginnings_of(found, long_completions)
    stopped = 0
    for row in range(len(found.tokens)):
        length = int(found.lengths[row])
        tokens = found.tokens[row, :length]
        assert stop not in decode(tokens[:-1], skip_special_tokens=True)
        if stop in found.texts[row]:
            stopped += 1
            assert found.ended[row]
        else:
            assert length == long_completions.lengths[row]
            assert found.ended[row] == long_completions.ended[row]
    assert 0 < stopped < len(found.tokens)
    assert int(found.lengths[2]) <= 7


@pytest.mark.parametrize("tokens_a_look", [3, 7, 100])
def test_tokens_seen_late_end_a_response_at_the_same_place(
    random_policy, prompts, long_completions, monkeypatch, tokens_a_look
):
    """What a device that must not be waited for samples beyond the end is cut off."""
    decode = random_policy.tokenizer.decode
    stop = decode(long_completions.tokens[2, 4:7]).strip()
    expected = drawn(random_policy, prompts, stop=stop)
    monkeypatch.setattr(stopping, "_tokens_a_look", lambda device: tokens_a_look)
    found = drawn(random_policy, prompts, stop=stop)
    assert not torch.equal(found.lengths, long_completions.lengths)
    assert torch.equal(found.lengths, expected.lengths)
    assert torch.equal(found.ended, expected.ended)
    assert torch.equal(found.logprobs, expected.logprobs)
    assert found.texts == expected.texts


def test_tokens_after_the_last_end_are_cut_off(random_policy, prompts, monkeypatch):
    free = drawn(random_policy, select_rows(prompts, slice(1)))
    stop = random_policy.tokenizer.decode(free.tokens[0, 2])
    monkeypatch.setattr(stopping, "_tokens_a_look", lambda device: 8)
    torch.manual_seed(5)
    one = sample(
        random_policy,
        select_rows(prompts, slice(1)),
        num_generations=1,
        max_completion_length=20,
        stop=stop,
    )
    assert one.ended.all()
    assert one.tokens.shape[1] == int(one.lengths.max()) == one.logprobs.shape[1] <= 3


def test_a_text_of_the_prompt_does_not_count(random_policy, records):
    """The instruction itself names the closing tag."""
    record = replace(records[0], problem="say </answer>")
    encoded = encode_prompts(random_policy, [record])
    assert "</answer>" in random_policy.tokenizer.decode(encoded["input_ids"][0])
    torch.manual_seed(0)
    free = sample(random_policy, encoded, num_generations=2, max_completion_length=5)
    torch.manual_seed(0)
    found = sample(
        random_policy, encoded, num_generations=2, max_completion_length=5, stop="</answer>"
    )
    assert found.texts == free.texts


@pytest.mark.parametrize("batch_size", [4, 9, 1000])
def test_chunks_draw_the_same_responses(random_policy, prompts, long_completions, batch_size):
    calls, plain = [], random_policy.model.generate

    def counted(**inputs):
        calls.append(len(inputs["input_ids"]))
        return plain(**inputs)

    random_policy.model.generate = counted
    try:
        found = drawn(random_policy, prompts, batch_size=batch_size)
    finally:
        random_policy.model.generate = plain
    assert sum(calls) == 24
    assert max(calls) == min(24, batch_size // 4 * 4)
    assert_beginnings_of(found, long_completions)
    assert found.texts == long_completions.texts
    assert torch.equal(found.ended, long_completions.ended)


def test_logits_without_a_value_are_refused_with_their_cause(random_policy, prompts):
    weight = random_policy.model.lm_head.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(torch.nan)
        try:
            with pytest.raises(RunError, match="logits are not finite, so nothing can be sampled"):
                sample(random_policy, prompts, num_generations=2, max_completion_length=3)
        finally:
            weight.copy_(before)


def test_only_responses_that_may_be_complete_are_decoded(random_policy, prompts, monkeypatch):
    """Those whose last token has the last character of the stop text in it."""
    decoded, tokenizer = [], random_policy.tokenizer
    real = type(tokenizer).batch_decode

    def counted(self, rows, **options):
        decoded.extend(rows)
        return real(self, rows, **options)

    free = drawn(random_policy, prompts)
    monkeypatch.setattr(type(tokenizer), "batch_decode", counted)
    found = drawn(random_policy, prompts, stop="no such text>")
    assert found.texts == free.texts
    texts = {token: tokenizer.decode([token]) for token in range(len(tokenizer))}
    # Spaces, and bytes of a character, may be another text beside others.
    endings = [token for token, text in texts.items() if {">", "\ufffd"} & set(text) or text == " "]
    may_end = int(torch.isin(free.tokens[free.mask], torch.tensor(endings)).sum())
    # Tokens are decoded once each, as lists, to learn whether they may end a text.
    tails = [row for row in decoded if isinstance(row, torch.Tensor)]
    assert len(decoded) - len(tails) == len(free.tokens.unique())
    assert len(tails) <= may_end < int(free.mask.sum()) / 2
