"""Regression with any penalty: groups, several targets, classes, non-convex penalties."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .._arguments import (
    check_strength,
    check_weights,
    checked,
    checked_start,
    known,
    matrix_and_target,
    near_one,
)
from .._arrays import Units, magnitude
from .._solution import Solution, finish, refuse_infinite
from ..prox import Penalty, group_lasso as group_penalty, l1, scale as scaled
from ._duality import default_tol, share
from ._model import as_labels
from ._proximal_gradient import proximal_gradient

STEPS = 20_000


@checked(tol="[0, inf)", max_steps="[0, inf)")
def penalized_regression(
    X: ArrayLike,
    y: ArrayLike,
    penalty: Penalty,
    *,
    loss: Literal["squared", "logistic"] = "squared",
    w0: ArrayLike | None = None,
    tol: ArrayLike = 1e-4,
    max_steps: int = STEPS,
    throw: bool = True,
) -> Solution:
    r"""Regression with any penalty: MCP, SCAD, l_p, sorted l1, ... by proximal gradient descent.

    `min_w F(w) + penalty.value(w)` with `F = |y - X w|^2 / (2 n)`, or
    `F = mean log(1 + exp(-y (X w)))` for y of -1 and 1. Stops when the distance of 0 from the
    subdifferential is at most `tol` times that at w = 0. For a non-convex penalty this is a
    stationary point; start from a solution of `lasso`. Differentiable in X, y and the strength.

    Args:
      X: Design (n, p), not centred: centre X and y for an intercept.
      y: Target (n,), or (n, q) for several.
      penalty: A penalty of `sparsejax.prox`.
      loss: "squared" or "logistic".
      w0: Initial value, (p,) or (p, q); 0 by default.
      tol: Relative distance to reach.
      max_steps: Maximum number of steps.
      throw: Whether to raise if the distance is not reached (outside jit).

    Returns:
      As `proximal_gradient`.

    Raises:
      RuntimeError: If `throw` and the distance is not reached.
      ValueError: If shapes do not fit, data are not finite, their products overflow or underflow,
        or classes are not -1 and 1.

    Reference:
      Bertrand et al., skglm, 2022, arXiv 2204.07826 (the criterion).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox, solve
      >>> X, y = 2 * jnp.eye(4), jnp.array([4.0, 1.0, 0.0, -2.0])
      >>> penalty = prox.mcp(0.6, 3.0)
      >>> [round(float(w), 3) for w in solve.penalized_regression(X, y, penalty).value]
      [2.0, 0.0, 0.0, -0.6]
    """
    X, y = _data(X, y, loss)
    if not isinstance(penalty, Penalty):
        raise TypeError(f"penalty must be a penalty such as prox.l1(0.1), got {penalty!r}.")
    near_one(X=X, y=y)
    found = _stationary(
        X, y, penalty, _start("penalized_regression", X, y, w0), tol, max_steps, loss
    )
    return finish("penalized_regression", found, throw)


@checked(tol="(0, inf)", max_steps="[0, inf)")
def group_lasso(
    X: ArrayLike,
    y: ArrayLike,
    strength: ArrayLike,
    groups: Any,
    *,
    weights: ArrayLike | None = None,
    w0: ArrayLike | None = None,
    tol: float | None = None,
    max_steps: int = STEPS,
    throw: bool = True,
) -> Solution:
    r"""The group Lasso, solved to a certified duality gap.

    `min_w |y - X w|^2 / (2 n) + strength sum_g weights_g |w_g|`. Differentiable in X, y and
    strength.

    Args:
      X: Design (n, p), not centred: centre X and y for an intercept.
      y: Target (n,).
      strength: Strength > 0; infinity gives 0.
      groups: Labels (p,), integers or strings, or disjoint lists or arrays of indices.
      weights: A weight > 0 per group; infinity forces zeros. By default the square root of its
        size.
      w0: Initial value (p,).
      tol: Duality gap over the objective at 0: by default 1e-6, or 1e-5 in float32.
      max_steps: Maximum number of steps.
      throw: Whether to raise if the gap is not reached (outside jit).

    Returns:
      As `proximal_gradient`; `stats["gap"]` is the duality gap.

    Raises:
      RuntimeError: If `throw` and the gap is not reached.
      ValueError: If shapes do not fit, data are not finite, a number is negative, or strength or a
        weight is 0 (the duality gap is then undefined).

    Reference:
      Yuan and Lin, Model selection and estimation in regression with grouped variables, 2006;
      Ndiaye et al., Gap Safe Screening Rules, 2017, arXiv 1611.05780 (the gap).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import solve
      >>> X, y = 2 * jnp.eye(4), jnp.array([3.0, 4.0, 0.3, 0.4])
      >>> w = solve.group_lasso(X, y, 1.0, [[0, 1], [2, 3]], weights=jnp.ones(2)).value
      >>> [round(float(x), 2) for x in w]
      [0.9, 1.2, 0.0, 0.0]
    """
    X, y = _data(X, y, "squared", 1)
    if weights is not None:
        check_weights(weights, jnp.size(weights))
    unit = group_penalty(1.0, groups=as_labels(groups, X.shape[1]), weights=weights)
    return _certified("group_lasso", X, y, strength, unit, w0, tol, max_steps, throw)


@checked(tol="(0, inf)", max_steps="[0, inf)")
def multitask_lasso(
    X: ArrayLike,
    Y: ArrayLike,
    strength: ArrayLike,
    *,
    w0: ArrayLike | None = None,
    tol: float | None = None,
    max_steps: int = STEPS,
    throw: bool = True,
) -> Solution:
    r"""The Lasso for several targets with a common support, solved to a certified duality gap.

    `min_W |Y - X W|_F^2 / (2 n) + strength sum_j |W_j|` over the rows j of W.

    Args:
      X: Design (n, p), not centred: centre X and Y for intercepts.
      Y: Targets (n, q).
      strength: Strength > 0; infinity gives 0.
      w0: Initial value (p, q).
      tol: As for `group_lasso`.
      max_steps: Maximum number of steps.
      throw: Whether to raise if the gap is not reached (outside jit).

    Returns:
      As `group_lasso`, with `value` (p, q).

    Raises:
      RuntimeError: If `throw` and the gap is not reached.
      ValueError: If shapes do not fit, data are not finite, or strength is not > 0.

    Reference:
      Obozinski, Taskar and Jordan, Joint covariate selection and joint subspace selection for
      multiple classification problems, 2010.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import solve
      >>> X, Y = 2 * jnp.eye(2), jnp.array([[3.0, 4.0], [0.3, 0.4]])
      >>> solve.multitask_lasso(X, Y, 2.5).value.tolist()
      [[0.75, 1.0], [0.0, 0.0]]
    """
    X, Y = matrix_and_target(X, Y, 2, "solve.multitask_lasso(X, Y, 0.1)", ("X", "Y"))
    unit = group_penalty(1.0, axis=1, weights=1.0)
    return _certified("multitask_lasso", X, Y, strength, unit, w0, tol, max_steps, throw)


@checked(tol="(0, inf)", max_steps="[0, inf)")
def logistic_lasso(
    X: ArrayLike,
    y: ArrayLike,
    strength: ArrayLike,
    *,
    w0: ArrayLike | None = None,
    tol: float | None = None,
    max_steps: int = STEPS,
    throw: bool = True,
) -> Solution:
    r"""l1-penalised logistic regression, solved to a certified duality gap.

    `min_w mean_i log(1 + exp(-y_i x_i^T w)) + strength |w|_1`. Differentiable in X and strength.

    Args:
      X: Design (n, p); a column of ones is penalised like any other.
      y: Classes (n,) of -1 and 1.
      strength: Strength > 0; infinity gives 0.
      w0: Initial value (p,).
      tol: As for `group_lasso`, relative to `log 2`.
      max_steps: Maximum number of steps.
      throw: Whether to raise if the gap is not reached (outside jit).

    Returns:
      As `group_lasso`.

    Raises:
      RuntimeError: If `throw` and the gap is not reached.
      ValueError: If shapes do not fit, data are not finite, classes are not -1 and 1, or the
        strength is not > 0.

    Reference:
      Koh, Kim and Boyd, An Interior-Point Method for Large-Scale l1-Regularized Logistic
      Regression, 2007.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import solve
      >>> X, y = jnp.array([[1.0, 0.1], [-1.0, 0.1]]), jnp.array([1.0, -1.0])
      >>> [round(float(w), 2) for w in solve.logistic_lasso(X, y, 0.25).value]
      [1.1, 0.0]
    """
    X, y = _data(X, y, "logistic", 1)
    unit = l1(1.0)
    return _certified("logistic_lasso", X, y, strength, unit, w0, tol, max_steps, throw, "logistic")


@partial(jax.jit, static_argnames=("max_steps", "loss"))
def _stationary(X, y, penalty: Penalty, w0, tol, max_steps: int, loss: str) -> Solution:
    """Descends until the distance of 0 from the subdifferential is small."""
    fixed = jax.lax.stop_gradient((X, y, penalty))

    def distance(w):
        X, y, penalty = fixed
        return jnp.max(penalty.subdiff_distance(w, jax.grad(_smooth(X, y, loss))(w)), initial=0)

    try:
        scale = distance(jnp.zeros_like(w0))
    except NotImplementedError:  # no closed-form subdifferential: use the step size instead
        return _descend(X, y, penalty, w0, None, tol, max_steps, loss)
    scale = jnp.where(scale > 0, scale, 1)
    return _descend(X, y, penalty, w0, lambda w: distance(w) / scale, tol, max_steps, loss)


def _certified(
    solver: str, X, y, strength, unit, w0, tol, max_steps: int, throw: bool, loss: str = "squared"
) -> Solution:
    """Descends until the duality gap is small; `unit` is the norm, without its strength."""
    check_strength("strength", strength, (), X.dtype)
    if known(strength) and float(strength) == 0:
        raise ValueError(
            f"{solver}: strength must be > 0, got {strength}; the duality gap is undefined at 0."
        )
    strength, tol = jnp.asarray(strength, X.dtype), default_tol(tol, X.dtype)
    # As in _duality.balanced; class labels are not scaled.
    units = Units(magnitude(X), magnitude(y) if loss == "squared" else jnp.ones((), X.dtype))
    X, y, strength = (
        X / units.X,
        y / units.y,
        jnp.where(strength >= 0, strength, jnp.nan) / units.X / units.y,
    )
    found = _to_gap(
        X, y, strength, unit, units.inside(_start(solver, X, y, w0)), tol, max_steps, loss
    )
    stats = {**found.stats, "gap": units.objective(found.stats["gap"])}
    value = units.outside(found.value)
    result = refuse_infinite(value.reshape(-1), found.result)
    return finish(solver, Solution(value, result, stats), throw)


@partial(jax.jit, static_argnames=("max_steps", "loss"))
def _to_gap(X, y, strength, unit: Penalty, w0, tol, max_steps: int, loss: str) -> Solution:
    fixed = jax.lax.stop_gradient((X, y, strength, unit))
    scale = _smooth(*fixed[:2], loss)(jnp.zeros_like(w0))
    scale = jnp.where(scale > 0, scale, 1)
    gap = partial(_gap, *fixed, loss=loss)
    found = _descend(
        X, y, scaled(unit, strength), w0, lambda w: gap(w) / scale, tol, max_steps, loss
    )
    stats = {**found.stats, "gap": gap(jax.lax.stop_gradient(found.value))}
    return Solution(found.value, found.result, stats)


def _descend(X, y, penalty, w0, criterion, tol, max_steps: int, loss: str) -> Solution:
    # The curvature of the logistic loss is at most a quarter.
    bend = jax.lax.stop_gradient(X) * ((0.5 if loss == "logistic" else 1.0) / X.shape[0] ** 0.5)
    return proximal_gradient(
        _smooth(X, y, loss), penalty, w0, operator=lambda w: bend @ w, criterion=criterion,
        tol=tol, max_steps=max_steps, throw=False,
    )  # fmt: skip


def _gap(X, y, strength, unit: Penalty, w, *, loss: str) -> Float[Array, ""]:
    """Primal minus dual objective, at the residual scaled to a feasible dual point."""
    n = X.shape[0]
    if loss == "squared":
        r = y - X @ w
        s = share(_sizes(unit, X.T @ r / n), strength, False)
        rr = jnp.sum(r * r) / n
        gap = (1 + s**2) * rr / 2 + _cost(strength, unit, w) - s * jnp.sum(r * y) / n
        return jnp.maximum(gap, 0)
    z = y * (X @ w)
    theta = jax.nn.sigmoid(-z)
    s = share(_sizes(unit, X.T @ (y * theta) / n), strength, False)
    entropy = jax.scipy.special.xlogy(s * theta, s * theta) + jax.scipy.special.xlog1py(
        1 - s * theta, -s * theta
    )
    return jnp.maximum(
        jnp.mean(jax.nn.softplus(-z)) + _cost(strength, unit, w) + jnp.mean(entropy), 0
    )


def _cost(strength, unit: Penalty, w) -> Array:
    """`strength * unit.value(w)`, with 0 for a zero group of infinite weight."""
    sizes, weights = unit.norm_terms(w)
    return jnp.sum(jnp.where(sizes == 0, 0, sizes * jnp.where(sizes == 0, 0, strength * weights)))


def _sizes(unit: Penalty, c) -> Array:
    """Arguments of the maximum in the dual norm: entries, or group norms over their weights."""
    sizes, weights = unit.norm_terms(c)
    return sizes / weights


def _smooth(X, y, loss: str) -> Callable[[Any], Array]:
    n = X.shape[0]
    if loss == "squared":
        return lambda w: jnp.sum((y - X @ w) ** 2) / (2 * n)
    return lambda w: jnp.mean(jax.nn.softplus(-y * (X @ w)))


def _data(X: Any, y: Any, loss: str, ndim: int | None = None) -> tuple[Array, Array]:
    if loss not in ("squared", "logistic"):
        raise ValueError(f'loss={loss!r} must be "squared" or "logistic".')
    ndim = ndim or (2 if loss == "squared" and np.ndim(y) == 2 else 1)
    X, y = matrix_and_target(X, y, ndim, "solve.penalized_regression(X, y, prox.l1(0.1))")
    if loss == "logistic" and known(y) and not np.isin(np.asarray(y), (-1, 1)).all():
        raise ValueError(
            "y must hold the classes -1 and 1; convert classes 0 and 1 by 2.0 * y - 1."
        )
    return X, y


def _start(solver: str, X: Array, y: Array, w0: Any) -> Array:
    return checked_start(solver, w0, (X.shape[1], *y.shape[1:]), X.dtype)
