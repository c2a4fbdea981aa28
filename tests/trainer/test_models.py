"""One update of many families of models, on prompts with two images, one image and none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from g2rpo_trainer.logprobs import completion_logprobs, plain_predictions
from g2rpo_trainer.model.loading import load_policy
from g2rpo_trainer.prompts.batching import Prompts, collate, select_rows
from g2rpo_trainer.prompts.encoding import encode_prompts

from .one_update import learn_once, rollouts
from .tiny_models import FAMILIES, IMAGE_FAMILIES, make_records


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_learns_and_its_folder_loads(family, folders, tmp_path):
    policy = load_policy(str(folders(family)), device="cpu")
    before = {name: weight.clone() for name, weight in policy.model.named_parameters()}
    metrics = learn_once(policy, family)
    assert torch.isfinite(torch.tensor(list(metrics.values()))).all()
    assert metrics["loss/total"] != 0
    assert metrics["grad_norm"] > 0
    changed = {
        name
        for name, weight in policy.model.named_parameters()
        if not torch.equal(weight, before[name])
    }
    assert any("embed_tokens" in name for name in changed)
    assert any("lm_head" in name for name in changed)
    assert any("visi" in name or "visual" in name for name in changed) == (family in IMAGE_FAMILIES)

    policy.save(tmp_path)
    auto = (
        transformers.AutoModelForImageTextToText
        if family in IMAGE_FAMILIES
        else transformers.AutoModelForCausalLM
    )
    reloaded = auto.from_pretrained(tmp_path).eval()
    prompts = encode_prompts(policy, make_records(family))
    again = load_policy(str(tmp_path), device="cpu")
    with torch.no_grad():
        expected = policy.model(**prompts).logits
        assert torch.equal(reloaded(**prompts).logits, expected)
        asked_again = encode_prompts(again, make_records(family))
        assert torch.equal(again.model(**asked_again).logits, expected)
    assert torch.equal(again.banned_ids, policy.banned_ids)
    assert again.eos_ids == policy.eos_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_the_same_alone_and_in_a_batch(family, folders):
    policy = load_policy(str(folders(family)), device="cpu")
    records = make_records(family)
    prompts = encode_prompts(policy, records)
    with torch.no_grad():
        whole = policy.model(**prompts).logits[:, -1]
        for row in range(4):
            alone = policy.model(**encode_prompts(policy, [records[row]])).logits[:, -1]
            chosen = policy.model(**select_rows(prompts, slice(row, row + 1))).logits[:, -1]
            for found in (alone, chosen):
                torch.testing.assert_close(found[0], whole[row], rtol=0, atol=1e-4)
        mixed = select_rows(prompts, torch.tensor([3, 0, 2, 0]))
        found = policy.model(**mixed).logits[:, -1]
    torch.testing.assert_close(found, whole[[3, 0, 2, 0]], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_pixels_matter_in_the_prompt_that_they_belong_to(family, folders):
    policy = load_policy(str(folders(family)), device="cpu")
    records = make_records(family)
    first, second = records[0].images
    swapped = [replace(records[0], images=[second, first]), *records[1:]]
    with torch.no_grad():
        as_is, other = (
            policy.model(**encode_prompts(policy, each)).logits[:, -1]
            for each in (records, swapped)
        )
    distances = (as_is - other).abs().amax(-1)
    assert distances[0] > 1e-3
    assert distances[1:].max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_first_update_has_ratio_one(family, folders, caplog):
    policy = load_policy(str(folders(family)), device="cpu")
    batch = rollouts(policy, family)
    arguments = (policy, batch.prompts, batch.groups, batch.tokens, batch.mask)
    with torch.no_grad():
        logprobs, _ = completion_logprobs(*arguments)
        plain, _ = plain_predictions(*arguments).values()
    for found in (logprobs, plain):
        torch.testing.assert_close(found[batch.mask], batch.logprobs[batch.mask], rtol=0, atol=2e-5)
    assert not [record.getMessage() for record in caplog.records if "g2rpo" in record.name]


def test_images_of_different_shapes_stand_end_to_end():
    def one(length, images):
        inputs = {"input_ids": torch.full((1, length), 7), "attention_mask": torch.ones(1, length)}
        if images is not None:
            inputs["pixel_values"] = images
        return inputs

    wide, tall = torch.ones(1, 2, 3), torch.full((1, 1, 4), 2.0)
    prompts = collate([one(2, wide), one(3, None), one(1, tall)], pad_token_id=9)
    assert prompts["input_ids"].tolist() == [[9, 7, 7], [7, 7, 7], [9, 9, 7]]
    assert prompts["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1], [0, 0, 1]]
    assert prompts["pixel_values"].shape == (2, 2, 4)
    assert prompts.rows_each == {"pixel_values": (1, 0, 1)}
    assert float(prompts["pixel_values"].sum()) == 6 + 8
    assert "pixel_values" not in select_rows(prompts, slice(1, 2))
    last = select_rows(prompts, torch.tensor([2, 1, 2]))
    assert last["pixel_values"][:, 0].tolist() == [[2.0] * 4] * 2
    assert last.rows_each["pixel_values"] == (1, 0, 1)


def test_rows_that_belong_to_nobody_are_refused():
    inputs = {"input_ids": torch.zeros(2, 3), "pixel_values": torch.zeros(5, 4)}
    with pytest.raises(ValueError, match="give Prompts the rows of each prompt"):
        select_rows(inputs, slice(0, 1))
    whole = Prompts(inputs, {"pixel_values": (3, 2)})
    assert len(select_rows(whole, slice(1, 2))["pixel_values"]) == 2
