"""Counts of what a GPU would feel, on a CPU: operations, synchronisations, live bytes, shapes."""

from __future__ import annotations

import weakref
from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The host waits for the value of a scalar, or for the size of a result.
_WAITING = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::bincount",
    "aten::repeat_interleave.Tensor",
    "aten::is_nonzero",
}
# Seen only above the dispatcher, where the tensor is on the CPU already.
_TRANSFERS = {"cpu", "tolist", "numpy"}


class Operations(TorchDispatchMode):
    """Counts dispatched operations, those for which a host waits, and bytes that are alive.

    Attributes
    ----------
    calls : Counter
        Operations by name.
    waits : Counter
        Those of them that need a value or a size on the host.
    peak : int
        Most bytes that operations inside of the context had allocated at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.peak = self._alive = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for leaf in tree_leaves((args, kwargs)):
            self._know(leaf, counts=False)
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        self.calls[name] += 1
        indices = args[1] if name in ("aten::index", "aten::index_put_") else ()
        is_masked = any(getattr(index, "dtype", None) == torch.bool for index in indices)
        overload = f"{name}.{func._overloadname}"
        if is_masked or name in _WAITING or overload in _WAITING:
            self.waits[name] += 1
        for leaf in tree_leaves(result):
            self._know(leaf, counts=True)
        return result

    def _know(self, leaf, *, counts):
        if not isinstance(leaf, torch.Tensor):
            return
        storage = leaf.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        if counts:
            self._alive += size
            self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._forget, key, size if counts else 0)

    def _forget(self, key, size):
        self._known.discard(key)
        self._alive -= size


class Transfers(TorchFunctionMode):
    """Counts copies of tensors to the host, and the shapes that reach attention."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.attention_shapes: set[tuple[tuple[int, ...], ...]] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in _TRANSFERS or (name == "to" and torch.device("cpu") in args):
            self.calls[name] += 1
        if name == "scaled_dot_product_attention":
            self.attention_shapes.add(tuple(tuple(part.shape) for part in args[:3]))
        return func(*args, **(kwargs or {}))
