"""The Lasso with random-reference preconditioning, for ill-conditioned designs."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..._arguments import (
    check_callable,
    check_strength,
    checked,
    known,
    matrix_and_target,
    path_strengths,
)
from ..._arrays import magnitude
from ..._solution import finish
from ...solve import Solution, lasso, lasso_host, max_strength
from ._preconditioner import Preconditioner, column_sizes, random_reference

CALL = "random_support.random_support_lasso(X, y, k=4, key=jax.random.key(0))"
FOLDS = 5


class RandomSupportFit(NamedTuple):
    """The value of the solution of `random_support_lasso`.

    Attributes:
      prediction: Fitted values (n,), well conditioned.
      coefficients: Coefficients of the columns of X (p,); they may be huge if X is
        ill-conditioned.
      intercept: The unpenalized constant, 0 without one.
      residual_coefficients: Coefficients of the residual columns (p,).
      strength: Strength of the l1 norm.
      preconditioner: The preconditioner, of width 0 for the plain Lasso.
      errors: Held-out squared error by width, for each width that was tried.
    """

    prediction: Float[Array, " n"]
    coefficients: Float[Array, " p"]
    intercept: Float[Array, ""]
    residual_coefficients: Float[Array, " p"]
    strength: Float[Array, ""]
    preconditioner: Preconditioner
    errors: dict[int, float]


@checked()
def random_support_lasso(
    X: ArrayLike,
    y: ArrayLike,
    *,
    k: int,
    key: Array,
    m: int | str | None = None,
    strength: ArrayLike | str | None = None,
    sigma: ArrayLike | None = None,
    delta: float = 0.25,
    n_restarts: int = 1,
    intercept: bool = False,
    rtol: float | None = None,
    solver: Callable[..., Solution] = lasso,
    throw: bool = True,
) -> Solution:
    r"""Sparse regression with a random support and any fixed design.

    `min_{q,a} |y - Q q - Z a|^2 / (2 n) + strength |a|_1`: least squares on `m` columns drawn at
    random (`random_reference`), a Lasso on the residuals of the others. If the support of w is
    random of size k, the prediction error of the l1 slow rate holds with probability 1 - delta for
    every condition number of X: `O(sigma^2 m / n + sigma k |X w| / n sqrt(log p))`, because every
    penalized coefficient is at most `|X w| / sqrt(n)`. The cost is the term `sigma^2 m / n`, which
    buys nothing for well-conditioned designs: on Gaussian designs the error of the plain Lasso is
    half as large. `m="auto"` chooses m by cross-validation; m = 0 is the plain Lasso.

    Args:
      X: Design (n, p); use float64 if its condition number exceeds 1e6.
      y: Target (n,).
      k: Bound on the size of the support.
      key: A random key, independent of X and y.
      m: Number of columns to draw. None for `k - 1` in each of `ceil(k / delta)` blocks, at most
        n / 4; "auto" to choose among 0, a quarter of that number and that number, by held-out
        error.
      strength: Strength of the l1 norm; "cv" chooses it by held-out error, as `m="auto"` does if no
        strength is given; None for `sigma sqrt(2 log(40 p) / n)`.
      sigma: Standard deviation of the noise for the default strength; None estimates an upper
        bound from the residual of the basis.
      delta: Probability of failure for the default m.
      n_restarts: Number of random bases to choose from by held-out error.
      intercept: Whether to fit an unpenalized constant.
      rtol: As for `random_reference`.
      solver: `solve.lasso`, or `solve.lasso_host` for one large problem; called as
        `solver(X, y, strength, throw=False)`.
      throw: Whether to raise if the Lasso does not converge (outside jit).

    Returns:
      A `Solution` with a `RandomSupportFit` as value and the result and stats of the Lasso. With a
      number (or None) for m and strength and one restart it works under jit and vmap; choices by
      held-out error run on the host, in five folds.

    Raises:
      RuntimeError: If `throw` and the Lasso did not converge.
      ValueError: If shapes do not fit, k is not in 1..p, or there are fewer than 10 rows for
        cross-validation.

    Reference:
      Chandrasekaran, Meka and Stavropoulos, Sparse Linear Regression is Easy on Random Supports,
      2025, arXiv 2511.06211. Random-reference preconditioning satisfies the guarantee of the paper,
      whose search for a preconditioner is a different one.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import random_support
      >>> X, key = jax.random.normal(jax.random.key(0), (40, 60)), jax.random.key(1)
      >>> found = random_support.random_support_lasso(X, 3 * X[:, 7], k=1, key=key, strength=0.1)
      >>> jnp.abs(found.value.coefficients).argmax().item()
      7
    """
    check_callable("solver", solver, "X", "y", "strength", keywords=("throw",))
    X, y = matrix_and_target(X, y, 1, CALL)
    widths, strength, n_restarts = _choices(X.shape, k, m, strength, delta, n_restarts)
    if sigma is not None and (jnp.ndim(sigma) or (known(sigma) and not float(sigma) >= 0)):  # pyright: ignore[reportArgumentType]
        raise ValueError(f"sigma must be a number >= 0, got {sigma}; as in {CALL}.")
    fit = functools.partial(
        _fit, sigma=sigma, intercept=intercept, rtol=rtol, solver=solver, errors={}
    )
    keys = jax.random.split(key, n_restarts)
    if len(widths) == 1 and n_restarts == 1 and not isinstance(strength, str):
        return finish("random_support_lasso", fit(keys[0], X, y, widths[0], strength), throw)
    if not (known(X) and known(y)):
        raise TypeError(
            "choosing m, strength or a restart by held-out error needs numbers, not tracers: call "
            "random_support_lasso outside jit, or give m and strength, as in "
            "random_support.random_support_lasso(X, y, k=4, key=key, m=24, strength=0.1)."
        )
    width, restart, strength, errors = _cross_validate(fit, key, keys, X, y, widths, strength)
    found = fit(keys[restart], X, y, width, strength)
    found = replace(found, value=found.value._replace(errors=errors))
    return finish("random_support_lasso", found, throw)


def _choices(shape: Any, k: int, m: Any, strength: Any, delta: float, restarts: int) -> Any:
    n, p = shape
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= p:
        raise ValueError(f"k must be a number of columns from 1 to {p}, got {k!r}; as in {CALL}.")
    if not 0 < delta < 1:
        raise ValueError(f"delta must be between 0 and 1, got {delta}; as in {CALL}.")
    if isinstance(restarts, bool) or not isinstance(restarts, int) or restarts < 1:
        raise ValueError(f"n_restarts must be an integer >= 1, got {restarts!r}; as in {CALL}.")
    full = max(1, min(math.ceil(k / delta) * max(k - 1, 1), n // 4, p))
    if m is None:
        widths = [full]
    elif m == "auto":
        widths = sorted({0, full // 4, full})
        strength = "cv" if strength is None else strength
    elif isinstance(m, int | np.integer) and not isinstance(m, bool) and 0 <= m <= p:
        widths = [int(m)]
    else:
        raise ValueError(f"m must be None, 'auto' or an integer from 0 to {p}, got {m!r}.")
    if isinstance(strength, str):
        if strength != "cv":
            raise ValueError(
                f"strength must be a number, None or 'cv', got {strength!r}; as in {CALL}."
            )
    elif strength is not None:
        check_strength("strength", strength, ())
    if (len(widths) > 1 or restarts > 1 or isinstance(strength, str)) and n < 2 * FOLDS:
        raise ValueError(
            f"choosing by held-out error needs {2 * FOLDS} rows, X has {n}; give m and "
            "strength, as in "
            "random_support.random_support_lasso(X, y, k=1, key=key, m=1, strength=0.1)."
        )
    return widths, strength, restarts


def _prepare(key: Array, X: Array, y: Array, m: int, intercept: bool, rtol: Any) -> Any:
    centre, level = (
        (_mean(X), _mean(y)) if intercept else (jnp.zeros_like(X[0]), jnp.zeros_like(y[0]))
    )
    X, y = X - centre, y - level
    pre = random_reference(X, m, key=key, rtol=rtol)
    r = y
    for _ in range(2):
        r = r - pre.basis @ (pre.basis.T @ r)
    return X, y, centre, level, pre, r


def _size(x: Array) -> Array:
    return column_sizes(x[:, None])[0]


def _mean(x: Array) -> Array:
    size = magnitude(x)
    return jnp.mean(x / size, axis=0) * size


def _fit(
    key: Array, X: Array, y: Array, m: int, strength: Any, *,
    sigma: Any, intercept: bool, rtol: Any, solver: Callable[..., Solution], errors: dict,
) -> Solution:  # fmt: skip
    X, y, centre, level, pre, r = _prepare(key, X, y, m, intercept, rtol)
    n, p = X.shape
    if strength is None:
        sigma = _size(r) * math.sqrt(n / max(n - m, 1)) if sigma is None else sigma
        strength = sigma * math.sqrt(2 * math.log(2 * p / 0.05) / n)
    strength = jnp.asarray(strength, X.dtype)
    # A residual of 0 or of the size of rounding is not fitted.
    nothing = _size(r) <= 10 * jnp.finfo(r.dtype).eps * _size(y)
    r = jnp.where(nothing, 0, r)
    penalty = jnp.where(nothing & (strength == 0), 1, strength)
    found = solver(pre.residual, r, penalty, throw=False)
    q = pre.basis.T @ y
    w = pre.coefficients(X, q, found.value)
    prediction = pre.basis @ q + pre.residual @ found.value + level
    value = RandomSupportFit(prediction, w, level - centre @ w, found.value, strength, pre, errors)
    return replace(found, value=value)


def _cross_validate(
    fit: Any, key: Array, keys: Array, X: Array, y: Array, widths: list[int], strength: Any
) -> tuple[int, int, Any, dict[int, float]]:
    """Width, restart and strength of the smallest held-out error, and the errors by width."""
    options = {name: fit.keywords[name] for name in ("intercept", "rtol")}
    n = y.size
    held = n // FOLDS
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, 1), n))
    errors, best = {}, (math.inf, 0, 0, strength)
    for width in widths:
        for restart, one in enumerate(keys if width else keys[:1]):
            _, _, _, _, pre, r = _prepare(one, X, y, width, **options)
            top = float(max_strength(pre.residual, r))
            grid = _grid(top, strength, fit.keywords["sigma"], r, width, X.shape[1])
            folds = []
            for fold in range(FOLDS):
                out = order[fold * held : (fold + 1) * held]
                rows = np.setdiff1d(order, out)
                folds.append(
                    _Fold(_prepare(one, X[rows], y[rows], width, **options), X[out], y[out])
                )
            total = _held_out(folds, grid) / (FOLDS * held)
            at = int(np.argmin(total))
            errors[width] = min(errors.get(width, math.inf), float(total[at]))
            if total[at] < best[0]:
                chosen = None if strength is None else grid[at]
                best = (float(total[at]), width, restart, chosen)
    return best[1], best[2], best[3], errors


def _grid(top: float, strength: Any, sigma: Any, r: Array, width: int, p: int) -> np.ndarray:
    if isinstance(strength, str):
        return np.asarray(path_strengths(max(top, float(jnp.finfo(r.dtype).tiny)), 16, 3e-2))
    if strength is None:
        n = r.size
        sigma = float(_size(r)) * math.sqrt(n / max(n - width, 1)) if sigma is None else sigma
        strength = float(sigma) * math.sqrt(2 * math.log(2 * p / 0.05) / n)
    return np.asarray([max(float(strength), float(jnp.finfo(r.dtype).tiny))])


class _Fold(NamedTuple):
    train: Any
    X: Array
    y: Array


def _held_out(folds: list[_Fold], grid: np.ndarray) -> np.ndarray:
    """Squared errors on held-out rows, by strength; infinity where the search stopped."""
    total = np.full(len(grid), math.inf)
    starts: list[Any] = [None] * len(folds)
    for i, strength in enumerate(grid):
        total[i] = 0
        for j, fold in enumerate(folds):
            train, target, centre, level, pre, r = fold.train
            a = lasso_host(pre.residual, r, strength, w0=starts[j], tol=1e-3, throw=False).value
            w = pre.coefficients(train, pre.basis.T @ target, a)
            total[i] += float(jnp.sum((fold.y - level - (fold.X - centre) @ w) ** 2))
            starts[j] = a
        best = int(np.argmin(total))
        if i >= best + 4 and total[i] > 1.05 * total[best]:
            break  # smaller strengths are the slowest, and no better
    return total
