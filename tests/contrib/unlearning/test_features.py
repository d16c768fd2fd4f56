"""Features of predictions against their definitions, and attacks on several of them."""

import jax
import numpy as np
import pytest

from sparsejax.contrib.unlearning import membership_attack, membership_features


def test_against_the_definitions():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), size=6).astype(np.float32)
    p[0] = [0, 0, 1, 0]
    y = rng.integers(0, 4, 6)
    y[0] = 2
    found = membership_features(p, y)
    for i, (row, label) in enumerate(zip(p.astype(np.float64), y)):
        others = [c for c in range(4) if c != label]
        assert found.confidence[i] == row[label]
        assert found.correctness[i] == (row.argmax() == label)
        entropy = -sum(q * np.log(q) for q in row if q > 0)
        modified = -(1 - row[label]) * np.log(row[label]) - sum(
            row[c] * np.log1p(-row[c]) for c in others
        )
        assert found.entropy[i] == pytest.approx(entropy, abs=1e-12)
        assert found.modified_entropy[i] == pytest.approx(modified, abs=1e-12)
    # Confident and wrong: the largest value, and finite.
    wrong = membership_features(np.eye(2, dtype=np.float32)[[0]], np.array([1]))
    assert wrong.modified_entropy[0] == pytest.approx(2 * 30 * np.log(10), rel=1e-6)
    assert wrong.entropy[0] == 0


def test_attacks_take_several_columns():
    rng = np.random.default_rng(1)
    inside, outside = rng.normal(0, 1, (40, 2)), rng.normal(6, 1, (40, 2))
    targets = np.array([[0.0, 0.0], [6.0, 6.0], [6.5, 5.5], [0.5, -0.5]])
    assert membership_attack(inside, outside, targets, attack="svc") == 0.5
    with pytest.raises(ValueError, match="several columns"):
        membership_attack(inside, outside, targets)


@pytest.mark.parametrize("p", [[[0.5, 0.6]], [[1.5, -0.5]], [[np.nan, 1.0]]])
def test_what_is_no_distribution_is_refused(p):
    with pytest.raises(ValueError, match="membership_features: row 0"):
        membership_features(np.array(p, np.float32), jax.numpy.array([0]))
