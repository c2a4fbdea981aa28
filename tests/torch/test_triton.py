"""Triton's kernels, and the choice between them and the portable tiles."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
import torch

from g2rpo_torch import _backend, fused_g2rpo_loss, logprobs_and_entropy
from g2rpo_torch._backend import choose_backend
from g2rpo_torch._tiles import Head

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None,
    reason="triton is not installed: PyTorch's builds for CUDA bring it, and `pip install triton`",
)


@needs_triton
def test_kernels_pass_their_tests_under_the_interpreter():
    """Triton reads TRITON_INTERPRET when kernels are defined, so they run in a separate process."""
    kernels = Path(__file__).with_name("test_triton_kernels.py")
    command = [sys.executable, "-m", "pytest", "-q", "-k", "cpu", "-p", "no:cacheprovider", kernels]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    # Nothing failed, and nothing was skipped.
    summary = done.stdout.strip().splitlines()[-1:] or [done.stderr]
    assert re.match(r"\d+ passed(, \d+ (deselected|warnings?))* in", summary[0]), done.stdout


@needs_triton
def test_kernels_compile_to_machine_code(tmp_path, monkeypatch):
    """Compiling needs no GPU."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from g2rpo_torch import _triton

    common = {"tile": "*fp32", "first": "i32", "width": "i32", "bias": "*fp32", "inverse": "fp32"}
    common |= {"factor": "fp32", "labels": "*i64"}
    of_update = ("highest", "total", "weighted", "target")
    of_gradient = ("normalizer", "entropy", "by_logprob", "by_entropy")
    kernels = [(_triton._update, of_update, {})]
    for out in ("*fp32", "*bf16", "*fp16"):
        kernels.append((_triton._gradient, of_gradient, {"out": out}))
    for (kernel, inputs, out), bias, cap, arch in product(
        kernels, (False, True), (False, True), (80, 90)
    ):
        constants = {"HAS_BIAS": bias, "HAS_CAP": cap, "BLOCK": _triton._BLOCK}
        signature = common | dict.fromkeys(inputs, "*fp32") | out
        signature |= dict.fromkeys(constants, "constexpr")
        compiled = triton.compile(
            ASTSource(kernel, signature, constants),
            target=GPUTarget("cuda", arch, 32),
            options={"num_warps": _triton._WARPS},
        )
        assert compiled.asm["cubin"]


def test_importing_the_package_imports_no_kernels():
    code = "import sys, g2rpo_torch; sys.exit('g2rpo_torch._triton' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.gpu
def test_half_precision_on_a_gpu_agrees_between_backends():
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(300, 64, generator=generator).bfloat16().cuda()
    weight = (0.5 * torch.randn(5000, 64, generator=generator)).bfloat16().cuda()
    labels = torch.randint(0, 5000, (300,), generator=generator).cuda()
    results = []
    for backend in ("triton", "portable"):
        leaves = [x.detach().requires_grad_() for x in (hidden, weight)]
        values = logprobs_and_entropy(*leaves, labels, backend=backend)
        gradients = torch.autograd.grad(values[0].sum() - values[1].sum(), leaves)
        results.append([*values, *(g.float() for g in gradients)])
    for ours, theirs in zip(*results, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 2**-8


@pytest.mark.gpu
def test_auto_is_triton_on_a_gpu():
    device = torch.device("cuda")
    expected = "triton" if torch.cuda.get_device_capability(device) >= (8, 0) else "portable"
    assert choose_backend("auto", HEAD, device) == expected


# The rest needs neither Triton nor a GPU.

HEAD = Head(torch.ones(9, 4), None, None, 1.0, None, torch.float32)
HIDDEN, LABELS = torch.zeros(2, 4), torch.tensor([1, 2])
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize("choice", ["auto", "portable"])
def test_a_cpu_takes_portable_tiles(choice):
    assert choose_backend(choice, HEAD, CPU) == "portable"


@pytest.mark.parametrize(
    ("capability", "dtype", "has_triton", "expected"),
    [
        ((9, 0), torch.float32, True, "triton"),
        ((8, 0), torch.float32, True, "triton"),
        ((7, 5), torch.float32, True, "portable"),
        ((9, 0), torch.float64, True, "portable"),
        ((9, 0), torch.float32, False, "portable"),
    ],
)
def test_auto_follows_from_device_and_dtype(capability, dtype, has_triton, expected, monkeypatch):
    monkeypatch.setattr(_backend, "_capability", lambda device: capability)
    monkeypatch.setattr(_backend, "_has_triton", lambda: has_triton)
    head = HEAD._replace(operands=dtype, weight=HEAD.weight.to(dtype))
    assert choose_backend("auto", head, GPU) == expected
    assert choose_backend("portable", head, GPU) == "portable"


@pytest.fixture
def call():
    def logprobs(**options):
        return logprobs_and_entropy(HIDDEN, HEAD.weight, LABELS, **options)

    def fused(**options):
        given = (LABELS[None], torch.zeros(1, 2), torch.ones(1), torch.ones(1, 2).bool())
        return fused_g2rpo_loss(HIDDEN[None], HEAD.weight, *given, **options)

    return {"logprobs": logprobs, "fused": fused}


@pytest.mark.parametrize("name", ["logprobs", "fused"])
def test_an_unavailable_backend_is_refused_with_the_reason(call, name):
    with pytest.raises(ValueError, match=r"backend must be 'portable' or 'auto': .*riton"):
        call[name](backend="triton")
    with pytest.raises(ValueError, match=r"backend must be one of \('auto', .*got 'cuda'"):
        call[name](backend="cuda")
