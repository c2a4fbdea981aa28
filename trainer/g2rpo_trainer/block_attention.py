"""Attention over packed rows that skips blocks of pairs that no token sees, by FlexAttention.

A model whose attention is :data:`NAME` computes with FlexAttention where its mask is a block mask,
and with PyTorch's ``scaled_dot_product_attention`` under any other mask: prefill, decoding and rows
of one response stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from g2rpo._shown import typed_error_text
from g2rpo_trainer.config import Model

NAME = "g2rpo_blocks"
"""Name of the attention in a model's configuration in memory; it is never saved."""

BLOCK = 128
"""Tokens along each side of a block, as FlexAttention has it by default."""

_TEXT = ("gemma", "gemma3", "llama", "mistral", "qwen2", "qwen3")
_VISION = ("llava", "paligemma", "qwen2_5_vl", "qwen3_vl", "smolvlm")
ARCHITECTURES = frozenset({*_TEXT, *_VISION})
"""Model types whose packed rows under block masks are tested against plain rows."""

# Largest accepted distance from attention under the dense mask, as a share of the norm.
_CLOSE = {torch.float32: 1e-3, torch.float64: 1e-6}
_CLOSE_16_BIT = 2e-2
# Arguments of some models that the kernel does not take.
_UNKNOWN = ("softcap", "s_aux", "position_bias")


def block_mask(allowed: torch.Tensor) -> BlockMask:
    """Return a dense mask as FlexAttention takes it.

    Parameters
    ----------
    allowed : Tensor (B, 1, Q, K), bool
        True where a query sees a key; lengths are multiples of :data:`BLOCK`.

    Returns
    -------
    BlockMask
        Blocks without a visible pair are skipped, and the dense mask is read only in blocks that
        are visible in part.

    Examples
    --------
    >>> allowed = torch.ones(1, 1, 512, 512, dtype=torch.bool).tril()
    >>> block_mask(allowed).to_dense()[0, 0]
    tensor([[1, 0, 0, 0],
            [1, 1, 0, 0],
            [1, 1, 1, 0],
            [1, 1, 1, 1]], dtype=torch.int32)
    """
    blocks = allowed.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    some, whole = blocks.any(5).any(3), blocks.all(5).all(3)

    def is_allowed(
        row: torch.Tensor, _: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return allowed[row, 0, query, key]

    return BlockMask.from_kv_blocks(
        *_listed(some & ~whole), *_listed(whole), BLOCK_SIZE=BLOCK, mask_mod=is_allowed
    )


def _listed(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the number of True blocks of each row, and their indices in front of the others."""
    order = torch.argsort(blocks.int(), dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), order.int()


def use_blocks(model: Any) -> None:
    """Let the language model of a model take block masks, in place."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.config.get_text_config()._attn_implementation = NAME


def wants_blocks(options: Model, *, is_gpu: bool) -> bool:
    """Tell whether section ``model`` asks for block masks on a device."""
    return is_gpu and options.attention == "auto"


def config_obstacle(model: Any) -> str | None:
    """Return why a model cannot take block masks as far as its configuration tells, or None."""
    text = model.config.get_text_config()
    if text._attn_implementation != "sdpa":
        return f"its attention is {text._attn_implementation!r}"
    types = [part.model_type.removesuffix("_text") for part in (model.config, text)]
    if untested := [each for each in types if each not in ARCHITECTURES]:
        return f"{untested[0]!r} is not among the architectures that are tested with block masks"
    return None


def blocks_obstacle(model: Any) -> str | None:
    """Return why a model cannot take block masks on its device, or None.

    One small attention with the model's heads, forward and backward, is compared with the same
    under a dense mask.
    """
    if obstacle := config_obstacle(model):
        return obstacle
    text = model.config.get_text_config()
    try:
        return _disagreement(text, model.device, model.dtype)
    # Kernels are compiled here for the first time, which fails in many ways.
    except Exception as error:
        return typed_error_text(error)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    if given := [name for name in _UNKNOWN if options.get(name) is not None]:
        raise TypeError(f"attention with {given[0]} takes no block mask")
    output = _flex(query, key, value, attention_mask, scaling)
    return output.transpose(1, 2).contiguous(), None


def _flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: BlockMask,
    scaling: float | None = None,
) -> torch.Tensor:
    attend: Callable[..., Any] = flex_attention
    # Uncompiled it computes all pairs, which is for tests on a CPU.
    if query.is_cuda:
        attend = _compiled()
    shares_keys = query.shape[1] != key.shape[1]
    output: torch.Tensor = attend(
        query, key, value, block_mask=mask, scale=scaling, enable_gqa=shares_keys
    )
    return output


@cache
def _compiled() -> Callable[..., Any]:
    # One kernel for rows of all lengths; a whole graph, so that it never computes all pairs in
    # silence.
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


@torch.enable_grad()
def _disagreement(text: Any, device: torch.device, dtype: torch.dtype) -> str | None:
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    shared = getattr(text, "num_key_value_heads", None) or heads
    generator = torch.Generator(device).manual_seed(0)
    limit = _CLOSE.get(dtype, _CLOSE_16_BIT)
    for rows, blocks in ((1, 2), (2, 4)):
        length = blocks * BLOCK
        shapes = [(rows, count, length, width) for count in (heads, shared, shared)]
        query, key, value = (
            torch.randn(shape, generator=generator, device=device, dtype=dtype).requires_grad_()
            for shape in shapes
        )
        allowed = torch.ones(rows, 1, length, length, dtype=torch.bool, device=device).tril()
        # As of two responses behind a prompt, which do not end with a block.
        allowed[..., length - 70 :, 50 : length - 70] = False
        ours = _flex(query, key, value, block_mask(allowed))
        repeats = heads // shared
        expected = torch.nn.functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(repeats, 1),
            value.repeat_interleave(repeats, 1),
            attn_mask=allowed,
        )
        states = (query, key, value)
        found = [(ours, expected)]
        found += zip(
            torch.autograd.grad(ours.sum(), states),
            torch.autograd.grad(expected.sum(), states),
            strict=True,
        )
        for one, other in found:
            distance = float((one - other).detach().norm() / other.detach().norm())
            # Written so that NaN disagrees.
            if not distance <= limit:
                return f"values or gradients differ from those of a dense mask by {distance:.2g}"
    return None
