"""Held-out rewards: the same items and the same random numbers before and after a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count, islice
from typing import Any

import numpy as np
import torch

from g2rpo_trainer.answers import Answers, Evaluation, Sample, evaluated
from g2rpo_trainer.config import Data, Rollout, TrainConfig
from g2rpo_trainer.data import Source, open_run
from g2rpo_trainer.record import Record
from g2rpo_trainer.report.display import Display
from g2rpo_trainer.scoring import Rewards, Scorer, unused_rewards

from .device import run_kernels
from .distributed import Ranks, join_ranks
from .model.loading import load_run_policy
from .model.policy_model import Policy
from .prompts.chat import whole_responses
from .prompts.encoding import Prompt, join_prompts
from .sampling import Sampler, sample_with_policy
from .shortcuts import choose_shortcuts, with_compiled_decoding
from .vllm import open_sampler

# The same in every evaluation, so that models compare.
_SAMPLING_SEED = 260_408_539
# Stands for a temperature of 0, by which logits cannot be divided: the most probable token wins.
_GREEDY = 1e-6


def evaluate(
    model: str,
    config: TrainConfig,
    display: Display | None = None,
    *,
    source: Source | None = None,
    on_samples: Callable[[list[Sample]], None] | None = None,
) -> dict[str, Any]:
    """Load a model and evaluate it on the held-out items.

    Parameters
    ----------
    model : str
        ``"builtin"``, a folder or a hub id.
    config : TrainConfig
        Configuration; the sections model, data, rollout and rewards.
    display : Display, optional
        Shows the progress.
    source : Source, optional
        Source of the records, if :func:`g2rpo_trainer.data.open_run` has opened it already.
    on_samples : callable, optional
        Called with every batch of responses, as `Answers.samples` returns them.

    Returns
    -------
    dict
        ``{"reward": {task: mean, …, "mean": …}, "length": {task: mean tokens}, "detail": …,
        "item_rewards": {task: [mean, …]}}``, the attributes of :class:`Evaluation`.

    Raises
    ------
    RunError
        If the model, the data or the device cannot be used, a response cannot be scored, or memory
        is short.

    Examples
    --------
    >>> from g2rpo_trainer.config import load_config
    >>> settings = ["data.tasks=[maths]", "data.eval_items=2", "model.device=cpu"]
    >>> found = evaluate("builtin", load_config(settings=settings))
    >>> found["detail"]["maths"]["items"], 0 <= found["reward"]["maths"] <= 1
    (2, True)
    """
    source = open_run(config, source)
    data = config.data
    display = display or Display(0, source.tasks)
    for text in unused_rewards(config.rewards.functions, source):
        display.warn(text)
    kernels = run_kernels(config.model)
    with join_ranks() as ranks, kernels, Scorer(config.rewards, data, source) as scorer:
        policy = load_run_policy(config, model, ranks=ranks)
        compiles = config.rollout.compile
        # A single response shares its prompt with none.
        if data.eval_generations > 1 or compiles:
            policy = choose_shortcuts(
                policy, config.rollout.shared_prompts, seed=config.seed, ranks=ranks
            )
        if compiles:
            policy = with_compiled_decoding(policy, seed=config.seed, ranks=ranks)
        named = config.model.model_copy(update={"name": model})
        engine = open_sampler(config.model_copy(update={"model": named}), policy, ranks)
        count = len(source.tasks) * data.eval_items
        with engine as sampler, display.phase("held-out items", count) as advance:
            evaluator = Evaluator(source, scorer, data, config.rollout, sampler, ranks)
            evaluation = evaluator.evaluate(policy, advance=advance, on_samples=on_samples)
    return asdict(evaluation)


@dataclass(frozen=True)
class Evaluator:
    """Samples answers to the held-out items of every task and scores them.

    For evaluations of a policy during its training; :func:`evaluate` sets one up and uses it once.

    Attributes
    ----------
    source : Source
        Source of the held-out items.
    scorer : Scorer
        Scores the responses.
    data : Data
        Number of items and of responses to each, and their temperature, by default that of the
        rollouts.
    rollout : Rollout
        The other options of sampling.
    sampler : Sampler
        Samples the responses; that of the run.
    ranks : Ranks
        Ranks that evaluate together.
    """

    source: Source
    scorer: Scorer
    data: Data
    rollout: Rollout
    sampler: Sampler = sample_with_policy
    ranks: Ranks = Ranks()

    def evaluate(
        self,
        policy: Policy,
        *,
        advance: Callable[[int], None] = lambda items: None,
        on_samples: Callable[[list[Sample]], None] | None = None,
    ) -> Evaluation:
        """Evaluate a policy, always with the same items and random numbers.

        Parameters
        ----------
        policy : Policy
            Policy to sample.
        advance : callable
            Called with the number of items done since its last call.
        on_samples : callable, optional
            Called with every batch of responses, as `Answers.samples` returns them.

        Returns
        -------
        Evaluation
        """
        with _own_random_numbers(policy.device):
            answers = {task: self._answers(policy, task) for task in self.source.tasks}
            return evaluated(answers, advance, on_samples if self.ranks.is_main else None)

    def _answers(self, policy: Policy, task: str) -> Iterator[Answers]:
        """Yield the answers to the held-out items of a task, batch by batch."""
        data, ranks = self.data, self.ranks
        # Each rank has as many at once as a single one would have.
        size = data.eval_batch_size * ranks.size
        own, numbers = set(ranks.share(size).own), count()

        def read(record: Record) -> Prompt:
            # Where broken records are left out, the items of a rank follow from all before them.
            if data.skip_broken or next(numbers) % size in own:
                return Prompt.encoded(policy, record)
            return Prompt(policy, record)

        items = self.source.held_out(task, data.eval_items, read)
        for first in count(0, size):
            with ranks.raise_on_all_ranks():
                batch = list(islice(items, size))
            if not batch:
                return
            yield self._answered(policy, batch, first)

    def _answered(self, policy: Policy, items: list[Prompt], first: int) -> Answers:
        """Sample and score answers to one batch of items, divided over the ranks."""
        data, ranks = self.data, self.ranks
        share = ranks.share(len(items))
        asked = [items[number] for number in share.padded]
        with ranks.raise_on_all_ranks():
            prompts = join_prompts(asked)
        records = [prompt.record for prompt in asked]
        completions = self.sampler(
            policy, prompts, records, self._options, share, with_values=False
        )
        own = asked[: len(share.own)]
        whole = whole_responses([prompt.chat.opened for prompt in own], completions.texts)
        with ranks.raise_on_all_ranks():
            scored = self.scorer([prompt.record for prompt in own], whole, dtype=np.float64)
        numbers = torch.tensor(share.own, dtype=torch.int64)
        numbers = numbers.repeat_interleave(data.eval_generations)
        rewards_of_own = map(torch.from_numpy, scored.columns().values())
        columns = (completions.lengths.cpu(), completions.ended.cpu(), *rewards_of_own)
        gathered, _ = ranks.gather_sorted(numbers, *columns)
        lengths, ended, *rewards = (column.numpy() for column in gathered)
        return Answers(
            first,
            [prompt.record for prompt in items],
            ranks.gather_sorted_objects(numbers.tolist(), whole),
            Rewards(*rewards),
            lengths,
            ended,
            ranks.gather_sorted_objects(share.own, [prompt.chat.opened for prompt in own]),
        )

    @property
    def _options(self) -> Rollout:
        """The options of sampling, with the number of responses and temperature of evaluations."""
        data, temperature = self.data, self.data.eval_temperature
        if temperature is None:
            temperature = self.rollout.temperature
        sampling = {
            "num_generations": data.eval_generations,
            "temperature": max(temperature, _GREEDY),
        }
        return self.rollout.model_copy(update=sampling)


@contextmanager
def _own_random_numbers(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_SAMPLING_SEED)
        yield
