"""One measurement of ``benchmarks/logprobs.py``, in a separate process."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

#: Implementations, with their names in the table.
CONTENDERS = {
    "operator": "logprobs_and_entropy",
    "operator_triton": "logprobs_and_entropy, Triton",
    "fused": "fused_g2rpo_loss",
    "fused_triton": "fused_g2rpo_loss, Triton",
    "fused_twice": "fused_g2rpo_loss, logits twice",
    "plain": "full logits",
    "trl": "TRL, chunked head",
    "liger": "Liger, log-probabilities",
    "verl": "verl, fused linear",
}

#: Implementations that need a GPU.
ON_A_GPU = ("operator_triton", "fused_triton")


class Setting(NamedTuple):
    """Size and device of a measurement."""

    entries: int
    width: int
    tokens: int
    dtype: str
    device: str


def needed_bytes(name: str, setting: Setting) -> float:
    """Return an upper estimate of the memory of a measurement."""
    weight = setting.entries * setting.width
    logits = setting.entries * setting.tokens
    copies = {"plain": 6 * logits, "verl": 2 * weight + 8 * 512 * setting.entries}
    # The weight, its gradient and a float32 sum of it, and memory of the implementation.
    return 4.0 * (3 * weight + copies.get(name, weight)) + 2**30


class Pass:
    """A forward and backward pass on fixed inputs."""

    def __init__(self, name: str, setting: Setting) -> None:
        import torch

        from g2rpo import BatchTotals

        entries, width, tokens, dtype, device = setting
        torch.manual_seed(0)
        options: dict[str, Any] = {"dtype": getattr(torch, dtype), "device": device}
        responses = math.gcd(8, tokens)
        self.shape = (responses, tokens // responses)
        self.hidden = torch.randn(tokens, width, **options).requires_grad_()
        self.weight = torch.empty(entries, width, **options).normal_(std=0.03).requires_grad_()
        self.labels = torch.randint(0, entries, self.shape, device=device)
        self.given = (
            # Near the policy's, so that no token is clipped.
            torch.full(self.shape, -math.log(entries), device=device),
            torch.randn(responses, device=device),
            torch.ones(self.shape, dtype=torch.bool, device=device),
        )
        self.tasks = torch.zeros(responses, dtype=torch.int64, device=device)
        high = torch.ones(1, device=device)
        counted = high * tokens
        self.band = {
            "entropy_low": 0 * high,
            "entropy_high": high,
            # Above the upper bound, so that every token has a gradient.
            "totals": BatchTotals(counted[0], counted[0] * 0 + responses, counted, 9 * high),
            "epsilon": 0.9,
            "epsilon_high": 99.0,
            "dual_clip": math.inf,
        }
        self._backend = "triton" if name in ON_A_GPU else "portable"
        self._recomputes = name == "fused_twice"
        way = name.removesuffix("_triton").removesuffix("_twice")
        self._loss = self._fused if way == "fused" else self._of(getattr(self, f"_{way}"))

    def __call__(self) -> None:
        """Run the forward and backward pass."""
        self.hidden.grad = self.weight.grad = None
        loss = self._loss()
        loss.backward()
        self.loss = loss.detach()

    def gradient_bytes(self) -> int:
        """Return the size of the gradients."""
        return self.hidden.nbytes + self.weight.nbytes

    def _of(self, values: Callable[[], tuple[Any, Any]]) -> Callable[[], Any]:
        """Apply the core's loss to log-probabilities and entropies."""
        from g2rpo import g2rpo_loss

        def loss() -> Any:
            logprobs, entropies = values()
            options = dict(self.band)
            if entropies is None:
                options = {k: v for k, v in options.items() if not k.startswith("entropy")}
            else:
                options |= {"entropies": entropies.view(self.shape), "tasks": self.tasks}
            return g2rpo_loss(logprobs.view(self.shape), *self.given, **options)[0].total

        return loss

    def _fused(self) -> Any:
        from g2rpo_torch import fused_g2rpo_loss

        hidden = self.hidden.view(*self.shape, -1)
        arrays = (hidden, self.weight, self.labels, *self.given, self.tasks)
        how = {"backend": self._backend, "recompute_logits": self._recomputes}
        return fused_g2rpo_loss(*arrays, **how, **self.band)[0].total

    def _operator(self) -> tuple[Any, Any]:
        from g2rpo_torch import logprobs_and_entropy

        arrays = (self.hidden, self.weight, self.labels.view(-1))
        return logprobs_and_entropy(*arrays, backend=self._backend)

    def _plain(self) -> tuple[Any, Any]:
        logprobs = (self.hidden @ self.weight.t()).float().log_softmax(-1)
        entropies = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, self.labels.view(-1, 1))[:, 0], entropies

    def _trl(self) -> tuple[Any, Any]:
        from trl.kernels import ChunkedLogProbFunction
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as SIZE

        labels = self.labels.view(-1)
        inputs = (self.hidden, self.weight, None, labels, 1.0, SIZE, None, 1.0, ("entropy",))
        logprobs, entropies, *_ = ChunkedLogProbFunction.apply(*inputs)
        return logprobs, entropies

    def _liger(self) -> tuple[Any, Any]:
        from liger_kernel.chunked_loss import fused_linear_ppo as liger

        size = liger._SELECTIVE_LOGPROB_VOCAB_CHUNK_SIZE
        function = liger._ChunkedSelectiveLogProbFunction
        inputs = (self.hidden, self.weight, self.labels.view(-1), None, 1.0, size)
        return function.apply(*inputs), None

    def _verl(self) -> tuple[Any, Any]:
        from verl.utils.experimental.torch_functional import FusedLinearForPPO

        logprobs, entropies = FusedLinearForPPO()(
            self.hidden[None], self.weight, self.labels.view(1, -1)
        )
        return logprobs, entropies.float()


class PeakMemory:
    """Peak memory of a block beyond that at its start, in bytes."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.extra = 0

    def __enter__(self) -> PeakMemory:
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            self._before = self._peak = resident_bytes()
            self._done = threading.Event()
            self._thread = threading.Thread(target=self._watch)
            self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.001):
            self._peak = max(self._peak, resident_bytes())

    def __exit__(self, *_: object) -> None:
        if self._device == "cuda":
            import torch

            self.extra = torch.cuda.max_memory_allocated() - self._before
        else:
            self._done.set()
            self._thread.join()
            self.extra = max(self._peak, resident_bytes()) - self._before


def resident_bytes() -> int:
    """Return the memory of this process, in bytes."""
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def main(name: str, *rest: str) -> None:
    """Measure, and print a line of JSON."""
    entries, width, tokens, dtype, device, repeats = rest
    setting = Setting(int(entries), int(width), int(tokens), dtype, device)
    # A small pass first, which imports libraries and starts threads.
    Pass(name, setting._replace(entries=2048, tokens=64))()
    one_pass = Pass(name, setting)
    with PeakMemory(device) as memory:
        seconds = [timed(one_pass, device)]
    seconds += [timed(one_pass, device) for _ in range(int(repeats) - 1)]
    norms = [float(x.grad.norm()) for x in (one_pass.hidden, one_pass.weight)]
    extra = max(0, memory.extra - one_pass.gradient_bytes())
    print(
        json.dumps(
            {"seconds": min(seconds), "extra": extra, "loss": float(one_pass.loss), "norms": norms}
        )
    )


def timed(one_pass: Pass, device: str) -> float:
    """Return the seconds of one pass."""
    start = time.perf_counter()
    one_pass()
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(*sys.argv[1:])
