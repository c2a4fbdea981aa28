"""The device of a run: which it is, its memory, dtype and kernels."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from g2rpo_trainer.config import Model
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.launch import Launch


def resolve_device(name: str) -> torch.device:
    """Return the device of a configuration; several ranks of a machine take a GPU each.

    Parameters
    ----------
    name : str
        ``"auto"`` for a GPU if there is one and the CPU otherwise, or a PyTorch device.

    Raises
    ------
    RunError
        If this machine does not have the device, or not one for each process.
    """
    launch = Launch.read()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() and not launch.on_cpu else "cpu"
    device = torch.device(name)
    if launch.size > 1 and device.type != "cpu":
        return _own_device(name, device, launch)
    available = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= available:
        raise RunError(
            f"--device is {name!r}, but this machine has {available} {device.type} devices; "
            "leave it out, or name cpu"
        )
    return device


def _own_device(name: str, device: torch.device, launch: Launch) -> torch.device:
    available = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.index is not None or launch.local_size > available:
        raise RunError(
            f"--device is {name!r} in {launch.local_size} processes on a machine with {available} "
            "cuda devices; start as many processes as it has devices and name cuda, or name cpu"
        )
    return torch.device("cuda", launch.local_rank)


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that can still be allocated on a GPU; None for other devices."""
    if device.type != "cuda":
        return None
    unused, _ = torch.cuda.mem_get_info(device)
    return unused + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def release_memory() -> None:
    """Give memory that PyTorch keeps for later back to the GPU, for allocators beside PyTorch."""
    gc.collect()
    torch.cuda.empty_cache()


def dtype_on(name: str, device: torch.device) -> str:
    """Return the dtype that ``model.dtype`` means on a device, as PyTorch calls it.

    Examples
    --------
    >>> dtype_on("auto", torch.device("cpu")), dtype_on("bfloat16", torch.device("cpu"))
    ('float32', 'bfloat16')
    """
    if name != "auto":
        return name
    is_fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if is_fast else "float32"


def model_on(model: Model, device: torch.device) -> Model:
    """Return the section ``model`` with the dtype that it means on a device."""
    return model.model_copy(update={"dtype": dtype_on(model.dtype, device)})


@contextmanager
def attention_without_cudnn() -> Iterator[None]:
    """Keep PyTorch from computing attention by cuDNN inside the context.

    With masks cuDNN can return gradients that are NaN, and NaN for rows without any key. It also
    plans anew for each shape, which takes longer than computing one. Other kernels take its place.

    Examples
    --------
    >>> before = torch.backends.cuda.cudnn_sdp_enabled()
    >>> with attention_without_cudnn():
    ...     torch.backends.cuda.cudnn_sdp_enabled()
    False
    >>> torch.backends.cuda.cudnn_sdp_enabled() == before
    True
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@contextmanager
def environment_with(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment inside the context.

    Examples
    --------
    >>> with environment_with({"G2RPO_EXAMPLE": "1"}):
    ...     os.environ["G2RPO_EXAMPLE"]
    '1'
    >>> "G2RPO_EXAMPLE" in os.environ
    False
    """
    before = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextmanager
def deterministic_kernels(wanted: bool = True) -> Iterator[None]:
    """Let PyTorch use only kernels that repeat themselves to the bit inside the context.

    Must be entered before the first product on a GPU. An operation without such a kernel raises an
    error that names it.
    """
    if not wanted:
        yield
        return
    variable, before = "CUBLAS_WORKSPACE_CONFIG", torch.are_deterministic_algorithms_enabled()
    # cuBLAS repeats itself only in a workspace of a fixed size.
    with environment_with({variable: os.environ.get(variable, ":4096:8")}):
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


@contextmanager
def run_kernels(model: Model) -> Iterator[None]:
    """Choose the kernels of a run inside the context, by section ``model`` of its configuration."""
    with attention_without_cudnn(), deterministic_kernels(model.deterministic):
        yield
