"""Drop points, knees, similarities and jumps, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import metrics

GRID = [0.0, 0.2, 0.4, 0.6, 0.8]


def essential(scores, **options):
    return metrics.essential_sparsity(GRID, scores, **options)


def test_the_first_violation_ends_the_range_and_equality_stays():
    assert essential([0.9, 0.89, 0.885, 0.9, 0.9]) == 0.2
    assert essential([0.9] * 5) == 0.8
    assert essential([0.9, 0.9, float("nan"), 0.9, 0.9]) == 0.2
    assert essential([0.9, 0.7, 0.9, 0.9, 0.9]) == 0.0
    assert essential([0.5, 0.5, 0.5, 0.5, 0.5], dense=0.9) == 0.0


def test_relative_and_interpolated():
    scores = [-10.0, -10.05, -10.2, -11.0, -20.0]  # minus log perplexity, say
    assert essential(scores, eps=0.02, relative=True) == 0.4
    # The line from (0.2, 0.90) to (0.4, 0.88) crosses 0.89 at 0.3.
    crossed = essential([0.9, 0.9, 0.88, 0.5, 0.1], interpolate=True)
    assert crossed == pytest.approx(0.3)


def test_seeds_are_averaged_first():
    scores = np.array([[0.9, 0.9], [0.88, 0.92], [0.8, 0.9], [0.5, 0.5], [0.1, 0.1]])
    assert essential(scores) == 0.2


def test_the_knee_is_farthest_from_the_chord():
    assert metrics.knee(GRID, [0.9, 0.9, 0.9, 0.9, 0.1]) == 3
    assert metrics.knee(GRID, [0.5] * 5) == 0
    assert metrics.knee(GRID, [1.0, 0.75, 0.5, 0.25, 0.0]) == 0
    assert metrics.knee(GRID, [1.0, 0.2, 0.1, 0.05, 0.0]) == 0  # below its chord


def test_similarities():
    a, b = jnp.array([True, True, True, False]), jnp.array([False, True, False, True])
    of = lambda kind: metrics.mask_similarity({"w": a}, {"w": b}, kind)  # noqa: E731
    assert of("cosine") == pytest.approx(1 / np.sqrt(6))
    assert of("jaccard") == 0.25 and of("overlap") == 0.5
    none = jnp.zeros(4, bool)
    assert metrics.mask_similarity(none, none) == 1 and metrics.mask_similarity(a, none) == 0
    with pytest.raises(ValueError, match="differ in shape"):
        metrics.mask_similarity(a, b[:2])


def test_jumps():
    assert metrics.abrupt_change([0, 1, 2, 3, 4]) == -1
    assert metrics.abrupt_change([0, 100, 110, 120]) == -1  # the first increase is no jump
    assert metrics.abrupt_change([0, 5, 10, 900, 905, 2800]) == 3


def test_what_is_refused():
    with pytest.raises(ValueError, match="dense="):
        metrics.essential_sparsity([0.1, 0.2], [0.5, 0.4])
    with pytest.raises(ValueError, match="increase"):
        metrics.essential_sparsity([0.0, 0.0], [0.5, 0.4])
    with pytest.raises(ValueError, match="shape"):
        metrics.essential_sparsity([0.0, 0.1], [0.5])
