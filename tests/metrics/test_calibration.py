"""Calibration against scikit-learn and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import metrics


def predictions(n=400, classes=5, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, classes))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return p.astype(dtype), rng.integers(0, classes, n)


def loop_bins(p, labels, bins):
    """(count, confidence, accuracy) of the bins (a, b], by a loop over samples."""
    gathered = [[] for _ in range(bins)]
    for row, label in zip(p, labels):
        top = row.max()
        inside = [
            b
            for b in range(bins)
            if np.float32(b / bins) < top <= np.float32((b + 1) / bins) or (b == 0 and top == 0)
        ]
        gathered[inside[0]].append((top, row.argmax() == label))
    return [(len(g), *(np.mean(g, axis=0) if g else (0, 0))) for g in gathered]


@pytest.mark.parametrize("bins", [1, 15])
def test_reliability_ece_and_mce_against_a_loop(bins):
    p, labels = predictions()
    found = loop_bins(p, labels, bins)
    curve = metrics.reliability(p, labels, bins)
    np.testing.assert_array_equal(curve.count, [f[0] for f in found])
    np.testing.assert_allclose(curve.confidence, [f[1] for f in found], rtol=1e-5)
    np.testing.assert_allclose(curve.accuracy, [f[2] for f in found], rtol=1e-5)
    gaps = [(n, abs(a - c)) for n, c, a in found if n]
    ece = sum(n * g for n, g in gaps) / len(labels)
    np.testing.assert_allclose(
        metrics.expected_calibration_error(p, labels, bins), ece, rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(
        metrics.maximum_calibration_error(p, labels, bins), max(g for _, g in gaps), rtol=1e-5
    )


@pytest.mark.slow
def test_bins_are_closed_on_the_right():
    p = np.array([[0.5, 0.5], [1.0, 0.0]], np.float32)
    curve = metrics.reliability(p, np.array([0, 0]), bins=4)
    assert curve.count.tolist() == [0, 1, 0, 1]
    for bins in (3, 10, 15):  # every edge belongs to the bin that ends there
        edges = metrics.reliability(p, np.array([0, 0]), bins).edges
        tops = np.asarray(edges[1:])
        rows = np.stack([tops, np.zeros_like(tops)], 1)
        assert metrics.reliability(rows, np.zeros(bins, int), bins).count.tolist() == [1] * bins


def test_probability_zero_is_in_the_first_bin():
    curve = metrics.reliability(jnp.zeros((3, 2)), jnp.zeros(3, int), bins=5)
    assert curve.count.tolist() == [3, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "name",
    [
        "expected_calibration_error",
        "maximum_calibration_error",
    ],
)
def test_jit_vmap_and_half_precision(name):
    p, labels = map(jnp.asarray, predictions())
    metric = getattr(metrics, name)
    np.testing.assert_allclose(jax.jit(metric)(p, labels), metric(p, labels), rtol=1e-6)
    stacked = jax.jit(jax.vmap(metric))(p.reshape(4, 100, 5), labels.reshape(4, 100))
    np.testing.assert_allclose(stacked[1], metric(p[100:200], labels[100:200]), rtol=1e-6)
    half = metric(p.astype(jnp.bfloat16), labels)
    assert half.dtype == jnp.float32 and abs(half - metric(p, labels)) < 0.02


def test_logits_and_empty_samples_are_refused():
    with pytest.raises(ValueError, match="softmax"):
        metrics.expected_calibration_error(jnp.array([[3.0, -1.0]]), jnp.array([0]))
    with pytest.raises(ValueError, match="no samples"):
        metrics.maximum_calibration_error(jnp.zeros((0, 3)), jnp.zeros(0, int))
    with pytest.raises(ValueError, match="bins must be a number in .1, inf., got 0"):
        metrics.reliability(jnp.ones((1, 1)), jnp.zeros(1, int), bins=0)


@pytest.mark.parametrize("labels", [[0, 2], [-1, 0]])
def test_labels_that_do_not_fit_are_refused(labels):
    p = jnp.full((2, 2), 0.5)
    for measure in (metrics.expected_calibration_error, metrics.maximum_calibration_error):
        with pytest.raises(ValueError, match="labels must be in 0 to 1 .* got"):
            measure(p, jnp.array(labels))


def test_known_labels_inside_jit():
    p, labels = map(jnp.asarray, predictions())
    measure = metrics.expected_calibration_error
    np.testing.assert_allclose(
        jax.jit(lambda p: measure(p, labels))(p), measure(p, labels), rtol=1e-6
    )
    wrong = jnp.arange(400) % 10
    with pytest.raises(ValueError, match="got 0 to 9"):
        jax.jit(lambda p: measure(p, wrong))(p)
