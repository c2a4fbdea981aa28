"""Whatever a model's folder says about generation, nothing of it reaches the sampling."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from g2rpo_trainer import train
from g2rpo_trainer.logprobs import completion_logprobs
from g2rpo_trainer.model.loading import load_policy
from g2rpo_trainer.prompts.encoding import encode_prompts
from g2rpo_trainer.sampling import sample

from .tiny_models import make_records

# Every setting with a value that changes what `generate` does where it is obeyed.
SETTINGS = {
    "assistant_confidence_threshold": 0.9,
    "assistant_early_exit": 1,
    "assistant_ensemble_weight": 0.5,
    "assistant_lookbehind": 3,
    "bad_words_ids": [[40], [41, 42]],
    "begin_suppress_tokens": list(range(20, 200)),
    "bos_token_id": 45,
    "cache_config": {"backend": "quanto"},
    "cache_implementation": "static",
    "constraints": [1],
    "continuous_batching_config": {},
    "decoder_start_token_id": 48,
    "disable_compile": True,
    "diversity_penalty": 0.5,
    "do_sample": True,
    "dola_layers": "high",
    "early_stopping": True,
    "encoder_no_repeat_ngram_size": 2,
    "encoder_repetition_penalty": 1.5,
    "eos_token_id": [2],
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1,
    "exponential_decay_length_penalty": [1, 2.0],
    "force_words_ids": [[40]],
    "forced_bos_token_id": 50,
    "forced_eos_token_id": 50,
    "guidance_scale": 3.0,
    "is_assistant": True,
    "length_penalty": 0.3,
    "low_memory": True,
    "max_cache_len": 5,
    "max_length": 3,
    "max_matching_ngram_size": 2,
    "max_new_tokens": 2,
    "max_time": 1e-6,
    "min_length": 100,
    "min_new_tokens": 5,
    "min_p": 0.3,
    "no_repeat_ngram_size": 1,
    "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "heuristic",
    "num_beam_groups": 2,
    "num_beams": 3,
    "output_attentions": True,
    "output_hidden_states": True,
    "output_logits": True,
    "output_scores": True,
    "pad_token_id": 44,
    "penalty_alpha": 0.6,
    "prefill_chunk_size": 2,
    "prompt_lookup_num_tokens": 3,
    "remove_invalid_values": True,
    "renormalize_logits": True,
    "repetition_penalty": 1.7,
    "return_dict_in_generate": True,
    "sequence_bias": [[[40], 9.0]],
    "speculation_type": "dflash",
    "stop_strings": ["a"],
    "suppress_tokens": list(range(20, 200)),
    "target_lookbehind": 3,
    "temperature": 0.3,
    "token_healing": True,
    "top_h": 0.5,
    "top_k": 3,
    "top_p": 0.5,
    "transformers_version": "4.1.0",
    "typical_p": 0.5,
    "use_cache": False,
    "use_mtp": True,
    "watermarking_config": {"greenlist_ratio": 0.5, "bias": 9.0},
    "a_name_that_transformers_does_not_know": 3,
}
# Alone transformers loads no model with them.
TOGETHER = {"num_return_sequences": {"num_return_sequences": 2, "do_sample": True}}
CASES = {**{name: {name: value} for name, value in SETTINGS.items()}, **TOGETHER}
# An object, for which no file has a form.
NOT_IN_FILES = {"compile_config"}


def test_every_setting_that_transformers_knows_is_handed_over():
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert not known - CASES.keys() - NOT_IN_FILES


def with_settings(base: Path, folder: Path, place: str, settings: dict) -> Path:
    """Copy a model, with settings in one of the two files where they may stand."""
    shutil.copytree(base, folder)
    if place == "config.json":
        (folder / "generation_config.json").unlink()
    config = json.loads((folder / place).read_text())
    (folder / place).write_text(json.dumps({**config, **settings}))
    return folder


def ratios_and_tokens(policy):
    """Return the ratios of a first update, and the tokens."""
    prompts = encode_prompts(policy, make_records("llama"))
    torch.manual_seed(0)
    found = sample(policy, prompts, num_generations=3, max_completion_length=6)
    groups = torch.arange(4).repeat_interleave(3)
    logprobs, _ = completion_logprobs(policy, prompts, groups, found.tokens, found.mask)
    return (logprobs - found.logprobs)[found.mask].exp(), found.tokens


@pytest.fixture(scope="module")
def plain_tokens(folders):
    return ratios_and_tokens(load_policy(str(folders("llama")), device="cpu"))[1]


@pytest.mark.parametrize("place", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("name", CASES)
def test_a_setting_changes_nothing(name, place, folders, plain_tokens, tmp_path, caplog):
    folder = with_settings(folders("llama"), tmp_path / "model", place, CASES[name])
    policy = load_policy(str(folder), device="cpu")
    ratios, tokens = ratios_and_tokens(policy)
    torch.testing.assert_close(ratios, torch.ones_like(ratios), rtol=0, atol=2e-5)
    assert torch.equal(tokens, plain_tokens)
    assert not [record for record in caplog.records if "g2rpo" in record.name]
    policy.save(tmp_path / "saved")
    if place == "generation_config.json":
        own, kept = (each / place for each in (folder, tmp_path / "saved"))
        assert kept.read_bytes() == own.read_bytes()
    assert torch.equal(
        ratios_and_tokens(load_policy(str(tmp_path / "saved"), device="cpu"))[1], tokens
    )


def test_a_run_is_the_same_with_settings_and_hands_them_on(
    tiny_run, random_policy_folder, tmp_path
):
    usual = {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.8,
        "min_p": 0.1,
        "repetition_penalty": 1.05,
        "no_repeat_ngram_size": 3,
        "max_time": 1e-6,
        "max_new_tokens": 3,
        "num_beams": 2,
        "stop_strings": ["1"],
    }
    file = "generation_config.json"
    folder = with_settings(random_policy_folder, tmp_path / "model", file, usual)
    train(tiny_run(folder="plain"))
    train(tiny_run(f"model.name={folder}", folder="with"))
    plain, found = (tmp_path / run / "completions.jsonl" for run in ("plain", "with"))
    assert found.read_text() == plain.read_text()
    checkpoints = sorted((tmp_path / "with" / "checkpoints").iterdir())
    assert (checkpoints[-1] / file).read_bytes() == (folder / file).read_bytes()


def test_a_generation_loop_of_the_folder_is_not_run(folders, plain_tokens, tmp_path):
    from g2rpo_trainer.config import Model

    folder = tmp_path / "model"
    shutil.copytree(folders("llama"), folder)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(
        "def generate(model, **kwargs):\n    raise RuntimeError('another way of sampling')\n"
    )
    policy = load_policy(str(folder), device="cpu", model=Model(trust_remote_code=True))
    assert torch.equal(ratios_and_tokens(policy)[1], plain_tokens)
