"""Low-rank adapters: what is trained, what is saved, and what the run goes back to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from g2rpo_trainer import shortcuts, train
from g2rpo_trainer.checkpoint import export_merged
from g2rpo_trainer.config import Lora, Model
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.logprobs import completion_logprobs
from g2rpo_trainer.model.adapting import count_parameters
from g2rpo_trainer.model.loading import load_policy
from g2rpo_trainer.model.policy_model import Shortcuts
from g2rpo_trainer.prompts.encoding import encode_prompts

from .adapters import OWN, needs_lora, save_own_adapter, tied_folder
from .one_update import describe, learn_once, rollouts
from .parts import learner_of
from .tiny_models import make_records

pytestmark = needs_lora
ADAPTED = Model(lora=Lora(rank=2))


def logits(policy, family):
    with torch.no_grad():
        return policy.model(**encode_prompts(policy, make_records(family))).logits


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "llama"])
def test_only_the_adapter_is_trained_and_saved(family, folders, tmp_path):
    plain = load_policy(str(folders(family)), device="cpu")
    policy = load_policy(str(folders(family)), device="cpu", model=ADAPTED)
    base = logits(plain, family)
    assert torch.equal(logits(policy, family), base)  # an adapter begins at nothing
    before = {name: weight.clone() for name, weight in policy.model.named_parameters()}
    metrics = learn_once(policy, family)
    assert metrics["grad_norm"] > 0
    for name, weight in policy.model.named_parameters():
        assert weight.requires_grad == ("lora_" in name)
        if "lora_" not in name:
            assert torch.equal(weight, before[name]), name
    adapted = {name.partition(".lora_")[0] for name in before if "lora_" in name}
    assert adapted
    assert not any("visual" in name or "vision" in name or "lm_head" in name for name in adapted)
    trained, total = count_parameters(policy.model)
    assert trained < 0.2 * total

    changed = logits(policy, family)
    assert (changed - base).abs().max() > 1e-3
    with policy.as_reference():
        assert torch.equal(logits(policy, family), base)
    assert torch.equal(logits(policy, family), changed)
    assert all(
        weight.requires_grad for name, weight in policy.model.named_parameters() if "lora_" in name
    )

    policy.save(tmp_path)
    assert not list(tmp_path.glob("model*.safetensors"))
    again = load_policy(str(tmp_path), device="cpu", model=ADAPTED)
    assert again.has_adapter
    assert torch.equal(logits(again, family), changed)
    names = [name for name, weight in policy.model.named_parameters() if weight.requires_grad]
    assert names == [name for name, w in again.model.named_parameters() if w.requires_grad]


def test_the_merged_model_needs_no_adapter(folders, tmp_path):
    policy = load_policy(str(folders("llava")), device="cpu", model=ADAPTED)
    learn_once(policy, "llava")
    policy.save(tmp_path / "checkpoint")
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "stale").touch()
    export_merged(tmp_path / "checkpoint", tmp_path / "final", ADAPTED)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "final"}
    assert not (tmp_path / "final" / "stale").exists()
    merged = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "final")
    prompts = encode_prompts(policy, make_records("llava"))
    with torch.no_grad():
        found = merged.eval()(**prompts).logits
    torch.testing.assert_close(found, logits(policy, "llava"), rtol=0, atol=1e-4)
    assert load_policy(str(tmp_path / "final"), device="cpu").has_adapter is False


@pytest.mark.parametrize("family", ["llama", "qwen2_5_vl", "gemma3"])
def test_a_tied_output_layer_with_an_adapter_is_untied_in_the_merged_model(
    family, folders, tmp_path
):
    tied = tied_folder(folders(family), tmp_path / "tied")
    options = Model(lora=Lora(rank=2, target_modules=["q_proj", "lm_head"]))
    policy = load_policy(str(tied), device="cpu", model=options)
    learn_once(policy, family)
    policy.save(tmp_path / "checkpoint")
    again = load_policy(str(tmp_path / "checkpoint"), device="cpu", model=options)
    assert torch.equal(logits(again, family), logits(policy, family))
    export_merged(tmp_path / "checkpoint", tmp_path / "final", options)
    merged = load_policy(str(tmp_path / "final"), device="cpu")
    found = logits(merged, family)
    torch.testing.assert_close(found, logits(policy, family), rtol=0, atol=1e-4)
    model = merged.model
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    saved = json.loads((tmp_path / "final" / "config.json").read_text())
    assert not saved["tie_word_embeddings"]
    assert not saved.get("text_config", saved)["tie_word_embeddings"]
    with policy.as_reference():
        base = logits(policy, family)
    assert torch.equal(base, logits(load_policy(str(tied), device="cpu"), family))


@pytest.mark.parametrize("targets", [[], ["q_proj"]])
def test_a_tied_model_stays_tied_without_an_adapter_there(targets, folders, tmp_path):
    tied = tied_folder(folders("llama"), tmp_path / "tied")
    options = Model(lora=Lora(rank=2, target_modules=targets))
    policy = load_policy(str(tied), device="cpu", model=options)
    learn_once(policy, "llama")
    policy.save(tmp_path / "checkpoint")
    export_merged(tmp_path / "checkpoint", tmp_path / "final", options)
    assert json.loads((tmp_path / "final" / "config.json").read_text())["tie_word_embeddings"]
    found = logits(load_policy(str(tmp_path / "final"), device="cpu"), "llama")
    torch.testing.assert_close(found, logits(policy, "llama"), rtol=0, atol=1e-4)


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("kind", OWN)
def test_an_adapter_of_peft_is_trained_on_saved_and_merged(kind, is_tied, folders, tmp_path):
    base = folders("llama")
    base = tied_folder(base, tmp_path / "tied") if is_tied else base
    save_own_adapter(base, tmp_path / "own", **OWN[kind])
    policy = load_policy(str(tmp_path / "own"), device="cpu")
    at_first = logits(policy, "llama")
    plain = logits(load_policy(str(base), device="cpu"), "llama")
    assert (at_first - plain).abs().max() > 1e-3
    learn_once(policy, "llama")
    changed = logits(policy, "llama")
    assert (changed - at_first).abs().max() > 1e-3
    with policy.as_reference():
        assert torch.equal(logits(policy, "llama"), plain)
    policy.save(tmp_path / "checkpoint")
    again = load_policy(str(tmp_path / "checkpoint"), device="cpu")
    assert torch.equal(logits(again, "llama"), changed)
    export_merged(tmp_path / "checkpoint", tmp_path / "final", Model())
    merged = load_policy(str(tmp_path / "final"), device="cpu")
    torch.testing.assert_close(logits(merged, "llama"), changed, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bias", "all"),
        ("bias", "lora_only"),
        ("ensure_weight_tying", True),
        ("init_lora_weights", "pissa"),
        ("lora_bias", True),
        ("use_dora", True),
    ],
)
def test_adapters_that_cannot_be_exact_are_refused(name, value, folders, tmp_path):
    save_own_adapter(folders("llama"), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    with pytest.raises(RunError, match=rf"adapter_config.json has {name}: .*it must be"):
        load_policy(str(tmp_path), device="cpu")


def test_named_modules_get_an_adapter(folders):
    options = Model(lora=Lora(rank=3, alpha=12, target_modules=["q_proj", "lm_head"]))
    model = load_policy(str(folders("llava")), device="cpu", model=options).model
    adapted = {
        name.partition(".lora_")[0] for name, _ in model.named_parameters() if "lora_A" in name
    }
    assert {name.rpartition(".")[2] for name in adapted} == {"q_proj", "lm_head"}
    assert any("vision_tower" in name for name in adapted)
    layer = model.lm_head
    assert layer.scaling["default"] == 4
    assert layer.lora_A["default"].weight.shape[0] == 3

    frozen = options.model_copy(update={"freeze_vision": True})
    model = load_policy(str(folders("llava")), device="cpu", model=frozen).model
    assert not any(
        "vision_tower" in name and "lora_" in name for name, _ in model.named_parameters()
    )


def test_unknown_modules_are_named(folders):
    options = Model(lora=Lora(rank=2, target_modules=["qproj"]))
    with pytest.raises(RunError, match=r"names 'qproj', but no linear layer .* q_proj"):
        load_policy(str(folders("llama")), device="cpu", model=options)


def test_two_adapters_begin_alike_and_draw_nothing_from_the_run(folders):
    torch.manual_seed(7)
    one = load_policy(str(folders("llama")), device="cpu", model=ADAPTED)
    drawn = torch.rand(1)
    torch.manual_seed(8)
    two = load_policy(str(folders("llama")), device="cpu", model=ADAPTED)
    weights = dict(two.model.named_parameters())
    for name, weight in one.model.named_parameters():
        assert torch.equal(weight, weights[name])
    torch.manual_seed(7)
    load_policy(str(folders("llama")), device="cpu")
    assert torch.rand(1) == drawn


def metrics_of(config):
    lines = (Path(config.output.dir) / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if "time" not in name}
        for line in lines
    ]


@pytest.mark.parametrize("targets", ["[]", "[q_proj, lm_head]"])
def test_a_resumed_run_equals_the_uninterrupted_one(targets, tiny_run, tmp_path):
    settings = (
        "model.lora.rank=4",
        f"model.lora.target_modules={targets}",
        "optimization.beta=0.1",
        "optimization.learning_rate=0.01",
        "optimization.schedule=constant",
        "data.tasks=[maths, grounding]",
        "rollout.prompts_per_step=2",
    )
    whole = tiny_run(*settings, "optimization.steps=2", folder="whole")
    expected = train(whole)
    train(tiny_run(*settings, "optimization.steps=1", folder="parts"))
    parts = tiny_run(*settings, "optimization.steps=2", folder="parts")
    summary = train(parts, resume=True)
    assert metrics_of(parts) == metrics_of(whole)
    assert metrics_of(whole)[-1]["loss/kl"] > 0  # away from the base by now
    assert summary["after"] == expected["after"]
    one, two = (
        transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / run / "final")
        for run in ("whole", "parts")
    )
    for (name, weight), (_, other) in zip(
        one.named_parameters(), two.named_parameters(), strict=True
    ):
        assert torch.equal(weight, other), name


def test_reference_is_the_base(folders):
    policy = load_policy(str(folders("qwen3")), device="cpu", model=ADAPTED)
    learner = learner_of(policy, describe(), reference=policy)
    at_first = rollouts(policy, "qwen3")
    mask = at_first.mask
    expected = learner.with_reference(at_first).ref_logprobs
    torch.testing.assert_close(expected[mask], at_first.logprobs[mask], rtol=0, atol=2e-5)
    learn_once(policy, "qwen3")
    after = learner.with_reference(at_first)
    assert torch.equal(after.ref_logprobs, expected)
    now, _ = at_first.logprobs_of(policy, 1.0)
    assert (now - expected)[mask].abs().max() > 1e-3


@pytest.mark.parametrize("targets", [[], ["q_proj", "lm_head"]])
def test_shortcuts_hold_with_an_adapter(targets, folders, monkeypatch, caplog):
    """Shared prompts, and log-probabilities without logits, in training and as the reference."""
    options = Model(lora=Lora(rank=2, target_modules=targets), gradient_checkpointing=True)
    policy = load_policy(str(folders("qwen3_vl")), device="cpu", model=options)
    learn_once(policy, "qwen3_vl")
    batch = rollouts(policy, "qwen3_vl")
    weights = [weight for weight in policy.model.parameters() if weight.requires_grad]

    def values_and_gradients(policy):
        arguments = (policy, batch.prompts, batch.groups, batch.tokens, batch.mask)
        values = [value[batch.mask] for value in completion_logprobs(*arguments)]
        with policy.as_reference(), torch.no_grad():
            base = [value[batch.mask] for value in completion_logprobs(*arguments)]
        gradients = torch.autograd.grad(values[0].sum() + 0.3 * values[1].sum(), weights)
        return [*values, *base, *gradients]

    expected = values_and_gradients(replace(policy, shortcuts=Shortcuts()))
    monkeypatch.setattr(shortcuts, "_LARGE_VOCABULARY", 1)
    quick = shortcuts.choose_shortcuts(policy)
    assert quick.shortcuts == Shortcuts(True, True, True)
    found = values_and_gradients(quick)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not [record for record in caplog.records if "g2rpo" in record.name]
