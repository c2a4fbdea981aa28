"""A step of the decoding has static shapes: it is compiled once, and can be replayed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from g2rpo_trainer import decoding, shortcuts
from g2rpo_trainer.config import Rollout, load_config
from g2rpo_trainer.decoding import CompiledStep
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.loop import train
from g2rpo_trainer.sampling import fitting_rows, sample
from g2rpo_trainer.shortcuts import with_compiled_decoding

from .shared_prompt_models import (
    COVERED,
    make,
    make_one_prompt,
    make_prompts,
    own_lines,
    with_shared_prompts,
)


@pytest.fixture(autouse=True)
def _no_graph_of_another_test():
    torch._dynamo.reset()


def decodes_in_buffers(policy, step=decoding.step):
    """Return a policy that decodes as on a GPU, with responses that do not end.

    By default by the plain step, in buffers as large as those of a compiled one.
    """
    policy = replace(with_shared_prompts(policy), eos_ids=(), closing_text=None)
    return replace(policy, pad_to_multiple_of=64, compiled_step=step)


def sampled(policy, prompts, length=24, generations=3, seed=3):
    torch.manual_seed(seed)
    return sample(policy, prompts, num_generations=generations, max_completion_length=length)


def assert_same(found, expected, atol=0):
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=0, atol=atol)
    torch.testing.assert_close(found.entropies, expected.entropies, rtol=0, atol=atol)


# Traced, transformers calls other kernels in float32 where heads share their keys.
@pytest.mark.parametrize(
    ("name", "dtype", "atol"),
    [
        ("llama", torch.bfloat16, 0),
        ("llama", torch.float32, 1e-5),
        ("qwen2_5_vl", torch.float32, 1e-5),
        ("gemma3", torch.float32, 1e-5),
    ],
)
def test_a_step_is_compiled_once(name, dtype, atol):
    """However many tokens there are, and in later rollouts of the same shape."""
    policy = make(name, dtype=dtype)
    prompts, counter = make_prompts(policy), CompileCounterWithBackend("eager")
    plain = decodes_in_buffers(policy)
    compiled = decodes_in_buffers(policy, CompiledStep(counter))
    for seed in (0, 1):
        found, expected = sampled(compiled, prompts, seed=seed), sampled(plain, prompts, seed=seed)
        assert found.tokens.shape[1] == 24
        assert_same(found, expected, atol)
        assert counter.frame_count == 1
    sampled(compiled, prompts, generations=2)
    assert counter.frame_count == 2


def test_the_embedded_policy_is_compiled_once(random_policy, prompts):
    counter = CompileCounterWithBackend("eager")
    plain = decodes_in_buffers(random_policy)
    compiled = decodes_in_buffers(random_policy, CompiledStep(counter))
    for seed in (0, 1):
        found, expected = sampled(compiled, prompts, seed=seed), sampled(plain, prompts, seed=seed)
        assert_same(found, expected)
    assert counter.frame_count == 1


def test_prompts_of_other_lengths_share_a_compiled_step():
    policy, counter = make("llama"), CompileCounterWithBackend("eager")
    compiled = decodes_in_buffers(policy, CompiledStep(counter))
    for lengths in ((7, 4, 9), (70, 30, 9), (150, 3, 100)):
        sampled(compiled, make_prompts(policy, lengths), 16)
    assert counter.frame_count == 1


def test_a_functional_graph_says_the_same():
    """As of ``inductor``: what a step writes in place is written at the end of its graph."""
    policy = make("llama")
    prompts, step = make_prompts(policy), CompiledStep(CompileCounterWithBackend("aot_eager"))
    found = sampled(decodes_in_buffers(policy, step), prompts)
    assert_same(found, sampled(decodes_in_buffers(policy), prompts), 1e-5)


class Tape(TorchDispatchMode):
    """Keeps the operations of a call with their tensors, as a CUDA graph keeps addresses."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self):
        for func, args, kwargs, result in self.calls:
            given = {leaf.data_ptr() for leaf in tree_leaves((args, kwargs)) if is_tensor(leaf)}
            new, old = tree_leaves(func(*args, **kwargs)), tree_leaves(result)
            for one, other in zip(new, old, strict=True):
                if is_tensor(other) and other.data_ptr() not in given:
                    other.copy_(one)


def is_tensor(leaf):
    return isinstance(leaf, torch.Tensor)


class Replayed:
    """Runs two steps, records the third, and replays it from then on."""

    def __init__(self):
        self.calls, self.tape = 0, Tape()

    def __call__(self, *arguments):
        self.calls += 1
        if self.calls <= 2:
            decoding.step(*arguments)
        elif self.calls == 3:
            with self.tape:
                decoding.step(*arguments)
        else:
            self.tape.replay()


@pytest.mark.parametrize("name", COVERED)
def test_a_recorded_step_decodes_all_later_tokens(name):
    """So nothing on the host changes from token to token, and no value is asked for."""
    policy, step = make(name), Replayed()
    prompts = make_prompts(policy)
    found = sampled(decodes_in_buffers(policy, step), prompts)
    assert_same(found, sampled(decodes_in_buffers(policy), prompts))
    assert step.calls == 24
    names = {func._schema.name for func, *_ in step.tape.calls}
    assert "aten::index_copy_" in names
    assert not names & {"aten::_local_scalar_dense", "aten::nonzero", "aten::item"}


def test_a_graph_is_recorded_behind_the_first_tokens_of_a_gpu(monkeypatch):
    """Compilation and the handles of libraries are not part of it."""
    order = []

    class Graph:
        def replay(self):
            order.append("replay")

    class Recording:
        def __init__(self, graph):
            assert isinstance(graph, Graph)

        def __enter__(self):
            order.append("record")

        def __exit__(self, *_):
            order.append("recorded")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True), raising=False)
    policy = make("gpt2")
    policy = decodes_in_buffers(policy, lambda *_: order.append("step"))
    rows = decoding.prefilled(policy, make_prompts(policy), 2, 5)
    decoding.decode(policy, rows, lambda logits: None, lambda tokens: False, 5)
    assert order == ["step", "step", "record", "step", "recorded", *["replay"] * 3]


def test_too_many_shapes_are_decoded_plainly(monkeypatch, caplog):
    monkeypatch.setattr(decoding, "_SHAPES", 1)
    policy, counter = make("llama"), CompileCounterWithBackend("eager")
    prompts = make_prompts(policy)
    plain = decodes_in_buffers(policy)
    compiled = decodes_in_buffers(policy, CompiledStep(counter))
    for generations in (3, 2, 3):
        found = sampled(compiled, prompts, generations=generations)
        assert_same(found, sampled(plain, prompts, generations=generations), 1e-5)
    assert counter.frame_count == 1
    (line,) = own_lines(caplog)
    assert "compiled for 1 shapes, and for no more; rollout.batch_size" in line


def test_free_memory_is_for_the_larger_buffers(monkeypatch):
    policy = decodes_in_buffers(make("llama"), None)
    monkeypatch.setattr("g2rpo_trainer.sampling.free_memory", lambda _: 2**20)
    rows = [fitting_rows(each, 100) for each in (policy, replace(policy, compiled_step=print))]
    assert rows[0] > rows[1]


@pytest.fixture
def eager_backend(monkeypatch):
    monkeypatch.setattr(shortcuts, "CompiledStep", lambda: CompiledStep("eager"))


@pytest.mark.parametrize("name", ["llama", "qwen2_5_vl"])
def test_the_check_at_the_start_compiles(name, eager_backend, caplog):
    policy = with_shared_prompts(make(name))
    found = with_compiled_decoding(policy, prompts=make_one_prompt(policy))
    assert found.compiled_step is not None
    assert found.pad_to_multiple_of == 64
    assert not own_lines(caplog)


def test_a_model_that_cannot_be_compiled_is_decoded_plainly(eager_backend, caplog):
    policy = with_shared_prompts(make("llama"))
    policy.model.model.layers[0].register_forward_hook(lambda *_: torch._dynamo.graph_break())
    found = with_compiled_decoding(policy, prompts=make_one_prompt(policy))
    assert found is policy
    (line,) = own_lines(caplog)
    assert line.startswith("the decoding of a token is not compiled: ")


def test_a_wrong_kernel_is_found(monkeypatch, caplog):
    def backend(graph, inputs):
        def wrong(*given):
            for each in given:
                if each.dtype == torch.float32 and each.ndim == 4:
                    each.mul_(0.5)
            return graph(*given)

        return wrong

    monkeypatch.setattr(shortcuts, "CompiledStep", lambda: CompiledStep(backend))
    policy = with_shared_prompts(make("llama"))
    assert with_compiled_decoding(policy, prompts=make_one_prompt(policy)) is policy
    (line,) = own_lines(caplog)
    assert "not compiled: log-probabilities differ from the plain pass by" in line


def test_prompts_that_are_not_shared_are_an_obstacle(caplog):
    policy = with_shared_prompts(make("llama"), rollouts=False)
    assert with_compiled_decoding(policy) is policy
    (line,) = own_lines(caplog)
    assert line.endswith("not compiled: prompts are not shared in the rollouts")


def test_vllm_has_nothing_to_compile():
    with pytest.raises(RunError, match=r"compile is true, but must be false with engine vllm"):
        load_config(settings=["rollout.compile=true", "rollout.engine=vllm"])


def test_nothing_is_compiled_by_default():
    assert not Rollout().compile


def test_a_run_samples_by_the_compiled_step(tiny_run, eager_backend, monkeypatch):
    seen = []
    real = CompiledStep.__call__

    def counted(self, *arguments):
        seen.append(len(arguments[2].tokens))
        real(self, *arguments)

    monkeypatch.setattr(CompiledStep, "__call__", counted)
    train(tiny_run("rollout.compile=true", "optimization.steps=1"))
    assert seen.count(12) == 8


@pytest.mark.slow
def test_inductor_says_the_same(random_policy, prompts, caplog):
    policy = with_compiled_decoding(with_shared_prompts(random_policy))
    assert not own_lines(caplog)
    policy = replace(policy, eos_ids=(), closing_text=None)
    found = sampled(policy, prompts)
    assert_same(found, sampled(decodes_in_buffers(random_policy), prompts), 1e-4)
