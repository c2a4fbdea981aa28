"""Text comes back from its tokens, and nothing in a text is special."""

import string

import pytest

from g2rpo.tasks import TEXT_TASKS
from g2rpo_jax.policy import policy_path
from g2rpo_jax.policy.cold_start import RESPONSE_TOKENS, response
from g2rpo_jax.policy.tokenizer import SPECIAL, Tokenizer


@pytest.mark.parametrize("name", list(TEXT_TASKS))
def test_what_the_tasks_say_comes_back_and_is_known(tokenizer, name):
    for index in range(100):
        item = TEXT_TASKS[name].item(5, index)
        for text in (item.record["problem"], response(item, thinks=True)):
            tokens = tokenizer.encode(text)
            assert tokenizer.decode(tokens) == text
            assert tokenizer.unknown_id not in tokens
        # The end token needs a place, too.
        assert len(tokens) < RESPONSE_TOKENS


def test_words_and_tags_are_one_token_each(tokenizer):
    pieces = [tokenizer.entries[token] for token in tokenizer.encode("<think>red circle</think>")]
    assert pieces == ["<think>", "red", " circle", "</think>"]


def test_every_ascii_text_comes_back(tokenizer):
    text = string.printable[:95] + "\n<thinking> reddish"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_has_no_token_is_unknown_and_special_names_are_text(tokenizer):
    assert tokenizer.encode("é") == [tokenizer.unknown_id]
    tokens = tokenizer.encode("<end><pad>")
    assert min(tokens) >= len(SPECIAL)
    assert tokenizer.decode(tokens) == "<end><pad>"


def test_a_policy_may_sample_one_special_token(tokenizer):
    allowed = set(range(len(tokenizer))) - set(tokenizer.banned_ids)
    assert {number for number in allowed if number < len(SPECIAL)} == {tokenizer.eos_id}


def test_the_saved_vocabulary_is_that_of_the_package(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    assert Tokenizer.load(path).entries == tokenizer.entries
    assert Tokenizer.load(policy_path() / "tokenizer.json").entries == tokenizer.entries


@pytest.mark.parametrize(
    ("entries", "message"),
    [(["a"], "must begin with"), ([*SPECIAL, "a", "a"], "must not repeat")],
)
def test_a_vocabulary_that_cannot_work_is_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer(entries)


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text('{"a": 1}')
    with pytest.raises(ValueError, match="must hold a list of texts"):
        Tokenizer.load(path)
