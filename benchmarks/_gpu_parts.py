"""The parts of ``gpu.py``: each returns what its line of JSON says."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

GIGABYTE = 2**30


@dataclass(frozen=True)
class Sizes:
    """The device and the sizes of what is measured on it."""

    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    vocabulary: int = 151_936
    hidden: int = 2048
    layers: int = 28
    tokens: int = 8192
    prompt: int = 256
    response: int = 96
    long_prompt: int = 1000
    long_response: int = 800
    rows: tuple[int, ...] = (64, 256)
    optimised: int = 2**30
    rewards: int = 4096
    steps: int = 30

    @classmethod
    def of(cls, rehearse: bool) -> Sizes:
        """Return the sizes of a measurement, or tiny ones for a CPU."""
        if not rehearse:
            return cls()
        return cls(
            device="cpu",
            vocabulary=3000,
            hidden=64,
            layers=2,
            tokens=256,
            prompt=20,
            response=16,
            long_prompt=150,
            long_response=40,
            rows=(4, 8),
            optimised=2**16,
            rewards=64,
            steps=1,
        )


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Return the shortest time of a call that has been made before."""
    call()
    found = []
    for _ in range(repeats):
        synchronise()
        started = time.perf_counter()
        call()
        synchronise()
        found.append(1000 * (time.perf_counter() - started))
    return round(min(found), 3)


def peak(call: Callable[[], object]) -> float | None:
    """Return the most memory that a call takes beyond what is there, in GiB; None on a CPU."""
    if not torch.cuda.is_available():
        call()
        return None
    synchronise()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    synchronise()
    return round((torch.cuda.max_memory_allocated() - before) / GIGABYTE, 3)


def waits(call: Callable[[], object]) -> int | None:
    """Return how often a call waits for the GPU; None on a CPU."""
    if not torch.cuda.is_available():
        call()
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in caught)


def versions(sizes: Sizes) -> dict[str, Any]:
    """Name versions and the device."""
    found = {}
    for name in ("torch", "transformers", "triton", "trl", "vllm", "flash-attn", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    device: dict[str, Any] = {"python": sys.version.split()[0], "device": sizes.device}
    if sizes.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        device["device"] = properties.name
        device["capability"] = list(torch.cuda.get_device_capability())
        device["memory"] = round(properties.total_memory / GIGABYTE, 1)
    return {**device, **found}


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


def tests(sizes: Sizes) -> dict[str, Any]:
    """Run the tests that need a GPU."""
    folders = ["tests/torch", "tests/trainer/test_on_gpu.py"]
    if sizes.device == "cpu":
        folders = folders[1:]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *folders], capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or ["nothing"]
    failed = [line for line in lines if line.startswith("FAILED")]
    return {"code": done.returncode, "result": lines[-1], "failed": failed[:10]}


def _train(folder: Path, sizes: Sizes, steps: int, *settings: str, **options: Any) -> Any:
    from rich.console import Console

    from g2rpo_trainer import train
    from g2rpo_trainer.config import load_config
    from g2rpo_trainer.report.display import Display

    few = ("data.eval_items=2", "data.eval_generations=1") if steps <= 3 else ()
    config = load_config(
        "builtin",
        settings=[
            f"model.device={sizes.device}",
            f"optimization.steps={steps}",
            "optimization.schedule=constant",
            "output.plots=false",
            "output.trackers=[]",
            f"output.dir={folder}",
            *few,
            *settings,
        ],
    )
    quiet = Display(steps, config.data.tasks, console=Console(quiet=True))
    return train(config, display=quiet, **options)


def repeats(sizes: Sizes) -> dict[str, Any]:
    """Train the built-in policy in bfloat16: three steps twice, and once resumed after two."""
    from safetensors.torch import load_file

    settings = ("model.dtype=bfloat16",)
    if sizes.device == "cpu":
        settings += ("rollout.prompts_per_step=2", "rollout.max_completion_length=8")
    found = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        for deterministic in ("false", "true"):
            given = (*settings, f"model.deterministic={deterministic}")
            runs = [folder / f"{deterministic}-{number}" for number in range(3)]
            waited = waits(partial(_train, runs[0], sizes, 3, *given))
            started = time.monotonic()
            _train(runs[1], sizes, 3, *given)
            seconds = time.monotonic() - started
            _train(runs[2], sizes, 2, *given)
            _train(runs[2], sizes, 3, *given, resume=True)
            ends = [
                load_file(run / "checkpoints" / "step-000003" / "model.safetensors") for run in runs
            ]
            same = [all(torch.equal(ends[0][key], end[key]) for key in ends[0]) for end in ends[1:]]
            found["deterministic" if deterministic == "true" else "default"] = {
                "seconds_a_run": round(seconds, 1),
                "waits_a_run": waited,
                "repeats_to_the_bit": same[0],
                "resumes_to_the_bit": same[1],
            }
    return found


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


def _sampled(policy: Any, prompts: Any, rows: int, length: int) -> Any:
    from g2rpo_trainer.sampling import sample

    torch.manual_seed(0)
    each = rows // len(prompts["input_ids"])
    return sample(policy, prompts, num_generations=each, max_completion_length=length)


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
    short, long = sizes.response // 3, sizes.response
    for rows in sizes.rows:
        rollout = partial(_sampled, policy, _prompts(sizes, rows // 4), rows)
        times = [milliseconds(partial(rollout, length), 1) for length in (short, long)]
        found[str(rows)] = {
            "ms_a_token": round((times[1] - times[0]) / (long - short), 3),
            "waits": waits(partial(rollout, long)),
            "peak_gib": peak(partial(rollout, long)),
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


def builtin(sizes: Sizes) -> dict[str, Any]:
    """Train the built-in policy for thirty steps: rewards before and after."""
    few = ("data.eval_items=16",) if sizes.steps > 3 else ("rollout.prompts_per_step=2",)
    with TemporaryDirectory() as name:
        summary = _train(Path(name) / "run", sizes, sizes.steps, *few)
    kept = ("steps", "seconds", "before", "after")
    return {key: summary[key] for key in kept}


PARTS = {
    "versions": versions,
    "attention": attention,
    "tests": tests,
    "repeats": repeats,
    "ratios": ratios,
    "decoding": decoding,
    "update": update,
    "blocks": blocks,
    "head": head,
    "adamw": adamw,
    "advantages": advantages,
    "builtin": builtin,
}
