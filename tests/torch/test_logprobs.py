"""Log-probabilities and entropies without logits: values, gradients, and invalid inputs."""

from __future__ import annotations

import pytest
import torch

from g2rpo_torch import logprobs_and_entropy

from .conftest import Inputs, make_inputs, plain

TILES = [None, (3, 5), (1, 1), (4, 37), (100, 36)]


def results(inputs: Inputs, dtype, function, *, bias: bool, **options):
    """Return values and gradients, in float64."""
    leaves = inputs.leaves(dtype)
    given = leaves if bias else leaves[:2]
    options |= {"bias": leaves[2]} if bias else {}
    logprobs, entropy = function(*leaves[:2], inputs.labels, **options)
    grads = inputs.grads.to(logprobs.dtype)
    gradients = torch.autograd.grad((logprobs * grads[0] + entropy * grads[1]).sum(), given)
    return [x.detach().double() for x in (logprobs, entropy, *gradients)]


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tile", TILES)
def test_values_and_gradients_are_those_of_full_logits(device, tile, bias, softcap):
    inputs = make_inputs(device)
    inputs.bias[[3, 20, 36]] = -torch.inf
    options = {"bias": bias, "temperature": 0.7, "softcap": softcap}
    expected = results(inputs, torch.float64, plain, **options)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        got = results(inputs, dtype, logprobs_and_entropy, tile=tile, **options)
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradcheck(softcap):
    inputs = make_inputs(tokens=(4,), width=3, entries=21)

    def function(hidden, weight, bias):
        return logprobs_and_entropy(
            hidden, weight, inputs.labels, bias=bias, temperature=1.3, softcap=softcap, tile=(3, 8)
        )

    torch.autograd.gradcheck(function, inputs.leaves(torch.float64))


def test_bf16_inputs_lose_nothing_but_their_own_rounding(device):
    """A model's sizes: logits of several nats, sums over many tokens and entries."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(300, 64, generator=generator).bfloat16().to(device)
    weight = (0.5 * torch.randn(5000, 64, generator=generator)).bfloat16().to(device)
    labels = torch.randint(0, 5000, (300,), generator=generator).to(device)
    grads = torch.randn(2, 300, generator=generator, dtype=torch.float64).to(device)
    inputs = Inputs(hidden.double(), weight.double(), labels, weight[:, 0].double(), grads)
    expected = results(inputs, torch.float64, plain, bias=True)
    got = results(inputs, torch.bfloat16, logprobs_and_entropy, bias=True)
    for ours, theirs in zip(got[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)
    # Gradients come back in bf16, rounded once: half a unit in the last of 8 bits.
    rounding = 2**-9 if device == "cpu" else 2**-7
    for ours, theirs in zip(got[2:], expected[2:], strict=True):
        atol = 2e-3 * float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=1.01 * rounding)


def test_float32_at_a_model_s_size(device):
    generator = torch.Generator().manual_seed(2)
    inputs = Inputs(
        torch.randn(200, 96, generator=generator, dtype=torch.float64).to(device),
        torch.randn(8000, 96, generator=generator, dtype=torch.float64).to(device) * 0.3,
        torch.randint(0, 8000, (200,), generator=generator).to(device),
        torch.zeros(8000, dtype=torch.float64, device=device),
        torch.ones(2, 200, dtype=torch.float64, device=device),
    )
    expected = results(inputs, torch.float64, plain, bias=False)
    got = results(inputs, torch.float32, logprobs_and_entropy, bias=False)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_huge_logits_stay_finite():
    inputs = make_inputs()
    inputs.hidden.mul_(3000)
    expected = results(inputs, torch.float64, plain, bias=True)
    got = results(inputs, torch.float32, logprobs_and_entropy, bias=True, tile=(2, 7))
    assert all(x.isfinite().all() for x in got)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(got[1], expected[1], atol=1e-5, rtol=0)


def test_a_token_without_any_entry_has_no_entropy():
    hidden, weight = torch.ones(2, 3), torch.ones(5, 3)
    bias = torch.full((5,), -torch.inf)
    logprobs, entropy = logprobs_and_entropy(hidden, weight, torch.tensor([1, 2]), bias=bias)
    assert logprobs.tolist() == [-torch.inf] * 2
    assert entropy.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("ignore_index", [-100, 7])
def test_ignored_tokens_have_0_for_any_hidden_states(ignore_index):
    inputs = make_inputs(tokens=(6,))
    kept = torch.tensor([True, False, True, True, False, True])
    labels = inputs.labels.masked_fill(inputs.labels == 7, 8)
    labels = labels.masked_fill(~kept, ignore_index)
    hidden = inputs.hidden.masked_fill(~kept[:, None], torch.nan).requires_grad_()
    weight = inputs.weight.clone().requires_grad_()
    logprobs, entropy = logprobs_and_entropy(hidden, weight, labels, ignore_index=ignore_index)
    assert not logprobs[~kept].any()
    assert not entropy[~kept].any()
    (logprobs + entropy).sum().backward()
    few = [x[kept].detach().requires_grad_() for x in (inputs.hidden,)]
    other = inputs.weight.clone().requires_grad_()
    expected = plain(few[0], other, labels[kept])
    (expected[0] + expected[1]).sum().backward()
    torch.testing.assert_close(logprobs[kept], expected[0])
    torch.testing.assert_close(weight.grad, other.grad)
    torch.testing.assert_close(hidden.grad[kept], few[0].grad)
    assert not hidden.grad[~kept].any()


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_an_empty_batch_gives_empty_results(shape):
    hidden = torch.zeros(*shape, 4, requires_grad=True)
    weight = torch.ones(9, 4, requires_grad=True)
    logprobs, entropy = logprobs_and_entropy(hidden, weight, torch.zeros(shape, dtype=torch.int64))
    assert logprobs.shape == entropy.shape == shape
    (logprobs.sum() + entropy.sum()).backward()
    assert not weight.grad.any()
    assert hidden.grad.shape == hidden.shape


def test_a_loss_of_one_output_has_the_right_gradient():
    inputs = make_inputs()
    for which in (0, 1):
        gradients = []
        for function in (plain, logprobs_and_entropy):
            leaves = inputs.leaves(torch.float64)
            values = function(*leaves[:2], inputs.labels, bias=leaves[2])[which]
            gradients.append(torch.autograd.grad((values * inputs.grads[0]).sum(), leaves))
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("learns", ["hidden", "weight", "bias"])
def test_frozen_parts_get_no_gradient(learns):
    inputs = make_inputs()
    names = ("hidden", "weight", "bias")
    gradients = []
    for function in (plain, logprobs_and_entropy):
        leaves = dict(zip(names, inputs.leaves(torch.float64), strict=True))
        for name in names:
            leaves[name].requires_grad_(name == learns)
        logprobs, entropy = function(
            leaves["hidden"], leaves["weight"], inputs.labels, bias=leaves["bias"]
        )
        (logprobs + entropy).sum().backward()
        assert all((leaves[name].grad is None) == (name != learns) for name in names)
        gradients.append(leaves[learns].grad)
    torch.testing.assert_close(*gradients)


def test_inputs_without_gradients_give_outputs_without_gradients():
    inputs = make_inputs()
    logprobs, _ = logprobs_and_entropy(inputs.hidden, inputs.weight, inputs.labels)
    assert not logprobs.requires_grad
    with torch.no_grad():
        leaves = inputs.leaves(torch.float64)
        assert not logprobs_and_entropy(*leaves[:2], inputs.labels)[0].requires_grad


def test_any_strides_give_the_same_results():
    inputs = make_inputs()
    hidden = inputs.hidden.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    weight = inputs.weight.t().contiguous().t().requires_grad_()
    wide = torch.stack([inputs.labels, inputs.labels], dim=-1)
    assert not hidden.is_contiguous()
    got = logprobs_and_entropy(hidden, weight, wide[..., 0], tile=(2, 5))
    expected = plain(*inputs[:3])
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    (got[0] + got[1]).sum().backward()
    leaves = inputs.leaves(torch.float64)
    sum(x.sum() for x in plain(*leaves[:2], inputs.labels)).backward()
    torch.testing.assert_close(weight.grad, leaves[1].grad)
    torch.testing.assert_close(hidden.grad, leaves[0].grad)


def test_low_rank_weights_add_to_a_frozen_one():
    inputs = make_inputs()
    generator = torch.Generator().manual_seed(3)
    down, up = (
        torch.randn(*size, generator=generator, dtype=torch.float64).requires_grad_()
        for size in ((2, 6), (37, 2))
    )
    gradients = []
    for is_ours in (False, True):
        hidden = inputs.hidden.clone().requires_grad_()
        if is_ours:
            low_rank = (hidden @ down.t(), up)
            values = logprobs_and_entropy(
                hidden, inputs.weight, inputs.labels, low_rank=low_rank, tile=(4, 10)
            )
        else:
            values = plain(hidden, inputs.weight + up @ down, inputs.labels)
        loss = (torch.stack(values) * inputs.grads).sum()
        gradients.append([loss, *torch.autograd.grad(loss, (hidden, down, up))])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.tensor([1, 37])}, ValueError, r"labels must be in 0 .. 36 .*got 37"),
        ({"labels": torch.tensor([-1, 3])}, ValueError, "got -1"),
        ({"labels": torch.tensor([1, 2, 3])}, ValueError, r"labels must have shape \(2,\), got"),
        ({"labels": torch.tensor([1.0, 2.0])}, TypeError, "labels must be integers, got"),
        ({"labels": [1, 2]}, TypeError, "labels must be a torch.Tensor, got list"),
        ({"hidden": torch.zeros(2, 6, dtype=torch.int64)}, TypeError, "hidden must be floating"),
        ({"hidden": torch.tensor(0.0)}, ValueError, r"hidden must have shape \(..., H\)"),
        ({"weight": torch.zeros(37, 5)}, ValueError, r"weight must have shape \(V, 6\)"),
        ({"weight": torch.zeros(37, 6, device="meta")}, ValueError, "weight must be on cpu"),
        ({"bias": torch.zeros(36)}, ValueError, r"bias must have shape \(37,\), got \(36,\)"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
        ({"softcap": -1.0}, ValueError, "softcap must be positive and finite, got -1.0"),
        ({"tile": (0, 4)}, ValueError, "tile must be two positive sizes"),
        ({"low_rank": (torch.zeros(2, 3),)}, ValueError, "low_rank must be two tensors, got 1"),
        (
            {"low_rank": (torch.zeros(2, 3), torch.zeros(37, 2))},
            ValueError,
            r"low_rank\[1\] must have shape \(37, R\), got \(37, 2\)",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, error, message):
    given = {
        "hidden": torch.zeros(2, 6),
        "weight": torch.zeros(37, 6),
        "labels": torch.tensor([1, 2]),
    } | change
    arrays = [given.pop(name) for name in ("hidden", "weight", "labels")]
    with pytest.raises(error, match=message):
        logprobs_and_entropy(*arrays, **given)
