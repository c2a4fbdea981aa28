"""Bytes of the tensors that are alive, counted as PyTorch makes them: no clock, no allocator."""

from __future__ import annotations

import weakref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the memory of tensors that are made inside of the context.

    Attributes
    ----------
    alive, peak : int
        Bytes that are alive, and the most that were since the start or the last assignment.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for given in tree_leaves((args, kwargs)):
            self._note(given, counts=False)
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            self._note(made, counts=True)
        return result

    def _note(self, leaf, *, counts):
        if not isinstance(leaf, Tensor):
            return
        storage = leaf.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if counts else 0
        if key not in self._known:
            self._known.add(key)
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key, size):
        self._known.discard(key)
        self.alive -= size
