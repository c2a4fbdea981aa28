"""The reference trainer: one step from prompt to update, file by file.

====================  =======================================================================
``loop.py``           a run: evaluate, step, save, report
``step.py``           one step, in the order in which it happens
``loading.py``        the model that a description names, with ``processors.py``
``lora.py``           adapters beside frozen weights; ``export.py`` merges them at the end
``freezing.py``       what is not trained
``checkpointed.py``   layers that are computed twice to save memory
``policy_model.py``   a model, its processor, and what it must never sample
``chat.py``           records to the texts of conversations
``prompts.py``        these, with images, to model inputs
``batching.py``       inputs of single prompts to batches, and rows of them
``rollout.py``        sampling, with log-probabilities and entropies on the way
``drawing.py``        tokens from random numbers, and what they were drawn from
``stopping.py``       where each response ends
``engine.py``         sampling with another engine, such as ``vllm_engine.py``
``filtering.py``      prompts without signal replaced by others
``prefill.py``        prompts encoded once for all of their responses
``prompt_cache.py``   their cache, with room for the responses
``batch.py``          rollouts with all that the loss needs
``update.py``         mini-batches, loss, optimiser
``passes.py``         as many passes on every process
``microbatches.py``   which responses go through the model together
``schedule.py``       the learning rate of every step
``optimizer.py``      AdamW over float32 masters
``forward.py``        the differentiable pass
``packed.py``         the same over rows of one prompt and several responses
``masks.py``          who sees whom in a prompt and in such a row
``packing.py``        how many responses share a row, and where each of them stands
``positions.py``      how a model counts the tokens of prompts and responses
``head.py``           predictions without logits
``trials.py``         shortcuts, each tried once against the plain way
``shortcuts.py``      all of them tried at once, the same on every process
``evaluation.py``     held-out rewards
``processes.py``      several processes that train one policy
``sharding.py``       a model that is divided over them
``checkpoint.py``     Hugging Face folder with the optimiser beside it
====================  =======================================================================

What is the same in every engine is in ``g2rpo.run``: ``scorer.py`` (responses to rewards),
``shaping.py`` (rewards and lengths to advantages), ``progress.py``, ``metrics.py`` and
``evaluation.py``.
"""

from g2rpo.run.evaluation import Evaluation
from g2rpo.run.interrupt import Interrupted

from .evaluation import evaluate, evaluate_policy
from .loading import load_policy
from .loop import train
from .policy_model import Policy

__all__ = [
    "Evaluation",
    "Interrupted",
    "Policy",
    "evaluate",
    "evaluate_policy",
    "load_policy",
    "train",
]
