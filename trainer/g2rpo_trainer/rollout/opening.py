"""What a run samples its training responses with, as its section ``rollout`` says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from g2rpo._suggest import unknown_name
from g2rpo_trainer.config import TrainConfig
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.launch import Launch

from ..distributed.processes import Processes
from ..model import lora
from ..model.loading import BUILTIN
from ..model.policy_model import Policy
from .engine import Engine, EngineSampler, Sampler
from .sampling import sample_as_described
from .synchronised import require_handover, save_whole
from .vllm_engine import VLLMEngine, VLLMOptions
from .vllm_server import VLLMServers

# Of a GPU's memory, beside the policy and alone.
_SHARED, _WHOLE = 0.3, 0.9


def open_sampler(config: TrainConfig, policy: Policy) -> Sampler:
    """Return what a run samples its training responses with; every process must call this.

    Parameters
    ----------
    config : TrainConfig
        Its model, data and rollout sections.
    policy : Policy
        Who is sampled.

    Raises
    ------
    RunError
        If the engine cannot start, or a limit is for no task.
    """
    with Processes.current().together():
        for task in config.rollout.limits:
            if task not in config.data.tasks:
                known = config.data.tasks
                raise RunError(f"rollout.limits: {unknown_name('task', task, known)}")
    if config.rollout.engine == "transformers":
        return sample_as_described
    if config.model.name == BUILTIN:
        raise RunError(
            "rollout.engine is 'vllm', which knows the layers of the built-in policy by other "
            "names; name 'transformers', or another model"
        )
    require_handover(policy)
    is_server = config.rollout.vllm == "server"
    with _folder_for_vllm(config, policy) as folder:
        if not is_server:
            # Not `together`: engines of several processes wait for each other when they start.
            return EngineSampler(VLLMEngine(_options(config, policy, folder)), config)
        engine: Engine | None = None
        with Processes.current().together():
            if Processes.current().is_main:
                engine = _servers(config, policy, folder)
        return EngineSampler(engine, config, samples_for_all=True)


def close_sampler(sampler: Sampler) -> None:
    """End the engine of a sampler, if it has one."""
    if isinstance(sampler, EngineSampler):
        sampler.close()


def server_devices(
    wanted: list[int], policy_device: torch.device, processes: int, available: int
) -> list[int | None]:
    """Return the devices of the servers, one each.

    Parameters
    ----------
    wanted : list of int
        ``rollout.vllm_devices``; if there are none, all that training leaves alone.
    policy_device : torch.device
        Of this process.
    processes : int
        How many train on this machine; several have the first GPUs, one each.
    available : int
        GPUs of this machine.

    Raises
    ------
    RunError
        If one is missing or trains, or none is left.

    Examples
    --------
    >>> server_devices([], torch.device("cuda", 0), processes=2, available=4)
    [2, 3]
    >>> server_devices([], torch.device("cpu"), processes=1, available=0)
    [None]
    """
    if policy_device.type != "cuda":
        training: set[int] = set()
    elif processes > 1:
        training = set(range(processes))
    else:
        training = {policy_device.index or 0}
    for device in wanted:
        if device in training or device >= available:
            state = "trains the policy" if device in training else "is not there"
            raise RunError(
                f"rollout.vllm_devices names {device}, which {state}; this machine has {available} "
                f"GPUs, of which the training takes {sorted(training)}"
            )
    if not wanted and policy_device.type != "cuda":
        return [None]
    free = wanted or [device for device in range(available) if device not in training]
    if not free:
        raise RunError(
            f"rollout.vllm is 'server', but the training takes all {available} GPUs of this "
            "machine; train on fewer, or name rollout.vllm: colocated"
        )
    return list(free)


def _servers(config: TrainConfig, policy: Policy, folder: str) -> VLLMServers:
    rollout = config.rollout
    count = torch.cuda.device_count()
    local = Launch.read().local_size
    devices = server_devices(rollout.vllm_devices, policy.device, local, count)
    return VLLMServers(
        _options(config, policy, folder),
        devices,
        Path(config.output.dir),
        start_seconds=rollout.vllm_start_seconds,
    )


def _options(config: TrainConfig, policy: Policy, folder: str) -> VLLMOptions:
    rollout = config.rollout
    is_server = rollout.vllm == "server"
    longest = rollout.max_prompt_length
    return VLLMOptions(
        model=folder,
        dtype=config.model.dtype,
        trust_remote_code=config.model.trust_remote_code,
        memory=rollout.vllm_memory or (_WHOLE if is_server else _SHARED),
        max_model_len=None if longest is None else longest + rollout.max_completion_length,
        seed=config.seed,
        # There is nothing to give back on the CPU, and nobody to give it to on a server's GPU.
        sleeps=not is_server and policy.device.type == "cuda",
        has_neighbours=not is_server and Processes.current().size > 1,
    )


@contextmanager
def _folder_for_vllm(config: TrainConfig, policy: Policy) -> Iterator[str]:
    """Return a folder or a model of the hub, from which vLLM gets all but the weights of now."""
    model = config.model
    if model.gguf_file:
        with TemporaryDirectory(prefix="g2rpo-vllm-") as folder:
            save_whole(policy, Path(folder))
            yield folder
        return
    is_adapter = lora.is_adapter(Path(model.name))
    yield lora.base_of(Path(model.name)) if is_adapter else model.name
