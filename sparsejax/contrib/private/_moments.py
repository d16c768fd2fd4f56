"""Sparse regression from one noisy message of each user."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ...prox import soft_threshold
from ...prox._check import known
from ...solve._duality import check_number, matrix_and_target
from ._mechanisms import (
    PrivacySpent,
    check_positive,
    check_range,
    check_scale,
    clip_entries,
    clip_l2,
)
from ._moment_mechanism import MomentMechanism, moment_mechanism

CALL = "solve.nldp_regression(key, X, y, epsilon=1.0, delta=1e-6)"
CHUNK = 1024


class PrivateFit(NamedTuple):
    """A regression that users took part in privately.

    Attributes:
      coefficients: Sparse (d,).
      raw: Before the threshold (d,).
      ok: Whether the noisy second moment was positive definite: if not, there are too few users for
        this epsilon, and the coefficients are 0 unless eigenvalues were floored.
      strength: The threshold.
      spent: What each user has told at most.
    """

    coefficients: Float[Array, " d"]
    raw: Float[Array, " d"]
    ok: Array
    strength: Float[Array, ""]
    spent: PrivacySpent


def nldp_message(
    key: Array, x: ArrayLike, y: ArrayLike, mechanism: MomentMechanism, part: str = "both",
    out_of_range: str = "refuse",
) -> tuple[Float[Array, " t"], Float[Array, " c"]]:  # fmt: skip
    """What one user sends: the second and cross moment, within their bounds, with Gaussian noise.

    Runs where the user's record is, vmapped over users in a simulation. Whatever x and y are, the
    message is (epsilon, delta)-private: clipping comes before noise.

    Args:
      key: A key of this user's own. Two users with one key, or one key used twice, tell everything.
      x: The covariates (d,).
      y: The target.
      mechanism: From `moment_mechanism`.
      part: "both", "second" or "cross"; what is not sent is empty. Where the users are split each
        sends one of the two.
      out_of_range: "refuse" a record beyond the bounds, or "clip" it. Under jit, where it cannot be
        seen, it is clipped.

    Returns:
      The upper triangle with the diagonal (d (d + 1) / 2,) and the cross moment (d,).

    Raises:
      ValueError: If shapes do not fit, numbers are not finite or beyond the bounds (where they can
        be seen), or more would be sent than the budget allows.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import private
      >>> how = private.moment_mechanism(3, 1000, 1.0, 1e-6)
      >>> second, cross = private.nldp_message(jax.random.key(0), jnp.ones(3), 0.5, how)
      >>> second.shape, cross.shape
      ((6,), (3,))
    """
    if part not in ("both", "second", "cross"):
        raise ValueError(f"part must be both, second or cross, got {part!r}.")
    d = mechanism.features
    if jnp.shape(x) != (d,) or jnp.shape(y) != ():
        raise ValueError(
            f"x must have shape ({d},) and y be a number, got {jnp.shape(x)} and {jnp.shape(y)}; "
            "vmap over users."
        )
    matrix_and_target(jnp.asarray(x)[None], jnp.asarray(y)[None], 1, CALL)
    if mechanism.second_sigma is None and part == "second":
        raise ValueError("with public rows nobody sends the second moment; part='cross'.")
    if mechanism.split == "users" and part == "both":
        raise ValueError("this mechanism gives each user one message: part='second' or 'cross'.")
    _within(x, y, mechanism, part, out_of_range)
    second_key, cross_key = jax.random.split(key)
    clipped = clip_l2(x, mechanism.radius)
    for name in ("second_sigma", "cross_sigma"):
        sigma = getattr(mechanism, name)
        if sigma:  # 0 where noise was left out on purpose
            check_scale(name, sigma, clipped.dtype)
    empty = jnp.zeros(0, clipped.dtype)
    second, cross = empty, empty
    if part != "cross" and mechanism.second_sigma is not None:
        second = jnp.outer(clipped, clipped)[jnp.triu_indices(d)]
        noise = jax.random.normal(second_key, second.shape, second.dtype)
        second = second + mechanism.second_sigma * noise
    if part != "second":
        start = jnp.asarray(x, clipped.dtype) if mechanism.clip == "entries" else clipped
        bounded = start if mechanism.clip == "l2" else clip_entries(start, mechanism.bound_x)
        cross = bounded * clip_entries(y, mechanism.bound_y).astype(clipped.dtype)
        cross = cross + mechanism.cross_sigma * jax.random.normal(cross_key, (d,), cross.dtype)
    return second, cross


def _within(x: Any, y: Any, how: MomentMechanism, part: str, out_of_range: str) -> None:
    """Whether what is sent of one record, or of many, keeps to the bounds of the mechanism."""
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


def nldp_server(
    mean_second: ArrayLike,
    mean_cross: ArrayLike,
    users: int,
    mechanism: MomentMechanism,
    *,
    strength: ArrayLike | None = None,
    norm_bound: float = 1.0,
    eig_floor: float | None = None,
) -> PrivateFit:
    """The regression from mean messages: a solve and a soft threshold. Private because they are.

    `soft(S^-1 c, strength)`.

    Args:
      mean_second: Mean of the second moments: the triangle (d (d + 1) / 2,), or a public matrix
        (d, d).
      mean_cross: Mean of the cross moments (d,).
      users: How many users sent each.
      mechanism: From `moment_mechanism`.
      strength: The threshold, `sqrt(2 log d)` times the noise of the raw coefficients by default.
      norm_bound: Bound of |theta| in that noise.
      eig_floor: What smaller eigenvalues are raised to; None returns zeros with `ok` False if the
        noise left the matrix indefinite.

    Returns:
      A `PrivateFit`.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import private
      >>> how = private.moment_mechanism(2, 1000, 1.0, 1e-6)
      >>> c = jnp.array([0.5, 0.01])
      >>> private.nldp_server(jnp.eye(2), c, 1000, how, strength=0.1).coefficients.round(3).tolist()
      [0.4..., 0.0]
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
    ok = values[0] > d * jnp.finfo(S.dtype).eps * jnp.abs(values[-1])
    ok &= jnp.all(jnp.isfinite(S)) & jnp.all(jnp.isfinite(c))
    if eig_floor is not None:
        check_positive("eig_floor", eig_floor)
        values = jnp.maximum(values, eig_floor)
    solved = vectors @ ((vectors.T @ c) / jnp.where(values > 0, values, 1))
    raw = jnp.where(ok | (eig_floor is not None), solved, 0)
    if strength is None:
        check_positive("norm_bound", norm_bound)
        noise = math.hypot(mechanism.cross_sigma, (mechanism.second_sigma or 0.0) * norm_bound)
        strength = math.sqrt(2 * math.log(d)) * noise / math.sqrt(users)
    else:
        check_number("strength", strength, ())
    strength = jnp.asarray(strength, raw.dtype)
    return PrivateFit(soft_threshold(raw, strength), raw, ok, strength, mechanism.spent)


def nldp_regression(
    key: Array,
    X: ArrayLike,
    y: ArrayLike,
    *,
    epsilon: float,
    delta: float,
    public: ArrayLike | None = None,
    strength: ArrayLike | None = None,
    norm_bound: float = 1.0,
    eig_floor: float | None = None,
    out_of_range: str = "refuse",
    **bounds: Any,
) -> PrivateFit:
    r"""Sparse regression where each user sends one private message and trusts nobody.

    Guaranteed: (epsilon, delta)-local privacy of every row, between any two records, for the
    mechanism over real numbers, if the bounds, `strength` and the decision to run were not taken
    from the data (cross-validation on private rows is not free). Not guaranteed: a good answer. The
    second moment needs about `4 d sigma^2` users, `290 d radius^4` at epsilon 1 and delta 1e-6;
    below that the result is not `ok`. Public covariates save that: the error then shrinks from
    `d sqrt(k / n) / epsilon` to `sqrt(d k / n) / epsilon`.

    Args:
      key: A key; every user gets one of their own.
      X: Covariates (n, d), one row a user, of variance about 1.
      y: Targets (n,).
      epsilon: The privacy level.
      delta: The probability of failure.
      public: Public covariates (m, d), of nobody in X and without targets.
      strength: The threshold.
      norm_bound: Bound of |theta|, for the default strength.
      eig_floor: As for `nldp_server`.
      out_of_range: "refuse" rows beyond the bounds, or "clip" them, as normal covariates need with
        the default bounds. Under jit, where they cannot be seen, they are clipped.
      **bounds: As for `moment_mechanism`: radius, bound_x, bound_y, clip, share, accounting, split.

    Returns:
      A `PrivateFit`.

    Raises:
      ValueError: If data are not finite or beyond the bounds, or numbers are outside their ranges.
        A refusal depends on the data and is itself a message: deployed, each user imputes and clips
        at home.

    Reference:
      Zhu, Ding, Aggarwal, Xu and Wang, Improved Analysis of Sparse Linear Regression in Local
      Differential Privacy Model, 2023, arXiv 2310.07367. Sensitivities and accounting are tighter
      here; `accounting="paper"` has theirs.

    Example:
      >>> import jax
      >>> from sparsejax.contrib import private
      >>> X = jax.random.normal(jax.random.key(0), (20_000, 3))
      >>> public = jax.random.normal(jax.random.key(2), (200, 3))
      >>> fit = private.nldp_regression(
      ...     jax.random.key(1), X, X[:, 0], epsilon=8.0, delta=1e-6, public=public, strength=0.3,
      ...     radius=3.0, bound_y=2.0, out_of_range="clip",
      ... )
      >>> (fit.coefficients != 0).tolist(), fit.spent.epsilon
      ([True, False, False], 8.0)
    """
    X, y = matrix_and_target(X, y, 1, CALL)
    n, d = X.shape
    if "public" in bounds:
        raise TypeError("public is a matrix of rows here.")
    how = moment_mechanism(d, n, epsilon, delta, public=public is not None, **bounds)
    _within(X, y, how, "cross" if public is not None else "both", out_of_range)
    end = {"strength": strength, "norm_bound": norm_bound, "eig_floor": eig_floor}
    if public is not None:
        known_rows, _ = matrix_and_target(public, jnp.zeros(jnp.shape(public)[:1]), 1, CALL)
        if known_rows.shape[1] != d:
            raise ValueError(f"public must have {d} columns, as X has, got {known_rows.shape}.")
        if known(X) and known(public) and np.array_equal(known_rows, X):
            raise ValueError(
                "public holds the rows of X, which are private; without other people's covariates "
                "leave public out."
            )
        cross = _mean_message(key, X, y, how, "cross")[1]
        return nldp_server(known_rows.T @ known_rows / known_rows.shape[0], cross, n, how, **end)
    if how.split == "users":
        if n < 2:
            raise ValueError("split='users' needs two users, one for each moment.")
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
    """Means of messages, a chunk of users at a time: never all triangles at once."""
    n, d = X.shape
    keys = jax.random.split(key, n)
    send = jax.vmap(lambda key, x, y: nldp_message(key, x, y, how, part, "clip"))
    whole, chunk = n // CHUNK, CHUNK

    def add(total, users):
        return jax.tree.map(lambda t, m: t + m.sum(0), total, send(*users)), None

    rest = send(keys[whole * chunk :], X[whole * chunk :], y[whole * chunk :])
    total = jax.tree.map(lambda m: m.sum(0), rest)
    if whole:
        cut = lambda a: a[: whole * chunk].reshape(whole, chunk, *a.shape[1:])  # noqa: E731
        total = lax.scan(add, total, (cut(keys), cut(X), cut(y)))[0]
    return jax.tree.map(lambda t: t / n, total)


def soft_thresholded_ols(X: ArrayLike, y: ArrayLike, strength: ArrayLike) -> Float[Array, " p"]:
    """The same estimate without privacy: least squares, thresholded.

    `soft((X^T X)^-1 X^T y, strength)`; the solution of smallest norm where that is not unique.

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
    check_number("strength", strength, ())
    return soft_threshold(jnp.linalg.lstsq(X, y)[0], jnp.asarray(strength, X.dtype))
