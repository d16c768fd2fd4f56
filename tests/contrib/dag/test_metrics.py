"""Distances of graphs against enumeration, and against effects computed from random models."""

import itertools

import numpy as np
import pytest

from sparsejax.contrib.dag import cpdag, edge_scores, shd, shd_cpdag, sid


def random_dag(rng, d, density):
    order = rng.permutation(d)
    return np.triu(rng.random((d, d)) < density, 1)[order][:, order]


def all_dags(d):
    pairs = list(itertools.combinations(range(d), 2))
    for kinds in itertools.product(range(3), repeat=len(pairs)):
        graph = np.zeros((d, d), int)
        for (i, j), kind in zip(pairs, kinds):
            graph[i, j], graph[j, i] = kind == 1, kind == 2
        if not np.linalg.matrix_power(graph, d).any():
            yield graph.astype(bool)


def colliders(graph):
    joined = graph | graph.T
    return {
        (i, j, k)
        for j in range(len(graph))
        for i, k in itertools.combinations(np.flatnonzero(graph[:, j]), 2)
        if not joined[i, k]
    }


def effect_is_wrong(rng, i, j, given, truth):
    """Regression of j on i and the given nodes against the total effect, for random weights."""
    d = len(truth)
    weights = truth * rng.uniform(0.5, 1.5, (d, d)) * rng.choice([-1, 1], (d, d))
    total = np.linalg.inv(np.eye(d) - weights)
    if given[j]:
        return abs(total[i, j]) > 1e-9
    covariance = total.T @ np.diag(rng.uniform(0.5, 2.0, d)) @ total
    use = [i, *np.flatnonzero(given)]
    slope = np.linalg.solve(covariance[np.ix_(use, use)], covariance[use, j])[0]
    return abs(slope - total[i, j]) > 1e-7


@pytest.mark.parametrize("d, density", [(4, 0.6), (6, 0.4), (8, 0.35), (9, 0.6)])
def test_sid_counts_the_effects_that_come_out_wrong(d, density):
    rng = np.random.default_rng(d)
    for _ in range(6):
        truth, found = random_dag(rng, d, density), random_dag(rng, d, density)
        wrong = sum(
            effect_is_wrong(rng, i, j, found[:, i], truth)
            for i in range(d)
            for j in range(d)
            if i != j
        )
        assert sid(found, truth) == wrong
        assert sid(truth, truth) == 0


def test_sid_of_the_worked_example_of_its_authors():
    truth = np.zeros((5, 5), int)
    truth[0, 1:] = truth[1, 2:] = 1
    extra, reversed_ = truth.copy(), truth.copy()
    extra[2, 3] = 1
    reversed_[0, 1], reversed_[1, 0] = 0, 1
    assert (sid(extra, truth), sid(reversed_, truth)) == (0, 8)
    assert (shd(extra, truth), shd(reversed_, truth)) == (1, 1)


def test_cpdag_is_what_all_equivalent_graphs_agree_on():
    classes = {}
    for graph in all_dags(4):
        key = (graph | graph.T).tobytes(), frozenset(colliders(graph))
        classes.setdefault(key, []).append(graph)
    assert sum(map(len, classes.values())) == 543
    for members in classes.values():
        union = np.any(members, axis=0)
        for graph in members:
            np.testing.assert_array_equal(cpdag(graph), union)
        assert shd_cpdag(members[0], members[-1]) == 0


def test_counts_by_hand():
    truth = np.zeros((4, 4), int)
    truth[0, 1] = truth[1, 2] = truth[2, 3] = 1
    found = np.zeros((4, 4), float)
    found[0, 1], found[2, 1], found[0, 3] = 0.7, -0.2, 1.0  # right, reversed, false; 2 -> 3 missing
    scores = edge_scores(found, truth)
    assert scores == pytest.approx((1 / 3, 2 / 3, 2 / 3, 1, 3))
    assert shd(found, truth) == 3
    empty = np.zeros((4, 4))
    assert edge_scores(empty, truth) == (0.0, 0.0, 0.0, 0, 0)
    assert shd(empty, truth) == 3 and sid(empty, empty) == 0


def test_invalid_graphs_raise():
    with pytest.raises(ValueError, match="square"):
        shd(np.zeros((2, 3)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="cycle"):
        sid(np.zeros((2, 2)), np.ones((2, 2)))
