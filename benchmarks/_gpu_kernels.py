"""Parts of ``gpu.py`` without a model: attention, output layer, AdamW, advantages."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from _gpu_tools import Sizes, milliseconds, peak, synchronise, waits


def attention(sizes: Sizes) -> dict[str, Any]:
    """Look for NaN in attention with masks by back end, and time shapes that are new."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kinds = {"math": SDPBackend.MATH}
    if sizes.device == "cuda":
        kinds["efficient"] = SDPBackend.EFFICIENT_ATTENTION
        kinds["cudnn"] = SDPBackend.CUDNN_ATTENTION
    found: dict[str, Any] = {}
    for name, kind in kinds.items():
        try:
            with sdpa_kernel(kind):
                bad = [length for length in (64, 128, 192, 320) if _is_broken(length, sizes)]
                first, again = _times_of_shapes(sizes)
        except RuntimeError as error:
            found[name] = {"error": str(error).splitlines()[0]}
            continue
        found[name] = {"nan_at": bad, "new_shape_ms": first, "known_shape_ms": again}
    return found


def _states(sizes: Sizes, queries: int, keys: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(4, 16, length, 128, device=sizes.device, dtype=sizes.dtype, requires_grad=True)
        for length in (queries, keys, keys)
    ]


def _is_broken(length: int, sizes: Sizes) -> bool:
    """Tell whether a value or gradient is not finite under a causal mask with padding."""
    states = _states(sizes, length, length)
    mask = torch.ones(4, 1, length, length, dtype=torch.bool, device=sizes.device).tril()
    mask[0, :, :, : length // 2] = False
    attend = torch.nn.functional.scaled_dot_product_attention
    out = attend(*states, attn_mask=mask)
    # Rows of padding see nothing; only those of tokens count.
    out[1:].float().square().mean().backward()
    tensors = [out[1:], *(state.grad for state in states)]
    return not all(bool(each.isfinite().all()) for each in tensors)


def _times_of_shapes(sizes: Sizes) -> tuple[float, float]:
    attend = torch.nn.functional.scaled_dot_product_attention

    def times() -> float:
        synchronise()
        started = time.perf_counter()
        for keys in range(257, 267):
            mask = torch.ones(4, 1, 1, keys, dtype=torch.bool, device=sizes.device)
            with torch.no_grad():
                attend(*_states(sizes, 1, keys), attn_mask=mask)
        synchronise()
        return round(100 * (time.perf_counter() - started), 3)

    attend(*_states(sizes, 1, 8))
    return times(), times()


def head(sizes: Sizes) -> dict[str, Any]:
    """Measure the output layer with its loss: operator, fused in chunks, and full logits."""
    from g2rpo_torch import fused_g2rpo_loss, logprobs_and_entropy
    from g2rpo_torch._chunks import chunk_capacity

    torch.manual_seed(0)
    place = {"device": sizes.device, "dtype": sizes.dtype}
    rows, width = 8, sizes.tokens // 8
    hidden = torch.randn(rows, width, sizes.hidden, **place, requires_grad=True)
    weight = torch.randn(sizes.vocabulary, sizes.hidden, **place)
    weight = (weight / sizes.hidden**0.5).requires_grad_()
    labels = torch.randint(sizes.vocabulary, (rows, width), device=sizes.device)
    old = torch.full(labels.shape, -10.0, device=sizes.device)
    advantages = torch.randn(rows, device=sizes.device)
    mask = torch.ones_like(labels, dtype=torch.bool)

    def operator(backend: str) -> torch.Tensor:
        logprobs, entropy = logprobs_and_entropy(hidden, weight, labels, backend=backend)
        return logprobs.sum() + entropy.sum()

    def fused(backend: str, chunk: int) -> torch.Tensor:
        given = (hidden, weight, labels, old, advantages, mask)
        return fused_g2rpo_loss(*given, backend=backend, chunk_tokens=chunk)[0].total

    def full() -> torch.Tensor:
        logits = (hidden @ weight.t()).float()
        return logits.log_softmax(-1).gather(-1, labels[..., None]).sum()

    def selective() -> torch.Tensor:
        from trl.trainer.utils import selective_log_softmax

        return selective_log_softmax(hidden @ weight.t(), labels).sum()

    ways: dict[str, Callable[[], torch.Tensor]] = {"full logits": full, "TRL": selective}
    size = sizes.vocabulary
    chunks = {name: chunk_capacity(size, torch.device(name)) for name in ("cpu", "cuda")}
    for backend in ("portable", "triton"):
        ways[f"operator {backend}"] = lambda backend=backend: operator(backend)
        for name, chunk in chunks.items():
            label = f"fused {backend}, chunk of {name} ({chunk})"
            ways[label] = lambda backend=backend, chunk=chunk: fused(backend, chunk)
    found: dict[str, Any] = {}
    for name, way in ways.items():

        def run(way: Callable[[], torch.Tensor] = way) -> None:
            way().backward()
            hidden.grad = weight.grad = None

        try:
            found[name] = {"ms": milliseconds(run, 2), "peak_gib": peak(run)}
        except (ImportError, ValueError, torch.OutOfMemoryError) as error:
            found[name] = {"error": str(error).splitlines()[0][:200]}
            hidden.grad = weight.grad = None
    return found


def adamw(sizes: Sizes) -> dict[str, Any]:
    """Measure the peak and the time of AdamW's step over bfloat16 weights."""
    from g2rpo_trainer.optimizer import MasterAdamW

    parts = 16
    entries = sizes.optimised // parts
    place = {"device": sizes.device, "dtype": torch.bfloat16}
    weights = [torch.nn.Parameter(torch.ones(entries, **place)) for _ in range(parts)]
    optimizer = MasterAdamW(weights, lr=1e-5)

    def step() -> None:
        for weight in weights:
            (weight.sum() * 1.0).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    found: dict[str, Any] = {"fused": optimizer.defaults["fused"], "ms": milliseconds(step, 2)}
    if sizes.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        most = torch.cuda.max_memory_allocated()
        found["bytes_a_weight"] = round(most / sizes.optimised, 2)
    return found


def advantages(sizes: Sizes) -> dict[str, Any]:
    """Time the advantages of a batch, and count how often they wait for the GPU."""
    import g2rpo

    rewards = torch.rand(sizes.rewards, device=sizes.device)
    groups = torch.arange(sizes.rewards, device=sizes.device) // 8
    tasks = groups % 6

    def call() -> None:
        g2rpo.gaussian_advantages(rewards, groups, tasks)

    return {"rewards": sizes.rewards, "ms": milliseconds(call, 5), "waits": waits(call)}
