"""Removal scores of Gaussian weights: elementwise functions of their mean and deviation."""

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc, log_ndtr
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from ..._arguments import checked, known
from ..._arrays import wide_dtype
from ..._sharding import on_host

# A deviation that underflows would make the ratio infinite, and 0 / 0 at mean 0.
_LEAST = 1e-8
# Above, `E|w|` is |mu| in every float, and the square of t would leave the range.
_FAR = 1e3


@checked()
def snr(mu: Shaped[ArrayLike, "..."], sigma: Shaped[ArrayLike, "..."]) -> Float[Array, "..."]:
    r"""Signal-to-noise ratio of weights `w ~ N(mu, sigma^2)`: `t = |mu| / sigma`.

    It ranks exactly as `snr_abs`, an increasing function of t.

    Args:
      mu: Means.
      sigma: Standard deviations >= 0, in the shape of the means; at least 1e-8 is used.

    Returns:
      Ratios of at least float32, without a unit.

    Reference:
      Li et al., Training Bayesian Neural Networks with Sparse Subspace Variational Inference, 2024
      (arXiv 2402.11025).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import bayes
      >>> bayes.snr(jnp.array([-3.0, 1.0]), jnp.array([1.0, 2.0])).tolist()
      [3.0, 0.5]
    """
    mu, sigma = _wide(mu, sigma)
    return jnp.abs(mu) / sigma


@checked()
def e_abs(mu: Shaped[ArrayLike, "..."], sigma: Shaped[ArrayLike, "..."]) -> Float[Array, "..."]:
    r"""Expected magnitude of weights, `E|w| = sigma (t + d(t))` with `t = |mu| / sigma`.

    `d(t) = sqrt(2 / pi) exp(-t^2 / 2) - t erfc(t / sqrt(2))`, the mean of a folded Gaussian.

    Args:
      mu: Means.
      sigma: Standard deviations >= 0, in the shape of the means; at least 1e-8 is used.

    Returns:
      Expected magnitudes, in the unit of the weights, of at least float32.

    Reference:
      Li et al., 2024 (arXiv 2402.11025).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import bayes
      >>> [round(float(x), 3) for x in bayes.e_abs(jnp.array([0.0, 10.0]), jnp.ones(2))]
      [0.798, 10.0]
    """
    mu, sigma = _wide(mu, sigma)
    t = jnp.abs(mu) / sigma
    return jnp.abs(mu) + sigma * _excess(t)


@checked()
def snr_abs(mu: Shaped[ArrayLike, "..."], sigma: Shaped[ArrayLike, "..."]) -> Float[Array, "..."]:
    r"""Signal-to-noise ratio of magnitudes, `E|w| / sd|w|`, in a form that does not cancel.

    `(t + d) / sqrt(1 - 2 t d - d^2)` with `t = |mu| / sigma` and d as in `e_abs`: 1.3236 at t = 0,
    close to t above 5. The form `E|w| / sqrt(sigma^2 + mu^2 - (E|w|)^2)` loses all digits of
    float32 from t = 10^4.

    Args:
      mu: Means.
      sigma: Standard deviations >= 0, in the shape of the means; at least 1e-8 is used.

    Returns:
      Ratios of at least float32, without a unit.

    Reference:
      Li et al., 2024 (arXiv 2402.11025).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import bayes
      >>> [round(float(x), 3) for x in bayes.snr_abs(jnp.array([0.0, 1e6]), jnp.ones(2))]
      [1.324, 1000000.0]
    """
    t = snr(mu, sigma)
    d = _excess(t)
    return (t + d) / jnp.sqrt(1 - 2 * jnp.minimum(t, _FAR) * d - d * d)


@checked(rate="(0, inf)")
def e_exp_abs(
    mu: Shaped[ArrayLike, "..."], sigma: Shaped[ArrayLike, "..."], rate: float = 1.0
) -> Float[Array, "..."]:
    r"""Expected exponential of magnitudes, `E exp(rate |w|)`.

    `e^{a^2/2 + a t} Phi(t + a) + e^{a^2/2 - a t} Phi(a - t)` with `a = rate * sigma` and
    `t = |mu| / sigma`; each term is formed from its logarithm.

    Args:
      mu: Means.
      sigma: Standard deviations >= 0, in the shape of the means; at least 1e-8 is used.
      rate: The rate > 0, in units of 1 / weight.

    Returns:
      Expectations of at least float32; infinite where they exceed the range of floats.

    Reference:
      Li et al., 2024 (arXiv 2402.11025).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import bayes
      >>> round(float(bayes.e_exp_abs(2.0, 0.0)), 3)
      7.389
    """
    mu, sigma = _wide(mu, sigma)
    t, a = jnp.abs(mu) / sigma, rate * sigma
    shift = rate * jnp.abs(mu)
    near, far = shift + log_ndtr(t + a), log_ndtr(a - t) - shift
    return jnp.exp(a * a / 2 + jnp.logaddexp(near, far))


def _excess(t: Array) -> Array:
    """`E|w| / sigma - t` for t >= 0: positive, and 0 for large t."""
    t = jnp.minimum(t, _FAR)
    return np.sqrt(2 / np.pi) * jnp.exp(-t * t / 2) - t * erfc(t / np.sqrt(2))


def _wide(mu: ArrayLike, sigma: ArrayLike) -> tuple[Array, Array]:
    mu, sigma = jnp.asarray(mu), jnp.asarray(sigma)
    if mu.shape != sigma.shape:
        raise ValueError(
            f"mu of shape {mu.shape} and sigma of shape {sigma.shape} must have the same shape: "
            "bayes.snr(kernel.mean(), kernel.std())."
        )
    if known(sigma) and (on_host(sigma) < 0).any():
        raise ValueError(f"sigma of shape {sigma.shape} must hold deviations >= 0.")
    wide = wide_dtype(mu, sigma)
    return mu.astype(wide), jnp.maximum(sigma.astype(wide), _LEAST)
