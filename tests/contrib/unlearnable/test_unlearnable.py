"""Masked error-minimising noise against NumPy loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from skimage.metrics import peak_signal_noise_ratio

from benchmarks.papers.unlearnable import data_of_digits, noise_of, random_pixels, victim_accuracy
from sparsejax.contrib import unlearnable

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(KEY, (12, 4, 5, 2))
LABELS = jnp.arange(12) % 3
PARAMS = 0.3 * jax.random.normal(KEY, (40, 3))


def logits(params, x):
    return x.reshape(len(x), -1) @ params


def top(grads, ratio):
    """The masked pixels, image by image."""
    n, h, w, _ = grads.shape
    sums = np.abs(np.asarray(grads, np.float64)).sum(-1)
    mask = np.zeros((n, h * w), bool)
    for i, row in enumerate(sums.reshape(n, -1)):
        order = sorted(range(h * w), key=lambda j: (-row[j], j))
        mask[i, order[: math.ceil(ratio * h * w - 1e-9)]] = True
    return mask.reshape(n, h, w, 1)


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.1, 0.37, 1.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_mask_is_that_of_a_sort(ratio, dtype):
    grads = jnp.round(2 * jax.random.normal(KEY, (5, 4, 5, 2))).astype(dtype)  # many ties
    grads = grads.at[0].set(0)  # an image without gradient
    found = unlearnable.top_pixel_mask(grads, ratio)
    np.testing.assert_array_equal(found, top(grads.astype(jnp.float32), ratio))


def gradient(params, x, y):
    """The gradient of the cross-entropies of a linear network, in float64."""
    flat, w = np.asarray(x, np.float64).reshape(len(x), -1), np.asarray(params, np.float64)
    z = flat @ w
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return ((p - np.eye(3)[y]) @ w.T).reshape(x.shape)


def moved(noise, x, grads, mask, eps, step):
    new = np.clip(noise - step * np.sign(grads) * mask, -eps, eps)
    return np.clip(x + new, 0, 1) - x if x is not None else new


@pytest.mark.parametrize("mask", ["step", "fixed"])
@pytest.mark.parametrize("classwise", [False, True])
@pytest.mark.parametrize("attack", ["min-min", "min-max"])
def test_the_noise_is_that_of_a_loop(mask, classwise, attack):
    """With fixed weights, so that the rounds of NumPy need no surrogate."""
    eps, step, sign = 0.1, 0.03, 1 if attack == "min-min" else -1
    found = unlearnable.unlearnable_noise(
        PARAMS, logits, IMAGES, LABELS, eps=eps, step=step, ratio=0.2, mask=mask, attack=attack,
        classwise=classwise, inner_steps=4, weight_steps=0, rounds=2, batch_size=5, stop=0.0,
    )  # fmt: skip
    x, y = np.asarray(IMAGES, np.float64), np.asarray(LABELS)
    owner = y if classwise else np.arange(12)
    noise = np.zeros((owner.max() + 1, *x.shape[1:]))
    for _ in range(2):
        fixed = None
        for _ in range(4):
            each = sign * gradient(PARAMS, np.clip(x + noise[owner], 0, 1), y)
            grads = np.stack([each[owner == i].sum(0) for i in range(len(noise))])
            fixed = top(grads, 0.2) if fixed is None or mask == "step" else fixed
            noise = moved(noise, None if classwise else x, grads, fixed, eps, step)
    np.testing.assert_allclose(found.noise, noise, atol=1e-6)
    if mask == "fixed" and not classwise:
        touched = (np.asarray(found.noise) != 0).any(-1).mean((1, 2))
        assert np.all(touched <= 0.4 + 1e-9)
    z = np.clip(x + noise[owner], 0, 1).reshape(12, -1) @ np.asarray(PARAMS)
    np.testing.assert_allclose(found.errors[-1], np.mean(z.argmax(1) != y), atol=1e-6)


def test_the_surrogate_takes_its_steps_in_order():
    found = unlearnable.unlearnable_noise(
        PARAMS, logits, IMAGES, LABELS, eps=0.0, weight_steps=2, inner_steps=0, rounds=3,
        batch_size=5, optimizer=optax.sgd(0.1), stop=0.0,
    )  # fmt: skip
    w = np.asarray(PARAMS, np.float64)
    for t in range(6):
        rows = (5 * t + np.arange(5)) % 12
        flat = np.asarray(IMAGES, np.float64)[rows].reshape(5, -1)
        z = flat @ w
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        w -= 0.1 * flat.T @ (p - np.eye(3)[np.asarray(LABELS)[rows]]) / 5
    np.testing.assert_allclose(found.params, w, atol=1e-5)
    assert not np.any(np.asarray(found.noise))


def test_bounds_saturation_and_chosen_pixels():
    images = jnp.concatenate([jnp.zeros((6, 4, 5, 2)), jnp.ones((6, 4, 5, 2))])
    where = random_pixels(images, 0.3)
    found = unlearnable.unlearnable_noise(
        PARAMS, logits, images, LABELS, eps=0.07, where=where, rounds=2, stop=0.0
    )
    noise = np.asarray(found.noise)
    assert np.abs(noise).max() <= np.float32(0.07) and noise.any()
    assert np.all((images + noise >= 0) & (images + noise <= 1))
    assert not np.any(noise[~np.broadcast_to(where, noise.shape)])


def test_rounds_end_at_the_error_but_not_before_the_least():
    def rounds(**more):
        return len(unlearnable.unlearnable_noise(
            PARAMS, logits, IMAGES, LABELS, rounds=7, inner_steps=1, **more).errors)  # fmt: skip

    assert rounds(stop=1.0, min_rounds=3) == 3
    assert rounds(stop=1.0, min_rounds=0) == 1
    assert rounds(stop=0.0, min_rounds=9, eps=0.0) == 7


def test_the_report_equals_numpy_and_skimage():
    noise = 0.1 * jnp.round(jax.random.normal(KEY, (3, 4, 5, 2)))
    found = unlearnable.perturbation_report(noise.at[0].set(0))
    for i in range(3):
        d = np.asarray(noise[i], np.float64) if i else np.zeros((4, 5, 2))
        assert found.l0[i] == (d != 0).any(-1).sum()
        assert np.isclose(found.l2[i], np.linalg.norm(d)) and np.isclose(
            found.linf[i], abs(d).max()
        )
        clean = np.zeros_like(d)
        if i:
            wanted = peak_signal_noise_ratio(clean, d, data_range=1)
            assert np.isclose(found.psnr[i], wanted, rtol=1e-5)
    assert np.isinf(found.psnr[0])


def test_released_images_are_bytes():
    x = jnp.array([0.0, 0.5, 1.0, 0.25]).reshape(1, 2, 2, 1)
    found = unlearnable.release(x, jnp.array([0.1, 0.0, 0.2, -0.5]).reshape(x.shape))
    assert found.dtype == jnp.uint8 and found.ravel().tolist() == [26, 128, 255, 0]


def test_wrong_images_and_labels_are_refused():
    for name, call in {
        "images": lambda: unlearnable.unlearnable_noise(PARAMS, logits, 255 * IMAGES, LABELS),
        "labels": lambda: unlearnable.unlearnable_noise(PARAMS, logits, IMAGES, LABELS + 1),
        "where": lambda: unlearnable.unlearnable_noise(
            PARAMS, logits, IMAGES, LABELS, where=jnp.ones((3, 4, 5, 1), bool)),
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=name):
            call()


@pytest.mark.slow
def test_salm_protects_more_than_random_pixels():
    """The order of the small experiment, with one victim."""
    x, y, x_test, y_test = data_of_digits()
    eps = 96 / 255

    def accuracy(noise):
        released = unlearnable.release(x, noise) / jnp.float32(255)
        return float(victim_accuracy(released, y, x_test, y_test, 1, steps=300))

    salm = accuracy(noise_of(x, y, eps, 5, ratio=0.2, stop=0.0))
    control = accuracy(noise_of(x, y, eps, 5, where=random_pixels(x, 0.28), stop=0.0))
    clean = accuracy(jnp.zeros_like(x))
    assert clean > 0.95 and salm < clean - 0.08 and salm < control - 0.04
