"""Sparse regression in a basis that a few random columns repair: for designs of any condition."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ...prox._check import known
from ...solve import Solution, lambda_max, lasso, lasso_host
from ...solve._algebra import magnitude
from ...solve._duality import check_number, matrix_and_target
from ...solve._lasso import strengths
from ._preconditioner import Preconditioner, column_sizes, precondition_unapply, random_reference

CALL = "solve.random_support_lasso(X, y, k=4, key=jax.random.key(0))"
FOLDS = 5


class RandomSupportFit(NamedTuple):
    """What `random_support_lasso` found.

    Attributes:
      prediction: Fitted values (n,), well conditioned.
      coefficients: In the columns of X (p,); may be huge where X is ill-conditioned.
      intercept: Of the fit, 0 without one.
      residual_coefficients: Of the residual columns (p,).
      strength: The strength of the l1 norm.
      result: The `Result` of the Lasso.
      preconditioner: The basis, of width 0 for the plain Lasso.
      errors: Held-out squared error of each width that was tried, by width.
    """

    prediction: Float[Array, " n"]
    coefficients: Float[Array, " p"]
    intercept: Float[Array, ""]
    residual_coefficients: Float[Array, " p"]
    strength: Float[Array, ""]
    result: Any
    preconditioner: Preconditioner
    errors: dict[int, float]


def random_support_lasso(
    X: ArrayLike,
    y: ArrayLike,
    *,
    k: int,
    key: Array,
    m: int | str | None = None,
    lam: ArrayLike | str | None = None,
    sigma: ArrayLike | None = None,
    delta: float = 0.25,
    n_restarts: int = 1,
    intercept: bool = False,
    rtol: float | None = None,
    solver: Callable[..., Solution] = lasso,
) -> RandomSupportFit:
    r"""Sparse regression with any fixed design, where the support is random.

    `min_{q,a} |y - Q q - Z a|^2 / (2 n) + lam |a|_1`: least squares on `m` columns drawn at random
    (`random_reference`), a Lasso on what they leave of the others. If the support of w is random
    and k long, the prediction error of the l1 slow rate holds with probability 1 - delta
    whatever the condition of X: `O(sigma^2 m / n + sigma k |X w| / n sqrt(log p))`, because every
    penalised coefficient is at most `|X w| / sqrt(n)`. The price is `sigma^2 m / n`, in vain where
    X has nothing to repair, as Gaussian designs have not: there the plain Lasso is better by a
    factor of 2. `m="auto"` finds out by cross-validation, the plain Lasso being m = 0.

    Args:
      X: Design (n, p); float64 where its condition number exceeds 1e6.
      y: Target (n,).
      k: Bound on the length of the support.
      key: A key that is independent of X and y.
      m: How many columns to draw. None for `k - 1` in each of `ceil(k / delta)` blocks, at most
        n / 4; "auto" to choose from none, a quarter of it and all of it by held-out error.
      lam: The strength; "cv" for held-out error, as "auto" takes if there is none; None for
        `sigma sqrt(2 log(40 p) / n)`.
      sigma: The noise for that; None estimates it by the residual of the basis, from above.
      delta: Probability of failure that None for m allows.
      n_restarts: How many random bases to choose from by held-out error.
      intercept: Whether to fit an unpenalised constant.
      rtol: As for `random_reference`.
      solver: `solve.lasso`, or `solve.lasso_host` for one large problem.

    Returns:
      A `RandomSupportFit`. With a number (or None) for m and lam and one restart it works under jit
      and vmap; what is chosen by held-out error is chosen by the host, in five folds.

    Raises:
      ValueError: If shapes do not fit, k is not in 1..p, or there are fewer than 10 rows to hold
        any out.

    Reference:
      Chandrasekaran, Meka and Stavropoulos, Sparse Linear Regression is Easy on Random Supports,
      2025, arXiv 2511.06211. Random-reference preconditioning, which satisfies the guarantee of
      the paper; the paper's own search for a preconditioner is another.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import random_support
      >>> X = jax.random.normal(jax.random.key(0), (40, 60))
      >>> fit = random_support.random_support_lasso(X, 3 * X[:, 7], k=1, key=jax.random.key(1), lam=0.1)
      >>> jnp.abs(fit.coefficients).argmax().item()
      7
    """
    X, y = matrix_and_target(X, y, 1, CALL)
    widths, lam, n_restarts = _choices(X.shape, k, m, lam, delta, n_restarts)
    if sigma is not None and (jnp.ndim(sigma) or (known(sigma) and not float(sigma) >= 0)):  # pyright: ignore[reportArgumentType]
        raise ValueError(f"sigma must be a number >= 0, got {sigma}; as in {CALL}.")
    fit = functools.partial(
        _fit, sigma=sigma, intercept=intercept, rtol=rtol, solver=solver, errors={}
    )
    keys = jax.random.split(key, n_restarts)
    if len(widths) == 1 and n_restarts == 1 and not isinstance(lam, str):
        return fit(keys[0], X, y, widths[0], lam)
    if not (known(X) and known(y)):
        raise TypeError(
            "choosing m, lam or a restart by held-out error needs numbers, not tracers: call it "
            "outside jit, or give m and lam, as in "
            "random_support.random_support_lasso(X, y, k=4, key=key, m=24, lam=0.1)."
        )
    width, restart, lam, errors = _cross_validate(fit, key, keys, X, y, widths, lam)
    return fit(keys[restart], X, y, width, lam)._replace(errors=errors)


def _choices(shape: Any, k: int, m: Any, lam: Any, delta: float, restarts: int) -> Any:
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
        lam = "cv" if lam is None else lam
    elif isinstance(m, int | np.integer) and not isinstance(m, bool) and 0 <= m <= p:
        widths = [int(m)]
    else:
        raise ValueError(f"m must be None, 'auto' or an integer from 0 to {p}, got {m!r}.")
    if isinstance(lam, str):
        if lam != "cv":
            raise ValueError(f"lam must be a number, None or 'cv', got {lam!r}; as in {CALL}.")
    elif lam is not None:
        check_number("lam", lam, ())
    if (len(widths) > 1 or restarts > 1 or isinstance(lam, str)) and n < 2 * FOLDS:
        raise ValueError(
            f"choosing by held-out error needs {2 * FOLDS} rows, X has {n}; give m and lam, as in "
            "solve.random_support_lasso(X, y, k=1, key=key, m=1, lam=0.1)."
        )
    return widths, lam, restarts


def _prepare(key: Array, X: Array, y: Array, m: int, intercept: bool, rtol: Any) -> Any:
    centre, level = (
        (_mean(X), _mean(y)) if intercept else (jnp.zeros_like(X[0]), jnp.zeros_like(y[0]))
    )
    X, y = X - centre, y - level
    pre = random_reference(key, X, m, rtol)
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
    key: Array, X: Array, y: Array, m: int, lam: Any, *,
    sigma: Any, intercept: bool, rtol: Any, solver: Callable[..., Solution], errors: dict,
) -> RandomSupportFit:  # fmt: skip
    X, y, centre, level, pre, r = _prepare(key, X, y, m, intercept, rtol)
    n, p = X.shape
    if lam is None:
        sigma = _size(r) * math.sqrt(n / max(n - m, 1)) if sigma is None else sigma
        lam = sigma * math.sqrt(2 * math.log(2 * p / 0.05) / n)
    lam = jnp.asarray(lam, X.dtype)
    # A residual that is 0, or rounding, has nothing to fit.
    nothing = _size(r) <= 10 * jnp.finfo(r.dtype).eps * _size(y)
    r = jnp.where(nothing, 0, r)
    found = solver(pre.residual, r, jnp.where(nothing & (lam == 0), 1, lam))
    q = pre.basis.T @ y
    w = precondition_unapply(pre, X, q, found.value)
    prediction = pre.basis @ q + pre.residual @ found.value + level
    return RandomSupportFit(
        prediction, w, level - centre @ w, found.value, lam, found.result, pre, errors
    )


def _cross_validate(
    fit: Any, key: Array, keys: Array, X: Array, y: Array, widths: list[int], lam: Any
) -> tuple[int, int, Any, dict[int, float]]:
    """Width, restart and strength of the least held-out error, and the errors by width."""
    options = {name: fit.keywords[name] for name in ("intercept", "rtol")}
    n = y.size
    held = n // FOLDS
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, 1), n))
    errors, best = {}, (math.inf, 0, 0, lam)
    for width in widths:
        for restart, one in enumerate(keys if width else keys[:1]):
            _, _, _, _, pre, r = _prepare(one, X, y, width, **options)
            top = float(lambda_max(pre.residual, r))
            grid = _grid(top, lam, fit.keywords["sigma"], r, width, X.shape[1])
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
                chosen = None if lam is None else grid[at]
                best = (float(total[at]), width, restart, chosen)
    return best[1], best[2], best[3], errors


def _grid(top: float, lam: Any, sigma: Any, r: Array, width: int, p: int) -> np.ndarray:
    if isinstance(lam, str):
        return np.asarray(strengths(max(top, float(jnp.finfo(r.dtype).tiny)), 16, 3e-2))
    if lam is None:
        n = r.size
        sigma = float(_size(r)) * math.sqrt(n / max(n - width, 1)) if sigma is None else sigma
        lam = float(sigma) * math.sqrt(2 * math.log(2 * p / 0.05) / n)
    return np.asarray([max(float(lam), float(jnp.finfo(r.dtype).tiny))])


class _Fold(NamedTuple):
    train: Any
    X: Array
    y: Array


def _held_out(folds: list[_Fold], grid: np.ndarray) -> np.ndarray:
    """Squared errors on rows held out, by strength; infinity past the point where they rise."""
    total = np.full(len(grid), math.inf)
    starts: list[Any] = [None] * len(folds)
    for i, lam in enumerate(grid):
        total[i] = 0
        for j, fold in enumerate(folds):
            train, target, centre, level, pre, r = fold.train
            a = lasso_host(pre.residual, r, lam, w0=starts[j], tol=1e-3, throw=False).value
            w = precondition_unapply(pre, train, pre.basis.T @ target, a)
            total[i] += float(jnp.sum((fold.y - level - (fold.X - centre) @ w) ** 2))
            starts[j] = a
        best = int(np.argmin(total))
        if i >= best + 4 and total[i] > 1.05 * total[best]:
            break  # small strengths cost most and are worse
    return total
