"""Sparse regression from one noisy message of each user."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..prox import soft_threshold
from ._duality import check_number, matrix_and_target
from ._privacy import (
    ROUNDING,
    PrivacySpent,
    check_positive,
    clip_entries,
    clip_l2,
    gaussian_sigma,
)

CALL = "solve.nldp_regression(key, X, y, epsilon=1.0, delta=1e-6)"
CHUNK = 1024


class MomentMechanism(NamedTuple):
    """How each user's moments are clipped and noised; all of it public. From `moment_mechanism`.

    Attributes:
      features: d.
      radius: Bound of |x| in the second moment.
      bound_x: Bound of the entries of x in the cross moment.
      bound_y: Bound of |y| in it.
      clip: What x in the cross moment is clipped to: "entries", "l2" or "both".
      second_sigma: Noise of the second moment, None where public rows replace it.
      cross_sigma: Noise of the cross moment.
      split: "budget" if each user sends both moments, "users" if each sends one.
      spent: The privacy of all a user sends.
    """

    features: int
    radius: float
    bound_x: float
    bound_y: float
    clip: str
    second_sigma: float | None
    cross_sigma: float
    split: str
    spent: PrivacySpent


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


def moment_mechanism(
    features: int,
    users: int,
    epsilon: float,
    delta: float,
    *,
    radius: float | None = None,
    bound_x: float | None = None,
    bound_y: float | None = None,
    clip: str = "both",
    share: float = 0.5,
    accounting: str = "gdp",
    split: str = "budget",
    public: bool = False,
) -> MomentMechanism:
    r"""The noise that makes the moments of one user (epsilon, delta)-private.

    The upper triangle of `x x^T` has sensitivity `sqrt(2) radius^2` between any two records (for
    d = 1 `radius^2`), `x y` has `2 sqrt(d) bound_x bound_y`, or `2 radius bound_y` with |x|
    clipped. Two messages of one user share the budget: `mu^2 = mu_1^2 + mu_2^2`, exactly.

    Args:
      features: d.
      users: How many will take part, for the default bounds.
      epsilon: The privacy level of each user.
      delta: The probability of failure.
      radius: Bound of |x|, `sqrt(d) + sqrt(2 log n)` by default: for covariates of variance 1. This
        and the next two must be chosen without looking at the data.
      bound_x: Bound of its entries, `sqrt(2 log n)` by default.
      bound_y: Bound of the target, the same.
      clip: Clip x in the cross moment to "entries", "l2" or "both", of which the tighter counts.
      share: Share of mu^2 for the second moment.
      accounting: "gdp", exact; "paper" for half of epsilon and delta for each message by the
        classic formula and looser sensitivities (epsilon <= 2).
      split: "budget": each user sends both messages; "users": one of them, with all the budget.
      public: Whether the second moment comes from public rows: then users send the other alone.

    Returns:
      A `MomentMechanism`.

    Raises:
      ValueError: Outside these ranges.

    Example:
      >>> from sparsejax import solve
      >>> found = solve.moment_mechanism(4, 1000, 1.0, 1e-6, radius=1.0, bound_y=1.0)
      >>> round(found.second_sigma, 2), round(found.cross_sigma, 2)
      (8.45, 11.95)
    """
    if features < 1 or users < 1:
        raise ValueError(f"there must be features and users, got {features} and {users}.")
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, got {share}.")
    for name, got, known_names in (
        ("clip", clip, ("entries", "l2", "both")),
        ("accounting", accounting, ("gdp", "paper")),
        ("split", split, ("budget", "users")),
    ):
        if got not in known_names:
            raise ValueError(f"{name} must be one of {', '.join(known_names)}, got {got!r}.")
    usual = math.sqrt(2 * math.log(max(users, 2)))
    radius = math.sqrt(features) + usual if radius is None else radius
    bound_x = usual if bound_x is None else bound_x
    bound_y = usual if bound_y is None else bound_y
    for name, x in (("radius", radius), ("bound_x", bound_x), ("bound_y", bound_y)):
        check_positive(name, x)
    by_entries, by_length = 2 * math.sqrt(features) * bound_x * bound_y, 2 * radius * bound_y
    cross = {"entries": by_entries, "l2": by_length, "both": min(by_entries, by_length)}[clip]
    second = radius**2 * (1 if features == 1 else math.sqrt(2))
    sole = public or split == "users"
    if accounting == "paper":
        parts = 1 if sole else 2
        each = (epsilon / parts, delta / parts)
        second, cross = 2 * radius**2, by_entries
        sigmas = [gaussian_sigma(s * ROUNDING, *each, "classic") for s in (second, cross)]
        mu = None
    else:
        mu = 1 / gaussian_sigma(1.0, epsilon, delta)
        weights = (1.0, 1.0) if sole else (share, 1 - share)
        pairs = zip((second, cross), weights)
        sigmas = [s * ROUNDING / (mu * math.sqrt(w)) for s, w in pairs]
    spent = PrivacySpent(float(epsilon), float(delta), mu)
    return MomentMechanism(
        features, radius, bound_x, bound_y, clip, None if public else sigmas[0], sigmas[1], split,
        spent,
    )  # fmt: skip


def nldp_message(
    key: Array, x: ArrayLike, y: ArrayLike, mechanism: MomentMechanism, part: str = "both"
) -> tuple[Float[Array, " t"], Float[Array, " c"]]:
    """What one user sends: the clipped second and cross moment with Gaussian noise.

    Runs where the user's record is, vmapped over users in a simulation. Whatever x and y are, the
    message is (epsilon, delta)-private: clipping comes before noise.

    Args:
      key: A key of this user's own. Two users with one key, or one key used twice, tell everything.
      x: The covariates (d,).
      y: The target.
      mechanism: From `moment_mechanism`.
      part: "both", "second" or "cross"; what is not sent is empty. Where the users are split each
        sends one of the two.

    Returns:
      The upper triangle with the diagonal (d (d + 1) / 2,) and the cross moment (d,).

    Raises:
      ValueError: If shapes do not fit, numbers are not finite (where they can be seen), or more
        would be sent than the budget allows.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax import solve
      >>> how = solve.moment_mechanism(3, 1000, 1.0, 1e-6)
      >>> second, cross = solve.nldp_message(jax.random.key(0), jnp.ones(3), 0.5, how)
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
    second_key, cross_key = jax.random.split(key)
    clipped = clip_l2(x, mechanism.radius)
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
      >>> from sparsejax import solve
      >>> how = solve.moment_mechanism(2, 1000, 1.0, 1e-6)
      >>> c = jnp.array([0.5, 0.01])
      >>> solve.nldp_server(jnp.eye(2), c, 1000, how, strength=0.1).coefficients.round(3).tolist()
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
    ok = (values[0] > d * jnp.finfo(S.dtype).eps * jnp.abs(values[-1])) & jnp.all(jnp.isfinite(S))
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
      **bounds: As for `moment_mechanism`: radius, bound_x, bound_y, clip, share, accounting, split.

    Returns:
      A `PrivateFit`.

    Raises:
      ValueError: If data are not finite, or numbers are outside their ranges. A refusal depends on
        the data and is itself a message: deployed, each user imputes at home.

    Reference:
      Zhu, Ding, Aggarwal, Xu and Wang, Improved Analysis of Sparse Linear Regression in Local
      Differential Privacy Model, 2023, arXiv 2310.07367. Sensitivities and accounting are tighter
      here; `accounting="paper"` has theirs.

    Example:
      >>> import jax
      >>> from sparsejax import solve
      >>> X = jax.random.normal(jax.random.key(0), (20_000, 3))
      >>> public = jax.random.normal(jax.random.key(2), (200, 3))
      >>> fit = solve.nldp_regression(
      ...     jax.random.key(1), X, X[:, 0], epsilon=8.0, delta=1e-6, public=public, strength=0.3,
      ...     radius=3.0, bound_y=2.0,
      ... )
      >>> (fit.coefficients != 0).tolist(), fit.spent.epsilon
      ([True, False, False], 8.0)
    """
    X, y = matrix_and_target(X, y, 1, CALL)
    n, d = X.shape
    if "public" in bounds:
        raise TypeError("public is a matrix of rows here.")
    how = moment_mechanism(d, n, epsilon, delta, public=public is not None, **bounds)
    end = {"strength": strength, "norm_bound": norm_bound, "eig_floor": eig_floor}
    if public is not None:
        known_rows, _ = matrix_and_target(public, jnp.zeros(jnp.shape(public)[:1]), 1, CALL)
        if known_rows.shape[1] != d:
            raise ValueError(f"public must have {d} columns, as X has, got {known_rows.shape}.")
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
    send = jax.vmap(lambda key, x, y: nldp_message(key, x, y, how, part))
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
      >>> from sparsejax import solve
      >>> X, y = 2 * jnp.eye(2), jnp.array([4.0, 0.2])
      >>> [round(w.item(), 3) for w in solve.soft_thresholded_ols(X, y, 0.5)]
      [1.5, 0.0]
    """
    X, y = matrix_and_target(X, y, 1, "solve.soft_thresholded_ols(X, y, 0.1)")
    check_number("strength", strength, ())
    return soft_threshold(jnp.linalg.lstsq(X, y)[0], jnp.asarray(strength, X.dtype))
