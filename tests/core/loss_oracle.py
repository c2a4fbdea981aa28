"""The losses of the papers, token by token in plain Python floats.

A constant to differentiation ("stop gradient") is computed from ``held``, so that differences of
the functions by ``logprobs`` alone are the gradients that the papers mean.
"""

from __future__ import annotations

import math
from typing import Any

#: ε below, ε above, dual clip, aggregation; and temperatures.
CLIPS = {
    "ppo": (0.2, 0.3, 3.0, "token"),  # G²RPO's authors
    "grpo": (0.2, 0.2, math.inf, "sequence"),
    "dapo": (0.2, 0.28, math.inf, "token"),
    "dr-grpo": (0.2, 0.2, math.inf, "constant"),
    "gspo": (3e-4, 4e-4, math.inf, "sequence"),
    "cispo": (1.0, 4.0, math.inf, "token"),
}
AGGREGATIONS = {**{name: row[3] for name, row in CLIPS.items()}, "sapo": "sequence"}
TEMPERATURES = (1.0, 1.05)


def clip(value, low, high):
    return min(max(value, low), high)


def clipped_objective(ratio, advantage, low, high, dual):
    objective = min(ratio * advantage, clip(ratio, 1 - low, 1 + high) * advantage)
    return max(objective, dual * advantage) if advantage < 0 and dual < math.inf else objective


def token_objective(kind, batch, row, token, logprobs, held):
    """Return the objective of one token, to maximise."""
    old, advantage = batch["old"][row][token], batch["advantages"][row][token]
    ratio = math.exp(logprobs[row][token] - old)
    if kind == "sapo":
        tau = TEMPERATURES[0] if advantage > 0 else TEMPERATURES[1]
        return 4 / tau / (1 + math.exp(-tau * (ratio - 1))) * advantage
    low, high, dual, _ = CLIPS[kind]
    if kind == "cispo":
        weight = clip(math.exp(held[row][token] - old), 1 - low, 1 + high)
        return weight * advantage * logprobs[row][token]
    if kind == "gspo":
        tokens = [t for t, counts in enumerate(batch["mask"][row]) if counts]
        of_response = sum(held[row][t] - batch["old"][row][t] for t in tokens) / len(tokens)
        ratio = math.exp(of_response) * math.exp(logprobs[row][token] - held[row][token])
    return clipped_objective(ratio, advantage, low, high, dual)


def token_kl(kind, batch, row, token, logprobs, held):
    """Return the estimate of one token, a loss."""
    new, fixed = logprobs[row][token], held[row][token]
    ref, old = batch["ref"][row][token], batch["old"][row][token]

    def k2(x):
        return (x - ref) ** 2 / 2

    def k3(x):
        return math.exp(ref - x) - (ref - x) - 1

    return {
        "k1": lambda: new - ref,
        "k2": lambda: k2(new),
        "k3": lambda: k3(new),
        "k1+": lambda: fixed - ref + k2(new) - k2(fixed),
        "k3+": lambda: k3(fixed) + k2(new) - k2(fixed),
        "k3-weighted": lambda: math.exp(new - old) * k3(new),
    }[kind]()


def reduced(batch, losses, aggregation, longest):
    """Return the mean of token losses, row -> token -> number."""
    rows = {row: list(tokens.values()) for row, tokens in losses.items() if tokens}
    weight = {row: batch["task_weights"][batch["tasks"][row]] for row in rows}
    if aggregation == "token":
        total = sum(weight[row] * sum(rows[row]) for row in rows)
        return total / sum(len(tokens) for tokens in rows.values())
    if aggregation == "sequence":
        return sum(weight[row] * sum(rows[row]) / len(rows[row]) for row in rows) / len(rows)
    if aggregation == "constant":
        return sum(weight[row] * sum(rows[row]) / longest for row in rows) / len(rows)
    means = []
    for task in {batch["tasks"][row] for row in rows}:
        tokens = [x for row in rows if batch["tasks"][row] == task for x in rows[row]]
        means.append(batch["task_weights"][task] * sum(tokens) / len(tokens))
    return sum(means) / len(means)


def loss(function: Any, kind, batch, aggregation, longest, logprobs, held=None):
    """Return the loss of a batch of lists: ``function`` is one of the two above."""
    sign = -1 if function is token_objective else 1
    weights = batch["weights"] if function is token_objective else None
    losses = {
        row: {
            token: sign
            * (weights[row][token] if weights else 1.0)
            * function(kind, batch, row, token, logprobs, held or logprobs)
            for token, counts in enumerate(mask)
            if counts
        }
        for row, mask in enumerate(batch["mask"])
    }
    plain = batch if weights else {**batch, "task_weights": [1.0] * len(batch["task_weights"])}
    return reduced(plain, losses, aggregation, longest)


def gradient(function, kind, batch, aggregation, longest, logprobs, step=1e-5):
    """Return central differences by every log-probability, constants held."""
    found = []
    for row, values in enumerate(logprobs):
        found.append([])
        for token in range(len(values)):
            sides = []
            for change in (step, -step):
                moved = [list(each) for each in logprobs]
                moved[row][token] += change
                sides.append(loss(function, kind, batch, aggregation, longest, moved, logprobs))
            found[-1].append((sides[0] - sides[1]) / (2 * step))
    return found
