"""Exact segment sums, compared with differences of floating-point running sums."""

from __future__ import annotations

import math

import numpy as np

from g2rpo._segments import (
    count,
    exact_sum,
    renumber,
    segment_peak,
    sort_by_segment,
    sum_between,
)


def segments_of(library, labels):
    keys = library.array(np.arange(float(len(labels))))
    layout = sort_by_segment(library.xp, library.array(labels), keys)
    return layout, library.numpy(layout.order)


def sums_of(library, values, layout):
    return exact_sum(
        library.xp,
        library.array(values),
        lambda limbs: sum_between(library.xp, limbs, layout.first, layout.stop),
        bits=3,
        integer=layout.first.dtype,
    )


def test_sums_are_those_of_the_segment_alone(library, rng):
    values = rng.uniform(-8, 8, 20_000).astype(library.dtype)
    values[5000:15_000] *= 1e-4
    labels = np.sort(rng.integers(0, 3000, 20_000))
    layout, order = segments_of(library, labels)
    assert order.tolist() == list(range(20_000))
    total = sums_of(library, values, layout)
    expected = np.asarray([math.fsum(values[labels == k].tolist()) for k in range(3000)])[labels]
    got = library.numpy(total)
    spacing = np.finfo(library.dtype).eps * np.maximum(np.abs(expected), 1e-4)
    assert np.all(np.abs(got - expected) <= 2 * spacing)

    running = np.concatenate([[0], np.cumsum(values, dtype=library.dtype)])
    naive = running[library.numpy(layout.stop)] - running[library.numpy(layout.first)]
    assert np.abs(naive - expected).max() > 20 * np.abs(got - expected).max()


def test_opposite_values_sum_to_zero(library, rng):
    values = rng.uniform(0, 8, 500)
    values = np.concatenate([values, -values])[rng.permutation(1000)]
    layout, _ = segments_of(library, np.zeros(1000, int))
    total = sums_of(library, values, layout)
    assert not library.numpy(total).any()


def test_peaks_numbers_and_counts_are_those_of_a_loop_over_segments(library, rng):
    labels = rng.choice([-5, 3, 900, 12], 60)
    values = rng.standard_normal(60).astype(library.dtype)
    peak = library.numpy(segment_peak(library.xp, library.array(values), library.array(labels)))
    assert peak.tolist() == [values[labels == k].max() for k in labels]
    numbers = library.numpy(renumber(library.xp, library.array(labels)))
    assert numbers.tolist() == np.searchsorted(np.unique(labels), labels).tolist()
    layout, order = segments_of(library, labels)
    flags = library.array(values[order] > 0)
    counted = library.numpy(count(library.xp, flags, layout.first, layout.stop))
    assert counted.tolist() == [int(np.sum(values[labels == k] > 0)) for k in labels[order]]
    assert np.array_equal(order[library.numpy(layout.inverse)], np.arange(60))
