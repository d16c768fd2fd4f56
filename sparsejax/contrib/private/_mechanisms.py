"""Local-privacy mechanisms: clipping, Gaussian noise, the half-sphere randomizer."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..._arguments import checked, known
from ..._arrays import wide_dtype
from ._sampling import truthful

# After clipping, rounding can leave a float32 norm this far above its bound.
ROUNDING = 1 + 1e-5


class PrivacySpent(NamedTuple):
    """Privacy budget spent per user.

    For any two records of a user and any set S of messages,
    `P[M(record) in S] <= exp(epsilon) P[M(other) in S] + delta`.

    Attributes:
      epsilon: Bound on the log likelihood ratio.
      delta: Probability of exceeding it; 0 is pure differential privacy.
      mu: For Gaussian messages, sensitivity over standard deviation, of all messages of a user
        together; otherwise None.
    """

    epsilon: float
    delta: float
    mu: float | None = None


@checked()
def gaussian_delta(epsilon: float, mu: float) -> float:
    r"""The exact delta of the Gaussian mechanism at a given epsilon.

    `Phi(mu / 2 - epsilon / mu) - exp(epsilon) Phi(-mu / 2 - epsilon / mu)`.

    Args:
      epsilon: The privacy level, >= 0.
      mu: Sensitivity over standard deviation; for several messages of one user, the root of the
        sum of squares.

    Returns:
      delta.

    Reference:
      Balle and Wang, Improving the Gaussian Mechanism for Differential Privacy, 2018, arXiv
      1805.06530; Dong, Roth and Su, Gaussian Differential Privacy, 2019, arXiv 1905.02383.

    Example:
      >>> from sparsejax.contrib import private
      >>> round(private.gaussian_delta(1.0, 1 / 3.7306316), 8)
      1e-05
    """
    from scipy.special import log_ndtr  # a dependency of jax; slow to load

    if not (math.isfinite(epsilon) and epsilon >= 0 and math.isfinite(mu) and mu >= 0):
        raise ValueError(
            f"gaussian_delta: epsilon and mu must be finite and >= 0, got {epsilon} and {mu}."
        )
    first = log_ndtr(mu / 2 - epsilon / mu) if mu > 0 else -math.inf
    if first == -math.inf:
        return 0.0
    second = epsilon + log_ndtr(-mu / 2 - epsilon / mu)
    return float(-math.exp(first) * math.expm1(min(second - first, 0.0)))


@checked()
def gaussian_sigma(
    sensitivity: float, epsilon: float, delta: float, method: str = "analytic"
) -> float:
    """The standard deviation of Gaussian noise that gives (epsilon, delta) privacy.

    Args:
      sensitivity: The largest Euclidean distance between the noiseless messages of two records.
      epsilon: The privacy level, > 0.
      delta: The probability of failure, in (0, 1).
      method: "analytic", the smallest sufficient sigma; "classic",
        `sensitivity sqrt(2 log(1.25 / delta)) / epsilon`, valid for epsilon <= 1;
        "dp-accounting", the analytic value computed by that package (extra `privacy`).

    Returns:
      sigma. The guarantee holds for real numbers: floating-point noise is not private to the last
      bit, and its tails end, those of `jax.random.normal` at 5.4 sigma in float32.

    Raises:
      ValueError: If an argument is out of its range.

    Reference:
      Balle and Wang, Improving the Gaussian Mechanism for Differential Privacy, 2018, arXiv
      1805.06530; Dwork and Roth, The Algorithmic Foundations of Differential Privacy, 2014.

    Example:
      >>> from sparsejax.contrib import private
      >>> round(private.gaussian_sigma(1.0, 1.0, 1e-5), 5)
      3.73063
    """
    check_positive("sensitivity", sensitivity)
    check_positive("epsilon", epsilon)
    if not 0 < delta < 1:
        raise ValueError(f"delta must be between 0 and 1, got {delta}; for example delta=1e-6.")
    if method == "classic":
        if epsilon > 1:
            raise ValueError(
                f"the classic noise is not private above epsilon 1, got {epsilon}; use 'analytic'."
            )
        return sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon
    if method == "dp-accounting":
        return sensitivity * _accountant().get_sigma_gaussian(epsilon, delta)
    if method != "analytic":
        raise ValueError(f"method must be analytic, classic or dp-accounting, got {method!r}.")
    low, high = 0.0, 1.0  # bounds of mu; low always satisfies delta
    while gaussian_delta(epsilon, high) <= delta:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if gaussian_delta(epsilon, middle) <= delta:
            low = middle
        else:
            high = middle
    return sensitivity / low


def _accountant() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise ImportError(
            "method='dp-accounting' needs that package: pip install 'sparsejax[privacy]'; "
            "method='analytic' works without it."
        ) from error
    return dp_accounting


@checked()
def clip_l2(x: ArrayLike, radius: float) -> Float[Array, "..."]:
    """Clips the Euclidean norm of vectors: `x min(1, radius / |x|)` along the last axis.

    The result has norm <= radius for every input: NaN counts as 0, infinity as the largest number.

    Args:
      x: Vectors (..., d).
      radius: The largest norm, > 0.

    Returns:
      The clipped vectors, float32 or wider.

    Raises:
      ValueError: If `x` is a scalar, or `radius` is not finite and > 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import private
      >>> private.clip_l2(jnp.array([3.0, 4.0]), 1.0).round(3).tolist()
      [0.6..., 0.8...]
    """
    check_positive("radius", radius)
    x = _floats(x)
    if x.ndim == 0:
        raise ValueError("x must be vectors (..., d), got a scalar; use private.clip_entries.")
    x = jnp.nan_to_num(x)
    # Scale first: XLA divides by multiplying with 1 / largest, which is 0 for the largest floats.
    limits = jnp.finfo(x.dtype)
    huge = float(limits.max) ** 0.5
    scale = jnp.where(jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0.0) > huge, 1 / huge, 1)
    scale = scale.astype(x.dtype)
    largest = jnp.max(jnp.abs(x * scale), axis=-1, keepdims=True, initial=0.0)
    largest = jnp.where(largest > limits.tiny, largest, 1)
    unit = x * scale / largest
    length = optax.safe_norm(unit, 0.0, axis=-1, keepdims=True)
    long = length > radius * scale / largest
    return jnp.where(long, unit * (radius / jnp.where(length > 0, length, 1)), x)


@checked()
def clip_entries(x: ArrayLike, bound: float) -> Float[Array, "..."]:
    """Clips every entry to [-bound, bound]; NaN counts as 0.

    Args:
      x: An array of any shape.
      bound: The largest absolute value, > 0.

    Returns:
      The clipped array, float32 or wider.

    Raises:
      ValueError: If `bound` is not finite and > 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import private
      >>> private.clip_entries(jnp.array([0.5, -7.0, jnp.nan, jnp.inf]), 2.0).tolist()
      [0.5, -2.0, 0.0, 2.0]
    """
    check_positive("bound", bound)
    x = _floats(x)
    return jnp.clip(jnp.where(jnp.isnan(x), 0, x), -bound, bound)


@checked()
def l2_randomizer(v: ArrayLike, radius: float, epsilon: float, *, key: Array) -> Float[Array, " d"]:
    r"""An unbiased randomized message about a vector, with pure epsilon-local privacy.

    `v` is rounded to `+-radius v / |v|` at random, without bias; the message is uniform on the half
    of a sphere around the rounded vector, or with probability `1 / (1 + exp(epsilon))` on the other
    half. The sphere has the radius `radius (e^epsilon + 1) / (e^epsilon - 1) sqrt(pi)
    Gamma((d + 1) / 2) / Gamma(d / 2)`, so that the mean is v. The probabilities of any message for
    any two vectors differ by at most the factor `exp(epsilon)`. That holds for the floating-point
    messages too, and for every epsilon: the decision is made in integers of 128 bits, with
    `ceil(2^128 / (1 + exp(epsilon))) / 2^128` as the probability of the other half.

    Args:
      v: The vector (d,), of norm <= radius.
      radius: The public bound of its norm.
      epsilon: The privacy level, > 0.
      key: A separate key for each user and message; reusing a key voids the privacy guarantee.

    Returns:
      The message (d,), float32 or wider.

    Raises:
      ValueError: If v is longer than `radius` or not finite. Under jit v is clipped instead: the
        message is still private but biased.

    Reference:
      Duchi, Jordan and Wainwright, Minimax Optimal Procedures for Locally Private Estimation,
      2018, arXiv 1604.02390.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import private
      >>> v = jnp.array([1.0, 0.0])
      >>> message = private.l2_randomizer(v, 3.0, 1.0, key=jax.random.key(0))
      >>> round(jnp.linalg.norm(message).item(), 4)
      10.1974
    """
    check_positive("radius", radius)
    check_positive("epsilon", epsilon)
    v = _floats(v)
    if v.ndim != 1 or v.size == 0:
        raise ValueError(f"v must be a vector (d,), got shape {v.shape}; vmap over users.")
    if known(v):
        size = float(np.linalg.norm(np.asarray(v, np.float64)))
        if not size <= radius * ROUNDING:
            raise ValueError(
                f"l2_randomizer: v must be finite with norm <= radius={radius}, got norm "
                f"{size:.6g}; clip it first: "
                "private.l2_randomizer(private.clip_l2(v, radius), radius, epsilon, key=key)."
            )
    v = clip_l2(v, radius)
    sign_key, half_key, sphere_key = jax.random.split(key, 3)
    length = jnp.linalg.norm(v)
    first = jnp.zeros_like(v).at[0].set(1)
    direction = jnp.where(length > 0, v / jnp.where(length > 0, length, 1), first)
    positive = jax.random.bernoulli(sign_key, jnp.clip(0.5 + length / (2 * radius), 0, 1))
    z = jax.random.normal(sphere_key, v.shape, v.dtype)
    z = jnp.where(jnp.any(z != 0), z, first)
    z = z / jnp.linalg.norm(z)
    sphere = sphere_radius(v.size, radius, epsilon)
    check_scale("the norm of a message", sphere, v.dtype)
    # Exactly one of z and -z is on the side of v, also on its edge: then both are possible for
    # every v, with odds of at most e^epsilon in floating point too.
    along = jnp.vdot(z, direction)
    same_side = jnp.where(along == 0, z[jnp.argmax(z != 0)] > 0, along > 0)
    z = jnp.where(same_side == (positive == truthful(half_key, epsilon)), z, -z)
    return z * sphere


def sphere_radius(d: int, radius: float, epsilon: float) -> float:
    """The norm of every message of `l2_randomizer`."""
    ratio = math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
    return radius / math.tanh(epsilon / 2) * math.sqrt(math.pi) * ratio


def check_positive(name: str, x: Any) -> None:
    """Raises unless x is a finite Python number > 0: privacy parameters are never traced."""
    if isinstance(x, bool) or not isinstance(x, int | float | np.number):
        raise TypeError(f"{name} must be a public Python number, got {type(x).__name__}.")
    if not (math.isfinite(x) and x > 0):
        raise ValueError(f"{name} must be finite and > 0, got {x}.")


def check_scale(name: str, x: float, dtype: Any) -> None:
    """Raises if a noise scale underflows or overflows the dtype, which would void privacy."""
    limits = jnp.finfo(dtype)
    if not float(limits.tiny) <= x <= float(limits.max):
        raise ValueError(
            f"{name}, {x:.3g}, is not representable in {limits.dtype}; rescale the data."
        )


def check_range(out_of_range: str, **sizes: tuple[Any, float]) -> None:
    """Raises if a known size exceeds its bound, unless clipping was requested."""
    if out_of_range not in ("refuse", "clip"):
        raise ValueError(f"out_of_range must be 'refuse' or 'clip', got {out_of_range!r}.")
    for name, (size, bound) in sizes.items():
        largest = float(np.max(size))
        if out_of_range == "refuse" and not largest <= bound * ROUNDING:
            raise ValueError(
                f"the noise is calibrated for {name} {bound:.6g}, but data reach {largest:.6g}; "
                f"give a larger {name}, from public knowledge alone, or out_of_range='clip'."
            )


def _floats(x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"x must be real, got {x.dtype}.")
    return x.astype(wide_dtype(x))
