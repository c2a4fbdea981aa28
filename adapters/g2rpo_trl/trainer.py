"""TRL's GRPO trainer with tasks: the core's advantages, entropy and length terms, and metrics.

Overridden are six private methods of TRL 1.16. Each calls TRL's own and changes what goes in or
comes out, so that all that TRL does around them stays.
"""

from __future__ import annotations

import inspect
import json
import math
import zlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.logging import get_logger
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer

from g2rpo import LossOptions, batch_totals, g2rpo_loss, rollout_metrics
from g2rpo.metrics import BY_TASK, named, suffixed
from g2rpo.shaping import total_rewards
from g2rpo_torch import reduce_totals

from .config import G2RPOConfig
from .labels import TaskLabels
from .metrics import UpdateMetrics
from .shaping import Rollouts, Shaping

STATE_FILE = "g2rpo_state.json"

# In the state: each task's mean entropy in its last window.
_MEANS = "mean_entropies"

#: TRL's loss types that clip the ratio from both sides.
_CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")

_logger = get_logger(__name__)


class G2RPOTrainer(GRPOTrainer):
    """TRL's ``GRPOTrainer`` with G²RPO's advantages, entropy and length terms.

    Statistics of groups and tasks are those of all rollouts that are generated together, on all
    processes. What estimators and controllers remember is saved in TRL's checkpoints and read back
    from them. Evaluation changes nothing.

    Parameters
    ----------
    model, reward_funcs
        As in TRL; a reward of None is no reward.
    args : G2RPOConfig, optional
        TRL's options and those of the method.
    *others, **named
        All other parameters of TRL's trainer.

    Raises
    ------
    TypeError
        If ``args`` is no ``G2RPOConfig``, or labels are neither strings nor integers.
    ValueError
        If an option names a task or a reward function that there is not.

    Notes
    -----
    A task's side of its entropy bounds is judged on all processes. With gradient accumulation the
    mean over all micro-batches is not known before the last, so the side is that of the mean of the
    optimizer step before; the first step of a task takes one more pass without gradient.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "grpo", "g2rpo"]
    _name = "G2RPO"
    _paper: ClassVar[dict[str, str]] = {
        "title": (
            "OpenVLThinkerV2: A Generalist Multimodal Reasoning Model for Multi-domain Visual Tasks"
        ),
        "id": "2604.08539",
    }

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: G2RPOConfig | None = None,
        *others: Any,
        **named: Any,
    ) -> None:
        args = G2RPOConfig() if args is None else args
        if not isinstance(args, G2RPOConfig):
            raise TypeError(f"args must be a G2RPOConfig, got {type(args).__name__}")
        # In the forward passes of TRL's own methods: what they found, and what they are to find.
        self._passes: list[Any] = []
        self._replayed: Any = None
        super().__init__(model, reward_funcs, args, *others, **named)
        self._labels = TaskLabels(args.task_column, args.tasks, self._datasets())
        names = self._labels.names
        weights = self.reward_weights.tolist()
        self._shaping = Shaping(args, names, self.reward_func_names, weights)
        without = [task for task in names if task not in args.given("length_targets")]
        if self._shaping.options.shapes_length and without and not args.length_calibrate:
            _logger.warning(
                f"No length is rewarded in the tasks {', '.join(without)}, which have no target; "
                "add them to length_targets if it should be."
            )
        # Micro-batches that an optimizer step and a batch of rollouts have in common.
        self._window = math.gcd(args.gradient_accumulation_steps, args.steps_per_generation)
        self._totals: Any = None
        self._entropy_pulls = False
        self._reported = UpdateMetrics()
        # Mean token entropy of each task in its last window, in nats; NaN before the first.
        self._entropies = np.full(len(names), np.nan, np.float32)

    def _datasets(self) -> list[Any]:
        held_out = self.eval_dataset
        held_out = list(held_out.values()) if isinstance(held_out, Mapping) else [held_out]
        return [each for each in (self.train_dataset, *held_out) if each is not None]

    @property
    def _is_training(self) -> bool:
        # As TRL tells training and evaluation apart.
        return self.model.training

    @property
    def _group_size(self) -> int:
        return self.num_generations if self._is_training else self.num_generations_eval

    @property
    def _logged(self) -> Any:
        return self._metrics["train" if self._is_training else "eval"]

    # Rollouts: rewards in, advantages out.

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if len(rewards) % self._group_size:
            raise ValueError(
                f"rollouts must come in whole groups of {self._group_size}, got {len(rewards)} of "
                "all processes; make the batch size times the number of processes a multiple of it"
            )
        self._scored = rewards, completion_ids_list
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        rollouts = self._gather_rollouts(inputs, output)
        advantages = self._shaping(rollouts, training=self._is_training)
        here = slice(
            self.accelerator.process_index * len(inputs),
            (self.accelerator.process_index + 1) * len(inputs),
        )
        device = self.accelerator.device
        own = {"advantages": advantages.policy, "length_advantages": advantages.length}
        for name, values in own.items():
            if values is not None:
                output[name] = torch.tensor(values[here], dtype=torch.float32, device=device)
        output["tasks"] = torch.tensor(rollouts.tasks[here], device=device)
        judges = self._is_training and self._window > 1 and self._shaping.options.shapes_entropy
        if judges and np.isnan(self._entropies[rollouts.tasks]).any():
            output["sampled_entropies"] = self._sampled_entropies(output)
        self._passes = []  # the update looks at its own
        self._log_rollouts(rollouts, advantages)
        return output

    def _gather_rollouts(self, inputs: Any, output: Mapping[str, Any]) -> Rollouts:
        rewards, completion_ids = self._scored
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        own = torch.tensor([len(ids) for ids in completion_ids])
        if "tool_mask" in output:
            # A response that TRL masks as truncated has no token of its own left to count.
            mask = output["completion_mask"] * output["tool_mask"]
            written = mask.sum(dim=1).cpu()
            own = torch.where(written > 0, written, own)
        columns = torch.stack(
            [
                torch.as_tensor(self._labels.codes(inputs)),
                own,
                torch.tensor([not ids or ids[-1] not in ends for ids in completion_ids]),
                torch.tensor([_checksum(row.get("prompt", "")) for row in inputs]),
            ],
            dim=1,
        )
        gathered = self.accelerator.gather(columns.to(self.accelerator.device)).cpu().numpy()
        tasks, lengths, clipped, checksums = gathered.T
        size = self._group_size
        for kind, values in (("prompts", checksums), ("tasks", tasks)):
            if (values.reshape(-1, size) != values[::size, None]).any():
                raise ValueError(
                    f"each {size} consecutive rollouts must be of one prompt, but some are of "
                    f"several {kind}; leave TRL's sampler and the order of rollouts as they are"
                )
        return Rollouts(rewards.cpu().numpy(), lengths, tasks, clipped.astype(bool), size)

    def _sampled_entropies(self, output: dict[str, Any]) -> torch.Tensor:
        """Return the exact token entropies (B, T) of the rollouts, without gradient."""
        method = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies)
        named = {name: output[name] for name in output if name in method.parameters}
        ids, mask = (
            torch.cat([output[f"prompt_{name}"], output[f"completion_{name}"]], dim=1)
            for name in ("ids", "mask")
        )
        with torch.no_grad():
            found = self._get_per_token_logps_and_entropies(
                self.model,
                ids,
                mask,
                output["completion_ids"].shape[1],
                batch_size=self.args.per_device_train_batch_size,
                compute_entropy=True,
                **named,
            )
        return found[1]

    def _log_rollouts(self, rollouts: Rollouts, advantages: Any) -> None:
        components = dict(zip(self.reward_func_names, rollouts.rewards.T, strict=True))
        if advantages.length_reward is not None:
            components["length"] = advantages.length_reward
        overall, by_task = rollout_metrics(
            total_rewards(rollouts.rewards, self.reward_weights.tolist()),
            rollouts.num_generations,
            rollouts.tasks,
            lengths=rollouts.lengths,
            clipped=rollouts.clipped,
            names=() if self._labels.is_single else self._labels.names,
            components=components,
        )
        # TRL has logged the metrics over all rollouts; its share without signal is of its own
        # advantages, and it does not know the length reward.
        logged = self._logged
        logged["frac_reward_zero_std"].pop()
        ours = ("frac_reward_zero_std", "rewards/length/mean", "rewards/length/std")
        metrics = {name: value for name, value in overall.items() if name in ours}
        metrics |= suffixed(by_task)
        for name, value in metrics.items():
            if not math.isnan(value):
                logged[name].append(value)
        # TRL has logged its own advantages.
        table = self._logs["advantages"]
        for _ in range(min(len(advantages.policy), len(table))):
            table.pop()
        table.extend(advantages.policy.tolist())

    # The update: TRL's loss, and the terms that it lacks.

    def _get_per_token_logps_and_entropies(self, *args: Any, **named: Any) -> Any:
        if self._replayed is not None:
            return self._replayed
        found = super()._get_per_token_logps_and_entropies(*args, **named)
        self._passes.append(found)
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._passes = []
        loss = super()._compute_loss(model, inputs)
        (found,), self._passes = self._passes, []
        terms, by_task = self._terms(found, inputs)
        # The slices of a window on all processes add up to its term. Data parallelism takes the
        # mean over processes, and the windows of an optimizer step count alike.
        scale = self.accelerator.num_processes
        if self._is_training:
            scale *= self._window / self.current_gradient_accumulation_steps
        loss = loss + scale * terms.entropy
        reported = {**by_task, "loss/entropy": terms.entropy}
        if "length_advantages" in inputs:
            length = self.args.length_weight * self._length_term(model, inputs, found)
            loss = loss + length
            reported["loss/length"] = length / scale
        self._reported.add(reported)
        if not self._is_training or (self._step + 1) % self._window == 0:
            self._end_window()
        return loss

    def _end_window(self) -> None:
        """Log the metrics of a window, keep its mean entropies, and adapt the next's weights."""
        found = self._reported.reduced(self.accelerator.gather)
        present = self._totals.task_tokens.cpu().numpy() > 0
        names = () if self._labels.is_single else self._labels.names
        logged: dict[str, float] = {}
        for name, numbers in found.items():
            logged |= named(name, numbers, names, present)
        for name, value in (logged | self._shaping.metrics()).items():
            self._logged[name].append(value)
        if self._is_training:
            means = found[f"{BY_TASK}entropy"]
            self._entropies = np.where(present, means, self._entropies)
            if self.args.entropy_control == "adaptive":
                self._shaping.adapt_entropy_weights(means, present)

    def _terms(self, found: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, torch.Tensor]]:
        """Return the core's terms of this micro-batch, and its share of the metrics by task."""
        logprobs, entropies = found[0].detach().float(), found[1].float()
        self._find_totals(entropies, inputs)
        if not self._entropy_pulls:
            entropies = entropies.detach()  # spares the backward pass a gradient of zeros
        old, ref = inputs.get("old_per_token_logps"), inputs.get("ref_per_token_logps")
        low, high, weight = torch.as_tensor(
            np.column_stack([self._shaping.entropy_bounds, self._shaping.entropy_weights]).T,
            dtype=torch.float32,
            device=logprobs.device,
        )
        terms, reported = g2rpo_loss(
            logprobs,
            logprobs if old is None else old.float(),
            inputs["advantages"],
            _loss_mask(inputs),
            options=self._ratio_options(),
            entropies=entropies,
            tasks=inputs["tasks"],
            num_tasks=len(self._labels.names),
            entropy_low=low,
            entropy_high=high,
            entropy_weight=weight,
            ref_logprobs=None if ref is None else ref.float(),
            totals=self._totals,
        )
        counts_clips = self.loss_type in _CLIPPED
        by_task = {
            name: value
            for name, value in reported.items()
            if name.startswith(BY_TASK) and (counts_clips or "clip_ratio" not in name)
        }
        return terms, by_task

    def _ratio_options(self) -> LossOptions:
        """Return the options under which the core counts clipped ratios as TRL's loss does."""
        return LossOptions(
            "ppo" if self.importance_sampling_level == "token" else "gspo",
            epsilon=self.epsilon_low,
            epsilon_high=self.epsilon_high,
            dual_clip=self.args.delta or math.inf,
        )

    def _find_totals(self, entropies: torch.Tensor, inputs: dict[str, Any]) -> None:
        """Count the tokens of the tasks, and their entropies, where a window begins."""
        parts, judged, training = [inputs], [entropies], self._is_training
        if training and self._window > 1:
            place = self._step % self.args.steps_per_generation
            if place % self._window:
                return
            parts = self._buffered_inputs[place : place + self._window]
            # Where all means are known, tokens are all that is to be counted.
            nothing = torch.zeros_like(parts[0]["completion_mask"], dtype=torch.float32)
            judged = [part.get("sampled_entropies", nothing) for part in parts]
        totals = batch_totals(
            torch.cat([_loss_mask(part) for part in parts]),
            entropies=torch.cat(judged).float(),
            tasks=torch.cat([part["tasks"] for part in parts]),
            num_tasks=len(self._labels.names),
        )
        whole: Any = reduce_totals(totals)
        if training and self._window > 1:
            known = torch.as_tensor(self._entropies, device=entropies.device)
            judged_by = torch.where(known.isnan(), whole.task_entropy, known)
            whole = whole._replace(task_entropy=judged_by)
        self._entropy_pulls = self._shaping.entropy_pulls(whole.task_entropy, whole.task_tokens > 0)
        self._totals, self._reported = whole, UpdateMetrics()

    def _length_term(self, model: Any, inputs: dict[str, Any], found: Any) -> torch.Tensor:
        """Return TRL's surrogate on the length advantages, of the forward pass that there was."""
        mine = {
            "_replayed": found,
            "_metrics": defaultdict(lambda: defaultdict(list)),
            "beta": 0.0,
            "aux_loss_enabled": False,
            "_entropy_bonus_enabled": False,
        }
        kept = {name: getattr(self, name) for name in mine}
        self.__dict__.update(mine)
        try:
            advantages = inputs["length_advantages"]
            return super()._compute_loss(model, {**inputs, "advantages": advantages})
        finally:
            self.__dict__.update(kept)

    # State, in TRL's checkpoints.

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        state = self._shaping.state_dict()
        if self._window > 1 and self._shaping.options.shapes_entropy:
            means = zip(self._labels.names, self._entropies.tolist(), strict=True)
            state[_MEANS] = {task: mean for task, mean in means if not math.isnan(mean)}
        if state and self.args.should_save:
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            path = Path(self._get_output_dir(trial=trial)) / name / STATE_FILE
            path.write_text(json.dumps(state, allow_nan=False), encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / STATE_FILE
        state = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        means = state.pop(_MEANS, {})
        self._shaping.load_state_dict(state)
        known = [means.get(task, math.nan) for task in self._labels.names]
        self._entropies = np.asarray(known, np.float32)


def _checksum(prompt: Any) -> int:
    """Return a number that prompts of different text do not share."""
    messages = [{"content": prompt}] if isinstance(prompt, str) else prompt
    contents = [message.get("content") or "" for message in messages]
    texts = [
        content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)
        for content in contents
    ]
    return zlib.crc32("\n".join(texts).encode())


def _loss_mask(inputs: Mapping[str, Any]) -> torch.Tensor:
    """Return which tokens (B, T) the loss is over."""
    mask = inputs["completion_mask"]
    return (mask * inputs["tool_mask"] if "tool_mask" in inputs else mask).bool()
