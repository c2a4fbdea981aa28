"""What tunix's sampler leaves out: the end token of a response, and its length for the estimator.

The vanilla rollout cuts a response off before its end token, so that no update would ever say when
to stop. It is put back where there is only one that it can have been.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tunix.rl.rl_cluster import Mode

from .handover import handover


def observe_rollouts(cluster: Any) -> None:
    """Make a cluster's rollouts end in their end token, and leave their lengths for later calls.

    Parameters
    ----------
    cluster : tunix.rl.rl_cluster.RLCluster
        Rollout; its ``generate`` is replaced, and replacing it twice changes nothing.
    """
    generate = cluster.generate
    if getattr(generate, "observes_rollouts", False):
        return

    def observed(prompts: Any, *args: Any, mode: Any = Mode.TRAIN, **options: Any) -> Any:
        output = generate(prompts, *args, mode=mode, **options)
        if cluster.cluster_config.rollout_engine == "vanilla":
            config = cluster.get_rollout_config(mode=mode)
            limit = options.get("max_generation_steps") or config.max_tokens_to_generate
            ends = config.eos_tokens or [cluster.rollout.eos_id()]
            if len(ends) == 1:
                output.tokens = [with_end(each, ends[0], limit) for each in output.tokens]
        pad = cluster.rollout.pad_id()
        lengths = [np.count_nonzero(np.asarray(tokens) != pad) for tokens in output.tokens]
        handover.lengths = np.asarray(lengths, dtype=np.int64)
        return output

    observed.observes_rollouts = True  # type: ignore[attr-defined]
    cluster.generate = observed


def with_end(tokens: Any, end: int, limit: int) -> Any:
    """Return a response's tokens with the end token, unless it was cut off at the limit.

    Examples
    --------
    >>> with_end(np.array([7, 8]), end=2, limit=3), with_end(np.array([7, 8, 9]), end=2, limit=3)
    (array([7, 8, 2]), array([7, 8, 9]))
    """
    tokens = np.asarray(tokens)
    if len(tokens) >= limit or (len(tokens) and tokens[-1] == end):
        return tokens
    return np.append(tokens, np.asarray(end, dtype=tokens.dtype))
