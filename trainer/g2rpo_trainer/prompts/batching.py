"""Encoded prompts in one batch: text padded on the left, images and videos end to end.

The tensors of images and videos have one row an image, one a prompt or one a patch, depending on
the model. Every model reads them in the order of the placeholders, so the rows of a prompt are
known from their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch.nn.functional import pad

Inputs = dict[str, torch.Tensor]

_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


class Prompts(dict[str, torch.Tensor]):
    """Model inputs of P prompts, and the number of rows of each.

    A dictionary, so that a model takes it as keyword arguments.

    Parameters
    ----------
    inputs : mapping
        Name -> tensor. Text has one row a prompt.
    rows_each : mapping
        Name -> the number of rows of each prompt, for tensors that do not have one a prompt.

    Examples
    --------
    >>> prompts = Prompts({"pixel_values": torch.arange(3)}, {"pixel_values": (2, 0, 1)})
    >>> select_rows(prompts, torch.tensor([2, 0]))["pixel_values"]
    tensor([2, 0, 1])
    """

    def __init__(
        self,
        inputs: Mapping[str, torch.Tensor],
        rows_each: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(inputs)
        self.rows_each = {name: tuple(counts) for name, counts in (rows_each or {}).items()}


def collate(encoded: Sequence[Inputs], pad_token_id: int) -> Prompts:
    """Return one batch of prompts.

    Parameters
    ----------
    encoded : sequence of dict
        Inputs of each prompt by itself: text (1, L) int64, and tensors of its images and videos, if
        it has any.
    pad_token_id : int
        Token to pad shorter texts with.

    Returns
    -------
    Prompts
        Text (P, L); tensors of images and videos end to end. If they differ in the size of other
        axes, they are padded with zeros at their ends, as processors do it.
    """
    longest = max(one["input_ids"].shape[1] for one in encoded)
    # In the order in which they first occur: a set would differ from process to process.
    names = list(dict.fromkeys(name for one in encoded for name in one))
    inputs, rows_each = {}, {}
    for name in names:
        if name in _TEXT:
            fill = pad_token_id if name == "input_ids" else 0
            inputs[name] = torch.cat([_padded_text(one, name, longest, fill) for one in encoded])
        else:
            parts = [one[name] for one in encoded if name in one]
            inputs[name] = _end_to_end(parts)
            rows_each[name] = [len(one[name]) if name in one else 0 for one in encoded]
    return Prompts(inputs, rows_each)


def select_rows(inputs: Inputs, rows: torch.Tensor | slice) -> Prompts:
    """Return the inputs of some prompts, repeated or in another order.

    Parameters
    ----------
    inputs : dict of str to Tensor
        P prompts; :class:`Prompts` where tensors do not have one row a prompt.
    rows : Tensor (N,), int64, or slice
        Numbers of the prompts.

    Returns
    -------
    Prompts
        Without the tensors of images or videos, if none of the prompts has one.

    Raises
    ------
    ValueError
        If a tensor has another number of rows than there are prompts, and ``rows_each`` lacks it.
    """
    counts = inputs.rows_each if isinstance(inputs, Prompts) else {}
    _check_rows(inputs, counts)
    chosen = Prompts({name: tensor[rows] for name, tensor in inputs.items() if name not in counts})
    if not counts:
        return chosen
    count = len(inputs["input_ids"]) if "input_ids" in inputs else len(next(iter(counts.values())))
    picked = torch.arange(count)[rows.cpu() if isinstance(rows, torch.Tensor) else rows].tolist()
    for name, each in counts.items():
        ends = list(accumulate(each, initial=0))
        spans = list(pairwise(ends))
        taken = torch.cat([torch.arange(*spans[row]) for row in picked] or [torch.arange(0)])
        if len(taken):
            chosen[name] = inputs[name][taken.to(inputs[name].device)]
            chosen.rows_each[name] = tuple(each[row] for row in picked)
    return chosen


def trim_padding(inputs: Inputs) -> Inputs:
    """Return the inputs without the columns on the left in which no prompt has a token.

    Examples
    --------
    >>> mask = torch.tensor([[0, 0, 1], [0, 1, 1]])
    >>> trim_padding({"input_ids": 7 * mask, "attention_mask": mask})["input_ids"]
    tensor([[0, 7],
            [7, 7]])
    """
    start = int(inputs["attention_mask"].amax(0).argmax())
    if start == 0:
        return inputs
    text = {name: inputs[name][:, start:] for name in _TEXT if name in inputs}
    counts = inputs.rows_each if isinstance(inputs, Prompts) else {}
    return Prompts({**inputs, **text}, counts)


def pad_left(inputs: Inputs, columns: int, pad_token_id: int) -> Inputs:
    """Return the inputs with more columns of padding on the left.

    Examples
    --------
    >>> ids = torch.tensor([[5, 6]])
    >>> pad_left({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 1, 0)
    {'input_ids': tensor([[0, 5, 6]]), 'attention_mask': tensor([[0, 1, 1]])}
    """
    if columns == 0:
        return inputs
    text = {
        name: pad(inputs[name], (columns, 0), value=pad_token_id if name == "input_ids" else 0)
        for name in _TEXT
        if name in inputs
    }
    counts = inputs.rows_each if isinstance(inputs, Prompts) else {}
    return Prompts({**inputs, **text}, counts)


def extend_rows(inputs: Inputs, tokens: torch.Tensor) -> Inputs:
    """Return the inputs with tokens behind every prompt; the attention mask stays as it is.

    Parameters
    ----------
    inputs : dict of str to Tensor
        P prompts of L tokens.
    tokens : Tensor (P, T), int64
        Tokens to append.

    Returns
    -------
    dict of str to Tensor
        With token types, where the model has them, that mark the new tokens as text.
    """
    extended = dict(inputs)
    extended["input_ids"] = torch.cat([inputs["input_ids"], tokens], dim=1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            types = inputs[name]
            extended[name] = torch.cat([types, types.new_zeros(tokens.shape)], dim=1)
    return extended


def _check_rows(inputs: Inputs, counts: Mapping[str, Sequence[int]]) -> None:
    sizes = {name: len(tensor) for name, tensor in inputs.items() if name not in counts}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"inputs have {sizes} rows; give Prompts the rows of each prompt for those that do not "
            "have one a prompt"
        )


def _padded_text(one: Inputs, name: str, longest: int, fill: int) -> torch.Tensor:
    # A text without images may lack the types that others have: all of its tokens are text.
    values = one[name] if name in one else torch.zeros_like(one["input_ids"])
    padding = values.new_full((1, longest - values.shape[1]), fill)
    return torch.cat([padding, values], dim=1)


def _end_to_end(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) == 1:
        return torch.cat(list(parts))
    largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
    padded = []
    for part in parts:
        whole = part.new_zeros((len(part), *largest))
        whole[tuple(slice(size) for size in part.shape)] = part
        padded.append(whole)
    return torch.cat(padded)
