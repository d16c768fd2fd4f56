"""Robustness to noise: labels that are wrong, inputs that are disturbed, and calibration."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from ..._arguments import check_finite, checked, known
from ..._sharding import on_host
from ...metrics import expected_calibration_error

Kind = Literal["gaussian", "impulse", "shot"]
# By severity, as in ImageNet-C: standard deviation, share of pixels, photons of a white pixel.
SEVERITIES = {
    "gaussian": (0.08, 0.12, 0.18, 0.26, 0.38),
    "impulse": (0.03, 0.06, 0.09, 0.17, 0.27),
    "shot": (60.0, 25.0, 12.0, 5.0, 3.0),
}


@checked(fraction="[0, 1]", classes="[1, inf)")
def label_noise(
    labels: Int[Array | np.ndarray, " n"],
    fraction: float,
    classes: int,
    *,
    key: Key[Array, ""],
) -> Int[Array, " n"]:
    r"""Labels of which exactly `round(fraction n)` are drawn again, uniformly over all classes.

    A drawn label may be the true one: the expected share of wrong labels is
    `fraction (1 - 1 / classes)`. Draw once before training; noise that is drawn again in each epoch
    averages out.

    Args:
      labels: True classes.
      fraction: Share of the labels to draw.
      classes: Number of classes.
      key: A key made by `jax.random.key`.

    Raises:
      ValueError: If a label is not a class.

    Reference:
      Li et al., The Lazy Neuron Phenomenon, 2022 (arXiv 2210.06313).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import activation_sparsity
      >>> labels = jnp.zeros(1000, jnp.int32)
      >>> noisy = activation_sparsity.label_noise(labels, 0.4, 10, key=jax.random.key(0))
      >>> 300 < int((noisy != labels).sum()) < 400
      True
    """
    labels = jnp.asarray(labels)
    if known(labels) and ((on_host(labels) < 0) | (on_host(labels) >= classes)).any():
        raise ValueError(f"label_noise: labels must be from 0 to {classes - 1}.")
    chosen, drawn = jax.random.split(key)
    rows = jax.random.permutation(chosen, len(labels))[: int(fraction * len(labels) + 0.5)]
    wrong = jax.random.randint(drawn, rows.shape, 0, classes, labels.dtype)
    return labels.at[rows].set(wrong)


@checked(severity="[1, 5]")
def input_noise(
    images: Shaped[Array | np.ndarray, "..."],
    kind: Kind,
    severity: int,
    *,
    key: Key[Array, ""],
) -> Float[Array, "..."]:
    r"""Images with Gaussian, impulse or shot noise of a severity of ImageNet-C, clipped to [0, 1].

    Gaussian noise `x + s N(0, 1)`; impulse noise sets a share s of the entries to 0 or 1; shot
    noise is `Poisson(s x) / s`.

    Args:
      images: Intensities in [0, 1], of any shape.
      kind: "gaussian", "impulse" or "shot".
      severity: From 1 to 5.
      key: A key made by `jax.random.key`.

    Raises:
      ValueError: If an entry is not in [0, 1], or the kind or severity is unknown.

    Reference:
      Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
      Perturbations, 2019 (arXiv 1903.12261).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import activation_sparsity
      >>> images = jnp.full((8, 8), 0.5)
      >>> noisy = activation_sparsity.input_noise(images, "impulse", 5, key=jax.random.key(0))
      >>> sorted(set(noisy.ravel().tolist()))
      [0.0, 0.5, 1.0]
    """
    check_finite("input_noise", images=images)
    if known(images) and ((on_host(images) < 0) | (on_host(images) > 1)).any():
        raise ValueError("input_noise: images must hold intensities in [0, 1]; divide by 255.")
    x = jnp.asarray(images)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    noisy = _NOISE[kind](x, SEVERITIES[kind][severity - 1], key)
    return jnp.clip(noisy, 0, 1)


def _gaussian(x: Array, s: float, key: Array) -> Array:
    return x + s * jax.random.normal(key, x.shape, x.dtype)


def _impulse(x: Array, s: float, key: Array) -> Array:
    # Below s / 2 black, below s white.
    drawn = jax.random.uniform(key, x.shape, x.dtype)
    return jnp.where(drawn < s, (drawn >= s / 2).astype(x.dtype), x)


def _shot(x: Array, s: float, key: Array) -> Array:
    return jax.random.poisson(key, s * x).astype(x.dtype) / s


_NOISE: dict[str, Callable[[Array, float, Array], Array]] = {
    "gaussian": _gaussian,
    "impulse": _impulse,
    "shot": _shot,
}


class Robustness(NamedTuple):
    """Accuracy on clean and on disturbed inputs, and calibration on clean ones.

    Attributes:
      accuracy: Share of correct predictions.
      gaussian: Mean accuracy over the five severities of Gaussian noise.
      impulse: Of impulse noise.
      shot: Of shot noise.
      calibration_error: `sj.metrics.expected_calibration_error` with 15 bins.
    """

    accuracy: float
    gaussian: float
    impulse: float
    shot: float
    calibration_error: float


@checked()
def robustness(
    predict: Callable[[Array], Any],
    images: Shaped[Array | np.ndarray, "n ..."],
    labels: Int[Array | np.ndarray, " n"],
    *,
    key: Key[Array, ""],
) -> Robustness:
    r"""Accuracy under the noise of `input_noise`, and the calibration error of a classifier.

    Args:
      predict: Probabilities `(n, classes)` of images; it may be jitted.
      images: Test images in [0, 1]. A model of shifted inputs shifts them in `predict`.
      labels: Their true classes.
      key: A key made by `jax.random.key`; the same key gives the same noise to each model.

    Raises:
      ValueError: If images are not in [0, 1], there are none, or a probability is NaN.

    Reference:
      Li et al., The Lazy Neuron Phenomenon, 2022 (arXiv 2210.06313).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import activation_sparsity
      >>> images = jnp.array([[0.9, 0.1], [0.2, 0.8]])
      >>> found = activation_sparsity.robustness(
      ...     lambda x: jax.nn.softmax(9 * x), images, jnp.array([0, 1]), key=jax.random.key(0))
      >>> found.accuracy
      1.0
    """
    check_finite("robustness", images=images)
    if not len(images):
        raise ValueError("robustness: images must hold at least one image.")

    def accuracy(x: Any) -> float:
        found = np.asarray(predict(x))
        if np.isnan(found).any():
            raise ValueError("robustness: predict returns NaN.")
        return float(np.mean(np.argmax(found, -1) == np.asarray(labels)))

    def disturbed(kind: Kind) -> float:
        noise = partial(input_noise, images, kind)
        keys = jax.random.split(jax.random.fold_in(key, list(SEVERITIES).index(kind)), 5)
        return float(np.mean([accuracy(noise(i + 1, key=keys[i])) for i in range(5)]))

    clean = jnp.asarray(images)
    error = float(expected_calibration_error(predict(clean), labels))
    gaussian, impulse, shot = disturbed("gaussian"), disturbed("impulse"), disturbed("shot")
    return Robustness(accuracy(clean), gaussian, impulse, shot, error)
