"""The taxonomy of known methods from their masks."""

import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.reporting import taxonomy

FULL = np.ones(10, bool)


def keep(*kept):
    return np.isin(np.arange(10), kept)


METHODS = {
    "random or SNIP": ([keep(1, 2)] * 5, "before", "sparse-to-sparse", "static"),
    "one-shot": ([FULL] * 4 + [keep(1, 2)], "after", "dense-to-sparse", "static"),
    "gradual": (
        [FULL, keep(1, 2, 3, 4), keep(1, 2), keep(1, 2)],
        "during",
        "dense-to-sparse",
        "shrinking",
    ),
    "SET, RigL": (
        [keep(1, 2), keep(2, 3), keep(3, 4), keep(3, 4)],
        "during",
        "sparse-to-sparse",
        "dynamic",
    ),
    "GraNet": (
        [keep(1, 2, 3, 4), keep(2, 3, 5), keep(3, 4), keep(3, 4)],
        "during",
        "dense-to-sparse",
        "dynamic",
    ),
    "dense": ([FULL] * 3, "before", "sparse-to-sparse", "static"),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods(name):
    masks, appears, weights, over_time = METHODS[name]
    found = taxonomy([{"kernel": jnp.asarray(m)} for m in masks])
    assert (found.appears, found.weights, found.over_time) == (appears, weights, over_time)
    assert found.explored == np.any(masks, axis=0).mean()


def test_a_straight_through_estimator_holds_dense_weights():
    masks = [keep(1, 2), keep(2, 3)]
    assert taxonomy(masks).weights == "sparse-to-sparse"
    assert taxonomy(masks, dense_weights=True).weights == "dense-to-sparse"


def test_the_last_change_in_steps():
    found = taxonomy({0: FULL, 100: keep(1, 2, 3), 750: keep(1, 2), 1000: keep(1, 2)})
    assert found.last_change == 0.75
    np.testing.assert_allclose(found.flips, (0.7 + 0.1 + 0) / 3)


def test_a_report_is_no_history():
    with pytest.raises(TypeError):
        taxonomy(object())  # pyright: ignore
