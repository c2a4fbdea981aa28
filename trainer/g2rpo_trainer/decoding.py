"""Decoding for a GPU: buffers of a fixed size, and a host that does not wait for the device.

``generate`` looks after each token whether all responses are complete, and passes attention one
more key each time. Here keys and values lie in buffers that have room for the longest response,
attention sees all of a buffer under a mask, and the host looks every few tokens. So all steps of a
rollout have the same shapes, and take their places from tensors of the device: a step is compiled
once for each number of rows and size of the buffers, and on a GPU recorded as a CUDA graph.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .model.policy_model import Policy
from .packing import cache_name, in_format, layer_kinds, next_positions
from .prefill import prefill, require_keys_and_values
from .prompts.batching import Inputs
from .stopping import TOKENS_A_LOOK

_logger = logging.getLogger(__name__)

_FULL, _SLIDING = "full_attention", "sliding_attention"
# Tokens that are decoded before a step is recorded: compilation and handles of libraries cannot be.
_UNRECORDED = 2
# Shapes for which a step is compiled; each takes seconds to minutes.
_SHAPES = 32


@dataclass(frozen=True)
class Prefilled:
    """N rows behind their prompts, of which all but the last token are in the cache.

    Attributes
    ----------
    cache : transformers.Cache
        Its layers are :class:`_Buffer`.
    slots : dict of str to _Slots
        Places of tokens in the buffers, by the kind of layers.
    tokens : Tensor (N, 1), int64
        Last token of each row; each step replaces it.
    positions, next_positions : Tensor (N, 1) or (3, N, 1), int64
        Position of that token, and of the one after it; each step advances them.
    """

    cache: Any
    slots: dict[str, _Slots]
    tokens: torch.Tensor
    positions: torch.Tensor
    next_positions: torch.Tensor


@torch.no_grad()
def prefilled(
    policy: Policy, prompts: Inputs, num_generations: int, max_new_tokens: int
) -> Prefilled:
    """Prefill each prompt once, and return its responses with room for their tokens.

    Parameters
    ----------
    policy : Policy
        Its model is run; it takes positions and masks of its own.
    prompts : dict of str to Tensor
        P prompts of L tokens, at least 2.
    num_generations : int
        Responses to each prompt.
    max_new_tokens : int
        Longest response.

    Raises
    ------
    TypeError
        If the model's cache holds anything but keys and values of all tokens or of a window of
        them, or the tokens of a prompt attend to the last one.
    """
    cache, positions = prefill(policy, prompts)
    require_keys_and_values(cache)
    mask = prompts["attention_mask"].repeat_interleave(num_generations, dim=0)
    column = mask.shape[1] - 1
    last = column + max_new_tokens
    slots = {}
    for kind in layer_kinds(policy.model):
        text = policy.model.config.get_text_config()
        window: int | None = text.sliding_window if kind == _SLIDING else None
        seen = last if window is None else min(window, last)
        slots[kind] = _Slots(mask, column, policy.buffer_size(seen), window)
    for number, layer in enumerate(cache.layers):
        kind = _SLIDING if isinstance(layer, DynamicSlidingWindowLayer) else _FULL
        if kind not in slots or not layer.get_seq_length():
            raise TypeError(f"layer {number} of the model's cache is no layer of {kind}")
        cache.layers[number] = _Buffer(layer, num_generations, slots[kind])
    behind = next_positions(prompts, positions)[:, None].expand(*positions.shape[:-1], 1)
    repeated = (
        tensor.repeat_interleave(num_generations, dim=-2)
        for tensor in (prompts["input_ids"][:, -1:], positions[..., -1:], behind)
    )
    return Prefilled(cache, slots, *repeated)


@torch.no_grad()
def decode(
    policy: Policy,
    rows: Prefilled,
    draw: Callable[[torch.Tensor], torch.Tensor],
    are_complete: Callable[[torch.Tensor], bool],
    max_new_tokens: int,
) -> torch.Tensor:
    """Sample the responses of N rows.

    Parameters
    ----------
    policy : Policy
        Its model is run.
    rows : Prefilled
        From :func:`prefilled`; its buffers are filled.
    draw : callable
        Returns a token (N,) of each row, given its logits (N, V).
    are_complete : callable
        Tells whether all responses (N, t) are complete; asked every few tokens.
    max_new_tokens : int
        Longest response.

    Returns
    -------
    Tensor (N, T), int64
        Tokens behind the end of a response have no meaning.
    """
    name, compiled = cache_name(policy.model.forward), policy.compiled_step
    run: Callable[[], None] = partial(compiled or step, policy.model, name, rows, draw)
    tokens = rows.tokens.new_empty(len(rows.tokens), max_new_tokens)
    for place in range(max_new_tokens):
        if place == _UNRECORDED and compiled is not None and tokens.is_cuda:
            run = _recorded(run)
        run()
        tokens[:, place : place + 1] = rows.tokens
        seen = tokens[:, : place + 1]
        if (place + 1) % TOKENS_A_LOOK == 0 and are_complete(seen):
            return seen
    return tokens


def step(
    model: Any, name: str, rows: Prefilled, draw: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Take in the last token of each row and draw the next.

    No number on the host changes: all that differs from token to token is in tensors of the device,
    which keep their places.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Model to run.
    name : str
        Name of the KV cache among its arguments.
    rows : Prefilled
        Its tensors are advanced by a token.
    draw : callable
        As of :func:`decode`.
    """
    masks = {kind: slots.advance() for kind, slots in rows.slots.items()}
    output = model(
        input_ids=rows.tokens,
        attention_mask=in_format(model, masks),
        position_ids=rows.positions,
        use_cache=True,
        logits_to_keep=1,
        **{name: rows.cache},
    )
    rows.tokens.copy_(draw(output.logits[:, -1])[:, None])
    rows.positions.copy_(rows.next_positions)
    rows.next_positions.add_(1)


class CompiledStep:
    """The decoding of a token by ``torch.compile``, as a whole graph.

    Parameters
    ----------
    backend : str or callable
        Backend of ``torch.compile``.

    Notes
    -----
    CUDA graphs are recorded outside of it, one for each call of :func:`decode`. Those of
    ``mode="reduce-overhead"`` would be kept for the addresses of buffers that are gone.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self._compiled = torch.compile(step, fullgraph=True, dynamic=False, backend=backend)
        self._shapes: set[tuple[int, ...]] = set()
        self._is_full = False

    def __call__(self, model: Any, name: str, rows: Prefilled, draw: Any) -> None:
        """Decode a token of each row, by the plain step if it is compiled for many shapes."""
        run = self._compiled if self._has(rows) else step
        limits = torch._dynamo.config.patch(recompile_limit=8 * _SHAPES)
        with warnings.catch_warnings(), limits:
            # Functions with a cache are traced without it, which changes nothing.
            warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
            run(model, name, rows, draw)

    def _has(self, rows: Prefilled) -> bool:
        """Tell whether the step is, or may now be, compiled for the shapes of some rows."""
        shape = (len(rows.tokens), *(slots.size for slots in rows.slots.values()))
        if shape in self._shapes:
            return True
        if len(self._shapes) == _SHAPES:
            if not self._is_full:
                _logger.warning(
                    "the decoding of a token is compiled for %d shapes, and for no more; "
                    "rollout.batch_size keeps the number of rows the same",
                    _SHAPES,
                )
            self._is_full = True
            return False
        self._shapes.add(shape)
        return True


def _recorded(run: Callable[[], None]) -> Callable[[], None]:
    """Record what a call does on the GPU, without doing it; return the replay."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    replay: Callable[[], None] = graph.replay
    return replay


class _Slots:
    """Places of the tokens of N rows in the buffers of one kind of layers.

    The token of column c is in slot c modulo the size: with a window narrower than the buffer a new
    token takes the place of one that no later token sees.

    Parameters
    ----------
    mask : Tensor (N, L)
        Attention mask of the prompts, padded on the left.
    column : int
        First column that is not in the buffers yet.
    size : int
        Slots of a buffer.
    window : int or None
        Tokens that a token sees, itself included; None for all before it.
    """

    def __init__(self, mask: torch.Tensor, column: int, size: int, window: int | None) -> None:
        self.size, self._window = size, window
        self._first = (mask.shape[1] - mask.sum(-1))[:, None]
        filled = torch.arange(max(0, column - size), column, device=mask.device)
        # An empty slot holds a column that no token sees.
        self._columns = torch.full((size,), -1, device=mask.device)
        self._columns[filled % size] = filled
        self.column = torch.full((1,), column - 1, device=mask.device)
        self.place = self.column % size

    def advance(self) -> torch.Tensor:
        """Make room for the token of the next column; return what it sees, (N, 1, 1, size)."""
        self.column.add_(1)
        self.place.copy_(self.column % self.size)
        self._columns.index_copy_(0, self.place, self.column)
        seen = (self._columns >= self._first) & (self._columns <= self.column)
        if self._window is not None:
            seen &= self._columns > self.column - self._window
        return seen[:, None, None]


class _Buffer(DynamicLayer):
    """Keys and values (N, heads, slots, width), each in the slot of its column."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, layer: Any, repeats: int, slots: _Slots) -> None:
        super().__init__()
        # Some versions of transformers keep more in a layer than others.
        vars(self).update(vars(layer))
        self._slots = slots
        self.keys, self.values = (
            _spread(states, repeats, slots) for states in (layer.keys, layer.values)
        )

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in the states of the current token; return all slots."""
        self.keys.index_copy_(2, self._slots.place, key_states)
        self.values.index_copy_(2, self._slots.place, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> torch.Tensor:  # type: ignore[override]
        """Return the number of columns before the current token, (1,) int64."""
        return self._slots.column

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length of the keys and the column of the first."""
        return self._slots.size, 0


def _spread(states: torch.Tensor, repeats: int, slots: _Slots) -> torch.Tensor:
    """Copy the states of the last columns into their slots, each row ``repeats`` times."""
    rows, heads, length, width = states.shape
    # Zeros, since what is masked may be multiplied, too.
    wide = states.new_zeros(rows, repeats, heads, slots.size, width)
    places = (slots.column + torch.arange(1 - length, 1, device=states.device)) % slots.size
    wide[:, :, :, places] = states[:, None]
    return wide.flatten(0, 1)
