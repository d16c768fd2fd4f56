"""Candidates, ensembles and ranking losses against loops and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp, rel_entr, softmax

from sparsejax.contrib import retrieval

RNG = np.random.default_rng(0)
S, T = RNG.normal(size=(2, 5, 4)).astype(np.float32) * 3


@pytest.mark.parametrize("batch, slots", [(1, 2), (2, 1), (4, 3)])
def test_candidates_are_own_documents_then_others(batch, slots):
    scores = RNG.normal(size=(batch, batch, slots)).astype(np.float32)
    start = {"own": slots, "negatives": 1, "all": 0}
    for which, first in start.items():
        wanted = []
        for i in range(batch):
            later = [scores[i, (i + n) % batch][first:] for n in range(1, batch)]
            wanted.append(np.concatenate([scores[i, i], *later]))
        if len(wanted[0]) < 2:
            with pytest.raises(ValueError, match="fewer than two"):
                retrieval.candidate_scores(scores, which)
            continue
        np.testing.assert_array_equal(retrieval.candidate_scores(scores, which), wanted)


def test_no_positive_document_of_another_query_is_a_negative():
    scores = np.zeros((3, 3, 2), np.float32)
    scores[:, :, 0] = 100  # every query prefers all positive documents
    assert np.sort(retrieval.candidate_scores(scores, "negatives"))[0].tolist() == [0, 0, 0, 100]


def test_the_ensemble_is_a_mean_of_unit_ranges():
    one, two = np.asarray(S, np.float64), 40 * np.asarray(T, np.float64)
    wanted = np.zeros(S.shape)
    for i, j in np.ndindex(S.shape):
        for s in (one, two):
            wanted[i, j] += (s[i, j] - min(s[i])) / (max(s[i]) - min(s[i]) + 1e-6) * 15
    found = retrieval.ensemble_scores([S, 40 * T])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    same = retrieval.ensemble_scores([np.full((2, 3), 7, np.float32)])
    assert not np.any(same)  # a uniform target
    grads = jax.grad(lambda s: retrieval.ensemble_scores([s, S]).sum())(jnp.asarray(T))
    assert not np.any(grads)
    for bad in ([], [S, T[:2]], [S[0], T[0]]):
        with pytest.raises(ValueError, match="scores must"):
            retrieval.ensemble_scores(bad)


def test_both_teachers_count_alike_whatever_their_units():
    """Ranks of the mean correlate with both; without the normalisation with the larger only."""
    dense = RNG.normal(size=(200, 30)).astype(np.float32)
    sparse = 40 * RNG.normal(size=(200, 30)).astype(np.float32)

    def agreement(mean):
        each = [[stats.spearmanr(m, t).statistic for m, t in zip(mean, teacher)]
                for teacher in (dense, sparse)]  # fmt: skip
        return np.mean(each, axis=1)

    plain, normalised = agreement(dense + sparse), agreement(
        np.asarray(retrieval.ensemble_scores([dense, sparse]))
    )  # fmt: skip
    assert abs(normalised[0] - normalised[1]) < 0.05 and normalised.min() > 0.6
    assert plain[0] < 0.1 and plain[1] > 0.99


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_distillation_is_a_relative_entropy(temperature):
    s, t = (softmax(x.astype(np.float64) / temperature, axis=1) for x in (S, T))
    found = retrieval.kl_distill(S, T, temperature)
    np.testing.assert_allclose(found, rel_entr(t, s).sum(1).mean(), rtol=1e-5)
    assert abs(float(retrieval.kl_distill(S, S + 3))) < 1e-6
    grads = jax.grad(retrieval.kl_distill, argnums=(0, 1))(jnp.asarray(S), jnp.asarray(T))
    p, q = (softmax(x.astype(np.float64), axis=1) for x in (S, T))
    np.testing.assert_allclose(grads[0], (p - q) / len(S), atol=1e-6)
    assert not np.any(grads[1])
    far = np.array([[0.0, 1e4]], np.float32)  # softmax underflows
    np.testing.assert_allclose(retrieval.kl_distill(-far, far), 1e4, rtol=1e-5)


def test_info_nce_and_margins():
    s, t = S.astype(np.float64), T.astype(np.float64)
    wanted = np.mean(logsumexp(s, axis=1) - s[:, 0])
    np.testing.assert_allclose(retrieval.info_nce(S), wanted, rtol=1e-5)
    margins = [(s[i, 0] - s[i, j] - t[i, 0] + t[i, j]) ** 2 for i in range(5) for j in range(1, 4)]
    np.testing.assert_allclose(retrieval.margin_mse(S, T), np.mean(margins), rtol=1e-5)
    assert not np.any(jax.grad(retrieval.margin_mse, argnums=1)(jnp.asarray(S), jnp.asarray(T)))
    low = jnp.asarray(S, jnp.bfloat16)
    found = retrieval.info_nce(low)
    wide = np.asarray(low, np.float64)
    np.testing.assert_allclose(found, np.mean(logsumexp(wide, axis=1) - wide[:, 0]), rtol=1e-5)
    for loss in (retrieval.kl_distill, retrieval.margin_mse):
        with pytest.raises(ValueError, match="scores"):
            loss(S[:0], T[:0])
        with pytest.raises(ValueError, match="axis 'm'"):
            loss(S, T[:, :2])
    with pytest.raises(ValueError, match="scores"):
        retrieval.info_nce(S[:, :0])
    with pytest.raises(ValueError, match="at least 2"):
        retrieval.margin_mse(S[:, :1], T[:, :1])


def test_distillation_leaves_out_documents_of_score_minus_infinity():
    student, teacher = (np.array([[*s, -np.inf]], np.float32) for s in ([1.0, 2.0], [0.0, 3.0]))
    f = jax.jit(jax.value_and_grad(retrieval.kl_distill))
    for scores, out in ((student, [0.0]), (np.float32([[1, 2, -9]]), None)):
        value, slope = f(scores, teacher)
        p, q = np.exp([0, 3]) / np.exp([0, 3]).sum(), jax.nn.softmax(scores)[0]
        np.testing.assert_allclose(value, np.sum(p * np.log(p / q[:2])), rtol=1e-5)
        np.testing.assert_allclose(slope[0], q - np.array([*p, 0]), atol=1e-6)
        assert out is None or slope[0, 2] == 0
    assert f(student, np.float32([[0, 3, 0]]))[0] == np.inf
    assert np.isnan(f(student, np.float32([[0, np.nan, 0]]))[0])
    assert np.isnan(f(np.float32([[np.nan, 0, 0]]), teacher)[0])
