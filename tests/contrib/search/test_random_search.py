"""Random search against looking at every candidate, and the paired comparison."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import ttest_rel

import sparsejax as sj
from sparsejax.contrib import search
from sparsejax.contrib.search._random_search import _paired_test
from tests._problem import DATA, PARAMS, TEST, accuracy, loss, mlp, same, train

KEY = jax.random.key(5)
PLAN = sj.plan(PARAMS, sj.Unstructured(0.8))


def sample(key):
    return PLAN.masks(sj.masks.random(PARAMS, key=key))


def first_loss(params, masks):
    del masks
    return loss(params, DATA)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, 4])
def test_the_winner_has_the_least_loss(batch_size):
    jitted = jax.jit(
        lambda key: search.random_search(
            PARAMS, first_loss, sample, key=key, candidates=10, batch_size=batch_size
        )
    )
    found = jitted(KEY)
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


@pytest.mark.slow
def test_the_comparison_is_paired():
    def start(key):
        return mlp(key)

    def draw(key, params, sparsity):
        graph = sj.nn.surgery.channel_graph(params)
        nodes = search.random_nodes(graph, sparsity, key=key)
        return sj.nn.surgery.mask_channels(params, graph, nodes)

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
    assert (row.difference, row.statistic, row.p_value) == _paired_test(row.searched, row.random)


def test_the_paired_test_is_scipys_also_without_variance():
    rng = np.random.default_rng(0)
    for n in (2, 5, 30):
        a, b = rng.normal(size=(2, n)).astype(np.float32)
        found, exact = _paired_test(jnp.asarray(a), jnp.asarray(b)), ttest_rel(a, b)
        np.testing.assert_allclose(found, (np.mean(a - b), *exact), rtol=1e-3)
    assert _paired_test(jnp.ones(4), jnp.ones(4)) == (0, 0, 1)
    assert _paired_test(jnp.ones(4), jnp.zeros(4)) == (1, np.inf, 0)


def test_mistakes():
    with pytest.raises(TypeError, match=r"called as loss\(params, masks\)"):
        search.random_search(PARAMS, lambda p: 0.0, sample, key=KEY)
    with pytest.raises(ValueError, match="candidates=0"):
        search.random_search(PARAMS, first_loss, sample, key=KEY, candidates=0)
    with pytest.raises(ValueError, match="trials=1"):
        search.compare_random_search(
            mlp, lambda key, params, sparsity: None, first_loss, train, key=KEY, trials=1
        )
