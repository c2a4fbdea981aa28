"""Triton's kernels against full logits and the portable tiles: on a GPU, or interpreted on a CPU.

    TRITON_INTERPRET=1 python -m pytest tests/torch/test_triton_kernels.py

The interpreter must be selected before the kernels are defined; test_triton.py does so
in a separate process.
"""

from __future__ import annotations

import os
from itertools import product

import pytest
import torch

from g2rpo_torch import fused_g2rpo_loss, logprobs_and_entropy
from g2rpo_torch._tiles import Head, OutputGrads, Softmax, VocabSlice

from .conftest import make_inputs, plain

needs_interpreter = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1",
    reason="test_triton.py runs this with TRITON_INTERPRET=1",
)


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=needs_interpreter),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def values_and_gradients(function, inputs, dtype, *, bias, grads, **options):
    leaves = inputs.leaves(dtype)
    given = leaves if bias else leaves[:2]
    options |= {"bias": leaves[2]} if bias else {}
    values = function(*leaves[:2], inputs.labels, **options)
    loss = sum((v * p.to(v.dtype)).sum() for v, p in zip(values, grads, strict=True))
    return [*values, *torch.autograd.grad(loss, given)]


def assert_same(got, expected, tolerance):
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        ours, theirs = (x.detach().double() for x in (ours, theirs))
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def test_values_and_gradients_are_those_of_full_logits(device):
    """Against full logits in float64; the long rows take several blocks, the last one in part."""
    for entries, tile in ((37, (4, 13)), (5000, (6, 4500))):
        inputs = make_inputs(device, tokens=(2, 3), entries=entries)
        inputs.bias[[3, 20, entries - 1]] = -torch.inf
        for softcap, bias, by_entropy in product((None, 3.0), (False, True), (False, True)):
            options = {"bias": bias, "temperature": 0.7, "softcap": softcap}
            options["grads"] = (inputs.grads[0], inputs.grads[1] * by_entropy)
            expected = values_and_gradients(plain, inputs, torch.float64, **options)
            got = values_and_gradients(
                logprobs_and_entropy, inputs, torch.float32, tile=tile, backend="triton", **options
            )
            assert_same(got, expected, 2e-5)


def both_backends(inputs, **options):
    return [
        values_and_gradients(
            logprobs_and_entropy,
            inputs,
            torch.float32,
            grads=inputs.grads,
            backend=b,
            **options,
        )
        for b in ("triton", "portable")
    ]


def test_ignored_and_non_contiguous_labels_agree_with_the_portable_backend(device):
    inputs = make_inputs(device, tokens=(8, 2))
    labels = inputs.labels.masked_fill(inputs.labels == 7, -100)[:, 0]
    inputs = inputs._replace(hidden=inputs.hidden[:, 0], labels=labels, grads=inputs.grads[..., 0])
    assert not labels.is_contiguous()
    assert_same(*both_backends(inputs, bias=False), 1e-6)
    inputs.labels.fill_(5)
    everywhere = (torch.ones((), device=device).expand(8),) * 2  # as from a sum
    inputs = inputs._replace(grads=everywhere)
    assert_same(*both_backends(inputs, bias=True), 1e-5)


def test_low_rank_inputs_agree_with_the_portable_backend(device):
    inputs = make_inputs(device)
    generator = torch.Generator().manual_seed(5)
    states, up = (torch.randn(*s, generator=generator).to(device) for s in ((3, 5, 2), (37, 2)))
    results = []
    for backend in ("triton", "portable"):
        leaves = [x.clone().requires_grad_() for x in (states, up)]
        values = logprobs_and_entropy(
            inputs.hidden.float(),
            inputs.weight.float(),
            inputs.labels,
            low_rank=tuple(leaves),
            backend=backend,
        )
        results.append([*values, *torch.autograd.grad(values[0].sum() + values[1].sum(), leaves)])
    assert_same(*results, 1e-5)


def test_huge_nan_and_excluded_logits_agree_with_the_portable_backend(device):
    """Huge ones stay finite, NaN stays NaN, and a token without any entry has no entropy."""
    inputs = make_inputs(device)
    inputs.hidden.mul_(3000)
    got, expected = both_backends(inputs, bias=True)
    assert all(x.isfinite().all() for x in got)
    torch.testing.assert_close(got[:2], expected[:2], rtol=1e-5, atol=1e-3)
    inputs.hidden[1, 2, 0] = torch.nan
    logprobs, entropy, by_hidden, _ = both_backends(inputs, bias=False)[0]
    for values in (logprobs, entropy, by_hidden.sum(-1)):
        assert values.isnan().nonzero().tolist() == [[1, 2]]
    excluded = torch.full((37,), -torch.inf, device=device)
    values = logprobs_and_entropy(
        torch.ones(2, 6, device=device),
        torch.ones(37, 6, device=device),
        torch.tensor([1, 2], device=device),
        bias=excluded,
        backend="triton",
    )
    assert [x.tolist() for x in values] == [[-torch.inf] * 2, [0.0, 0.0]]


def test_the_softcap_is_exact_for_logits_of_any_size(device):
    """The kernels' own tanh: near 0, at the switch of its forms, and far out."""
    logits = torch.tensor([0.0, 1e-4, 0.1, 0.1999, 0.2001, 0.5, 3.0, 9.0, 80.0], device=device)
    logits = torch.cat([logits, -logits])
    for cap in (1.0, 30.0):
        got, expected = (
            function(torch.ones(18, 1, dtype=dtype, device=device), *given, softcap=cap, **options)
            for function, dtype, options in (
                (logprobs_and_entropy, torch.float32, {"backend": "triton"}),
                (plain, torch.float64, {}),
            )
            for given in [(cap * logits[:, None].to(dtype), torch.arange(18, device=device))]
        )
        # The logits are up to the cap, and so are their roundings.
        assert_same(got, expected, 4e-7 * cap)


def test_the_gradient_is_rounded_to_half_precision_unless_exact(device):
    """The kernel writes the dtype of the next products; exact gradients stay in float32."""
    inputs = make_inputs(device, tokens=(4,), entries=3000)
    products = (inputs.hidden @ inputs.weight.t()).float()
    vocab = VocabSlice(slice(0, 3000), inputs.weight.float(), inputs.bias.float())
    softmax = Softmax(*(x.float() for x in (*inputs.grads, products.logsumexp(-1))))
    grads = OutputGrads(*inputs.grads.float())
    found = {}
    for backend, exact in product(("triton", "portable"), (True, False)):
        head = Head(inputs.weight, None, inputs.bias, 1.3, None, torch.bfloat16, backend)
        tile, scratch = products.clone(), torch.empty_like(products)
        if backend == "portable":
            tile = (tile + vocab.bias) / 1.3
        arguments = (tile, head, softmax, inputs.labels, vocab, scratch)
        found[backend, exact] = grads.logit_gradient(*arguments, exact=exact)
    assert found["triton", True].dtype == torch.float32
    assert found["triton", False].dtype == torch.bfloat16
    torch.testing.assert_close(found["triton", True], found["portable", True])
    # The interpreter cuts bits off where a GPU rounds.
    rounded, precision = found["triton", False].float(), 2**-7 if device == "cpu" else 2**-8
    torch.testing.assert_close(rounded, found["triton", True], rtol=precision, atol=0)


def test_equal_inputs_give_equal_bits(device):
    inputs = make_inputs(device, tokens=(8,), entries=3000)
    first, second = (both_backends(inputs, bias=True)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_fused_loss_agrees_with_the_portable_backend(device):
    inputs = make_inputs(device, tokens=(6, 7), entries=3000)
    results = []
    for backend in ("triton", "portable"):
        leaves = inputs.leaves(torch.float32)
        terms, metrics = fused_g2rpo_loss(
            *leaves[:2],
            inputs.labels,
            inputs.grads[0].float() - 8,
            inputs.grads[1, :, 0].float(),
            inputs.labels > 6,
            inputs.labels[:, 0] % 2,
            bias=leaves[2],
            chunk_tokens=15,
            entropy_low=torch.tensor([0.0, 9.0], device=device),
            entropy_high=torch.tensor([0.1, 9.9], device=device),
            backend=backend,
        )
        gradients = torch.autograd.grad(terms.total, leaves)
        results.append([*terms, *(metrics[name] for name in sorted(metrics)), *gradients])
    assert_same(*results, 1e-5)
