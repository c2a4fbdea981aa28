"""A platform for CPUs, of which verl has none, and a rollout engine that draws random tokens.

verl loads this module in every process where ``VERL_USE_EXTERNAL_MODULES`` names it.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, set_platform

_ANSWERS = {"mem_get_info": (1, 1), "get_device_name": "CPU"}


class _CpuModule(ModuleType):
    """``torch.cpu`` with the memory functions of an accelerator's module, which do nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if hasattr(torch.cpu, name):
            return getattr(torch.cpu, name)
        if name in ("get_rng_state", "set_rng_state"):
            return getattr(torch, name)
        if name in _ANSWERS:
            return lambda *_: _ANSWERS[name]
        return lambda *_, **__: 0


class CpuPlatform(PlatformBase):
    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _CpuModule("cpu")

    def is_available(self) -> bool:
        return True

    def current_device(self) -> Any:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...
    def synchronize(self, device_index: int | None = None) -> None: ...
    def set_allocator_settings(self, settings: str) -> None: ...
    def empty_cache(self) -> None: ...
    def profiler_start(self) -> None: ...
    def profiler_stop(self) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def nvtx_range(self, msg: str) -> Any:
        return nullcontext()

    def ray_resource_name(self) -> str:
        return "GPU"  # as many as ray.init is told, without any behind them

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None


def _one_backend_for_the_cpu() -> None:
    """Let verl's "cpu:gloo,cpu:gloo" be "gloo"."""
    init = torch.distributed.init_process_group

    def init_process_group(backend: str | None = None, **options: Any) -> None:
        init(backend="gloo" if backend and "gloo" in backend else backend, **options)

    torch.distributed.init_process_group = init_process_group


def _register_rollout() -> None:
    from verl.workers.rollout import base

    base._ROLLOUT_REGISTRY["random", "async"] = f"{__name__}_rollout.RandomRollout"
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    def load() -> Any:
        from cpu_host_rollout import RandomReplica

        return RandomReplica

    RolloutReplicaRegistry.register("random", load)


os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")  # the name of verl's own FSDP engine
set_platform(CpuPlatform())
_one_backend_for_the_cpu()
_register_rollout()
