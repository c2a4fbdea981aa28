"""Time one update and one rollout, with each prompt computed once per group and once per response.

    python benchmarks/shared_prompts.py --output benchmarks/results/shared_prompts.md
    python benchmarks/shared_prompts.py --models text --output benchmarks/results/shared_prompts.md
    python benchmarks/shared_prompts.py --device cuda --hidden 2048 --layers 16

An update is the log-probability pass and its backward pass; a rollout is the prefill of one
prompt and the sampling of 8 responses of exactly R tokens to it. Both variants get the same prompt,
weights and random numbers, alternately; the run fails if their results differ. The models are
random: a Llama, and a Qwen3-VL with a prompt of an image and a few tokens.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import transformers
from _report import earlier_rows, markdown_table, measured_on, publish

from g2rpo_trainer.logprobs import completion_logprobs
from g2rpo_trainer.model.policy_model import Policy, Shortcuts, make_policy
from g2rpo_trainer.policy.build import build_tokenizer
from g2rpo_trainer.prompts.batching import Inputs, Prompts
from g2rpo_trainer.sampling import sample

GENERATIONS = 8
VOCABULARY = 4096
IMAGE, VISION_START, VISION_END = 4, 5, 6


class Row(NamedTuple):
    """One measurement, in tokens and seconds."""

    model: str
    part: str
    prompt: int
    response: int
    plain: float
    shared: float

    def cells(self) -> list[str]:
        """Return the row of the table, with the ratio of token counts."""
        responses = GENERATIONS * self.response
        limit = (GENERATIONS * self.prompt + responses) / (self.prompt + responses)
        figures = (f"{self.plain:.2f}", f"{self.shared:.2f}", f"{self.plain / self.shared:.1f}")
        return [
            self.model,
            self.part,
            str(self.prompt),
            str(self.response),
            *figures,
            f"{limit:.1f}",
        ]


def main() -> None:
    """Measure, print, and write."""
    options = _options()
    rows = []
    for model in options.models:
        policy = BUILDERS[model](options)
        for part in options.parts:
            # The check at the start of a run, and other costs of a first call.
            _measure(policy, model, part, 64, 4, repeats=1)
            for prompt in options.prompts:
                for response in options.responses:
                    rows.append(_measure(policy, model, part, prompt, response, options.repeats))
                    print(" ".join(rows[-1].cells()), flush=True)
    text = _report(rows, options)
    publish(text, options.output)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=BUILDERS, default=list(BUILDERS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--prompts", type=int, nargs="+", default=[256, 1024], help="tokens")
    parser.add_argument("--responses", type=int, nargs="+", default=[16, 64], help="tokens")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2, help="the fastest counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    return parser.parse_args()


def _measure(
    policy: Policy, model: str, part: str, prompt: int, response: int, repeats: int
) -> Row:
    """Time both variants alternately, and compare their results."""
    inputs = _prompt(policy, model, prompt)
    ways = {
        "plain": policy,
        "shared": replace(policy, shortcuts=Shortcuts(shared_rollouts=True, packed_rows=True)),
    }
    seconds = dict.fromkeys(ways, math.inf)
    results = {}
    for _ in range(repeats):
        for name, way in ways.items():
            elapsed, results[name] = _timed(way, lambda w=way: PARTS[part](w, inputs, response))
            seconds[name] = min(seconds[name], elapsed)
    tolerance = 1e-4 if policy.model.dtype == torch.float32 else 5e-2
    torch.testing.assert_close(results["shared"], results["plain"], rtol=tolerance, atol=tolerance)
    return Row(model, part, prompt, response, **seconds)


def _update(policy: Policy, inputs: Inputs, response: int) -> torch.Tensor:
    """Return a gradient, to compare the two variants."""
    torch.manual_seed(1)
    shape = (GENERATIONS, response)
    tokens = torch.randint(10, VOCABULARY, shape, device=policy.device)
    groups = torch.zeros(GENERATIONS, dtype=torch.int64, device=policy.device)
    mask = torch.ones(shape, dtype=torch.bool, device=policy.device)
    logprobs, entropies = completion_logprobs(policy, inputs, groups, tokens, mask)
    (logprobs.mean() + entropies.mean()).backward()
    embedding = policy.model.get_input_embeddings().weight
    gradient = embedding.grad / embedding.grad.norm()
    policy.model.zero_grad()
    return gradient


def _rollout(policy: Policy, inputs: Inputs, response: int) -> torch.Tensor:
    """Return the tokens, to compare the two variants."""
    torch.manual_seed(1)
    return sample(
        policy, inputs, num_generations=GENERATIONS, max_completion_length=response
    ).tokens


PARTS: dict[str, Callable[[Policy, Inputs, int], torch.Tensor]] = {
    "update": _update,
    "rollout": _rollout,
}


def _timed(policy: Policy, call: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    synchronize = torch.cuda.synchronize if policy.device.type == "cuda" else lambda: None
    synchronize()
    started = time.perf_counter()
    result = call()
    synchronize()
    return time.perf_counter() - started, result


def _prompt(policy: Policy, model: str, length: int) -> Inputs:
    torch.manual_seed(0)
    ids = torch.randint(10, VOCABULARY, (1, length))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    rows_each: dict[str, list[int]] = {}
    if model == "image":
        # The largest square that leaves room for a question.
        side = math.isqrt(length * 7 // 8)
        image = [VISION_START, *[IMAGE] * side**2, VISION_END]
        ids[0, : len(image)] = torch.tensor(image)
        inputs["mm_token_type_ids"] = (ids == IMAGE).long()
        inputs["image_grid_thw"] = torch.tensor([[1, 2 * side, 2 * side]])
        rows_each = {"image_grid_thw": [1], "pixel_values": [4 * side**2]}
        inputs["pixel_values"] = torch.randn(4 * side**2, 3 * 2 * 16 * 16).to(policy.model.dtype)
    on_device = {name: tensor.to(policy.device) for name, tensor in inputs.items()}
    return Prompts(on_device, rows_each)


def _text_config(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": options.hidden,
        "intermediate_size": 3 * options.hidden,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.hidden // 64,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 4096,
    }


def _text_policy(options: argparse.Namespace) -> Policy:
    config = transformers.LlamaConfig(**_text_config(options))
    return _policy(transformers.LlamaForCausalLM(config), options)


def _image_policy(options: argparse.Namespace) -> Policy:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [12, 10, 10]}
    config = transformers.Qwen3VLConfig(
        text_config={**_text_config(options), "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 2,
            "out_hidden_size": options.hidden,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=IMAGE,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    return _policy(transformers.Qwen3VLForConditionalGeneration(config), options)


BUILDERS = {"text": _text_policy, "image": _image_policy}


def _policy(model: Any, options: argparse.Namespace) -> Policy:
    torch.manual_seed(0)
    model = model.eval().to(options.device, getattr(torch, options.dtype))
    policy = make_policy(model, SimpleNamespace(tokenizer=build_tokenizer()))
    # Without an end token, so that all responses have the same length.
    ends = torch.tensor(policy.eos_ids, device=policy.device)
    return replace(policy, banned_ids=torch.cat([policy.banned_ids, ends]))


def _report(rows: list[Row], options: argparse.Namespace) -> str:
    """Return the table, including rows of the same day and settings from earlier calls."""
    header = ["model", "part", "P", "R", "plain [s]", "shared [s]", "ratio", "limit"]
    conditions = (
        f"{measured_on(options.device, ['torch', 'transformers'])} {GENERATIONS} responses of R "
        f"tokens to one prompt of P tokens; {options.dtype}, hidden size {options.hidden}, "
        f"{options.layers} layers, vocabulary {VOCABULARY}; the fastest of {options.repeats}."
    )
    earlier = earlier_rows(options.output, conditions)
    table = {tuple(cells[:4]): cells for cells in earlier if cells[0] in BUILDERS}
    table |= {tuple(row.cells()[:4]): row.cells() for row in rows}
    order = [[model, part] for model in BUILDERS for part in PARTS]
    cells = sorted(table.values(), key=lambda c: (order.index(c[:2]), int(c[2]), int(c[3])))
    sections = [
        "# Shared prompts",
        conditions,
        markdown_table(header, cells),
        "`limit` is the ratio of the tokens that the language model computes, n(P + R) to P + nR.",
    ]
    return "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    main()
