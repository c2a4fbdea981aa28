"""Settings of a run on a GPU, tested without one."""

from __future__ import annotations

import os
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from g2rpo_trainer import evaluate, train
from g2rpo_trainer.device import deterministic_kernels
from g2rpo_trainer.distributed import join_ranks
from g2rpo_trainer.draws import draw
from g2rpo_trainer.model.policy_model import make_policy

from .counted import Operations
from .shared_prompt_models import make
from .test_ends import Watcher


@pytest.fixture(params=[True, False])
def cudnn(request):
    """Set whether attention by cuDNN was enabled before."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(request.param)
    yield request.param
    torch.backends.cuda.enable_cudnn_sdp(before)


def test_a_run_computes_no_attention_by_cudnn(tiny_run, cudnn):
    seen = []

    def look(*_):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())

    config = tiny_run("optimization.steps=1", "output.trackers=[]")
    train(config, display=Watcher(on_step=look, on_items=look))
    evaluate(config.model.name, config, on_samples=look)
    assert len(seen) > 3
    assert not any(seen)
    assert torch.backends.cuda.cudnn_sdp_enabled() == cudnn


def test_a_run_that_fails_restores_the_setting(tiny_run, cudnn):
    config = tiny_run("model.name=/nowhere")
    with pytest.raises(Exception, match="nowhere"):
        train(config)
    assert torch.backends.cuda.cudnn_sdp_enabled() == cudnn


@pytest.mark.parametrize(("device", "multiple"), [("cpu", 1), ("cuda", 64)])
def test_rows_are_padded_on_a_gpu_alone(device, multiple, monkeypatch):
    policy = make("llama")
    make_tensor = torch.tensor
    on_the_cpu = lambda *values, **options: make_tensor(*values, **{**options, "device": "cpu"})  # noqa: E731
    monkeypatch.setattr(type(policy.model), "device", torch.device(device))
    monkeypatch.setattr(torch, "tensor", on_the_cpu)
    found = make_policy(policy.model, policy.processor)
    assert found.pad_to_multiple_of == multiple
    assert (found.padding(65), found.padding(64)) == (63 if multiple == 64 else 0, 0)


@pytest.mark.parametrize("has_gpus", [True, False])
def test_collectives_of_gpus_fail_sooner_than_those_of_files(monkeypatch, has_gpus):
    """The others wait for a checkpoint on the CPU."""
    set_limits, group = [], SimpleNamespace()
    nccl = SimpleNamespace(_set_default_timeout=set_limits.append)
    world = SimpleNamespace(_get_backend=lambda device: {"cuda": nccl}[device.type])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpus)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "group", SimpleNamespace(WORLD=world))
    monkeypatch.setattr(dist, "init_process_group", lambda *a, **k: vars(group).update(k, a=a))
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with join_ranks() as ranks:
        assert (ranks.rank, ranks.size) == (1, 2)
    assert group.a == (("cpu:gloo,cuda:nccl",) if has_gpus else ("gloo",))
    assert group.timeout >= timedelta(hours=1)
    assert set_limits == ([timedelta(minutes=15)] if has_gpus else [])


def test_a_deterministic_run_uses_kernels_that_repeat_themselves(tiny_run, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen, ends = [], []

    def look(*_):
        variable = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
        seen.append((torch.are_deterministic_algorithms_enabled(), variable))

    for number in range(2):
        config = tiny_run(
            "model.deterministic=true",
            "optimization.steps=1",
            "output.trackers=[]",
            folder=str(number),
        )
        ends.append(train(config, display=Watcher(on_step=look))["after"])
    assert seen == [(True, ":4096:8")] * 2
    assert ends[0] == ends[1]
    look()
    assert seen[-1] == (False, None)


def test_a_deterministic_run_draws_the_same_tokens():
    """Sums by products are those of ``cumsum``, which repeats itself on a CPU alone."""
    generator = torch.Generator().manual_seed(0)
    logprobs = (5 * torch.randn(64, 3001, generator=generator)).log_softmax(-1)
    logprobs[:, :7] = -torch.inf
    uniforms = torch.rand(64, generator=generator, dtype=torch.float64)
    expected = draw(logprobs, uniforms)
    with deterministic_kernels(), Operations() as counted:
        assert torch.equal(draw(logprobs, uniforms), expected)
    assert "aten::cumsum" not in counted.calls
