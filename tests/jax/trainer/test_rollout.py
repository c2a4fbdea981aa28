"""What sampling records is what a plain pass over the whole text says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import g2rpo
from g2rpo_jax.policy.reading import pad_left
from g2rpo_jax.trainer.forward import completion_logprobs
from g2rpo_jax.trainer.rollout import sample, sample_compiled

OPTIONS = {"num_generations": 3, "max_completion_length": 7, "temperature": 1.3}


@pytest.fixture(scope="module")
def completions(policy, prompts):
    return sample(policy, prompts, jax.random.key(1), **OPTIONS)


def plain(policy, tokens, temperature):
    """Return log-probabilities of all next tokens (T, V) of one text, read as a whole."""
    model = nnx.merge(policy.definition, policy.params)
    length = len(tokens)
    visible = jnp.tril(jnp.ones((1, 1, length, length), bool))
    places = jnp.arange(length, dtype=jnp.int32)[None, None]
    states, _ = model(jnp.asarray(tokens, jnp.int32)[None, None], places, visible)
    logits = states[0, 0] @ model.head[...].T + policy.head_bias[None]
    return jax.nn.log_softmax(logits / temperature)


def test_recorded_values_are_those_of_a_pass_over_the_whole_text(policy, prompts, completions):
    for prompt in range(len(prompts.tokens)):
        answer = prompt % OPTIONS["num_generations"]
        question = prompts.tokens[prompt][prompts.mask[prompt]].tolist()
        length = int(completions.mask[prompt, answer].sum())
        tokens = completions.tokens[prompt, answer, :length].tolist()
        logprobs = plain(policy, question + tokens, OPTIONS["temperature"])
        before = slice(len(question) - 1, len(question) - 1 + length)
        expected = [float(row[token]) for row, token in zip(logprobs[before], tokens, strict=True)]
        recorded = completions.logprobs[prompt, answer, :length]
        np.testing.assert_allclose(recorded, expected, atol=1e-5)
        entropies = g2rpo.entropy_from_logits(logprobs[before])
        np.testing.assert_allclose(
            completions.entropies[prompt, answer, :length], entropies, atol=1e-5
        )


def test_the_pass_of_the_update_sees_the_same(policy, prompts, completions):
    logprobs, entropies = completion_logprobs(
        policy.definition,
        policy.params,
        policy.head_bias,
        prompts,
        completions.tokens,
        completions.mask,
        temperature=OPTIONS["temperature"],
    )
    np.testing.assert_allclose(logprobs, completions.logprobs, atol=2e-5)
    np.testing.assert_allclose(entropies, completions.entropies, atol=2e-5)


def test_a_response_ends_at_its_end_token_and_is_padded(policy, completions):
    tokens, mask = np.asarray(completions.tokens), np.asarray(completions.mask)
    lengths = mask.sum(-1)
    assert (mask == (np.arange(mask.shape[-1]) < lengths[..., None])).all()
    is_end = tokens == policy.tokenizer.eos_id
    assert (is_end.any(-1) == np.asarray(completions.ended)).all()
    assert completions.ended.any()
    assert (~completions.ended).any()
    last = np.take_along_axis(is_end, lengths[..., None] - 1, axis=-1)[..., 0]
    assert (last == is_end.any(-1)).all()
    for values in (completions.logprobs, completions.entropies, completions.tokens):
        assert (np.asarray(values)[~mask] == 0).all()


def test_tokens_without_a_meaning_are_never_sampled(policy, prompts):
    drawn = sample(policy, prompts, jax.random.key(2), **{**OPTIONS, "temperature": 50.0})
    tokens = np.asarray(drawn.tokens)[np.asarray(drawn.mask)]
    assert not set(tokens.tolist()) & set(policy.tokenizer.banned_ids)


def test_a_key_decides(policy, prompts, completions):
    again = sample(policy, prompts, jax.random.key(1), **OPTIONS)
    other = sample(policy, prompts, jax.random.key(3), **OPTIONS)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, again, completions))
    assert not jnp.array_equal(other.tokens, completions.tokens)


def test_padding_of_prompts_is_without_influence(policy, prompts, completions):
    rows = [row[keep].tolist() for row, keep in zip(prompts.tokens, prompts.mask, strict=True)]
    longer = pad_left(rows, policy.tokenizer.pad_id, prompts.tokens.shape[1] + 9)
    again = sample(policy, longer, jax.random.key(1), **OPTIONS)
    assert jnp.array_equal(again.tokens, completions.tokens)
    np.testing.assert_allclose(again.logprobs, completions.logprobs, atol=1e-5)


def test_a_prompt_may_have_a_limit_of_its_own(policy, prompts, completions):
    limits = [2, 7, 1, 4]
    drawn = sample(policy, prompts, jax.random.key(1), **OPTIONS, limits=limits)
    lengths = drawn.lengths().reshape(4, 3)
    assert (lengths <= np.asarray(limits)[:, None]).all()
    assert (lengths.max(1) == limits).any()
    # Up to there they are the same, and what is cut off has not ended.
    same = np.asarray(drawn.tokens == completions.tokens)
    assert same[np.asarray(drawn.mask)].all()
    cut = lengths < completions.lengths().reshape(4, 3)
    assert cut.any()
    assert not np.asarray(drawn.ended)[cut].any()


def test_one_compilation_for_a_shape(policy, prompts):
    before = sample_compiled._cache_size()
    for number in range(3):
        sample(policy, prompts, jax.random.key(number), **OPTIONS)
        assert sample_compiled._cache_size() - before <= 1
