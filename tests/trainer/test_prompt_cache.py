"""Caches of prompts, repeated for their responses."""

from __future__ import annotations

import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer, StaticCache

from g2rpo_trainer.prefill import repeat_cache

from .shared_prompt_models import make


def states(rows, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, rows, 3, tokens, 4, generator=generator)


@pytest.mark.parametrize("step", [1, 5, 200])
def test_it_holds_what_a_cache_without_room_holds(step):
    roomy, plain = DynamicCache(), DynamicCache()
    for cache in (roomy, plain):
        cache.update(*states(2, 7, 0), 0)
    repeat_cache(roomy, 3)
    plain.batch_repeat_interleave(3)
    for number in range(150 // step + 2):
        new = states(6, step, number)
        for ours, theirs in zip(roomy.update(*new, 0), plain.update(*new, 0), strict=True):
            assert torch.equal(ours, theirs)
        assert roomy.get_seq_length() == plain.get_seq_length()
        assert roomy.get_mask_sizes(1, 0) == plain.get_mask_sizes(1, 0)


def test_tokens_do_not_move_while_there_is_room():
    cache = DynamicCache()
    cache.update(*states(1, 7, 0), 0)
    repeat_cache(cache, 2)
    places = {cache.update(*states(2, 1, n), 0)[0].data_ptr() for n in range(130)}
    assert len(places) == 3


def test_windows_stay_windows():
    cache = DynamicCache(config=make("mistral").model.config)
    cache.update(*states(1, 9, 0), 0)
    repeat_cache(cache, 2)
    assert type(cache.layers[0]) is DynamicSlidingWindowLayer
    assert cache.layers[0].keys.shape == (2, 3, 5, 4)


def test_other_caches_are_refused():
    static = StaticCache(config=make("llama").model.config, max_cache_len=9)
    with pytest.raises(TypeError, match=r"the model's cache is a .*, which cannot be expanded"):
        repeat_cache(static, 2)
    with pytest.raises(TypeError, match="the model's cache is a NoneType"):
        repeat_cache(None, 2)
