"""Comparison of a run's estimated memory with its device's, with settings that need less."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from g2rpo_trainer.errors import RunError
from g2rpo_trainer.launch import Launch

from .config import Model, TrainConfig
from .estimate import Estimate, estimate_memory

GIB = 2**30

# Beyond this share of the free memory a run is near its limit: an estimate is no measurement, and
# allocators leave gaps.
_NEAR = 0.9
# Parts that grow with the rows of a rollout, and with the tokens of a pass.
_BY_ROWS = ("KV cache", "sampled logits", "more in prefill")
_BY_TOKENS = ("activations", "output layer", "layer at work")
_PHASES = {"backward": "backward pass", "step": "optimiser's step"}
_ELSEWHERE = (
    "g2rpo_trl for adapters of 7B to 14B with DeepSpeed, g2rpo_verl from 14B on or on several nodes"
)


class DeviceMemory(NamedTuple):
    """Memory of a device in bytes.

    Attributes
    ----------
    name : str
    free, total : int
    is_gpu : bool
        Whether it is a CUDA device.
    dtype : str
        Meaning of ``model.dtype: auto`` on it.
    """

    name: str
    free: int
    total: int
    is_gpu: bool = True
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class Fit:
    """An estimate beside the memory that there is.

    Attributes
    ----------
    estimate : Estimate
    memory : DeviceMemory
    rows : int
        Largest ``rollout.batch_size`` that fits, in whole prompts; 0 if not even one does.
    tokens : int
        Largest ``optimization.micro_batch_tokens`` that fits.
    remedies : tuple of str
        Changes that take less memory in the phase that takes most, the best first.
    """

    estimate: Estimate
    memory: DeviceMemory
    rows: int
    tokens: int
    remedies: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """``"fits"``, ``"near"`` the limit, ``"too large"``, or ``"impossible"``.

        Impossible is a run whose weights and optimiser alone do not fit.
        """
        if self.estimate.state > self.memory.free:
            return "impossible"
        share = self.estimate.peak / self.memory.free
        return "fits" if share <= _NEAR else "near" if share <= 1 else "too large"

    def text(self) -> str:
        """Return one or two sentences: needed memory, free memory, remedies."""
        estimate, memory = self.estimate, self.memory
        there = f"{_gib(memory.free)} are free on {memory.name}"
        if self.verdict == "impossible":
            what = f"weights and optimiser alone take about {_gib(estimate.state)}, but {there}"
        else:
            phase, first = estimate.peak_phase, _largest(estimate)
            what = (
                f"the run takes about {_gib(estimate.peak)} in its {_PHASES.get(phase, phase)}, "
                f"most of it for its {first} ({_gib(estimate.phases[phase][first])}), and {there}"
            )
            if self.verdict == "fits":
                return what
            what += ": it may not fit" if self.verdict == "near" else ": it is likely not to fit"
        return f"{what}; try {', or '.join(self.remedies)}"


def fit_of(
    config: TrainConfig,
    memory: DeviceMemory,
    *,
    ranks: int = 1,
    is_sharded: bool = False,
) -> Fit:
    """Estimate a run, and compare it with the memory of each of its devices.

    Parameters
    ----------
    config : TrainConfig
        Configuration of the run.
    memory : DeviceMemory
        Memory of one device, as :func:`device_memory` returns it.
    ranks, is_sharded
        As of :func:`g2rpo_trainer.estimate.estimate_memory`.

    Raises
    ------
    RunError
        If the model's configuration cannot be read.

    Examples
    --------
    >>> from g2rpo_trainer.config import load_config
    >>> fit = fit_of(load_config(), DeviceMemory("H100", free=79 * GIB, total=80 * GIB))
    >>> fit.verdict
    'fits'
    """
    if config.model.dtype == "auto":
        model = config.model.model_copy(update={"dtype": memory.dtype})
        config = config.model_copy(update={"model": model})
    estimate = estimate_memory(
        config,
        ranks=ranks,
        is_sharded=is_sharded,
        device_total=memory.total,
        gpu_free=memory.free if memory.is_gpu else None,
    )
    room = round(_NEAR * memory.free)
    each = config.rollout.num_generations
    rows = _most(estimate.phases["rollout"], _BY_ROWS, estimate.work.rows, room)
    tokens = min(
        _most(estimate.phases[phase], _BY_TOKENS, estimate.work.tokens, room)
        for phase in ("loss", "backward")
    )
    rows, tokens = rows // each * each, tokens // 64 * 64
    first = "optimiser" if estimate.state > memory.free else _largest(estimate)
    remedies = _remedies(config.model, estimate, first, rows, tokens)
    return Fit(estimate, memory, rows, tokens, tuple(remedies))


def require_memory(
    config: TrainConfig,
    memory: DeviceMemory,
    *,
    ranks: int = 1,
    is_sharded: bool = False,
) -> str | None:
    """Return a warning if a run may not fit on its device, or None if it will.

    Also None for a model without an estimate: loading it reports the fault.

    Parameters
    ----------
    config, memory, ranks, is_sharded
        As of :func:`fit_of`.

    Raises
    ------
    RunError
        If weights and optimiser alone do not fit.

    Examples
    --------
    >>> from g2rpo_trainer.config import load_config
    >>> require_memory(load_config(), DeviceMemory("H100", free=79 * GIB, total=80 * GIB))
    """
    try:
        fit = fit_of(config, memory, ranks=ranks, is_sharded=is_sharded)
    except RunError:
        return None
    if fit.verdict == "impossible":
        raise RunError(fit.text())
    return None if fit.verdict == "fits" else fit.text()


def device_memory(name: str) -> DeviceMemory:
    """Return the memory of a device of this machine.

    Parameters
    ----------
    name : str
        ``model.device`` of the configuration. Processes of a launcher share the memory of a CPU.

    Raises
    ------
    RunError
        If this machine does not have the device.

    Examples
    --------
    >>> memory = device_memory("cpu")
    >>> memory.name, memory.is_gpu, memory.dtype, 0 < memory.free <= memory.total
    ('the cpu', False, 'float32', True)
    """
    import psutil
    import torch

    from .device import dtype_on, resolve_device

    device = resolve_device(name)
    dtype = dtype_on("auto", device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        name = f"{device} ({torch.cuda.get_device_name(device)})"
        return DeviceMemory(name, free, total, is_gpu=True, dtype=dtype)
    memory = psutil.virtual_memory()
    processes = Launch.read().local_size
    free, total = memory.available // processes, memory.total // processes
    return DeviceMemory(f"the {device}", free, total, is_gpu=False, dtype=dtype)


def _most(parts: dict[str, int], growing: tuple[str, ...], count: int, room: int) -> int:
    """Return how many rows or tokens fit into so much room."""
    grows = sum(parts.get(name, 0) for name in growing)
    fixed = sum(parts.values()) - grows
    if not grows:  # vLLM samples within its share
        return count if fixed <= room else 0
    return max(0, (room - fixed) * count // grows)


def _largest(estimate: Estimate) -> str:
    """Return the largest part of the phase that takes most."""
    parts = estimate.phases[estimate.peak_phase]
    return max(parts, key=lambda name: parts[name])


def _remedies(
    model: Model, estimate: Estimate, first: str, rows: int, tokens: int
) -> Iterator[str]:
    """Yield settings that make the largest part smaller, then settings for the other parts."""
    work = estimate.work
    if first in _BY_ROWS and rows and rows < work.rows:
        yield f"rollout.batch_size: {rows}"
    if first in _BY_TOKENS:
        if not estimate.checkpointing:
            yield "model.gradient_checkpointing: true"
        if work.prompt + work.completion <= tokens < work.tokens:
            yield f"optimization.micro_batch_tokens: {tokens}"
    if first == "vLLM":
        yield "a lower rollout.vllm_memory"
    if estimate.shape.item > 2:
        yield "model.dtype: bfloat16"
    if "reference" in estimate.phases["loss"]:
        yield "optimization.beta: 0, without a reference policy"
    if not model.lora.rank:
        yield "adapters (model.lora.rank: 16)"
    if estimate.shape.is_vision_trained and not model.lora.rank:
        yield "model.freeze_vision: true"
    if first in (*_BY_ROWS, *_BY_TOKENS):
        yield "shorter responses (rollout.max_completion_length)"
    yield "more GPUs that divide the model (model.sharding: fsdp)"
    yield _ELSEWHERE


def _gib(size: int) -> str:
    """Return a size in GiB, or MiB if it is small.

    Examples
    --------
    >>> _gib(3 * 2**30), _gib(5 * 2**20)
    ('3.0 GiB', '5 MiB')
    """
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"
