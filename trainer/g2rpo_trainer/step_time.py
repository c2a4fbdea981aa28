"""Range of the seconds that a step takes on a named GPU, from its operations and bytes.

Arithmetic, not measurement: operations over a share of the GPU's peak, bytes over a share of its
bandwidth, and for ``generate``, which starts every kernel by itself, a time for each layer and
token. The ends of a range are those of the shares in :data:`BEST` and :data:`WORST`.
"""

from __future__ import annotations

from typing import NamedTuple

from .estimate import Estimate


class Gpu(NamedTuple):
    """Peak of dense 16-bit products [operations/s], bandwidth [bytes/s] and memory [bytes]."""

    operations: float
    bandwidth: float
    memory: int


class Shares(NamedTuple):
    """Share of the peak, share of the bandwidth, and seconds of a layer of ``generate``."""

    operations: float
    bandwidth: float
    launch: float


GPUS = {
    "RTX 4090": Gpu(165e12, 1.01e12, round(23.5 * 2**30)),
    "L40S": Gpu(362e12, 0.864e12, round(44.4 * 2**30)),
    "A100": Gpu(312e12, 2.0e12, round(79.2 * 2**30)),
    "H100": Gpu(989e12, 3.35e12, round(79.1 * 2**30)),
    "H200": Gpu(989e12, 4.8e12, round(139.8 * 2**30)),
    "B200": Gpu(2250e12, 8.0e12, round(178.0 * 2**30)),
}
"""Name, as a part of what PyTorch calls the device -> its makers' figures; of A100 and H100 those
with 80 GB."""

BEST = Shares(operations=0.5, bandwidth=0.8, launch=0.2e-3)
WORST = Shares(operations=0.1, bandwidth=0.3, launch=1.0e-3)

# vLLM starts the kernels of all layers at once.
_GRAPH_LAUNCH = 0.05


class Range(NamedTuple):
    """Seconds, from the lower to the upper end."""

    low: float
    high: float


def gpu_of(name: str) -> Gpu | None:
    """Return the figures of a GPU by the name that PyTorch has for it, or None if unknown.

    Examples
    --------
    >>> gpu_of("NVIDIA H100 80GB HBM3") == GPUS["H100"], gpu_of("the cpu")
    (True, None)
    """
    return next((gpu for known, gpu in GPUS.items() if known.lower() in name.lower()), None)


def step_seconds(estimate: Estimate, gpu: Gpu) -> dict[str, Range]:
    """Return the range of seconds of the parts of a step: ``prefill``, ``decode``, ``update``.

    Parameters
    ----------
    estimate : Estimate
        Memory of the run, with the sizes of the model and the work of a rank.
    gpu : Gpu
        Figures of each rank's device.

    Notes
    -----
    Responses are counted at their limit. A forward pass takes 2 operations a weight and token, and
    4 a layer, token, key that is computed for it and entry of the heads' width; a backward pass
    twice that, once where the weights are frozen; checkpointing a forward pass more. Communication
    between ranks and the scoring of responses are left out.

    Examples
    --------
    >>> from g2rpo_trainer.config import load_config
    >>> from g2rpo_trainer.estimate import estimate_memory
    >>> seconds = step_seconds(estimate_memory(load_config()), GPUS["H100"])
    >>> list(seconds), seconds["decode"].low < seconds["decode"].high
    (['prefill', 'decode', 'update'], True)
    """
    ends = [_seconds(estimate, gpu, shares) for shares in (BEST, WORST)]
    return {name: Range(ends[0][name], ends[1][name]) for name in ends[0]}


def _seconds(estimate: Estimate, gpu: Gpu, shares: Shares) -> dict[str, float]:
    shape, work = estimate.shape, estimate.work
    operations = shares.operations * gpu.operations
    bandwidth = shares.bandwidth * gpu.bandwidth
    middle = work.prompt + work.completion // 2
    calls = -(-work.sampled // max(1, work.sampled_at_once))
    # Weights and cache are read once for each token of all rows.
    cache = shape.cache.bytes(work.sampled_at_once, middle)
    launch = shares.launch * shape.text.layers
    if work.engine == "vllm":
        launch *= _GRAPH_LAUNCH
    token = max(
        work.sampled_at_once * (_forward(estimate, middle) + _head(estimate)) / operations,
        (shape.weight_bytes + cache) / bandwidth,
        launch,
    )
    return {
        "prefill": work.prompts * work.prompt * _forward(estimate, work.prompt // 2) / operations,
        "decode": calls * work.completion * token,
        "update": update_operations(estimate) / operations,
    }


def update_operations(estimate: Estimate) -> float:
    """Return the operations of one rank's passes over all responses of a step."""
    work = estimate.work
    packed = (work.row - work.prompt) // work.completion
    rows = -(-work.sampled // packed)
    body = _forward(estimate, work.keys) * work.row * rows
    head = _head(estimate) * work.sampled * work.completion
    passes = 3 if estimate.shape.text.is_trained else 2
    passes += estimate.checkpointing
    return (passes + work.passes) * body + (3 + work.passes) * head


def _forward(estimate: Estimate, context: float) -> float:
    """Return the operations of the layers for one token behind so many others."""
    text = estimate.shape.text
    return 2.0 * text.weights + 4.0 * text.layers * context * text.heads * text.head_width


def _head(estimate: Estimate) -> float:
    return 2.0 * estimate.shape.vocabulary * estimate.shape.text.hidden
