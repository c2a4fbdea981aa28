"""``engine: tunix``: a run as described, with the folder that every engine leaves."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from g2rpo.run import RunError, RunFolder, load_description
from g2rpo.run.supported import refuse_unsupported
from g2rpo_jax.policy.decoder import Decoder, DecoderConfig
from g2rpo_jax.policy.files import save_sizes, save_weights
from g2rpo_jax.policy.reading import next_token_states, pad_left
from g2rpo_jax.policy.tokenizer import SPECIAL, Tokenizer
from g2rpo_tunix.engine import Interrupted, evaluate, train
from g2rpo_tunix.engine.cluster import divisor, make_mesh
from g2rpo_tunix.engine.options import SUPPORTED, learner_config
from g2rpo_tunix.engine.policy import as_qwen2, load_policy

TASKS = ["arithmetic", "sorting"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random decoder of the JAX trainer, with a vocabulary of single characters."""
    path = tmp_path_factory.mktemp("policy")
    entries = [*SPECIAL, *(chr(code) for code in range(32, 127)), "<answer>", "</answer>"]
    config = DecoderConfig(vocab_size=len(entries), width=16, layers=2, heads=2, feed_forward=24)
    params = nnx.state(Decoder(config, rngs=nnx.Rngs(0)))
    params = jax.tree.map(lambda leaf: 5 * leaf, params)
    save_sizes(path, config, Tokenizer(entries))
    save_weights(path, params)
    return path


def described(folder, output, **changes):
    values = {
        "engine": "tunix",
        "model.name": str(folder),
        "data.source": "builtin-text",
        "data.tasks": TASKS,
        "data.eval_items": 3,
        "data.eval_generations": 2,
        "rollout.prompts_per_step": 4,
        "rollout.num_generations": 4,
        "rollout.max_completion_length": 8,
        "length.targets": {"arithmetic": (1, 2, 4, 8)},
        "length.only_right": False,
        "optimization.steps": 3,
        "output.dir": str(output),
        "output.save_steps": 2,
        "output.trackers": [],
        "output.plots": False,
    }
    return load_description(overrides=values | changes)


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_the_same_logits_as_the_decoder_of_the_jax_trainer(folder):
    from g2rpo_jax.policy.files import read_sizes, read_weights

    config, words = read_sizes(folder)
    params = read_weights(folder, config)
    definition, _ = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    decoder = nnx.merge(definition, params)
    prompt, response = words.encode_prompt("What is 1+2?"), words.encode("It is 3.")
    prompts = pad_left([prompt], words.pad_id, len(prompt) + 3)
    states = next_token_states(decoder, prompts, jnp.asarray(response)[None, None])
    wanted = states[0, 0] @ decoder.head[...].T
    tokens = jnp.asarray([prompt + response])
    size = tokens.shape[1]
    logits, _ = as_qwen2(config, params)(
        tokens, jnp.arange(size)[None], None, jnp.tril(jnp.ones((1, size, size), bool))
    )
    np.testing.assert_allclose(logits[0, len(prompt) - 1 : -1], wanted, atol=2e-4)
    assert np.abs(wanted).max() > 0.5


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "whole"
    return path, train(described(folder, path))


def test_a_run_leaves_what_every_engine_leaves(finished):
    path, summary = finished
    assert set(summary) == {
        "before", "after", "interval_before", "interval_after", "items",
        "length_before", "length_after", "steps", "seconds", "seed", "estimator",
    }  # fmt: skip
    assert summary == json.loads((path / "summary.json").read_text())
    for part in ("before", "after"):
        assert set(summary[part]) == set(summary[f"interval_{part}"]) == {*TASKS, "mean"}
        assert set(summary[f"length_{part}"]) == set(TASKS)
    assert summary["steps"] == 3
    assert [line["step"] for line in lines(path)] == [1, 2, 3]
    for line in lines(path):
        for task in TASKS:
            for name in ("reward", "entropy", "completions/mean_length"):
                assert np.isfinite(line[f"{name}/{task}"])
        for name in ("loss", "loss/policy", "grad_norm", "learning_rate", "step_time"):
            assert np.isfinite(line[name])
    assert [each.step for each in RunFolder.open(path).checkpoints()] == [2, 3]
    rows = (path / "completions.jsonl").read_text().splitlines()
    assert {json.loads(row)["task"] for row in rows} == set(TASKS)


def test_a_checkpoint_can_be_evaluated(finished, folder):
    path, summary = finished
    description = load_description(path / "config.yaml")
    newest = str(path / "checkpoints" / "step-000003")
    samples: list[dict] = []
    result = evaluate(newest, description, on_samples=samples.extend)
    for task, reward in summary["after"].items():
        assert result["reward"][task] == pytest.approx(reward, abs=1e-6)
    for task, length in summary["length_after"].items():
        own = [each for each in samples if each["task"] == task]
        assert [each["item"] for each in own] == [0, 0, 1, 1, 2, 2]
        assert np.mean([each["length"] for each in own]) == pytest.approx(length)
    # What was not cut off at the limit of 8 tokens has ended.
    assert all(each["ended"] for each in samples if each["length"] < 8)
    cold = load_description(path / "config.yaml", {"data.eval_temperature": 0})
    evaluate(str(folder), cold, on_samples=samples.extend)
    likeliest = [each["response"] for each in samples[12:]]
    assert likeliest[::2] == likeliest[1::2]
    with pytest.raises(RunError, match="a checkpoint that holds weights alone; name the folder"):
        evaluate(newest, load_description(path / "config.yaml", {"model.name": newest}))


def test_a_resumed_run_repeats_what_it_would_have_done(finished, folder, tmp_path):
    whole, _ = finished
    path = tmp_path / "parts"
    train(described(folder, path, **{"optimization.steps": 2, "optimization.schedule": "constant",
                                     "optimization.warmup_steps": 0}))  # fmt: skip
    other = tmp_path / "whole"
    train(described(folder, other, **{"optimization.schedule": "constant",
                                      "optimization.warmup_steps": 0}))  # fmt: skip
    description = load_description(path / "config.yaml", {"optimization.steps": 3})
    summary = train(description, resume=True)
    for one, two in zip(lines(path), lines(other), strict=True):
        for name in ("loss", "reward", "entropy", "grad_norm"):
            np.testing.assert_allclose(one[name], two[name], rtol=1e-4, atol=1e-7)
    assert summary["after"] == json.loads((other / "summary.json").read_text())["after"]
    assert len(lines(whole)) == 3


def test_a_run_that_is_told_to_stop_saves_and_goes_on(folder, tmp_path, monkeypatch):
    path = tmp_path / "stopped"
    log = RunFolder.log

    def stop_after_one(self, step, *rest):
        log(self, step, *rest)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(RunFolder, "log", stop_after_one)
    description = described(folder, path, **{"optimization.steps": 2})
    with pytest.raises(Interrupted) as stopped:
        train(description)
    assert stopped.value.step == 1
    monkeypatch.undo()
    summary = train(description, resume=True)
    assert summary["steps"] == 2
    assert [line["step"] for line in lines(path)] == [1, 2]


def test_keys_that_have_no_effect_are_refused(folder, tmp_path):
    for key, value in {"optimization.updates_per_batch": 2, "rollout.stop": "</answer>"}.items():
        with pytest.raises(RunError, match=f"{key} is .* which the engine tunix does not support"):
            train(described(folder, tmp_path / "none", **{key: value}))
    assert not (tmp_path / "none").exists()


def test_every_supported_key_exists():
    values = load_description().model_dump()
    for key in SUPPORTED:
        section = values
        for part in key.split("."):
            assert part in section, key
            section = section[part]


def test_the_configuration_says_what_the_description_says(folder, tmp_path):
    description = described(
        folder,
        tmp_path,
        **{
            "length.mode": "reward",
            "length.only_right": True,
            "entropy.bounds": {"sorting": (0.1, 0.2)},
            "entropy.weights": {"sorting": 0.5},
            "estimator.task_stage": "match",
            "optimization.beta": 0.25,
        },
    )
    refuse_unsupported(description, SUPPORTED)
    config = learner_config(description)
    assert config.task_names == tuple(TASKS)
    assert config.bounds == ((0.05, 0.6), (0.1, 0.2))
    assert config.weights == (0.02, 0.5)
    assert config.estimator_options["task_stage"] == "match"
    assert (config.length_mode, config.length_only_right) == ("reward", "accuracy")
    assert config.reward_weights == (0.9, 0.1, 0.0)
    assert config.beta == 0.25


def test_models_that_cannot_be_loaded(tmp_path):
    mesh = make_mesh("cpu")
    with pytest.raises(RunError, match="--model is 'nowhere', which cannot be loaded"):
        load_policy("nowhere", mesh, "float32")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(RunError, match="of qwen2 or qwen3"):
        load_policy(str(tmp_path), mesh, "float32")


def test_pictures_are_refused(folder, tmp_path):
    description = described(folder, tmp_path / "run", **{"data.source": "builtin",
                            "data.tasks": ["maths"], "length.targets": {}})  # fmt: skip
    with pytest.raises(RunError, match="has images, but the engine tunix reads one question"):
        train(description)


def test_divisor():
    assert [divisor(24, limit) for limit in (0, 1, 5, 7, 24, 99)] == [1, 1, 4, 6, 24, 24]


def hugging_face_folder(path, *, kind, pad="<pad>"):
    """Write a tiny random model with a tokenizer of single characters."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    entries = ["<pad>", "<end>", "<user>", *(chr(code) for code in range(32, 127))]
    fast = Fast(models.WordLevel({entry: i for i, entry in enumerate(entries)}, unk_token=" "))
    fast.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        pad_token=pad,
        eos_token="<end>",
        additional_special_tokens=["<user>"],
        chat_template="{% for m in messages %}<user>{{ m.content }}{% endfor %}",
    )
    tokenizer.save_pretrained(path)
    width, hidden, heads, each = 16, 24, 2, 8
    sizes = {
        "model_type": kind, "num_hidden_layers": 1, "vocab_size": len(entries),
        "hidden_size": width, "intermediate_size": hidden, "num_attention_heads": heads,
        "head_dim": each, "num_key_value_heads": 1, "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "max_position_embeddings": 256,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(sizes))
    rng = np.random.default_rng(0)
    layer, attention = "model.layers.0.", "model.layers.0.self_attn."
    shapes = {
        "model.embed_tokens.weight": (len(entries), width),
        "model.norm.weight": (width,),
        layer + "input_layernorm.weight": (width,),
        layer + "post_attention_layernorm.weight": (width,),
        attention + "q_proj.weight": (heads * each, width),
        attention + "k_proj.weight": (each, width),
        attention + "v_proj.weight": (each, width),
        attention + "o_proj.weight": (width, heads * each),
        layer + "mlp.gate_proj.weight": (hidden, width),
        layer + "mlp.up_proj.weight": (hidden, width),
        layer + "mlp.down_proj.weight": (width, hidden),
    }
    if kind == "qwen3":
        shapes |= {attention + f"{name}_norm.weight": (each,) for name in "qk"}
    else:
        sizes = {"q": heads * each, "k": each, "v": each}
        shapes |= {attention + f"{name}_proj.bias": (size,) for name, size in sizes.items()}
    tensors = {k: rng.standard_normal(shape).astype(np.float32) for k, shape in shapes.items()}
    save_file(tensors, path / "model.safetensors")
    return tensors


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_a_folder_in_hugging_face_format(kind, tmp_path):
    tensors = hugging_face_folder(tmp_path, kind=kind)
    policy = load_policy(str(tmp_path), make_mesh("cpu"), "float32")
    embedding = tensors["model.embed_tokens.weight"]
    np.testing.assert_array_equal(policy.model.embedder.input_embedding[...], embedding)
    assert policy.tokenizer.encode("ab") == [2, 3 + ord("a") - 32, 3 + ord("b") - 32]
    assert policy.tokenizer.decode([3 + ord("a") - 32, 1]) == "a"
    assert (policy.tokenizer.pad_id(), policy.tokenizer.eos_id()) == (0, 1)
    assert policy.context == 256


def test_a_tokenizer_that_pads_with_its_end_token_is_refused(tmp_path):
    hugging_face_folder(tmp_path, kind="qwen3", pad="<end>")
    with pytest.raises(RunError, match="an end token and another one for padding"):
        load_policy(str(tmp_path), make_mesh("cpu"), "float32")
