"""The reference trainer on PyTorch and transformers.

The modules, in the order in which data passes through a run:

- ``config/``: the configuration, one model a section, and its presets.
- ``data/`` and ``tasks/``: records of the user's own and built-in ones (``record.py``).
- ``model/``: a policy is loaded (``loading``, ``processors``), adapted (``adapting``) and bound to
  its special tokens (``policy_model``, ``chat_template``); ``policy/``: the embedded policy, which
  ``cold_start.py`` makes.
- ``estimate.py``: memory of a run, before anything is loaded, from the sizes of its model
  (``model_shape.py``); ``device_fit.py``: whether it fits; ``step_time.py``: seconds of a step.
- ``prompts/``: records to texts (``chat``), model inputs (``encoding``) and batches (``batching``).
- ``rollouts.py``: prompts, responses and rewards of a step (`Collector`). Responses come from the
  policy (``sampling.py``, with the prompts prefilled by ``prefill.py``, the tokens drawn by
  ``draws.py``, fixed buffers on a GPU by ``decoding.py``, and the ends found by ``stopping.py``) or
  from vLLM (``vllm.py``, ``vllm_engine.py``, ``vllm_requests.py``, ``vllm_weights.py``).
- ``scoring.py``: responses to rewards, in worker processes.
- ``advantages.py``: rewards and lengths to advantages; the controllers of length targets, entropy
  weights and task weights.
- ``packing.py``: rows of one prompt and several responses, with masks and positions, as many as
  ``row_cost.py`` finds cheapest; ``block_attention.py``: attention over them on a GPU;
  ``logprobs.py``: the differentiable pass over given responses, with or without logits;
  ``shortcuts.py``: which of the faster ways a run takes.
- ``batch.py``: a step's rollouts and their micro-batches; ``token_weights.py``: weights of tokens
  in the surrogates; ``update.py``: loss, gradients and optimiser steps (`Learner`);
  ``optimizer.py``: AdamW with float32 masters and its learning rate; ``equity.py``: gradient norms
  of tasks.
- ``step.py``: one step, from prompts to update.
- ``loop.py``: a run, from its first evaluation to its summary; ``progress.py``: its counters;
  ``interruption.py``: signals, errors, and how to resume.
- ``evaluation.py``: answers to held-out items (`Evaluator`); ``answers.py``: their statistics;
  ``metrics.py``: the metrics of a step.
- ``run_folder.py``: the files of a run; ``step_log.py``: its log of responses;
  ``checkpoint_store.py``: its checkpoints, and ``checkpoint.py``: the contents of one;
  ``files.py``: files that survive a crash.
- ``report/``: progress, tables, plots and trackers.
- ``distributed.py``: ranks and their collectives; ``sharding.py``: a model sharded by FSDP2;
  ``launch.py``: the environment of a launcher.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .answers import Evaluation
    from .evaluation import Evaluator, evaluate
    from .interruption import Interrupted
    from .loop import train
    from .model.loading import load_policy
    from .model.policy_model import Policy

__all__ = [
    "Evaluation",
    "Evaluator",
    "Interrupted",
    "Policy",
    "evaluate",
    "load_policy",
    "train",
]

_HOMES = {
    "Evaluation": "answers",
    "Evaluator": "evaluation",
    "Interrupted": "interruption",
    "Policy": "model.policy_model",
    "evaluate": "evaluation",
    "load_policy": "model.loading",
    "train": "loop",
}


def __getattr__(name: str) -> Any:
    # Data and tasks are of use without PyTorch, so what needs it is imported when it is asked for.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
