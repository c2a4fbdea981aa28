"""AdamW over float32 masters: small updates add up, and a restored optimiser goes on the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from g2rpo_trainer import train
from g2rpo_trainer.config import Model, Optimization
from g2rpo_trainer.model.loading import load_policy
from g2rpo_trainer.optimizer import (
    MasterAdamW,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer_tensors,
    set_learning_rate,
    trained_parameters,
)

from .counted import Operations
from .one_update import learn_once

OPTIONS = Optimization(learning_rate=1e-3, weight_decay=0.1)
BFLOAT16 = Model(dtype="bfloat16")


def make_policy(dtype, seed=0):
    """Return what an optimiser sees of a policy: two trained layers and a frozen one."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(*(torch.nn.Linear(6, 6) for _ in range(3))).to(dtype)
    model[1].requires_grad_(False)
    return SimpleNamespace(model=model)


def take_steps(policy, optimizer, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for _, weight in trained_parameters(policy):
            weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        optimizer.step()
        optimizer.zero_grad()


def weights_of(policy):
    return [weight.detach().clone() for weight in policy.model.parameters()]


def test_float32_is_plain_adamw():
    ours, theirs = make_policy(torch.float32), make_policy(torch.float32)
    optimizer = make_optimizer(ours, OPTIONS)
    assert all(a is b for a, b in zip(optimizer.weights, optimizer.masters, strict=True))
    plain = torch.optim.AdamW(theirs.model.parameters(), lr=1e-3, weight_decay=0.1)
    take_steps(ours, optimizer, 5)
    take_steps(theirs, plain, 5)
    assert all(map(torch.equal, weights_of(ours), weights_of(theirs)))


def test_updates_below_the_resolution_add_up():
    """With 300 steps of 1e-5 against a resolution of 4e-3, plain bfloat16 does not move at all."""
    ours, theirs = (SimpleNamespace(model=torch.nn.Linear(8, 8, bias=False)) for _ in range(2))
    for policy in (ours, theirs):
        torch.nn.init.ones_(policy.model.weight)
        policy.model.bfloat16()
    optimizer = make_optimizer(ours, Optimization(learning_rate=1e-5, weight_decay=0))
    plain = torch.optim.AdamW(theirs.model.parameters(), lr=1e-5, weight_decay=0)
    for _ in range(300):
        for policy, stepped in ((ours, optimizer), (theirs, plain)):
            policy.model.weight.grad = torch.ones_like(policy.model.weight)
            stepped.step()
            stepped.zero_grad()
    assert (theirs.model.weight == 1).all()
    (master,) = optimizer.masters
    torch.testing.assert_close(master, torch.full((8, 8), 1 - 300e-5), rtol=0, atol=1e-5)
    assert torch.equal(ours.model.weight, master.bfloat16())
    assert (ours.model.weight < 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimiser_goes_on_to_the_bit(dtype):
    whole = make_policy(dtype)
    optimizer = make_optimizer(whole, OPTIONS)
    take_steps(whole, optimizer, 3)
    tensors = {key: value.clone() for key, value in optimizer_tensors(whole, optimizer).items()}
    saved = {name: value.clone() for name, value in whole.model.state_dict().items()}
    take_steps(whole, optimizer, 3, seed=1)

    other = make_policy(dtype, seed=9)
    other.model.load_state_dict(saved)
    resumed = make_optimizer(other, OPTIONS)
    restore_optimizer_tensors(other, resumed, tensors.items())
    take_steps(other, resumed, 3, seed=1)
    assert all(map(torch.equal, weights_of(whole), weights_of(other)))
    expected, found = optimizer_tensors(whole, optimizer), optimizer_tensors(other, resumed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    has_masters = any(key.startswith("master/") for key in found)
    assert has_masters == (dtype == torch.bfloat16)
    assert not any(name.startswith("1.") for name in (key.split("/")[1] for key in found))


def test_without_masters_a_restored_optimiser_would_differ():
    """The test above can fail: the rounded weights alone do not say where the masters stood."""
    whole = make_policy(torch.bfloat16)
    optimizer = make_optimizer(whole, OPTIONS)
    take_steps(whole, optimizer, 3)
    tensors = optimizer_tensors(whole, optimizer)
    other = make_policy(torch.bfloat16)
    other.model.load_state_dict(whole.model.state_dict())
    resumed = make_optimizer(other, OPTIONS)
    moments = {key: value for key, value in tensors.items() if not key.startswith("master/")}
    restore_optimizer_tensors(other, resumed, moments.items())
    assert not all(map(torch.equal, optimizer.masters, resumed.masters))


def test_gradients_are_forgotten():
    policy = make_policy(torch.bfloat16)
    optimizer = make_optimizer(policy, OPTIONS)
    take_steps(policy, optimizer, 1)
    assert all(weight.grad is None for weight in optimizer.weights)
    assert all(master.grad is None for master in optimizer.masters)
    optimizer.weights[0].grad = torch.ones_like(optimizer.weights[0])
    optimizer.zero_grad(set_to_none=False)
    assert (optimizer.weights[0].grad == 0).all()


def test_a_closure_is_refused():
    optimizer = MasterAdamW([torch.nn.Parameter(torch.ones(1))])
    with pytest.raises(TypeError, match="closure"):
        optimizer.step(lambda: 0.0)


@pytest.mark.parametrize("family", ["qwen3_vl", "llama"])
def test_a_model_in_sixteen_bits_learns(family, folders):
    policy = load_policy(str(folders(family)), device="cpu", model=BFLOAT16)
    assert {weight.dtype for weight in policy.model.parameters()} == {torch.bfloat16}
    before = policy.model.get_output_embeddings().weight.clone()
    metrics = learn_once(policy, family)
    assert torch.isfinite(torch.tensor(list(metrics.values()))).all()
    assert not torch.equal(policy.model.get_output_embeddings().weight, before)


def test_a_resumed_run_in_sixteen_bits_equals_the_uninterrupted_one(tiny_run):
    settings = (
        "model.dtype=bfloat16",
        "model.freeze_vision=true",
        # So small that a weight often stays where it is while its master moves.
        "optimization.learning_rate=1e-4",
        "optimization.schedule=constant",
        "data.tasks=[maths, grounding]",
        "rollout.prompts_per_step=2",
    )
    whole = tiny_run(*settings, folder="whole")
    expected = train(whole)
    train(tiny_run(*settings, "optimization.steps=1", folder="parts"))
    parts = tiny_run(*settings, folder="parts")
    summary = train(parts, resume=True)
    assert summary["after"] == expected["after"]
    ends = [Path(run.output.dir) / "checkpoints" / "step-000003" for run in (whole, parts)]
    for file in ("model.safetensors", "optimizer.safetensors"):
        one, two = (load_file(end / file) for end in ends)
        assert one.keys() == two.keys()
        assert all(torch.equal(two[name], value) for name, value in one.items())
    assert any(name.startswith("master/") for name in one)
    assert not any("vision_tower" in name for name in one)


def test_every_group_of_parameters_gets_the_learning_rate():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weight]} for weight in weights], lr=1.0)
    set_learning_rate(optimizer, Optimization(learning_rate=0.3, warmup_steps=2), 0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.1])


def test_gradients_of_micro_batches_add_up_in_float32():
    """In bfloat16 the 1 is lost next to 256."""
    weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    MasterAdamW([weight])
    for share in (256.0, 1.0, -256.0):
        (share * weight.sum()).backward()
    assert weight.grad.dtype == torch.float32
    assert weight.grad.tolist() == [1.0, 1.0]


def test_a_step_takes_eighteen_bytes_a_weight():
    """Bytes beside the weights: master, gradient, two moments, and two tensors of a bucket."""
    entries, layers, bucket = 1 << 14, 16, 1 << 15
    weights = [torch.nn.Parameter(torch.ones(entries, dtype=torch.bfloat16)) for _ in range(layers)]
    total = entries * layers
    with Operations() as counted:
        optimizer = MasterAdamW(weights, bucket=bucket, foreach=True)
        for _ in range(2):
            sum(weight.float().pow(2).sum() for weight in weights).backward()
            # Activations of this loss are not the optimiser's.
            counted.peak = 0
            optimizer.step()
            optimizer.zero_grad()
    assert counted.calls["aten::_foreach_sqrt"] == 2 * total // bucket
    assert 16 * total <= counted.peak <= 16 * total + 2 * 4 * bucket


def test_buckets_change_nothing():
    states = []
    for bucket in (1, 42, 10**9):
        policy = make_policy(torch.float32)
        weights = [weight for _, weight in trained_parameters(policy)]
        optimizer = MasterAdamW(weights, lr=1e-3, bucket=bucket)
        take_steps(policy, optimizer, 3)
        states.append(weights_of(policy))
    counts = [len(MasterAdamW(weights, bucket=size).param_groups) for size in (1, 42, 10**9)]
    assert counts == [4, 2, 1]
    assert all(all(map(torch.equal, states[0], other)) for other in states)
