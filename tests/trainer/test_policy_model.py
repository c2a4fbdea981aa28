"""The embedded policy's build: its tokenizer, its processor, saving and loading."""

import copy
from dataclasses import replace

import pytest
import torch
import transformers

from g2rpo_trainer.cold_start import save_small
from g2rpo_trainer.model.loading import load_policy
from g2rpo_trainer.policy import policy_path
from g2rpo_trainer.tasks import TASKS


def test_tags_are_single_tokens_and_survive_decoding(random_policy):
    tokenizer = random_policy.tokenizer
    text = "<think>The red circle is left.</think><answer>C</answer>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    tokens = tokenizer.convert_ids_to_tokens(ids)
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        assert tokens.count(tag) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("name", list(TASKS))
def test_tokenizer_gives_every_task_back(random_policy, name):
    tokenizer = random_policy.tokenizer
    for index in range(20):
        item = TASKS[name].item(0, index)
        for text in (item.record.problem, item.worked, item.record.answer):
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text


def test_saved_policy_loads_with_equal_logits(random_policy, random_policy_folder, prompts):
    loaded = load_policy(str(random_policy_folder), device="cpu")
    assert torch.equal(loaded.banned_ids, random_policy.banned_ids)
    with torch.no_grad():
        expected = random_policy.model(**prompts).logits
        assert torch.equal(loaded.model(**prompts).logits, expected)


def test_processor_keeps_the_pixels(random_policy, records):
    import numpy as np

    image = records[0].images[0]
    pixels = random_policy.processor.image_processor([image], return_tensors="pt")["pixel_values"]
    expected = torch.as_tensor(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(pixels[0], expected, atol=1e-6)


def test_the_embedded_policy_is_loaded_in_a_dtype_that_trains(random_policy, tmp_path):
    """By transformers' own choice of the dtype: AdamW makes NaN of weights in float16."""
    copied = replace(random_policy, model=copy.deepcopy(random_policy.model))
    save_small(copied, tmp_path)
    for folder in (policy_path(), tmp_path):
        assert "F16" in (folder / "model.safetensors").read_bytes()[:4096].decode(errors="ignore")
        model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_embedded_policy_is_small_and_holds_no_pickle():
    files = [path for path in policy_path().rglob("*") if path.is_file()]
    assert (policy_path() / "model.safetensors") in files
    assert sum(path.stat().st_size for path in files) < 4_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".jinja"}
