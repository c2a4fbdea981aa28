"""The operator under autocast, checkpointing, compilation and transforms, and its memory."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from g2rpo_torch import fused_g2rpo_loss, logprobs_and_entropy
from g2rpo_torch._gradients import Needs
from g2rpo_torch._softmax import softmax_backward, softmax_forward
from g2rpo_torch._tiles import Head, OutputGrads, Tile

from .conftest import make_inputs, plain


def loss_of(function, inputs):
    def loss(hidden, weight, bias=None):
        logprobs, entropy = function(hidden, weight, inputs.labels, bias=bias)
        return (logprobs + 0.3 * entropy).sum()

    return loss


def expected_gradients(inputs, dtype=torch.float64):
    leaves = inputs.leaves(dtype)[:2]
    return torch.autograd.grad(loss_of(plain, inputs)(*leaves), leaves)


def test_autocast_changes_nothing_on_a_cpu():
    inputs = make_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        leaves = inputs.leaves(torch.float32)[:2]
        loss = loss_of(logprobs_and_entropy, inputs)(*leaves)
        assert loss.dtype == torch.float32
        # A hidden state as an autocast layer returns it, beside a float32 weight.
        mixed = logprobs_and_entropy(leaves[0].bfloat16(), leaves[1], inputs.labels)
    assert all(x.dtype == torch.float32 for x in mixed)
    gradients = torch.autograd.grad(loss, leaves)
    for ours, theirs in zip(gradients, expected_gradients(inputs), strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
def test_autocast_multiplies_in_half_precision_on_a_gpu():
    inputs = make_inputs("cuda", tokens=(64,), width=64)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        leaves = inputs.leaves(torch.float32)[:2]
        loss = loss_of(logprobs_and_entropy, inputs)(*leaves)
    assert loss.dtype == torch.float32
    for ours, theirs in zip(
        torch.autograd.grad(loss, leaves), expected_gradients(inputs), strict=True
    ):
        assert float((ours - theirs).norm() / theirs.norm()) < 2e-2


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradients_under_checkpointing_are_the_same(use_reentrant):
    inputs = make_inputs()
    leaves = inputs.leaves(torch.float64)[:2]
    checkpoint(
        loss_of(logprobs_and_entropy, inputs), *leaves, use_reentrant=use_reentrant
    ).backward()
    for leaf, theirs in zip(leaves, expected_gradients(inputs), strict=True):
        torch.testing.assert_close(leaf.grad, theirs)


def test_functional_transforms_give_the_gradients_of_backward():
    inputs = make_inputs()
    given = inputs.hidden, inputs.weight
    loss = loss_of(logprobs_and_entropy, inputs)
    expected = expected_gradients(inputs)
    for ours, theirs in zip(torch.func.grad(loss, argnums=(0, 1))(*given), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    _, pull = torch.func.vjp(loss, *given)
    for ours, theirs in zip(pull(torch.tensor(2.0, dtype=torch.float64)), expected, strict=True):
        torch.testing.assert_close(ours, 2 * theirs)


def test_a_second_derivative_is_refused():
    inputs = make_inputs()
    leaves = inputs.leaves(torch.float64)[:2]
    loss = loss_of(logprobs_and_entropy, inputs)(*leaves)
    (gradient,) = torch.autograd.grad(loss, leaves[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


def test_a_graph_that_is_kept_can_be_used_again():
    inputs = make_inputs()
    leaves = inputs.leaves(torch.float64)[:2]
    loss = loss_of(logprobs_and_entropy, inputs)(*leaves)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    for ours, theirs in zip(torch.autograd.grad(loss, leaves), first, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("learns_weight", [True, False])
def test_the_compiled_function_has_no_graph_break_and_the_same_gradients(learns_weight):
    inputs = make_inputs()
    hidden, weight, bias = inputs.leaves(torch.float64)
    weight.requires_grad_(learns_weight)

    @torch.compile(fullgraph=True)
    def loss(hidden, weight, bias):
        # Something to compile on both sides.
        logprobs, entropy = logprobs_and_entropy(hidden.tanh(), weight, inputs.labels, bias=bias)
        return (logprobs * 2 + entropy).sum()

    loss(hidden, weight, bias).backward()
    leaves = inputs.leaves(torch.float64)
    logprobs, entropy = plain(leaves[0].tanh(), leaves[1], inputs.labels, leaves[2])
    (logprobs * 2 + entropy).sum().backward()
    torch.testing.assert_close(hidden.grad, leaves[0].grad)
    torch.testing.assert_close(bias.grad, leaves[2].grad)
    assert (weight.grad is None) != learns_weight
    if learns_weight:
        torch.testing.assert_close(weight.grad, leaves[1].grad)


@pytest.mark.slow
@pytest.mark.filterwarnings("error:Dynamo detected a call to")
def test_the_compiled_function_in_half_precision_gives_the_eager_loss(device):
    inputs = make_inputs(device)
    leaves = inputs.leaves(torch.bfloat16)
    loss = loss_of(logprobs_and_entropy, inputs)
    values = [f(*leaves) for f in (loss, torch.compile(loss, fullgraph=True))]
    torch.testing.assert_close(*values)


class Largest(TorchDispatchMode):
    """Records the largest result of any operation in bytes, without the given tensors."""

    def __init__(self, *given: torch.Tensor) -> None:
        super().__init__()
        self._given = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.size = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self._given:
                    self.size = max(self.size, storage.nbytes())
        return result


TOKENS, WIDTH, ENTRIES = 600, 8, 4000
LOGITS = TOKENS * ENTRIES * 4


def sizes():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator)
    weight = torch.randn(ENTRIES, WIDTH, generator=generator)
    return hidden, weight, torch.randint(0, ENTRIES, (TOKENS,), generator=generator)


def test_memory_grows_with_the_tile_and_not_with_the_logits():
    hidden, weight, labels = sizes()
    head = Head(weight, None, None, 1.0, None, torch.float32)
    grads = OutputGrads(torch.ones(TOKENS), torch.ones(TOKENS))
    for tile in (Tile(64, 256), Tile(128, 256)):
        with Largest() as largest:
            softmax = softmax_forward(head, hidden, labels, tile)
            needs = Needs(hidden=True, weight=True, low_rank=False, bias=False)
            softmax_backward(head, hidden, labels, softmax, grads, needs, tile)
        # The gradient by the weight is the largest of all that does not depend on the tile.
        assert largest.size == max(tile.tokens * tile.entries * 4, ENTRIES * WIDTH * 4)
    with Largest() as largest:
        plain(hidden, weight, labels)
    assert largest.size == LOGITS  # the check can fail


def test_memory_of_the_fused_loss_is_that_of_a_chunk():
    hidden, weight, labels = sizes()
    shape = (6, TOKENS // 6)
    weight.requires_grad_()
    with Largest() as largest:
        terms, _ = fused_g2rpo_loss(
            hidden.view(*shape, WIDTH),
            weight,
            labels.view(shape),
            torch.full(shape, -5.0),
            torch.ones(6),
            torch.ones(shape, dtype=torch.bool),
            chunk_tokens=50,
        )
        terms.total.backward()
    # Tiles cover up to 1,024 entries of a chunk; the chunk itself is the largest.
    assert largest.size == 50 * ENTRIES * 4


@pytest.mark.parametrize(("recompute_logits", "bytes_an_entry"), [(False, 4), (True, 2)])
def test_the_gradient_of_a_half_precision_weight_is_summed_in_float32(
    recompute_logits, bytes_an_entry
):
    """Its gradient is summed in float32 to the end, unless the logits are computed twice."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 8, 256, generator=generator)
    weight = torch.randn(ENTRIES, 256, generator=generator).bfloat16().requires_grad_()
    labels = torch.randint(0, ENTRIES, (4, 8), generator=generator)
    with Largest(weight) as largest:
        terms, _ = fused_g2rpo_loss(
            hidden,
            weight,
            labels,
            torch.full((4, 8), -5.0),
            torch.ones(4),
            torch.ones((4, 8), dtype=torch.bool),
            recompute_logits=recompute_logits,
        )
        terms.total.backward()
    assert weight.grad.dtype == torch.bfloat16
    assert largest.size == bytes_an_entry * weight.numel()


def test_a_frozen_weight_takes_no_memory_for_its_gradient():
    hidden, weight, labels = sizes()
    head = Head(weight, None, None, 1.0, None, torch.float32)
    tile = Tile(16, 64)
    softmax = softmax_forward(head, hidden, labels, tile)
    needs = Needs(hidden=True, weight=False, low_rank=False, bias=False)
    with Largest(weight) as largest:
        grads = OutputGrads(torch.ones(TOKENS), None)
        softmax_backward(head, hidden, labels, softmax, grads, needs, tile)
    assert largest.size == hidden.nbytes < weight.nbytes
