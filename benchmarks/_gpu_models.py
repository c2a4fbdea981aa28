"""Parts of ``gpu.py`` on a random language model: sampling and passes over responses."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from _gpu_tools import Sizes, milliseconds, peak, waits


def _text_policy(sizes: Sizes) -> Any:
    """Return a random language model whose responses do not end, and which shares prompts."""
    from types import SimpleNamespace

    import transformers

    from g2rpo_trainer.model.policy_model import Shortcuts, make_policy
    from g2rpo_trainer.policy.build import build_tokenizer

    heads = max(1, sizes.hidden // 128)
    config = transformers.Qwen3Config(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=3 * sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        head_dim=128,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with torch.device(sizes.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=sizes.dtype).eval()
    # Logits of a spread of 4, about that of a trained model.
    torch.nn.init.constant_(model.model.norm.weight, 4 / (0.02 * sizes.hidden**0.5))
    policy = make_policy(model, SimpleNamespace(tokenizer=build_tokenizer()))
    chosen = Shortcuts(shared_rollouts=True, packed_rows=True, without_logits=True)
    if sizes.device == "cpu":
        policy = replace(policy, pad_to_multiple_of=64)
    return replace(policy, eos_ids=(), closing_text=None, shortcuts=chosen)


def _prompts(sizes: Sizes, count: int) -> Any:
    from g2rpo_trainer.prompts.batching import Prompts

    ids = torch.randint(10, 200, (count, sizes.prompt), device=sizes.device)
    return Prompts({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def _sampled(policy: Any, prompts: Any, rows: int, length: int, limit: int | None = None) -> Any:
    from g2rpo_trainer.sampling import sample

    torch.manual_seed(0)
    count = len(prompts["input_ids"])
    return sample(
        policy,
        prompts,
        num_generations=rows // count,
        max_completion_length=length,
        limits=None if limit is None else [limit] * count,
    )


def _ms_a_token(policy: Any, prompts: Any, rows: int, sizes: Sizes) -> float:
    """Return the time of a token of the decoding, without that of the prefill."""
    # Limits do not change the shapes of a step.
    limits = (sizes.response // 3, sizes.response)
    rollout = partial(_sampled, policy, prompts, rows, sizes.response)
    times = [milliseconds(partial(rollout, limit), 1) for limit in limits]
    return round((times[1] - times[0]) / (limits[1] - limits[0]), 3)


def ratios(sizes: Sizes) -> dict[str, Any]:
    """Compare log-probabilities of the update and of the sampling before any update."""
    from g2rpo_trainer.logprobs import completion_logprobs

    policy, rows = _text_policy(sizes), sizes.rows[0]
    prompts = _prompts(sizes, rows // 4)
    drawn = _sampled(policy, prompts, rows, sizes.response)
    groups = torch.arange(rows // 4, device=sizes.device).repeat_interleave(4)
    with torch.no_grad():
        now, _ = completion_logprobs(policy, prompts, groups, drawn.tokens, drawn.mask)
    difference = (now - drawn.logprobs)[drawn.mask].double()
    edges = torch.tensor([0.0, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 1e9], dtype=torch.float64)
    counts = torch.histogram(difference.abs().cpu(), edges).hist
    return {
        "tokens": difference.numel(),
        "mean": float(difference.mean()),
        "spread": float(difference.std()),
        "largest": float(difference.abs().max()),
        "edges": edges[:-1].tolist(),
        "shares": [round(float(count) / difference.numel(), 5) for count in counts],
    }


def decoding(sizes: Sizes) -> dict[str, Any]:
    """Time a token of the decoding by rows, and count the waits of a rollout."""
    policy, found = _text_policy(sizes), {}
    for rows in sizes.rows:
        prompts = _prompts(sizes, rows // 4)
        rollout = partial(_sampled, policy, prompts, rows, sizes.response)
        found[str(rows)] = {
            "ms_a_token": _ms_a_token(policy, prompts, rows, sizes),
            "waits": waits(rollout),
            "peak_gib": peak(rollout),
        }
    return found


def compiled(sizes: Sizes) -> dict[str, Any]:
    """Time a token of the decoding, plain and with ``rollout.compile``.

    A quarter of the layers, since compiling all of them takes longer than this part may. On a GPU
    the plain step is also recorded as a CUDA graph, which computes by the same kernels.
    """
    from g2rpo_trainer.decoding import CompiledStep, step

    sizes = replace(sizes, layers=max(1, sizes.layers // 4))
    policy, rows = _text_policy(sizes), sizes.rows[0]
    prompts = _prompts(sizes, rows // 4)
    plain = _sampled(policy, prompts, rows, sizes.response)
    found: dict[str, Any] = {"rows": rows, "layers": sizes.layers}
    ways: dict[str, Any] = {"plain": None, "compiled": CompiledStep()}
    if sizes.device == "cuda":
        ways = {"plain": None, "recorded": step, "compiled": ways["compiled"]}
    for name, way in ways.items():
        which = replace(policy, compiled_step=way)
        started = time.monotonic()
        drawn = _sampled(which, prompts, rows, sizes.response)
        seconds = round(time.monotonic() - started, 1)
        # Behind a token that differs rows are no longer the same.
        first = (drawn.logprobs[:, 0] - plain.logprobs[:, 0]).abs().max()
        found[name] = {
            "first_rollout_s": seconds,
            "ms_a_token": _ms_a_token(which, prompts, rows, sizes),
            "waits": waits(partial(_sampled, which, prompts, rows, sizes.response)),
            "peak_gib": peak(partial(_sampled, which, prompts, rows, sizes.response)),
            "equal_tokens": float((drawn.tokens == plain.tokens).double().mean()),
            "nats_apart_at_the_first": float(first),
        }
    return found


def update(sizes: Sizes) -> dict[str, Any]:
    """Time a forward and backward pass over 16 responses, by responses a row."""
    from g2rpo_trainer.logprobs import packed_predictions, plain_predictions
    from g2rpo_trainer.model.adapting import enable_gradient_checkpointing
    from g2rpo_trainer.packing import split_groups

    policy = _text_policy(sizes)
    enable_gradient_checkpointing(policy.model)
    prompts = _prompts(sizes, 2)
    groups = torch.arange(2, device=sizes.device).repeat_interleave(8)
    tokens = torch.randint(10, 200, (16, 2 * sizes.response), device=sizes.device)
    mask = torch.ones_like(tokens, dtype=torch.bool)

    def run(size: int) -> None:
        if size == 1:
            found = plain_predictions(policy, prompts, groups, tokens, mask)
        else:
            rows, kept = split_groups(groups, size)
            shared = {name: tensor[kept] for name, tensor in prompts.items()}
            found = packed_predictions(policy, shared, rows, tokens, mask)
        found.values()[0].sum().backward()
        policy.model.zero_grad(set_to_none=True)

    runs = {str(size): partial(run, size) for size in (1, 2, 4, 8)}
    return {
        size: {"ms": milliseconds(call, 2), "peak_gib": peak(call)} for size, call in runs.items()
    }


def blocks(sizes: Sizes) -> dict[str, Any]:
    """Compare block masks with dense ones: 8 long responses to a prompt, by responses a row.

    Values and gradients, milliseconds and peak of a forward and backward pass; the first pass under
    block masks compiles. On a CPU block masks are compared without gradients.
    """
    from g2rpo_trainer.block_attention import blocks_obstacle, use_blocks
    from g2rpo_trainer.logprobs import packed_predictions, plain_predictions
    from g2rpo_trainer.model.adapting import enable_gradient_checkpointing
    from g2rpo_trainer.packing import split_groups
    from g2rpo_trainer.row_cost import BLOCK_COST, CUDA_COST, responses_per_row

    policy = _text_policy(sizes)
    learns = sizes.device == "cuda"
    started = time.monotonic()
    obstacle = blocks_obstacle(policy.model)
    found: dict[str, Any] = {"obstacle": obstacle, "check_s": round(time.monotonic() - started, 1)}
    if learns and obstacle:
        return found
    use_blocks(policy.model)
    if learns:
        enable_gradient_checkpointing(policy.model)
    in_blocks = replace(policy, block_masks=True)
    prompts = _prompts(replace(sizes, prompt=sizes.long_prompt), 1)
    groups = torch.zeros(8, dtype=torch.int64, device=sizes.device)
    tokens = torch.randint(10, 200, (8, sizes.long_response), device=sizes.device)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    embedding = policy.model.get_input_embeddings().weight

    def run(which: Any, size: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        with torch.set_grad_enabled(learns):
            if size == 1 and not which.block_masks:
                made = plain_predictions(which, prompts, groups, tokens, mask)
            else:
                rows, kept = split_groups(groups, size)
                shared = {name: tensor[kept] for name, tensor in prompts.items()}
                made = packed_predictions(which, shared, rows, tokens, mask)
            values = made.values()[0]
            if not learns:
                return values, None
            values.sum().backward()
        gradient = embedding.grad
        policy.model.zero_grad(set_to_none=True)
        return values.detach(), gradient

    costs = {"dense": (policy, CUDA_COST), "blocks": (in_blocks, BLOCK_COST)}
    for name, (which, cost) in costs.items():
        sizes_given = (sizes.long_prompt, sizes.long_response, 8, sizes.hidden)
        found[name] = {"chosen": responses_per_row(*sizes_given, cost)}
        for size in (1, 2, 4, 8):
            call = partial(run, which, size)
            try:
                found[name][str(size)] = {"ms": milliseconds(call, 1), "peak_gib": peak(call)}
            except torch.OutOfMemoryError:
                found[name][str(size)] = {"error": "out of memory"}
                policy.model.zero_grad(set_to_none=True)
    dense, ours = run(policy, 2), run(in_blocks, 2)
    found["nats_apart"] = float((dense[0] - ours[0]).abs().mean())
    if dense[1] is not None and ours[1] is not None:
        distance = (dense[1] - ours[1]).float().norm() / dense[1].float().norm()
        found["gradients_apart"] = float(distance)
    return found
