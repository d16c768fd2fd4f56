"""Random search against looking at every candidate, and the paired comparison."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import ttest_rel

import sparsejax as sj
from sparsejax.contrib import search
from sparsejax.contrib.search import paired_t_test
from tests._problem import DATA, PARAMS, TEST, accuracy, loss, mlp, same, train

KEY = jax.random.key(5)
PLAN = sj.plan(PARAMS, sj.Unstructured(0.8))


def sample(key):
    return PLAN.masks(sj.masks.random(PARAMS, key))


def first_loss(params, masks):
    del masks
    return loss(params, DATA)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_the_winner_has_the_least_loss(batch_size):
    search = jax.jit(
        lambda key: search.random_search(
            PARAMS, first_loss, sample, key=key, candidates=10, batch_size=batch_size
        )
    )
    found = search(KEY)
    masks = [sample(key) for key in jax.random.split(KEY, 10)]
    losses = [float(loss(sj.masks.apply_masks(PARAMS, m), DATA)) for m in masks]
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)
    assert int(found.index) == int(np.argmin(losses))
    assert same(found.masks, masks[int(found.index)])


def test_nan_ranks_last_and_the_first_of_equals_wins():
    kept = lambda masks: masks["layer_0"]["kernel"][0, 0]  # noqa: E731
    found = search.random_search(
        PARAMS, lambda p, m: jnp.where(kept(m), jnp.nan, 1.0), sample, key=KEY, candidates=20
    )
    losses = np.asarray(found.losses)
    assert np.isnan(losses).any() and int(found.index) == np.argmax(losses == 1)


def test_the_comparison_is_paired():
    def start(key):
        return mlp(key)

    def draw(key, params, sparsity):
        return sj.nn.surgery.edges_from_nodes(params, sj.nn.surgery.node_masks(key, [16], sparsity))

    def score(params, masks, key):
        return accuracy(train(params, masks, key), TEST)

    (row,) = search.compare_random_search(
        start, draw, first_loss, score, key=KEY, sparsities=[0.5], trials=3, candidates=5
    )
    assert row.sparsity == 0.5 and row.losses.shape == (3, 5)
    for trial, key in enumerate(jax.random.split(KEY, 3)):
        k_start, k_search, k_random, k_train = jax.random.split(key, 4)
        params = start(k_start)
        own = lambda key, params=params: draw(key, params, 0.5)  # noqa: E731
        found = search.random_search(params, first_loss, own, key=k_search, candidates=5)
        for result, masks in (
            (row.searched, found.masks), (row.random, own(k_random)), (row.dense, None)
        ):  # fmt: skip
            np.testing.assert_allclose(result[trial], score(params, masks, k_train), atol=0.02)
    assert row.final == paired_t_test(row.searched, row.random)


def test_paired_t_test_is_scipys():
    rng = np.random.default_rng(0)
    for n in (2, 5, 30):
        a, b = rng.normal(size=(2, n)).astype(np.float32)
        found, exact = paired_t_test(jnp.asarray(a), jnp.asarray(b)), ttest_rel(a, b)
        np.testing.assert_allclose(found.statistic, exact.statistic, rtol=1e-3)
        np.testing.assert_allclose(found.p_value, exact.pvalue, rtol=1e-3)
    equal = paired_t_test(jnp.ones(4), jnp.ones(4))
    assert float(equal.p_value) == 1 and float(equal.statistic) == 0
    assert float(paired_t_test(jnp.ones(4), jnp.zeros(4)).p_value) == 0
    with pytest.raises(ValueError, match="two or more trials"):
        paired_t_test(jnp.ones(3), jnp.ones(4))


def test_mistakes():
    with pytest.raises(TypeError, match=r"called as loss\(params, masks\)"):
        search.random_search(PARAMS, lambda p: 0.0, sample, key=KEY)
    with pytest.raises(ValueError, match="candidates=0"):
        search.random_search(PARAMS, first_loss, sample, key=KEY, candidates=0)
    with pytest.raises(ValueError, match="trials=1"):
        search.compare_random_search(
            mlp, lambda key, params, sparsity: None, first_loss, train, key=KEY, trials=1
        )
