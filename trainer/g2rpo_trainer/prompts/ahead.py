"""Prompts of the next step, read and encoded in a thread while this step updates the policy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial

from g2rpo_trainer.data import Slot, Source

from ..distributed import Ranks, Share
from ..model.policy_model import Policy
from .encoding import Prompt


class PromptReader:
    """Reads and encodes the prompts of a run, ahead of their step where that changes nothing.

    Parameters
    ----------
    policy : Policy
        Owner of the processor.
    source : Source
        Source of the records.
    skips_broken : bool
        Broken records are left out (``data.skip_broken``). The source counts them when it reads
        them, so nothing is then read ahead of its step.
    """

    def __init__(self, policy: Policy, source: Source, *, skips_broken: bool = False) -> None:
        self._policy, self._source, self._skips_broken = policy, source, skips_broken
        self._ahead: dict[Slot, Future[Prompt]] = {}

    def read(self, slots: Sequence[Slot], share: Share) -> list[Prompt]:
        """Return the prompts of ``share.padded``, each read once.

        Raises
        ------
        RunError
            If a record cannot be used, also where it was read ahead.
        """
        prompts = {number: self._prompt(slots[number]) for number in dict.fromkeys(share.padded)}
        return [prompts[number] for number in share.padded]

    @contextmanager
    def ahead(self, slots: Sequence[Slot], ranks: Ranks) -> Iterator[None]:
        """Read this rank's share of the next prompts while the context runs, and no longer.

        Nothing else may use the source inside. Errors are raised by :meth:`read`.
        """
        if self._skips_broken or not slots:
            yield
            return
        wanted = dict.fromkeys(ranks.share(len(slots)).padded)
        read = partial(_read, self._own_policy, self._source)
        with ThreadPoolExecutor(1) as pool:
            self._ahead = {slots[number]: pool.submit(read, slots[number]) for number in wanted}
            try:
                yield
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _prompt(self, slot: Slot) -> Prompt:
        found = self._ahead.pop(slot, None)
        return _read(self._policy, self._source, slot) if found is None else found.result()

    @cached_property
    def _own_policy(self) -> Policy:
        # A tokenizer must not be used by two threads.
        return replace(self._policy, processor=copy.deepcopy(self._policy.processor))


def _read(policy: Policy, source: Source, slot: Slot) -> Prompt:
    return source.read(slot, partial(Prompt.encoded, policy))
