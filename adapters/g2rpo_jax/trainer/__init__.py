"""The JAX trainer: one step from prompt to update, file by file.

====================  =======================================================================
``loop.py``           what a run loads and saves; its course is in ``g2rpo.run.loop``
``options.py``        what of a run's description this engine honours
``step.py``           one step, in the order in which it happens
``loading.py``        the policy of a run
``prompts.py``        records to padded tokens
``rollout.py``        the compiled sampling loop, with log-probabilities and entropies
``update.py``         mini-batches, micro-batches, loss
``forward.py``        the differentiable pass
``equity.py``         the gradient of each task by itself
``optimizer.py``      AdamW behind a clipped gradient
``evaluation.py``     held-out rewards
``checkpoint.py``     weights and optimiser in Orbax's format
``device.py``         one device, or the prompts divided among several
====================  =======================================================================
"""

from importlib.util import find_spec

_MISSING = [name for name in ("flax", "optax", "orbax", "safetensors") if find_spec(name) is None]
if _MISSING:
    raise ImportError(
        f"g2rpo_jax.trainer needs {', '.join(_MISSING)}, which the core does not install; "
        'run: pip install "g2rpo[jax]"'
    )

from g2rpo.run.evaluation import Evaluation  # noqa: E402  (the check above must come first)
from g2rpo.run.interrupt import Interrupted  # noqa: E402

from .evaluation import evaluate, evaluate_policy  # noqa: E402
from .loop import train  # noqa: E402
from .policy_model import Policy, load_policy  # noqa: E402

__all__ = [
    "Evaluation",
    "Interrupted",
    "Policy",
    "evaluate",
    "evaluate_policy",
    "load_policy",
    "train",
]
