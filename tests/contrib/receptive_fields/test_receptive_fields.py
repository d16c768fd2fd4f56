"""Whitening against NumPy's FFT, patches against windows, tuning of gratings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.contrib import receptive_fields


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.slow
def test_whitening_and_patches():
    rng = np.random.default_rng(4)
    image = jnp.asarray(rng.normal(size=(64, 48)).cumsum(0).cumsum(1))
    white = receptive_fields.whiten_image(image)
    rows, columns = np.fft.fftfreq(64)[:, None], np.fft.fftfreq(48)
    f = np.hypot(rows, columns)
    expected = np.fft.ifft2(np.fft.fft2(image) * f * np.exp(-((f / 0.4) ** 4))).real
    np.testing.assert_allclose(white, expected / expected.std(), atol=1e-10)
    assert not receptive_fields.whiten_image(jnp.ones((8, 8))).any()
    patches = receptive_fields.sample_patches(white, 50, 5, key=jax.random.key(0))
    np.testing.assert_allclose(patches.mean(1), 0, atol=1e-12)
    windows = np.lib.stride_tricks.sliding_window_view(white, (5, 5)).reshape(-1, 25)
    windows = windows - windows.mean(1, keepdims=True)
    for patch in np.asarray(patches[:5]):
        assert np.abs(windows - patch).max(1).min() < 1e-12
    with pytest.raises(ValueError, match="one grey image"):
        receptive_fields.whiten_image(jnp.ones((8, 8, 3)))
    with pytest.raises(ValueError, match="at least 9"):
        receptive_fields.sample_patches(jnp.ones((8, 8)), 1, 9, key=jax.random.key(0))


@pytest.mark.slow
def test_tuning_of_gratings_and_blobs():
    size, angles = 12, jnp.arange(16) * jnp.pi / 16
    y, x = np.divmod(np.arange(size**2), size)
    envelope = np.exp(-((x - 5.5) ** 2 + (y - 5.5) ** 2) / 18)
    turned = [
        np.cos(2 * np.pi * 0.2 * (x * np.cos(a) + y * np.sin(a))) for a in (angles[0], angles[5])
    ]
    atoms = jnp.asarray(np.stack([*(envelope * t for t in turned), envelope], 1))
    tuning = receptive_fields.orientation_tuning(atoms, angles, jnp.array([0.1, 0.2, 0.3]))
    assert tuning[:, :2].argmax(0).tolist() == [0, 5]
    variance = receptive_fields.circular_variance(tuning, angles)
    assert variance[:2].max() < 0.5 < 0.95 < variance[2]
    # A cosine tuning curve 1 + cos 2(t - t0) has CV = 1/2.
    np.testing.assert_allclose(
        receptive_fields.circular_variance(1 + jnp.cos(2 * (angles - 0.3)), angles), 0.5, rtol=1e-12
    )
    assert receptive_fields.circular_variance(jnp.zeros(16), angles) == 1
    with pytest.raises(ValueError, match="square"):
        receptive_fields.orientation_tuning(jnp.ones((10, 1)), angles, angles)


def test_active_units_have_the_dtype_of_the_codes():
    assert receptive_fields.active_units(jnp.ones((2, 3), jnp.int8)).dtype == jnp.float32
    with jax.enable_x64(True):
        found = receptive_fields.active_units(jnp.array([[0.0, 1.0, jnp.nan], [0.0, 1.0, 2.0]]))
        assert found.dtype == jnp.float64
        np.testing.assert_array_equal(found, [np.nan, 2.0])
