"""Metrics of rankings against scikit-learn and loops."""

import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from sparsejax.contrib import retrieval

RNG = np.random.default_rng(0)


def ranked(scores, k):
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def relevant_of(gains):
    """The documents with a gain, padded with -1, and their gains."""
    most = max((gains > 0).sum(1).max(), 1)
    documents, values = np.full((len(gains), most), -1), np.zeros((len(gains), most), np.float32)
    for i, row in enumerate(gains):
        at = RNG.permutation(np.flatnonzero(row))  # in any order
        documents[i, : len(at)], values[i, : len(at)] = at, row[at]
    return documents, values


@pytest.mark.parametrize("k", [1, 3, 10, 50])
@pytest.mark.parametrize("graded", [False, True])
def test_ndcg_is_that_of_scikit_learn(k, graded):
    gains = RNG.integers(0, 4 if graded else 2, (30, 20)) * (RNG.random((30, 20)) < 0.3)
    gains[0] = 0  # nothing is relevant
    scores = RNG.permuted(np.tile(np.arange(20.0), (30, 1)), axis=1)  # no ties
    documents, values = relevant_of(gains)
    found = retrieval.ndcg(ranked(scores, 20), documents, values if graded else None, k=k)
    wanted = [ndcg_score(g[None], s[None], k=k) for g, s in zip(gains, scores)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert float(found[0]) == 0


def test_metrics_of_short_lists():
    """Fewer hits than k, none at all, relevant documents that are not found."""
    found = np.array([[4, 2, -1, -1], [-1, -1, -1, -1], [0, 1, 2, 3], [7, 8, 9, 4]])
    relevant = np.array([[2, 5], [2, -1], [3, 1], [-1, -1]])
    ideal = 1 + 1 / math.log2(3)
    ndcg = [1 / math.log2(3) / ideal, 0, (1 / math.log2(3) + 1 / math.log2(5)) / ideal, 0]
    np.testing.assert_allclose(retrieval.ndcg(found, relevant), ndcg, rtol=1e-6)
    assert retrieval.recall(found, relevant).tolist() == [0.5, 0, 1, 0]
    assert retrieval.recall(found, relevant, k=2).tolist() == [0.5, 0, 0.5, 0]
    assert retrieval.reciprocal_rank(found, relevant).tolist() == [0.5, 0, 0.5, 0]
    assert retrieval.reciprocal_rank(found, relevant, k=1).tolist() == [0, 0, 0, 0]
    empty = np.zeros((4, 0), int)
    for metric in (retrieval.ndcg, retrieval.recall, retrieval.reciprocal_rank):
        assert not np.any(metric(empty, relevant)) and not np.any(metric(found, empty))
    with pytest.raises(ValueError, match="gains"):
        retrieval.ndcg(found, relevant, -np.ones((4, 2)))


def test_a_document_found_again_counts_once():
    found, relevant = np.array([[3, 3, 3, 5]]), np.array([[3, 5]])
    expected = (1 + 1 / math.log2(5)) / (1 + 1 / math.log2(3))
    np.testing.assert_allclose(retrieval.ndcg(found, relevant), [expected], rtol=1e-6)
    assert retrieval.recall(found, relevant, k=3).tolist() == [0.5]
    graded = retrieval.ndcg(found[:, :2], np.array([[3]]), np.array([[7.0]]))
    assert graded.tolist() == [1.0]


@pytest.mark.parametrize("k", [1, 4, 9])
def test_recall_and_reciprocal_ranks_are_those_of_sets(k):
    scores, gains = RNG.normal(size=(40, 15)), (RNG.random((40, 15)) < 0.2).astype(int)
    hits, (documents, _) = ranked(scores, 15), relevant_of(gains)
    recall, rank = [], []
    for row, gain in zip(hits, gains):
        wanted, first = set(np.flatnonzero(gain)), row[:k].tolist()
        recall.append(len(wanted & set(first)) / max(len(wanted), 1))
        at = [i + 1 for i, d in enumerate(first) if d in wanted]
        rank.append(1 / at[0] if at else 0)
    np.testing.assert_allclose(retrieval.recall(hits, documents, k=k), recall, rtol=1e-6)
    np.testing.assert_allclose(retrieval.reciprocal_rank(hits, documents, k=k), rank, rtol=1e-6)


def test_numbers_of_documents_do_not_wrap():
    large = np.array([[2**31 + 5]])
    for metric in (retrieval.ndcg, retrieval.recall, retrieval.reciprocal_rank):
        for given in ({"found": large, "relevant": large % 7}, {"found": large % 7,
                                                                "relevant": large}):  # fmt: skip
            with pytest.raises(ValueError, match="number the documents from 0"):
                metric(**given)


def test_flops_count_the_products_of_a_pair():
    q, w = RNG.random((7, 11)) * (RNG.random((7, 11)) < 0.4), RNG.normal(size=(9, 11))
    w = w * (RNG.random((9, 11)) < 0.5)
    pairs = [np.sum((a != 0) & (b != 0)) for a in q for b in w]
    np.testing.assert_allclose(retrieval.flops(q, w), np.mean(pairs), rtol=1e-6)
    with pytest.raises(ValueError, match="must not be empty"):
        retrieval.flops(q[:0], w)
