"""The reference trainer: one step from prompt to update, file by file.

- ``loop.py``: what a run loads, does and saves; its course is in :mod:`g2rpo_trainer.run.loop`.
- ``step.py``: one step, in the order in which it happens; ``stopwatch.py``: where its time goes.
- ``evaluation.py``: held-out rewards.
- ``model/``: the policy that a configuration names. ``loading.py`` with ``processors.py``,
  ``lora.py``, ``freezing.py``, ``checkpointed.py`` (layers that are computed twice to save memory)
  and ``trials.py`` (shortcuts, each tried once against the plain way) make a ``policy_model.py``;
  ``checkpoint.py`` saves it, ``export.py`` merges an adapter into it.
- ``inputs/``: records to conversations (``chat.py``), these to model inputs (``prompts.py``) and
  batches (``batching.py``).
- ``rollouts.py``: prompts, responses and rewards of a step; prompts without signal are replaced.
  Responses come from the policy itself (``sampling.py``), with each prompt encoded once
  (``prefill.py``) and an end for each response (``stopping.py``), or from vLLM (``vllm.py``), which
  gets the policy's weights (``vllm_weights.py``) and needs importance weights (``importance.py``).
- ``scoring.py``: responses to rewards, in worker processes.
- ``passes/``: the differentiable pass (``forward.py``), also over rows of one prompt and several
  responses (``packed.py``, ``packing.py``, ``masks.py``, ``positions.py``), and predictions without
  logits (``head.py``, ``predictions.py``). ``shortcuts.py`` tries all of this at once.
- ``learning/``: a step's rollouts (``batch.py``), what goes through the model together
  (``microbatches.py``), loss and gradients (``update.py``), what is reported of them
  (``reports.py``), AdamW over float32 masters (``optimizer.py``), each task's own gradient
  (``equity.py``), the tokens that the surrogates are over (``selection.py``).
- ``distributed/``: several processes (``processes.py``), a model that is divided over them
  (``sharding.py``), as many passes on each of them (``spare_passes.py``).

In ``g2rpo_trainer.run``: ``shaping.py`` (rewards and lengths to advantages), ``progress.py``,
``metrics.py``, ``update_metrics.py`` and ``evaluation.py``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluation import evaluate, evaluate_policy
    from .loop import train
    from .model.loading import load_policy
    from .model.policy_model import Policy
    from .run.evaluation import Evaluation
    from .run.interrupt import Interrupted

__all__ = [
    "Evaluation",
    "Interrupted",
    "Policy",
    "evaluate",
    "evaluate_policy",
    "load_policy",
    "train",
]

_HOMES = {
    "Evaluation": "run.evaluation",
    "Interrupted": "run.interrupt",
    "Policy": "model.policy_model",
    "evaluate": "evaluation",
    "evaluate_policy": "evaluation",
    "load_policy": "model.loading",
    "train": "loop",
}


def __getattr__(name: str) -> Any:
    # Data and tasks are of use without PyTorch, so what needs it is imported when it is asked for.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
