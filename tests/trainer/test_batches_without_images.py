"""Batches with and without images, one after the other: a model remembers nothing of the last."""

import pytest
import torch

from g2rpo_trainer.logprobs import plain_predictions
from g2rpo_trainer.model.loading import load_policy
from g2rpo_trainer.prompts.encoding import encode_prompts
from g2rpo_trainer.sampling import sample

from .tiny_models import IMAGE_FAMILIES, make_records


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_what_is_sampled_does_not_depend_on_the_batch_before(family, folders):
    policy = load_policy(str(folders(family)), device="cpu")
    records = make_records(family)
    shown, told = records[::2], records[1::2]
    groups = torch.arange(2).repeat_interleave(2)
    for batch in (told, shown, told):
        prompts = encode_prompts(policy, batch)
        torch.manual_seed(0)
        some = sample(policy, prompts, num_generations=2, max_completion_length=6)
        logprobs, _ = plain_predictions(policy, prompts, groups, some.tokens, some.mask).values()
        torch.testing.assert_close(some.logprobs[some.mask], logprobs[some.mask])
