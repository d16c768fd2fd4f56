"""The Lasso problem: validation, the largest useful strength, the duality gap."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .._arguments import check_strength, check_weights, checked, known, matrix_and_target
from .._arrays import Units, magnitude

CALL = "solve.lasso(X, y, 0.1)"


class Problem(NamedTuple):
    """`|y - X w|^2 / (2 n) + sum_j a_j |w_j| + l2 |w|^2 / 2`."""

    X: Float[Array, "n p"]
    y: Float[Array, " n"]
    thresholds: Float[Array, " p"]
    l2: Float[Array, ""]


def problem(X: Any, y: Any, strength: Any, weights: Any, l2: Any) -> Problem:
    """The validated data in one dtype; NaN where a traced number is negative."""
    X, y = matrix_and_target(X, y, 1, CALL)
    p, dtype = X.shape[1], X.dtype
    check_strength("strength", strength, (), dtype)
    check_strength("l2", l2, (), dtype)
    if known(l2) and np.isinf(np.asarray(l2)):
        raise ValueError("l2 must be finite; strength=inf gives 0.")
    strength, l2 = jnp.asarray(strength, dtype), jnp.asarray(l2, dtype)
    if weights is None:
        thresholds = jnp.broadcast_to(strength, (p,))
    else:
        check_weights(weights, p)
        weights = jnp.asarray(weights, dtype)
        never = jnp.isinf(weights)  # even for strength = 0
        thresholds = jnp.where(never, jnp.inf, strength * jnp.where(never, 0, weights))
    valid = jnp.all(thresholds >= 0) & (l2 >= 0)
    return Problem(X, jnp.where(valid, y, jnp.nan), thresholds, l2)


@jax.jit
def balanced(pb: Problem) -> tuple[Problem, Units]:
    """The same problem with X and y scaled to about 1, so that squares stay in the float range."""
    units = Units(magnitude(pb.X), magnitude(pb.y))
    thresholds, l2 = pb.thresholds / units.X / units.y, pb.l2 / units.X / units.X
    return Problem(pb.X / units.X, pb.y / units.y, thresholds, l2), units


def default_tol(tol: float | None, dtype: Any) -> float:
    """The relative duality gap at which a solver stops: 1e-6, or 1e-5 in float32."""
    single = jnp.finfo(dtype).bits <= 32
    if tol is None:
        return 1e-5 if single else 1e-6
    if not 0 < tol < math.inf:
        raise ValueError(f"tol must be > 0, got {tol}; as in solve.lasso(X, y, 0.1, tol=1e-8).")
    if single and tol < 5e-6:
        raise ValueError(
            f"tol={tol} is below the resolution of float32 (5e-6 of the objective at 0); pass X "
            "and y in float64 under jax.enable_x64(True)."
        )
    return tol


def correlations(pb: Problem, w: Array, r: Array) -> Float[Array, " p"]:
    """`X^T r / n - l2 w`, minus the gradient of the smooth part."""
    return r @ pb.X / pb.y.size - pb.l2 * w


def share(c: Array, thresholds: Array, positive: bool) -> Float[Array, ""]:
    """Scale that makes the residual a feasible dual point: `min(1, min_j a_j / |c_j|)`."""
    size = jnp.maximum(c, 0) if positive else jnp.abs(c)
    ratios = jnp.where(size > 0, thresholds / jnp.where(size > 0, size, 1), jnp.inf)
    return jnp.minimum(1.0, jnp.min(ratios, initial=jnp.inf))


def cost(w: Array, thresholds: Array) -> Float[Array, ""]:
    """`sum_j a_j |w_j|`, with 0 for an infinite a_j and a zero w_j."""
    return jnp.sum(cost_each(w, thresholds))


def cost_each(w: Array, thresholds: Array) -> Float[Array, " p"]:
    """`a_j |w_j|`, with 0 for an infinite a_j and a zero w_j."""
    return jnp.where(w == 0, 0, jnp.abs(w) * jnp.where(w == 0, 0, thresholds))


def ridge_gap(w: Array, c: Array, thresholds: Array, l2: Array, positive: bool) -> Array:
    r"""The duality gap of w at the residual itself, which is feasible with a ridge term.

    `sum_j a_j |w_j| + l2 w_j^2 / 2 - u_j w_j + (|u_j| - a_j)_+^2 / (2 l2)` with `u = c + l2 w`,
    without cancellation: precise where a threshold is below the rounding of c, so that no multiple
    of the residual is feasible. Infinity without ridge term.
    """
    u = c + l2 * w
    size, signed = (u, w) if positive else (jnp.abs(u), jnp.where(u < 0, -w, w))
    bound = jnp.where(thresholds < size, thresholds, size)
    off = l2 * signed - (size - bound)  # l2 times the distance from the coefficient implied by u
    slack = jnp.where(thresholds < size, 0, cost_each(w, thresholds - bound))
    there = jnp.where(l2 > 0, jnp.vdot(off, off) / (2 * jnp.where(l2 > 0, l2, 1)), jnp.inf)
    return there + jnp.sum(slack + bound * (jnp.abs(w) - signed))


def gap_of(pb: Problem, w: Array, r: Array, c: Array, positive: bool) -> tuple[Array, Array]:
    """The duality gap of w, and the scale of the dual point."""
    n, s = pb.y.size, share(c, pb.thresholds, positive)
    rr = jnp.vdot(r, r) / n + pb.l2 * jnp.vdot(w, w)
    gap = (1 + s**2) * rr / 2 + cost(w, pb.thresholds) - s * jnp.vdot(r, pb.y) / n
    other = ridge_gap(w, c, pb.thresholds, pb.l2, positive)
    return jnp.minimum(jnp.maximum(gap, 0), other), jnp.where(other < gap, 1, s)


@checked(l2="[0, inf)")
def duality_gap(
    X: ArrayLike,
    y: ArrayLike,
    w: ArrayLike,
    strength: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    positive: bool = False,
    l2: ArrayLike = 0.0,
) -> Float[Array, ""]:
    r"""An upper bound on the suboptimality of w for the Lasso.

    `P(w) - D(theta)` with `theta = s r / n`, `s = min(1, strength / |X^T r / n|_inf)`,
    `D(theta) = |y|^2 / (2 n) - n/2 |theta - y / n|^2`; with l2 on the augmented data.

    Args:
      X: Design (n, p).
      y: Target (n,).
      w: Coefficients (p,).
      strength: Strength of the l1 norm.
      weights: A weight per feature (p,).
      positive: Whether w must be >= 0.
      l2: Strength of the ridge term.

    Returns:
      A scalar >= 0, undefined for strength = 0; infinity if w is infeasible (negative with
      `positive`).

    Reference:
      Kim et al., An Interior-Point Method for Large-Scale l1-Regularized Least Squares, 2007.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import solve
      >>> X, y = jnp.eye(2), jnp.array([2.0, 0.0])
      >>> solve.duality_gap(X, y, jnp.array([1.0, 0.0]), 0.5).item()
      0.0
    """
    pb = problem(X, y, strength, weights, l2)
    w = jnp.asarray(w, pb.y.dtype)
    if w.shape != pb.thresholds.shape:
        raise ValueError(f"w must have shape {pb.thresholds.shape}, got {w.shape}.")
    pb, units = balanced(pb)
    inside = units.inside(w)
    r = pb.y - pb.X @ inside
    gap = gap_of(pb, inside, r, correlations(pb, inside, r), positive)[0]
    return jnp.where(positive & jnp.any(w < 0), jnp.inf, units.objective(gap))


@checked()
def max_strength(
    X: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None, positive: bool = False
) -> Float[Array, ""]:
    r"""The smallest strength at which the Lasso solution is 0: `|X^T y|_inf / n`.

    Args:
      X: Design (n, p).
      y: Target (n,), or (n, q) for the multi-task Lasso, where it is the largest row norm of
        `X^T y / n`.
      weights: A weight > 0 per feature (p,), which divides its correlation.
      positive: Whether to consider only positive correlations.

    Returns:
      A scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import solve
      >>> solve.max_strength(jnp.eye(2), jnp.array([2.0, -4.0])).item()
      2.0
    """
    X, y = matrix_and_target(X, y, 2 if jnp.ndim(y) == 2 else 1, CALL)
    units = magnitude(X), magnitude(y)
    c = (X / units[0]).T @ (y / units[1]) / X.shape[0]
    if c.ndim == 2:
        size = jnp.linalg.norm(c, axis=-1)
    else:
        size = jnp.maximum(c, 0) if positive else jnp.abs(c)
    if weights is not None:
        check_weights(weights, X.shape[1])
        size = size / jnp.asarray(weights, size.dtype)
    return jnp.max(size) * units[0] * units[1]
