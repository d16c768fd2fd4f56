"""Vectors of documents and queries, and the FLOPS penalty, against loops in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsejax.contrib import retrieval

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(4, 5, 7)).astype(np.float32)
# All tokens, some, one, none.
MASK = np.arange(5) < np.array([5, 3, 1, 0])[:, None]


def pooled(logits, mask, double=False):
    w = np.zeros((len(logits), logits.shape[-1]))
    for i, j in np.ndindex(w.shape):
        best = max([0.0, *(float(logits[i, t, j]) for t in range(logits.shape[1]) if mask[i, t])])
        w[i, j] = math.log(1 + best)
        w[i, j] = math.log(1 + w[i, j]) if double else w[i, j]
    return w


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("double", [False, True])
def test_pooling_is_a_maximum_over_tokens_and_one_or_two_logarithms(dtype, double):
    logits = jnp.asarray(LOGITS, dtype)
    found = retrieval.splade_pool(logits, MASK, double_log=double)
    wanted = pooled(np.asarray(logits, np.float64), MASK, double)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert not np.any(found[3])  # no tokens
    one = retrieval.splade_pool(logits[1], MASK[1], double_log=double)
    np.testing.assert_array_equal(one, found[1])


def test_padding_changes_nothing_and_gets_no_gradient():
    huge = np.where(MASK[..., None], LOGITS, 1e30)
    total = lambda x: retrieval.splade_pool(x, MASK).sum()  # noqa: E731
    np.testing.assert_array_equal(
        retrieval.splade_pool(jnp.asarray(huge), MASK),
        retrieval.splade_pool(jnp.asarray(LOGITS), MASK),
    )
    grads = np.asarray(jax.grad(total)(jnp.asarray(LOGITS)))
    assert not np.any(grads[~MASK])
    for i, j in np.ndindex(4, 7):
        seen = np.where(MASK[i], LOGITS[i, :, j], -np.inf)
        wanted = np.zeros(5)
        if seen.max() > 0:
            wanted[seen.argmax()] = 1 / (1 + seen.max())
        np.testing.assert_allclose(grads[i, :, j], wanted, rtol=1e-6)
    with pytest.raises(ValueError, match="at least one token"):
        retrieval.splade_pool(jnp.zeros((2, 0, 3)), np.zeros((2, 0), bool))


def test_large_logits_of_float16_stay_finite():
    w = retrieval.splade_pool(jnp.full((1, 1, 2), 6e4, jnp.float16), np.ones((1, 1), bool))
    np.testing.assert_allclose(w, math.log(1 + float(np.float16(6e4))), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pruning_keeps_what_is_strictly_above_the_ratio(dtype):
    w = jnp.asarray([[4.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.5, 0.25]], dtype)
    half = retrieval.prune_vectors(w, 0.5)
    assert half.tolist() == [[4, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]] and half.dtype == dtype
    np.testing.assert_array_equal(retrieval.prune_vectors(w, 0.0), w)
    assert not np.any(retrieval.prune_vectors(w, 1.0))
    traced = jax.jit(retrieval.prune_vectors)(w, 0.5)
    np.testing.assert_array_equal(traced, half)


def test_frequencies_count_documents_once():
    ids, mask = RNG.integers(0, 9, (20, 6)), RNG.random((20, 6)) < 0.7
    wanted = [sum(j in set(row[m].tolist()) for row, m in zip(ids, mask)) for j in range(9)]
    assert retrieval.document_frequencies(ids, mask, 9).tolist() == wanted
    halves = [retrieval.document_frequencies(ids[s], mask[s], 9) for s in (slice(7), slice(7, 20))]
    assert sum(halves).tolist() == wanted
    assert not np.any(
        retrieval.document_frequencies(np.zeros((0, 6), int), np.zeros((0, 6), bool), 9)
    )
    with pytest.raises(ValueError, match="ids must be tokens in"):
        retrieval.document_frequencies(ids, mask, 8)


@pytest.mark.parametrize("many", [16_777_219, 3_000_000_001])
def test_collections_that_float32_and_int32_cannot_count(many):
    n = np.array([0, 7, many])
    wanted = [1.0, *(math.log(1 + (many - x + 0.5) / (x + 0.5)) for x in (7, many))]
    np.testing.assert_allclose(retrieval.idf(n, many), wanted, rtol=1e-5)
    with pytest.raises(ValueError, match=f"got 0 to {many + 1}"):
        retrieval.idf(n + (n == many), many)


def test_the_table_of_ms_marco():
    """Integers n_j of N = 8 841 823 passages, in every order of magnitude."""
    n, many = np.array([0, 1, 7, 1_000, 500_000, 8_000_000, 8_841_823]), 8_841_823
    wanted = [math.log(1 + (many - x + 0.5) / (x + 0.5)) if x else 1.0 for x in n]
    np.testing.assert_allclose(retrieval.idf(n, many), wanted, rtol=1e-5)
    assert float(retrieval.idf(n, many, unseen=0.25)[0]) == 0.25
    assert max(wanted) < 16  # unseen tokens would get more than any other: 16.7
    assert abs(math.log(1 + (many + 0.5) / 0.5) - 16.7) < 0.1
    with pytest.raises(ValueError, match="between 0 and the 5"):
        retrieval.idf(np.array([6]), 5)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_queries_hold_the_weight_of_each_present_token(dtype):
    ids, mask = RNG.integers(0, 8, (12, 6)), RNG.random((12, 6)) < 0.6
    mask[0] = False
    table = jnp.asarray(RNG.normal(size=8), dtype)
    wanted = np.zeros((12, 8))
    for i, (row, m) in enumerate(zip(ids, mask)):
        for j in set(row[m].tolist()) - {2, 5}:
            wanted[i, j] = max(float(table[j]), 0)
    found = retrieval.idf_query(ids, mask, table, special=(2, 5))
    np.testing.assert_array_equal(np.asarray(found, np.float64), wanted)
    assert not np.any(found[0]) and found.dtype == table.dtype
    single = retrieval.idf_query(ids[3], mask[3], table, special=(2, 5))
    np.testing.assert_array_equal(single, found[3])
    for bad in ({"ids": ids + 8}, {"ids": ids - 9}, {"special": (8,)}):
        given = {"ids": ids, "mask": mask, "idf": table} | bad
        with pytest.raises(ValueError, match=next(iter(bad))):
            retrieval.idf_query(**given)


def test_the_table_can_be_learned():
    ids, mask = np.array([[0, 1, 1], [1, 2, 2]]), np.ones((2, 3), bool)
    total = lambda t: retrieval.idf_query(ids, mask, t).sum()  # noqa: E731
    assert jax.grad(total)(jnp.array([1.0, 2.0, -1.0, 4.0])).tolist() == [1, 2, 0, 0]


def penalty(w, idf=None, threshold=None):
    w = np.asarray(w, np.float64).copy()
    if threshold is not None:
        w[(w != 0).sum(-1) <= threshold] = 0
    w = w.reshape(len(w), -1, w.shape[-1])
    total = 0.0
    for g, j in np.ndindex(w.shape[1:]):
        mean = sum(w[:, g, j]) / len(w)
        total += (mean / (1 if idf is None else float(idf[j]))) ** 2
    return total


@pytest.mark.parametrize("shape", [(6, 9), (6, 2, 9), (1, 1, 9)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_penalty_is_a_square_of_means_for_each_slot(shape, dtype):
    w = jnp.asarray(np.maximum(RNG.normal(size=shape), 0), dtype)
    idf = RNG.random(9).astype(np.float32) + 0.1
    for options in ({}, {"threshold": 4}, {"threshold": 0}, {"threshold": 9}):
        for table in (None, idf):
            found = retrieval.flops_loss(w, table, **options)
            assert found.dtype == jnp.float32
            np.testing.assert_allclose(found, penalty(w, table, **options), rtol=1e-5, atol=1e-12)
    with pytest.raises(ValueError, match="idf must be > 0"):
        retrieval.flops_loss(w, np.zeros(9, np.float32))
    with pytest.raises(ValueError, match="at least one document"):
        retrieval.flops_loss(w[:0])


def test_the_weights_of_queries_and_an_idf_aware_penalty_are_the_same_problem():
    """In u = idf w: the scores of plain u, and a penalty that rare tokens hardly pay."""
    w = jnp.asarray(np.maximum(RNG.normal(size=(5, 6)), 0), jnp.float32)
    idf, q = jnp.asarray(RNG.random(6) + 0.5, jnp.float32), jnp.asarray(RNG.random(6) < 0.5)
    u = w * idf
    np.testing.assert_allclose((q * idf) @ w.T, q @ u.T, rtol=1e-5)
    np.testing.assert_allclose(retrieval.flops_loss(w), retrieval.flops_loss(u, idf), rtol=1e-5)


def test_the_ramp_uses_the_next_step():
    ramp = retrieval.quadratic_ramp(0.3, 4)
    wanted = [0.3 * ((t + 1) / 4) ** 2 for t in range(4)] + [0.3] * 3
    np.testing.assert_allclose([ramp(t) for t in range(7)], wanted, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(ramp))(jnp.arange(7)), wanted, rtol=1e-6)
    moved = optax.scale_by_schedule(ramp)
    _, state = moved.update(jnp.ones(()), moved.init(jnp.ones(())))
    assert np.isclose(moved.update(jnp.ones(()), state)[0], wanted[1])
