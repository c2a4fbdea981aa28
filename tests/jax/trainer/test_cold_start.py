"""The script that makes the embedded policy, in short forms of it."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from g2rpo_jax.policy import policy_path
from g2rpo_jax.policy.cold_start import THINKS, draw, imitate, imitation_loss
from g2rpo_jax.policy.decoder import Decoder, DecoderConfig
from g2rpo_jax.trainer.device import resolve_device
from g2rpo_jax.trainer.policy_model import load_policy

MODULE = "g2rpo_jax.policy.cold_start"


def script(*arguments) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", MODULE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_few_steps_learn(tokenizer):
    config = DecoderConfig(len(tokenizer), width=16, layers=1, heads=2, feed_forward=16)
    definition, params = nnx.split(Decoder(config, rngs=nnx.Rngs(0)))
    examples = draw(tokenizer, THINKS, 0, 0)
    loss = jax.jit(imitation_loss, static_argnums=0)
    before = loss(definition, params, examples)
    # Muon's and the schedule's own arithmetic mixes ranks and dtypes, as the script allows it to.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        trained = imitate(
            definition,
            params,
            tokenizer=tokenizer,
            steps=8,
            decay_steps=8,
            learning_rate=3e-2,
            thinks=THINKS,
            seed=0,
        )
    assert loss(definition, trained, examples) < before - 0.3


def test_examples_are_padded_responses_of_all_tasks_in_both_styles(tokenizer):
    examples = draw(tokenizer, THINKS, 0, 0)
    assert set(examples.tasks.tolist()) == {0, 1, 2, 3}
    lengths = jnp.sum(examples.mask, axis=-1)
    last = jnp.take_along_axis(examples.tokens, lengths[..., None] - 1, axis=-1)
    assert (last == tokenizer.eos_id).all()
    closing = jnp.asarray(tokenizer.encode("<think></think>"))
    at_once = (examples.tokens[..., :2] == closing[None, None]).all(-1)
    assert 0.2 < at_once.mean() < 0.8


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_script_writes_a_policy_that_can_be_loaded(tmp_path, tokenizer):
    made = script("--output", tmp_path / "new", "--skill-steps", 2, "--habit-steps", 1)
    assert made.returncode == 0, made.stderr
    assert f"wrote {tmp_path / 'new'}" in made.stdout
    assert made.stdout.count("loss") == 3
    policy = load_policy(str(tmp_path / "new"), resolve_device("cpu"))
    assert policy.tokenizer.entries == tokenizer.entries
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(policy.params))
    # The files have the form of those that the package brings.
    names = {path.name for path in policy_path().iterdir()}
    assert {path.name for path in (tmp_path / "new").iterdir()} == names
    sizes = [
        json.loads((folder / "config.json").read_text())
        for folder in (tmp_path / "new", policy_path())
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--output"),
        (("--output", "new", "--skill-steps", "-1"), "--skill-steps: must be a whole number"),
        (("--output", "new", "--habit-steps", "1.5"), "--habit-steps: must be a whole number"),
        (("--output", "config.json"), "--output must be a folder that can be written"),
    ],
)
def test_wrong_options_are_refused_before_the_training(
    arguments, message, tmp_path, monkeypatch, capsys
):
    from g2rpo_jax.policy import cold_start

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [MODULE, *arguments])
    monkeypatch.setattr(cold_start, "imitate", None)
    with pytest.raises(SystemExit) as refused:
        cold_start.main()
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
