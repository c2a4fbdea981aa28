"""Randomised comparison with the method written out in plain Python."""

from __future__ import annotations

import math
from collections import defaultdict
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import norm, rankdata

from g2rpo import gaussian_advantages, match_gaussian

NORMAL = NormalDist()


def members(labels):
    found = defaultdict(list)
    for index, label in enumerate(labels):
        found[label].append(index)
    return found.values()


def oracle_match(values, segments, ties="midpoint"):
    matched = [0.0] * len(values)
    for segment in members(segments):
        present = sorted((values[i], i) for i in segment if not math.isnan(values[i]))
        n = len(present)
        for value in {v for v, _ in present}:
            ranks = [r for r, (v, _) in enumerate(present) if v == value]
            if ties == "midpoint":
                mean = math.fsum(NORMAL.inv_cdf((r + 0.5) / n) for r in ranks) / len(ranks)
            else:
                edges = (ranks[0] / n, (ranks[-1] + 1) / n)
                low, high = (NORMAL.pdf(NORMAL.inv_cdf(p)) if 0 < p < 1 else 0.0 for p in edges)
                mean = (low - high) / (edges[1] - edges[0])
            if len(ranks) == n:
                mean = 0.0
            for r in ranks:
                matched[present[r][1]] = mean
    return matched


def oracle_advantages(rewards, groups, tasks, stage, ties="midpoint"):
    matched = oracle_match(rewards, groups, ties)
    signal = [False] * len(rewards)
    for group in members(groups):
        distinct = {rewards[i] for i in group if not math.isnan(rewards[i])}
        for i in group:
            signal[i] = len(distinct) > 1 and not math.isnan(rewards[i])
    if stage is None:
        return matched
    if stage == "standardize":
        out = [0.0] * len(rewards)
        for task in members(tasks):
            live = [i for i in task if signal[i]]
            if live:
                rms = math.sqrt(math.fsum(matched[i] ** 2 for i in live) / len(live))
                for i in live:
                    out[i] = matched[i] / rms
        return out
    # Ranks of floats computed in another order would differ in their last bits: see METHOD's
    # traps. Rounding makes the oracle's equal blocks equal again.
    taking = [
        signal[i] if stage == "match" else not math.isnan(rewards[i]) for i in range(len(rewards))
    ]
    second = [round(a, 12) + 0.0 if t else math.nan for a, t in zip(matched, taking, strict=True)]
    return oracle_match(second, tasks, ties)


def random_batch(rng, prompts):
    """Prompts of four tasks with different kinds of reward, some absent, some infinite."""
    rewards, groups, tasks = [], [], []
    for prompt in range(prompts):
        size, task = int(rng.choice([1, 2, 3, 4, 7, 8, 8, 8, 16])), int(rng.integers(0, 4))
        draw = [
            lambda n: rng.integers(0, 2, n).astype(float),
            lambda n: rng.random(n).astype(np.float32).astype(float),
            lambda n: np.float32(rng.standard_cauchy(n)).astype(float),
            lambda n: rng.choice([0.0, 0.5, 1.0, np.inf, -np.inf], n),
        ][task](size)
        draw = np.where(rng.random(size) < 0.06, np.nan, draw)
        rewards.append(np.full(size, draw[0]) if rng.random() < 0.15 else draw)
        groups.append(np.full(size, prompt * 3 - 40))
        tasks.append(np.full(size, task * 11 - 5))
    # Always as many rollouts, so that JAX compiles once: the prompts cut off stay ragged.
    shuffle = rng.permutation(sum(map(len, rewards)))[: 4 * prompts]
    return [np.concatenate(a)[shuffle] for a in (rewards, groups, tasks)]


@pytest.mark.parametrize("ties", ["midpoint", "barycentre"])
@pytest.mark.parametrize("seed", range(3))
def test_matching(library, seed, ties):
    values, segments, _ = random_batch(np.random.default_rng(seed), 60)
    matched = library.call(match_gaussian, values, segments, ties=ties)
    expected = oracle_match(values.tolist(), segments.tolist(), ties)
    np.testing.assert_allclose(matched, expected, atol=3 * library.tolerance)


@pytest.mark.parametrize("stage", ["standardize", "match", "match-all", None])
@pytest.mark.parametrize("seed", range(3))
def test_advantages(library, seed, stage):
    rewards, groups, tasks = random_batch(np.random.default_rng(seed), 60)
    advantages = library.call(gaussian_advantages, rewards, groups, tasks, task_stage=stage)
    expected = oracle_advantages(rewards.tolist(), groups.tolist(), tasks.tolist(), stage)
    np.testing.assert_allclose(advantages, expected, atol=3 * library.tolerance)


@pytest.mark.parametrize("seed", range(3))
def test_matching_against_scipy(library, seed):
    values = np.random.default_rng(seed).permutation(200).astype(float)
    expected = norm.ppf((rankdata(values) - 0.5) / len(values))
    matched = library.call(match_gaussian, values)
    np.testing.assert_allclose(matched, expected, atol=2 * library.tolerance)
