"""The reference trainer: one step from prompt to update, file by file.

====================  =======================================================================
``loop.py``           a run: evaluate, step, save, report
``step.py``           one step, in the order in which it happens
``prompts.py``        records to model inputs
``rollout.py``        sampling, with log-probabilities and entropies on the way
``prefill.py``        prompts encoded once for all of their responses
``scoring.py``        responses to rewards
``shaping.py``        rewards and lengths to advantages
``update.py``         mini-batches, micro-batches, loss, optimiser
``forward.py``        the differentiable pass
``packed.py``         the same over rows of one prompt and several responses
``packing.py``        how many responses share a row, and where each of them stands
``positions.py``      how a model counts the tokens of prompts and responses
``sharing.py``        whether prompts are shared, and the check of that
``evaluation.py``     held-out rewards
``checkpoint.py``     Hugging Face folder with the optimiser beside it
====================  =======================================================================
"""

from g2rpo.run.interrupt import Interrupted

from .evaluation import Evaluation, evaluate, evaluate_policy
from .loop import train
from .policy_model import Policy, load_policy

__all__ = [
    "Evaluation",
    "Interrupted",
    "Policy",
    "evaluate",
    "evaluate_policy",
    "load_policy",
    "train",
]
