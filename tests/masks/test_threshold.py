"""Thresholds of scores, against sorting by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj


def energy_by_hand(scores, fraction):
    a = np.maximum(np.sort(np.asarray(scores, np.float64)), 1e-18)
    if max(scores) < 1e-3:
        return 1.0
    share = np.cumsum(a**2) / np.sum(a**2)
    j = int(np.argmax(share > fraction))
    return 0.0 if j == 0 else (a[j - 1] + a[j]) / 2


@pytest.mark.parametrize(
    "scores", [[1.0, 0.001, 2.0], [1.0, 1.0], [1e-4, 2e-4], [0.0, 0.0, 0.5, 0.004, 3.0]]
)
def test_energy_threshold(scores):
    found = sj.masks.energy_threshold(jnp.array(scores))
    np.testing.assert_allclose(found, energy_by_hand(scores, 1e-4), rtol=1e-5)


def test_above_protects_the_largest():
    assert sj.masks.above(jnp.array([0.001, 0.003, 0.003]), at_least=2).tolist() == [
        False,
        True,
        True,
    ]
    assert sj.masks.above(jnp.array([0.02, 0.01, 0.5])).tolist() == [True, False, True]
