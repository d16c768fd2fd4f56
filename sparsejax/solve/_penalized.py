"""Regression with any penalty: groups, several targets, classes, non-convex penalties."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..prox import OnNorm, Penalty, group_lasso as group_penalty, l1, scale as scaled
from ..prox._check import known
from ._algebra import magnitude
from ._duality import (
    Units,
    check_number,
    check_weights,
    matrix_and_target,
    near_one,
    share,
    tolerance,
)
from ._proximal_gradient import proximal_gradient
from ._solution import Solution, finish, refuse_infinite

STEPS = 20_000


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
    `F = mean log(1 + exp(-y (X w)))` for y of -1 and 1. Stops where 0 is nearly a subgradient: at
    `tol` times the distance at w = 0. Of a non-convex penalty that is a stationary point; start it
    at a solution of `lasso`. Differentiable in X, y and the strength.

    Args:
      X: Design (n, p), used as it is: centre X and y for an intercept.
      y: Target (n,), or (n, q) for several.
      penalty: A penalty of `sparsejax.prox`.
      loss: "squared" or "logistic".
      w0: A start, (p,) or (p, q); 0 by default.
      tol: The relative distance to reach.
      max_steps: The most steps.
      throw: Whether to raise if it is not reached (outside jit).

    Returns:
      As `proximal_gradient`.

    Raises:
      RuntimeError: If `throw` and the distance is not reached.
      ValueError: If shapes do not fit, data are not finite or so large or small that their products
        are out of the range of floats, or classes are not -1 and 1.

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
    found = _stationary(X, y, penalty, _start(X, y, w0), tol, max_steps, loss)
    return finish("penalized_regression", found, throw)


def group_lasso(
    X: ArrayLike,
    y: ArrayLike,
    lam: ArrayLike,
    groups: Any,
    *,
    weights: ArrayLike | None = None,
    w0: ArrayLike | None = None,
    tol: float | None = None,
    max_steps: int = STEPS,
    throw: bool = True,
) -> Solution:
    r"""The group Lasso, to a certified duality gap.

    `min_w |y - X w|^2 / (2 n) + lam sum_g weights_g |w_g|`. Differentiable in X, y and lam.

    Args:
      X: Design (n, p), used as it is: centre X and y for an intercept.
      y: Target (n,).
      lam: Strength > 0; infinity gives 0.
      groups: Labels (p,), or disjoint lists of indices.
      weights: A weight > 0 per group, where infinity forces zeros; the root of its size by default.
      w0: A start (p,).
      tol: The gap to reach, over the objective at 0: 1e-6 by default, in float32 1e-5.
      max_steps: The most steps.
      throw: Whether to raise if the gap is not reached (outside jit).

    Returns:
      As `proximal_gradient`; `stats["gap"]` is the duality gap.

    Raises:
      RuntimeError: If `throw` and the gap is not reached.
      ValueError: If shapes do not fit, data are not finite, a number is negative, or lam or a
        weight is 0, where there is no duality gap.

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
    unit = group_penalty(1.0, groups=groups, weights=weights)
    return _certified("group_lasso", X, y, lam, unit, w0, tol, max_steps, throw)


def multitask_lasso(
    X: ArrayLike,
    Y: ArrayLike,
    lam: ArrayLike,
    *,
    w0: ArrayLike | None = None,
    tol: float | None = None,
    max_steps: int = STEPS,
    throw: bool = True,
) -> Solution:
    r"""The Lasso of several targets with one support, to a certified duality gap.

    `min_W |Y - X W|_F^2 / (2 n) + lam sum_j |W_j|` over the rows j of W.

    Args:
      X: Design (n, p), used as it is: centre X and Y for intercepts.
      Y: Targets (n, q).
      lam: Strength > 0; infinity gives 0.
      w0: A start (p, q).
      tol: As for `group_lasso`, as are the others.
      max_steps: The most steps.
      throw: Whether to raise if the gap is not reached (outside jit).

    Returns:
      As `group_lasso`, with `value` (p, q).

    Raises:
      RuntimeError: If `throw` and the gap is not reached.
      ValueError: If shapes do not fit, data are not finite, or lam is not > 0.

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
    X, Y = _data(X, Y, "squared", 2)
    unit = group_penalty(1.0, axis=1, weights=1.0)
    return _certified("multitask_lasso", X, Y, lam, unit, w0, tol, max_steps, throw)


def logistic_lasso(
    X: ArrayLike,
    y: ArrayLike,
    lam: ArrayLike,
    *,
    w0: ArrayLike | None = None,
    tol: float | None = None,
    max_steps: int = STEPS,
    throw: bool = True,
) -> Solution:
    r"""Logistic regression with an l1 norm, to a certified duality gap.

    `min_w mean_i log(1 + exp(-y_i x_i^T w)) + lam |w|_1`. Differentiable in X and lam.

    Args:
      X: Design (n, p); a column of ones is penalised like any other.
      y: Classes (n,) of -1 and 1.
      lam: Strength > 0; infinity gives 0.
      w0: A start (p,).
      tol: As for `group_lasso`, over `log 2`, as are the others.
      max_steps: The most steps.
      throw: Whether to raise if the gap is not reached (outside jit).

    Returns:
      As `group_lasso`.

    Raises:
      RuntimeError: If `throw` and the gap is not reached.
      ValueError: If shapes do not fit, data are not finite, classes are not -1 and 1, or lam is not
        > 0.

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
    return _certified("logistic_lasso", X, y, lam, unit, w0, tol, max_steps, throw, "logistic")


@partial(jax.jit, static_argnames=("max_steps", "loss"))
def _stationary(X, y, penalty: Penalty, w0, tol, max_steps: int, loss: str) -> Solution:
    """Descends until 0 is nearly a subgradient."""
    fixed = jax.lax.stop_gradient((X, y, penalty))

    def distance(w):
        X, y, penalty = fixed
        return jnp.max(penalty.subdiff_distance(w, jax.grad(_smooth(X, y, loss))(w)), initial=0)

    try:
        scale = distance(jnp.zeros_like(w0))
    except NotImplementedError:  # no cheap subdifferential: the steps themselves are looked at
        return _descend(X, y, penalty, w0, None, tol, max_steps, loss)
    scale = jnp.where(scale > 0, scale, 1)
    return _descend(X, y, penalty, w0, lambda w: distance(w) / scale, tol, max_steps, loss)


def _certified(
    solver: str, X, y, lam, unit, w0, tol, max_steps: int, throw: bool, loss: str = "squared"
) -> Solution:
    """Descends until the duality gap is small; `unit` is the norm, without its strength."""
    check_number("lam", lam, (), X.dtype)
    if known(lam) and float(lam) == 0:
        raise ValueError(f"{solver}: lam must be > 0, got {lam}: at 0 there is no duality gap.")
    lam, tol = jnp.asarray(lam, X.dtype), tolerance(tol, X.dtype)
    # As in _duality.balanced; classes stay what they are.
    units = Units(magnitude(X), magnitude(y) if loss == "squared" else jnp.ones((), X.dtype))
    X, y, lam = X / units.X, y / units.y, jnp.where(lam >= 0, lam, jnp.nan) / units.X / units.y
    found = _to_gap(X, y, lam, unit, units.inside(_start(X, y, w0)), tol, max_steps, loss)
    stats = {**found.stats, "gap": units.objective(found.stats["gap"])}
    value = units.outside(found.value)
    result = refuse_infinite(value.reshape(-1), found.result)
    return finish(solver, Solution(value, result, stats), throw)


@partial(jax.jit, static_argnames=("max_steps", "loss"))
def _to_gap(X, y, lam, unit: Penalty, w0, tol, max_steps: int, loss: str) -> Solution:
    fixed = jax.lax.stop_gradient((X, y, lam, unit))
    scale = _smooth(*fixed[:2], loss)(jnp.zeros_like(w0))
    scale = jnp.where(scale > 0, scale, 1)
    gap = partial(_gap, *fixed, loss=loss)
    found = _descend(X, y, scaled(unit, lam), w0, lambda w: gap(w) / scale, tol, max_steps, loss)
    stats = {**found.stats, "gap": gap(jax.lax.stop_gradient(found.value))}
    return Solution(found.value, found.result, stats)


def _descend(X, y, penalty, w0, criterion, tol, max_steps: int, loss: str) -> Solution:
    # The loss of a logistic regression bends a quarter as much.
    bend = jax.lax.stop_gradient(X) * ((0.5 if loss == "logistic" else 1.0) / X.shape[0] ** 0.5)
    return proximal_gradient(
        _smooth(X, y, loss), penalty, w0, operator=lambda w: bend @ w, criterion=criterion,
        tol=tol, max_steps=max_steps, throw=False,
    )  # fmt: skip


def _gap(X, y, lam, unit: Penalty, w, *, loss: str) -> Float[Array, ""]:
    """Primal minus dual, at the dual point that the residual gives when scaled to be feasible."""
    n = X.shape[0]
    if loss == "squared":
        r = y - X @ w
        s = share(_sizes(unit, X.T @ r / n), lam, False)
        rr = jnp.sum(r * r) / n
        gap = (1 + s**2) * rr / 2 + _cost(lam, unit, w) - s * jnp.sum(r * y) / n
        return jnp.maximum(gap, 0)
    z = y * (X @ w)
    theta = jax.nn.sigmoid(-z)
    s = share(_sizes(unit, X.T @ (y * theta) / n), lam, False)
    entropy = jax.scipy.special.xlogy(s * theta, s * theta) + jax.scipy.special.xlog1py(
        1 - s * theta, -s * theta
    )
    return jnp.maximum(jnp.mean(jax.nn.softplus(-z)) + _cost(lam, unit, w) + jnp.mean(entropy), 0)


def _cost(lam, unit: Penalty, w) -> Array:
    """`lam * unit.value(w)`, where an infinite weight goes with a group of zeros."""
    sizes = unit.partition.norms(w) if isinstance(unit, OnNorm) else jnp.abs(w)
    weights = unit._weights(sizes, w) if isinstance(unit, OnNorm) else 1.0
    return jnp.sum(jnp.where(sizes == 0, 0, sizes * jnp.where(sizes == 0, 0, lam * weights)))


def _sizes(unit: Penalty, c) -> Array:
    """What the dual norm takes the maximum of: entries, or norms of groups over their weights."""
    if not isinstance(unit, OnNorm):
        return jnp.abs(c)
    norms = unit.partition.norms(c)
    return norms / unit._weights(norms, c)


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
        raise ValueError("y must hold the classes -1 and 1: 2.0 * y - 1 makes them of 0 and 1.")
    return X, y


def _start(X: Any, y: Any, w0: Any) -> Array:
    shape = (X.shape[1], *y.shape[1:])
    w0 = jnp.zeros(shape, X.dtype) if w0 is None else jnp.asarray(w0, X.dtype)
    if w0.shape != shape:
        raise ValueError(f"w0 must have shape {shape}, got {w0.shape}.")
    return w0
