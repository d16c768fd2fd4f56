"""Sparse regression from one noisy message per user."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..._arguments import check_strength, checked, known, matrix_and_target
from ..._solution import code, finish
from ...prox import soft_threshold
from ...solve import Result, Solution
from ._mechanisms import (
    PrivacySpent,
    check_positive,
    check_range,
    check_scale,
    clip_entries,
    clip_l2,
)
from ._moment_mechanism import MomentMechanism, moment_mechanism
from ._sampling import normal

CALL = "private.nldp_regression(X, y, key=key, epsilon=1.0, delta=1e-6)"
CHUNK = 1024


class PrivateFit(NamedTuple):
    """The value of the solution of `nldp_regression`.

    Attributes:
      coefficients: Sparse coefficients (d,).
      raw: Coefficients before the threshold (d,).
      strength: The threshold.
      spent: Privacy budget spent per user.
    """

    coefficients: Float[Array, " d"]
    raw: Float[Array, " d"]
    strength: Float[Array, ""]
    spent: PrivacySpent


@checked()
def nldp_message(
    x: ArrayLike, y: ArrayLike, mechanism: MomentMechanism, *, key: Array, part: str = "both",
    out_of_range: str = "refuse",
) -> tuple[Float[Array, " t"], Float[Array, " c"]]:  # fmt: skip
    r"""The message of one user: clipped second and cross moments with Gaussian noise.

    `triu(x x^T) + sigma_2 N(0, I)` and `x y + sigma_1 N(0, I)` of clipped records, (epsilon,
    delta)-private for all x and y. Each user and message needs a separate key; reusing a key voids
    the guarantee. `nldp_server` fits the means of the messages.

    Args:
      x: Features of the user (d,).
      y: Target of the user.
      mechanism: From `moment_mechanism`.
      key: A random key, of this user only.
      part: "both", "second" or "cross"; the moment that is not sent is empty.
      out_of_range: "refuse" or "clip" records beyond the bounds; under jit they are always clipped.

    Returns:
      The upper triangle with the diagonal (d (d + 1) / 2,) and the cross moment (d,).

    Raises:
      ValueError: If shapes do not fit the mechanism, a record is beyond the bounds, or `part` is
        not one of the three.

    Reference:
      Zhu et al., Improved Analysis of Sparse Linear Regression in Local Differential Privacy Model,
      2023 (arXiv 2310.07367).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import private
      >>> how = private.moment_mechanism(3, 10, 1.0, 1e-6)
      >>> send = jax.vmap(lambda x, y, k: private.nldp_message(x, y, how, key=k))
      >>> keys = jax.random.split(jax.random.key(0), 10)
      >>> second, cross = send(jnp.ones((10, 3)) / 4, jnp.ones(10), keys)
      >>> second.shape, cross.shape
      ((10, 6), (10, 3))
    """
    if part not in ("both", "second", "cross"):
        raise ValueError(f"part must be both, second or cross, got {part!r}.")
    d = mechanism.features
    if np.shape(x) != (d,) or np.shape(y) != ():
        raise ValueError(
            f"x must have shape ({d},) and y be a number, got {np.shape(x)} and {np.shape(y)}; "
            "vmap over users."
        )
    matrix_and_target(jnp.asarray(x)[None], jnp.asarray(y)[None], 1, CALL, ("x", "y"))
    if mechanism.second_sigma is None and part == "second":
        raise ValueError("with public rows users send the cross moment only: part='cross'.")
    if mechanism.split == "users" and part == "both":
        raise ValueError("split='users' allows one message per user: part='second' or 'cross'.")
    _within(x, y, mechanism, part, out_of_range)
    second_key, cross_key = jax.random.split(key)
    clipped = clip_l2(x, mechanism.radius)
    sigmas = {"second_sigma": mechanism.second_sigma, "cross_sigma": mechanism.cross_sigma}
    for name, sigma in sigmas.items():
        if sigma:  # tests of the sensitivity leave the noise out
            check_scale(name, sigma, clipped.dtype)
    empty = jnp.zeros(0, clipped.dtype)
    second, cross = empty, empty
    if part != "cross" and mechanism.second_sigma is not None:
        second = jnp.outer(clipped, clipped)[jnp.triu_indices(d)]
        noise = normal(second_key, second.shape, second.dtype)
        second = second + mechanism.second_sigma * noise
    if part != "second":
        start = jnp.asarray(x, clipped.dtype) if mechanism.clip == "entries" else clipped
        bounded = start if mechanism.clip == "l2" else clip_entries(start, mechanism.bound_x)
        cross = bounded * clip_entries(y, mechanism.bound_y).astype(clipped.dtype)
        cross = cross + mechanism.cross_sigma * normal(cross_key, (d,), cross.dtype)
    return second, cross


def _within(x: Any, y: Any, how: MomentMechanism, part: str, out_of_range: str) -> None:
    """Raises if records exceed the bounds of the mechanism, in the moments that are sent."""
    if not (known(x) and known(y)):
        return
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    sizes: dict[str, Any] = {}
    if how.clip != "entries" or (part != "cross" and how.second_sigma is not None):
        sizes["radius"] = np.linalg.norm(x, axis=-1), how.radius
    if part != "second":
        sizes["bound_y"] = np.abs(y), how.bound_y
        if how.clip != "l2":
            sizes["bound_x"] = np.abs(x), how.bound_x
    check_range(out_of_range, **sizes)


@checked(users="[1, inf)", norm_bound="(0, inf)")
def nldp_server(
    mean_second: ArrayLike,
    mean_cross: ArrayLike,
    users: int,
    mechanism: MomentMechanism,
    *,
    strength: ArrayLike | None = None,
    norm_bound: float = 1.0,
    eig_floor: float | None = None,
    throw: bool = True,
) -> Solution:
    r"""The regression from mean messages, `soft(S^-1 c, strength)`: private by post-processing.

    Args:
      mean_second: Mean of the second moments: the triangle (d (d + 1) / 2,), or a public matrix
        (d, d).
      mean_cross: Mean of the cross moments (d,).
      users: Number of users whose messages each mean averages.
      mechanism: From `moment_mechanism`, as for `nldp_message`.
      strength: The threshold; None: `sqrt(2 log d)` times the noise of an entry.
      norm_bound: Bound of the norm of the coefficients, for the default threshold.
      eig_floor: Least eigenvalue of S; None: an indefinite S is reported.
      throw: Whether to raise if S is indefinite.

    Returns:
      A `Solution` with a `PrivateFit`; `stats` has `min_eigenvalue`.

    Raises:
      ValueError: If shapes do not fit the mechanism, or a number is not positive.
      RuntimeError: If S is indefinite and `throw`.

    Reference:
      As for `nldp_message`.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import private
      >>> how = private.moment_mechanism(2, 10**9, 1.0, 1e-6)
      >>> moments = jnp.array([1.0, 0.0, 1.0]), jnp.array([0.5, 0.0])
      >>> found = private.nldp_server(*moments, 10**9, how, strength=0.1)
      >>> [round(float(w), 2) for w in found.value.coefficients]
      [0.4, 0.0]
    """
    d = mechanism.features
    S, c = jnp.asarray(mean_second), jnp.asarray(mean_cross)
    if c.shape != (d,) or S.shape not in ((d, d), (d * (d + 1) // 2,)) or users < 1:
        raise ValueError(
            f"moments of {d} features have shapes ({d * (d + 1) // 2},) or ({d}, {d}) and ({d},), "
            f"got {S.shape} and {c.shape} of {users} users."
        )
    if d == 1 or S.ndim == 1:
        upper = jnp.zeros((d, d), c.dtype).at[jnp.triu_indices(d)].set(S.reshape(-1))
        S = jnp.triu(upper, 1).T + upper
    values, vectors = jnp.linalg.eigh(jnp.where(jnp.isfinite(S), S, 0))
    least = values[0]
    definite = least > d * jnp.finfo(S.dtype).eps * jnp.abs(values[-1])
    finite = jnp.all(jnp.isfinite(S)) & jnp.all(jnp.isfinite(c))
    if eig_floor is not None:
        check_positive("eig_floor", eig_floor)
        values = jnp.maximum(values, eig_floor)
    solved = vectors @ ((vectors.T @ c) / jnp.where(values > 0, values, 1))
    raw = jnp.where((definite & finite) | (eig_floor is not None), solved, 0)
    if strength is None:
        check_positive("norm_bound", norm_bound)
        noise = math.hypot(mechanism.cross_sigma, (mechanism.second_sigma or 0.0) * norm_bound)
        strength = math.sqrt(2 * math.log(d)) * noise / math.sqrt(users)
    else:
        check_strength("strength", strength, ())
    strength = jnp.asarray(strength, raw.dtype)
    fit = PrivateFit(soft_threshold(raw, strength), raw, strength, mechanism.spent)
    result = code(finite, definite, Result.INDEFINITE)
    solution = Solution(fit, result, {"min_eigenvalue": least})
    return finish("nldp_regression", solution, throw and eig_floor is None)


@checked(norm_bound="(0, inf)")
def nldp_regression(
    X: ArrayLike,
    y: ArrayLike,
    *,
    key: Array,
    epsilon: float,
    delta: float,
    public: ArrayLike | None = None,
    strength: ArrayLike | None = None,
    norm_bound: float = 1.0,
    eig_floor: float | None = None,
    out_of_range: str = "refuse",
    throw: bool = True,
    **bounds: Any,
) -> Solution:
    r"""Sparse regression from one private message per user, without a trusted server.

    `soft(S^-1 c, strength)`, with S and c the means of the users' noisy second and cross moments.
    Guaranteed: (epsilon, delta)-local privacy of every row, between any two records, for the
    mechanism over real numbers, if the bounds, `strength` and the decision to run were not taken
    from the data (cross-validation on private rows spends budget too). Not guaranteed: a good
    estimate. The second moment needs about `4 d sigma^2` users, `290 d radius^4` at epsilon 1 and
    delta 1e-6; with fewer users its mean is often not positive definite. Public covariates avoid
    that: the error then shrinks from `d sqrt(k / n) / epsilon` to `sqrt(d k / n) / epsilon`.

    Args:
      X: Covariates (n, d), one row per user, of variance about 1.
      y: Targets (n,).
      key: A random key; it is split into one key per user.
      epsilon: The privacy level.
      delta: The probability of failure, at least 1e-15. The tails of the noise end at 9.4 sigma, so
        that delta is covered down to `exp(-(9.4 - mu)^2 / 2)`, with mu of `spent`.
      public: Public covariates (m, d) of people outside X, without targets.
      strength: The threshold, `sqrt(2 log d)` times the noise of the raw coefficients by default.
      norm_bound: Bound of |theta|, for the default strength.
      eig_floor: Smaller eigenvalues of the second moment are raised to this value. None returns
        zeros if the noise left it indefinite.
      out_of_range: "refuse" rows beyond the bounds, or "clip" them, as normal covariates need with
        the default bounds. Under jit they are always clipped.
      throw: Whether to raise on failure (outside jit); with `eig_floor` the result only reports it.
      **bounds: Arguments of `moment_mechanism`: radius, bound_x, bound_y, clip, share, accounting,
        split.

    Returns:
      A `Solution`: `value` is a `PrivateFit`; `result` is `Result.INDEFINITE` if the noisy second
      moment is not positive definite, which means too few users for this epsilon; `stats` holds
      its `min_eigenvalue`.

    Raises:
      RuntimeError: If `throw` and the second moment is not positive definite.
      ValueError: If data are not finite or beyond the bounds, or an argument is out of its range.
        The error depends on the data and so reveals something about them: in a deployment, each
        user imputes and clips locally.

    Reference:
      Zhu, Ding, Aggarwal, Xu and Wang, Improved Analysis of Sparse Linear Regression in Local
      Differential Privacy Model, 2023, arXiv 2310.07367. Sensitivities and accounting are tighter
      here; `accounting="paper"` has theirs.

    Example:
      >>> import jax
      >>> from sparsejax.contrib import private
      >>> X = jax.random.normal(jax.random.key(0), (20_000, 3))
      >>> public = jax.random.normal(jax.random.key(2), (200, 3))
      >>> found = private.nldp_regression(
      ...     X, X[:, 0], key=jax.random.key(1), epsilon=8.0, delta=1e-6, public=public,
      ...     strength=0.3, radius=3.0, bound_y=2.0, out_of_range="clip",
      ... )
      >>> (found.value.coefficients != 0).tolist(), found.value.spent.epsilon
      ([True, False, False], 8.0)
    """
    X, y = matrix_and_target(X, y, 1, CALL)
    n, d = X.shape
    how = moment_mechanism(d, n, epsilon, delta, public=public is not None, **bounds)
    _within(X, y, how, "cross" if public is not None else "both", out_of_range)
    end = {
        "strength": strength, "norm_bound": norm_bound, "eig_floor": eig_floor, "throw": throw,
    }  # fmt: skip
    if public is not None:
        known_rows, _ = matrix_and_target(
            public, jnp.zeros(jnp.shape(public)[:1]), 1, CALL, ("public", "y")
        )
        if known_rows.shape[1] != d:
            raise ValueError(f"public must have {d} columns, as X has, got {known_rows.shape}.")
        if known(X) and known(public) and np.array_equal(known_rows, X):
            raise ValueError(
                "public holds the rows of X, which are private; give covariates of other people "
                "or leave public out."
            )
        cross = _mean_message(key, X, y, how, "cross")[1]
        return nldp_server(known_rows.T @ known_rows / known_rows.shape[0], cross, n, how, **end)
    if how.split == "users":
        if n < 2:
            raise ValueError("split='users' needs at least two users, one for each moment.")
        first, other = jax.random.split(key)
        second = _mean_message(first, X[: n // 2], y[: n // 2], how, "second")[0]
        cross = _mean_message(other, X[n // 2 :], y[n // 2 :], how, "cross")[1]
        return nldp_server(second, cross, n // 2, how, **end)
    second, cross = _mean_message(key, X, y, how, "both")
    return nldp_server(second, cross, n, how, **end)


@functools.partial(jax.jit, static_argnames=("how", "part"))
def _mean_message(
    key: Array, X: Array, y: Array, how: MomentMechanism, part: str
) -> tuple[Array, Array]:
    """Mean messages, accumulated over chunks of users to bound the memory."""
    n, d = X.shape
    keys = jax.random.split(key, n)
    send = jax.vmap(
        lambda key, x, y: nldp_message(x, y, how, key=key, part=part, out_of_range="clip")
    )
    whole, chunk = n // CHUNK, CHUNK

    def add(total, users):
        return jax.tree.map(lambda t, m: t + m.sum(0), total, send(*users)), None

    rest = send(keys[whole * chunk :], X[whole * chunk :], y[whole * chunk :])
    total = jax.tree.map(lambda m: m.sum(0), rest)
    if whole:
        cut = lambda a: a[: whole * chunk].reshape(whole, chunk, *a.shape[1:])  # noqa: E731
        total = lax.scan(add, total, (cut(keys), cut(X), cut(y)))[0]
    return jax.tree.map(lambda t: t / n, total)


@checked(strength="[0, inf)")
def soft_thresholded_ols(X: ArrayLike, y: ArrayLike, strength: ArrayLike) -> Float[Array, " p"]:
    """Soft-thresholded least squares: the estimate of `nldp_regression` without privacy.

    `soft((X^T X)^-1 X^T y, strength)`; the solution of smallest norm if it is not unique.

    Args:
      X: Design (n, p).
      y: Target (n,).
      strength: The threshold.

    Returns:
      Coefficients (p,).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import private
      >>> X, y = 2 * jnp.eye(2), jnp.array([4.0, 0.2])
      >>> [round(w.item(), 3) for w in private.soft_thresholded_ols(X, y, 0.5)]
      [1.5, 0.0]
    """
    X, y = matrix_and_target(X, y, 1, "private.soft_thresholded_ols(X, y, 0.1)")
    check_strength("strength", strength, ())
    return soft_threshold(jnp.linalg.lstsq(X, y)[0], jnp.asarray(strength, X.dtype))
