"""The loss on data as verl's engines hand it over: nested, in micro-batches, on several ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPActorConfig

import g2rpo
from g2rpo_verl.loss import BATCH, LENGTH, TASKS, task_loss

NAMES = ["count", "first", "tail"]
LOW, HIGH, WEIGHT = [0.2, 0.2, 0.2], [0.6, 0.6, 3.0], [0.5, 0.25, 1.0]
ROWS, PROMPT, VOCABULARY = 12, 3, 7


def actor_config(**options: Any) -> FSDPActorConfig:
    return FSDPActorConfig(
        strategy="fsdp",
        rollout_n=4,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio_low=0.2,
        clip_ratio_high=0.3,
        clip_ratio_c=3.0,
        **options,
    )


class Batch:
    """Twelve responses of one to five tokens; the policy is one table of logits."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.lengths = torch.randint(1, 6, (ROWS,), generator=draw)
        self.logits = torch.randn(ROWS, 5, VOCABULARY, generator=draw, dtype=torch.float64)
        self.logits.requires_grad_()
        self.tokens = torch.randint(0, VOCABULARY, (ROWS, 5), generator=draw)
        self.mask = torch.arange(5) < self.lengths[:, None]
        self.tasks = torch.arange(ROWS) % 3
        self.advantages = torch.randn(ROWS, generator=draw, dtype=torch.float64)
        self.length_advantages = torch.randn(ROWS, generator=draw, dtype=torch.float64)
        noise = torch.randn(ROWS, 5, generator=draw, dtype=torch.float64)
        self.old = self.logprobs().detach() + 0.3 * noise

    def logprobs(self) -> torch.Tensor:
        table = torch.log_softmax(self.logits, dim=-1)
        return torch.gather(table, 2, self.tokens[..., None])[..., 0]

    def entropies(self) -> torch.Tensor:
        return g2rpo.entropy_from_logits(self.logits)

    def totals(self) -> g2rpo.BatchTotals:
        return g2rpo.batch_totals(
            self.mask, entropies=self.entropies(), tasks=self.tasks, num_tasks=3
        )

    def whole(self, **options: Any) -> g2rpo.LossTerms:
        """Return the core's loss of all rows at once."""
        terms, _ = g2rpo.g2rpo_loss(
            self.logprobs(),
            self.old,
            self.advantages,
            self.mask,
            tasks=self.tasks,
            num_tasks=3,
            entropies=self.entropies(),
            entropy_low=torch.tensor(LOW, dtype=torch.float64),
            entropy_high=torch.tensor(HIGH, dtype=torch.float64),
            entropy_weight=torch.tensor(WEIGHT, dtype=torch.float64),
            length_advantages=self.length_advantages,
            length_weight=0.7,
            **options,
        )
        return terms

    def nested(self, values: torch.Tensor, rows: Any) -> torch.Tensor:
        parts = [values[row, : self.lengths[row]] for row in rows]
        return torch.nested.as_nested_tensor(parts, layout=torch.jagged)

    def of_sequence(self, values: torch.Tensor, rows: Any) -> torch.Tensor:
        """Return values over prompt and response, each at the token before, as a model's."""
        parts = []
        for row in rows:
            of_response = values[row, : self.lengths[row]]
            before, after = values.new_zeros(PROMPT - 1), values.new_zeros(1)
            parts.append(torch.cat([before, of_response, after]))
        return torch.nested.as_nested_tensor(parts, layout=torch.jagged)

    def micro_batch(
        self, rows: Any, ranks: int, mini_batch: int = ROWS, dtype: Any = torch.float64
    ) -> dict[str, Any]:
        totals = self.totals()
        rows = list(rows)
        mask, prompts = self.mask.long(), torch.ones(ROWS, 5, dtype=torch.long)
        data = TensorDict(
            {
                "prompts": torch.nested.as_nested_tensor(
                    [prompts[row, :PROMPT] for row in rows], layout=torch.jagged
                ),
                "responses": self.nested(self.tokens, rows),
                "response_mask": self.nested(mask, rows),
                "old_log_probs": self.nested(self.old, rows),
                "advantages": self.nested(self.advantages[:, None] * mask, rows),
                TASKS: self.tasks[rows],
                LENGTH: self.length_advantages[rows],
            },
            batch_size=len(rows),
        )
        described = {
            "names": NAMES,
            "rows": ROWS,
            "task_tokens": totals.task_tokens.tolist(),
            "task_entropy": totals.task_entropy.tolist(),
            "length_weight": 0.7,
            "entropy_low": LOW,
            "entropy_high": HIGH,
            "entropy_weight": WEIGHT,
        }
        tokens = int(self.mask[list(range(mini_batch))].sum())
        tu.assign_non_tensor(
            data, dp_size=ranks, batch_num_tokens=tokens, global_batch_size=mini_batch
        )
        tu.assign_non_tensor_data(data, BATCH, described)
        output = {
            "log_probs": self.of_sequence(self.logprobs(), rows),
            "entropy": self.of_sequence(self.entropies().to(dtype), rows),
        }
        return {"model_output": output, "data": data}


def summed(batch: Batch, splits: list[list[Any]], ranks: int) -> tuple[torch.Tensor, dict]:
    """Return loss and metrics of all micro-batches as verl adds them up."""
    config, total, metrics = actor_config(), torch.zeros(()), {}
    for rows in splits:
        loss, parts = task_loss(config, **batch.micro_batch(rows, ranks))
        total = total + loss / ranks
        for name, metric in parts.items():
            metrics.setdefault(name, []).extend(metric.values)
    return total, {name: np.sum(values) / ranks for name, values in metrics.items()}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_micro_batches_and_ranks_add_up_to_the_cores_loss_of_the_whole(ranks, size):
    batch = Batch()
    rows = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1)).tolist()
    total, metrics = summed(batch, [rows[i : i + size] for i in range(0, ROWS, size)], ranks)
    expected = batch.whole()
    # The terms of the core are float32 here, as everything is on a GPU.
    assert total.item() == pytest.approx(expected.total.item(), rel=1e-6)
    assert metrics["g2rpo/loss/entropy"] == pytest.approx(expected.entropy.item(), rel=1e-6)
    assert metrics["g2rpo/loss/length"] == pytest.approx(expected.length.item(), rel=1e-6)
    assert metrics["g2rpo/loss/policy"] == pytest.approx(expected.policy.item(), rel=1e-6)
    (found,) = torch.autograd.grad(total, batch.logits)
    (wanted,) = torch.autograd.grad(expected.total, batch.logits)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)


def test_entropy_term_has_a_gradient_that_leads_into_the_bounds():
    batch = Batch()
    total, _ = summed(batch, [range(ROWS)], 1)
    without = batch.whole()
    (with_term,) = torch.autograd.grad(total, batch.logits)
    (others,) = torch.autograd.grad(without.policy + without.length, batch.logits)
    step = with_term - others
    assert step.abs().max() > 1e-3
    before = batch.totals().task_entropy
    with torch.no_grad():
        batch.logits -= 0.1 * step
    after = batch.totals().task_entropy
    assert (before[:2] > 0.6).all()  # the last task is inside of its bounds
    assert (after[:2] < before[:2]).all()
    assert step[batch.tasks == 2].abs().max() < 1e-8


def test_metrics_by_task_are_means_over_the_tasks_tokens():
    batch = Batch()
    _, metrics = summed(batch, [range(5), range(5, ROWS)], 2)
    ratio = torch.exp(batch.logprobs() - batch.old).detach()
    for number in range(len(NAMES)):
        mask = batch.mask & (batch.tasks == number)[:, None]
        assert metrics[f"g2rpo/ratio/mean/{number}"] == pytest.approx(ratio[mask].mean().item())
        low = ((ratio < 0.8) & (batch.advantages < 0)[:, None])[mask].double().mean()
        assert metrics[f"g2rpo/clip_ratio/low_mean/{number}"] == pytest.approx(low.item())
    assert metrics["g2rpo/ratio/mean"] == pytest.approx(ratio[batch.mask].mean().item())


def test_all_mini_batches_together_weigh_every_token_of_a_task_alike():
    batch, config = Batch(), actor_config()
    gradients = torch.zeros_like(batch.logits)
    for rows in (range(6), range(6, ROWS)):
        arguments = batch.micro_batch(rows, 1, mini_batch=6)
        arguments["data"]["advantages"] = 0 * arguments["data"]["advantages"]
        arguments["data"][LENGTH] = 0 * arguments["data"][LENGTH]
        loss, _ = task_loss(config, **arguments)
        gradients += torch.autograd.grad(loss, batch.logits)[0] / 2
    (wanted,) = torch.autograd.grad(batch.whole().entropy, batch.logits)
    torch.testing.assert_close(gradients, wanted, rtol=1e-5, atol=1e-8)


def test_bfloat16_entropies_are_added_up_in_float32():
    batch = Batch()
    _, metrics = task_loss(
        actor_config(), **batch.micro_batch(range(ROWS), 1, dtype=torch.bfloat16)
    )
    exact = batch.whole().entropy.item()
    rounded = batch.entropies().bfloat16()
    terms, _ = g2rpo.g2rpo_loss(
        batch.logprobs().float(),
        batch.old.float(),
        batch.advantages.float(),
        batch.mask,
        tasks=batch.tasks,
        num_tasks=3,
        entropies=rounded.float(),
        entropy_low=torch.tensor(LOW),
        entropy_high=torch.tensor(HIGH),
        entropy_weight=torch.tensor(WEIGHT),
    )
    found = metrics["g2rpo/loss/entropy"].values[0]
    assert found == pytest.approx(terms.entropy.item(), rel=1e-5)
    assert found == pytest.approx(exact, rel=1e-2)


def test_rows_without_tokens_and_absent_tasks_add_nothing():
    batch = Batch()
    batch.tasks[batch.tasks == 1] = 0
    expected = batch.whole()
    total, metrics = summed(batch, [range(ROWS)], 1)
    assert total.item() == pytest.approx(expected.total.item(), rel=1e-6)
    assert "g2rpo/ratio/mean/1" not in metrics
    assert np.isfinite(list(metrics.values())).all()
