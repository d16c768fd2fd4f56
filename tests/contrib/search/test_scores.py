"""Learned masks: counts, straight-through gradients by hand, scores that start at magnitude."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj
from sparsejax.contrib import search

KEYS = jax.random.split(jax.random.key(0), 3)
W, S, X = (jax.random.normal(k, s) for k, s in zip(KEYS, [(8, 8), (8, 8), (5, 8)]))
PARAMS = {"a": {"kernel": W, "bias": jnp.ones(8)}, "b": {"kernel": 2 * W}}


@pytest.mark.parametrize("sparsity, kept", [(0.0, 64), (0.7, 20), (0.99, 1), (1.0, 0)])
def test_the_mask_is_zero_or_one(sparsity, kept):
    mask = np.asarray(search.score_mask(S, sj.Unstructured(sparsity)))
    assert set(np.unique(mask)) <= {0.0, 1.0} and mask.sum() == kept
    order = np.argsort(-np.abs(np.asarray(S)).ravel(), kind="stable")
    np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(order[:kept]))


@pytest.mark.parametrize("n", [1, 7, 10, 30, 50, 100, 101])
def test_the_counts_are_the_papers(n):
    """n - floor((1 - k) n), in integers: never empty, also where nearest would be."""
    for percent in (1, 10, 29, 30, 50, 90, 99):
        scores, pattern = jnp.arange(1.0, n + 1), sj.Unstructured(percent / 100)
        assert int(search.score_mask(scores, pattern).sum()) == n - percent * n // 100
    nearest = search.score_mask(scores, pattern, rounding="nearest")
    assert int(nearest.sum()) == n - round(0.99 * n)


def test_equal_scores_keep_the_lower_index():
    mask = search.score_mask(jnp.ones((4, 4)), sj.Unstructured(0.75))
    assert np.flatnonzero(mask).tolist() == [0, 1, 2, 3]


def test_gradients_are_the_papers():
    pattern = sj.Unstructured(0.7)
    scores = S.at[0, 0].set(0.0)
    target = jnp.ones((5, 8))

    def loss(w, s):
        return jnp.sum((X @ (w * search.score_mask(s, pattern)) - target) ** 2)

    by_w, by_s = jax.grad(loss, (0, 1))(W, scores)
    mask = np.asarray(search.score_mask(scores, pattern))
    effective = 2 * np.asarray(X).T @ (np.asarray(X) @ (np.asarray(W) * mask) - 1)
    np.testing.assert_allclose(by_w, effective * mask, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(by_s, effective * W * np.sign(scores), rtol=1e-4, atol=1e-4)
    assert by_s[0, 0] == 0 and np.count_nonzero(by_s) == 63


def test_scores_start_where_magnitude_is():
    plan = sj.plan(PARAMS, sj.Unstructured(0.8), allocate=sj.masks.erk)
    scores = search.scaled_scores(PARAMS, plan)
    largest = np.abs(np.asarray(W)).max()
    np.testing.assert_allclose(scores["a"]["kernel"], np.sqrt(6 / 8) * W / largest, rtol=1e-6)
    np.testing.assert_allclose(scores["b"]["kernel"], scores["a"]["kernel"], rtol=1e-6)
    seen = search.apply_scores(PARAMS, scores, plan)
    expected = sj.masks.apply_masks(PARAMS, plan.masks(sj.masks.magnitude(PARAMS)))
    jax.tree.map(np.testing.assert_array_equal, seen, expected)
    nothing = search.scaled_scores({"kernel": jnp.zeros((4, 4))}, sj.plan({"kernel": W[:4, :4]},
                                     sj.Unstructured(0.5)))  # fmt: skip
    assert not np.any(nothing["kernel"])


def test_fan_in_of_convolutions_and_stacks():
    conv, stacked = jnp.ones((3, 3, 2, 4)), jnp.stack([W, 3 * W])
    tree = {"conv": {"kernel": conv}, "stack": {"kernel": stacked}}
    rules = {"conv": sj.Unstructured(0.5), "stack": sj.Unstructured(0.5, stacked=1)}
    scores = search.scaled_scores(tree, sj.plan(tree, rules))
    np.testing.assert_allclose(scores["conv"]["kernel"], np.sqrt(6 / 18), rtol=1e-6)
    np.testing.assert_allclose(*scores["stack"]["kernel"], rtol=1e-6)


def test_mistakes():
    plan = sj.plan(PARAMS, sj.Unstructured(0.5))
    with pytest.raises(ValueError, match="a/kernel of shape .* needs scores and has none"):
        search.apply_scores(PARAMS, {"b": {"kernel": S}}, plan)
    together = sj.plan(PARAMS, sj.Unstructured(0.5), allocate=sj.masks.joint)
    with pytest.raises(ValueError, match="compared within a leaf"):
        search.apply_scores(PARAMS, search.scaled_scores(PARAMS, plan), together)
