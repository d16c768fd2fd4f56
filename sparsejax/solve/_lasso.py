"""The Lasso and the elastic net in fixed shapes: jit, vmap and grad go through."""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from ..prox._check import known
from ._duality import (
    Problem,
    Units,
    balanced,
    check_number,
    correlations,
    gap_of,
    lambda_max,
    matrix_and_target,
    problem,
    tolerance,
)
from ._gram import masked_solve, quadratic, solve_gram
from ._solution import Result, Solution, code, finish, refuse_infinite

WORKING_SET = 256
ROUNDS = 400


class _State(NamedTuple):
    w: Float[Array, " p"]
    r: Float[Array, " n"]
    c: Float[Array, " p"]
    gap: Float[Array, ""]
    scale: Float[Array, ""]
    outer: Int[Array, ""]
    rounds: Int[Array, ""]
    full: Array


def lasso(
    X: ArrayLike,
    y: ArrayLike,
    lam: ArrayLike,
    *,
    w0: ArrayLike | None = None,
    tol: float | None = None,
    max_outer: int = 50,
    working_set: int | None = None,
    weights: ArrayLike | None = None,
    positive: bool = False,
    l2: ArrayLike = 0.0,
    throw: bool = True,
) -> Solution:
    r"""The Lasso, to a certified duality gap, in fixed shapes.

    `min_w |y - X w|^2 / (2 n) + lam sum_j weights_j |w_j| + l2 |w|^2 / 2`.

    Working sets of a fixed size: the support, then the features that violate the optimality
    conditions most; those that gap-safe screening excludes never. On each, coordinate descent and
    projected Newton steps on a Gram matrix. Compiles once for a shape, also for a batch under
    `jax.vmap`, where a finished problem stops changing. Differentiable in X, y, lam, weights and l2
    by the implicit function theorem on the support; second derivatives within `lax.scan` are lost
    by JAX, as those of every `custom_jvp`: use `jax.vmap` or `lasso_path`. `lasso_host` is faster
    for one large problem.

    Args:
      X: Design (n, p), used as it is: centre X and y for an intercept.
      y: Target (n,).
      lam: Strength, a scalar. 0 gives the least squares solution of smallest norm (with l2 the
        ridge regression), with a warning and a gap of 0; under tracing a 0 ends as not converged
        and something negative as `Result.NONFINITE`. Infinity gives 0.
      w0: A start (p,), such as the solution for another lam.
      tol: The gap to reach, over the objective at 0: 1e-6 by default, in float32 1e-5.
      max_outer: The most working sets.
      working_set: The largest support that can be found, min(p, 256) by default.
      weights: A weight > 0 per feature (p,); infinity forces a zero.
      positive: Whether w must be >= 0.
      l2: Strength of the ridge term.
      throw: Whether to raise if the gap is not reached (outside jit).

    Returns:
      A `Solution`: `value` (p,); `result` is `Result.WORKING_SET` if the support outgrew the cap;
      `stats` holds `gap`, `n_iter` (working sets), `n_rounds` and `support_size`.

    Raises:
      RuntimeError: If `throw` and the gap is not reached.
      ValueError: If shapes do not fit, data are not finite, or a number is negative.

    Reference:
      Massias, Gramfort and Salmon, Celer, 2018, arXiv 1802.07481; Ndiaye et al., Gap Safe
      Screening Rules, 2017, arXiv 1611.05780; Bertrand et al., skglm, 2022, arXiv 2204.07826.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax import solve
      >>> X, y = 2 * jnp.eye(4), jnp.array([4.0, 1.0, 0.0, -2.0])
      >>> solve.lasso(X, y, 1.0).value.tolist()
      [1.0, 0.0, 0.0, 0.0]
      >>> jax.grad(lambda lam: solve.lasso(X, y, lam).value[0])(1.0).round(4).item()
      -1.0
    """
    pb = problem(X, y, lam, weights, l2)
    p = pb.thresholds.size
    pb, units = balanced(pb)
    if known(lam) and float(np.asarray(lam)) == 0 and known(l2):
        return least_squares(pb, units, positive, bool(np.asarray(l2) > 0))
    tol = tolerance(tol, pb.y.dtype)
    if working_set is not None and not 1 <= working_set:
        raise ValueError(f"working_set must be >= 1, got {working_set}; 64 for example.")
    m = min(p, working_set or WORKING_SET)
    w = jnp.zeros(p, pb.y.dtype) if w0 is None else jnp.asarray(w0, pb.y.dtype)
    if w.shape != (p,):
        raise ValueError(f"w0 must have shape ({p},), got {w.shape}; one number per column of X.")
    frozen, w = lax.stop_gradient((pb, units.inside(w)))
    w, result, stats = _solve(frozen, w, tol, m, max_outer, positive)
    value = units.outside(attach(pb, w, min(m, p)))
    stats = {**stats, "gap": units.objective(stats["gap"])}
    return finish("lasso", Solution(value, refuse_infinite(value, result), stats), throw)


@functools.partial(jax.jit, static_argnames=("m", "max_outer", "positive"))
def _solve(pb: Problem, w: Array, tol: Any, m: int, max_outer: int, positive: bool) -> Any:
    norms = jnp.sqrt(jnp.sum(pb.X**2, axis=0))
    movable = (norms > 0) & jnp.isfinite(pb.thresholds)
    scale = jnp.vdot(pb.y, pb.y) / (2 * pb.y.size)
    # What cannot move is 0, and a start with too many entries keeps the largest.
    w = jnp.where(movable & ~jnp.isnan(w), jnp.maximum(w, 0) if positive else w, 0)
    kept = lax.top_k(jnp.abs(w), m)[1]
    w = jnp.zeros_like(w).at[kept].set(w[kept])

    def measured(w, outer, rounds, full):
        r = pb.y - pb.X @ w
        c = jnp.where(movable, correlations(pb, w, r), 0)
        gap, s = gap_of(pb, w, r, c, positive)
        return _State(w, r, c, gap, s, outer, rounds, full)

    def outer(s: _State) -> _State:
        chosen, active, full = _choose(pb, s, norms, movable, m, positive)
        q = quadratic(pb.X[:, chosen].T, pb.y, pb.thresholds[chosen], pb.l2, active)
        target = jnp.maximum(0.3 * s.gap, 0.3 * tol * scale)
        inner, _, rounds = solve_gram(q, s.w[chosen], target, positive, ROUNDS)
        w = s.w.at[chosen].set(jnp.where(active, inner, s.w[chosen]))
        return measured(w, s.outer + 1, s.rounds + rounds, full)

    zero = jnp.zeros((), jnp.int32)
    first = measured(w, zero, zero, jnp.zeros((), bool))
    # At 0 and above lambda_max the gap is 0 exactly, whatever the rounding of P - D.
    empty = jnp.all(jnp.abs(first.c) <= pb.thresholds) & jnp.all(w == 0)
    first = first._replace(gap=jnp.where(empty & jnp.isfinite(scale), 0, first.gap))
    last = lax.while_loop(lambda s: (s.gap > tol * scale) & (s.outer < max_outer), outer, first)
    support = jnp.sum(last.w != 0)
    stats = {
        "gap": last.gap, "n_iter": last.outer, "n_rounds": last.rounds, "support_size": support,
    }  # fmt: skip
    finite = jnp.isfinite(last.gap) & jnp.isfinite(scale)
    why = jnp.where(last.full, Result.WORKING_SET, Result.MAX_STEPS)
    return last.w, code(finite, last.gap <= tol * scale, why), stats


def _choose(pb: Problem, s: _State, norms: Array, movable: Array, m: int, positive: bool) -> Any:
    """The support, then the largest correlations over their thresholds; never what is screened."""
    size = jnp.maximum(s.c, 0) if positive else jnp.abs(s.c)
    column = jnp.sqrt(norms**2 / pb.y.size + pb.l2)
    safe = s.scale * size < pb.thresholds - jnp.sqrt(2 * s.gap) * column
    on = s.w != 0
    score = jnp.where(
        pb.thresholds > 0, size / jnp.where(pb.thresholds > 0, pb.thresholds, 1), size
    )
    score = jnp.where(on, jnp.inf, jnp.where(movable & ~safe, score, -jnp.inf))
    best, chosen = lax.top_k(score, m)
    # Full: more features violate their bound than there is room for.
    full = jnp.sum(on | (movable & (size > pb.thresholds))) > m
    return chosen, best > -jnp.inf, full


def least_squares(pb: Problem, units: Units, positive: bool, ridge: bool) -> Solution:
    """What is left of the Lasso at lam = 0."""
    if positive:
        raise ValueError(
            "lam must be > 0 with positive=True; for non-negative least squares use "
            "solve.proximal_gradient(smooth, prox.box(0.0, jnp.inf), w0)."
        )
    warnings.warn("lasso with lam=0 is least squares: the solution of smallest norm", stacklevel=3)
    X = jnp.where(jnp.isinf(pb.thresholds), 0, pb.X)  # an infinite weight forces a zero
    w = None if ridge else jnp.linalg.lstsq(X, pb.y)[0]
    if w is None:
        wide = X.shape[1] > X.shape[0]
        gram = X @ X.T if wide else X.T @ X
        gram = gram + pb.y.size * pb.l2 * jnp.eye(len(gram), dtype=gram.dtype)
        w = X.T @ jnp.linalg.solve(gram, pb.y) if wide else jnp.linalg.solve(gram, X.T @ pb.y)
    w = units.outside(w)
    none = jnp.zeros((), jnp.int32)
    stats = {
        "gap": jnp.zeros((), w.dtype), "n_iter": none, "n_rounds": none,
        "support_size": jnp.sum(w != 0),
    }  # fmt: skip
    return Solution(w, none, stats)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def attach(pb: Problem, w: Array, m: int) -> Float[Array, " p"]:
    """w with the derivatives of a Lasso solution in its data; m is at least the support."""
    del pb, m
    return w


@attach.defjvp
def _attach_jvp(m: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    # X_S^T (y - X_S w_S) / n - l2 w_S - a_S s = 0, differentiated on a support that stays.
    (pb, w), (dpb, _) = primals, tangents
    w = attach(pb, w, m)  # so that what follows has derivatives too
    chosen = lax.top_k(jnp.abs(w), m)[1]
    part, on = w[chosen], w[chosen] != 0

    def residual(pb: Problem) -> Array:
        rows = pb.X[:, chosen].T
        r = pb.y - part @ rows
        thresholds = jnp.where(on, pb.thresholds[chosen], 0)
        return jnp.where(on, rows @ r / pb.y.size - pb.l2 * part - thresholds * jnp.sign(part), 0)

    right = jax.jvp(residual, (pb,), (dpb,))[1]
    q = quadratic(pb.X[:, chosen].T, pb.y, pb.thresholds[chosen], pb.l2, on)
    return w, jnp.zeros_like(w).at[chosen].set(masked_solve(q.gram, on, right), unique_indices=True)


def enet(
    X: ArrayLike, y: ArrayLike, lam: ArrayLike, ratio: ArrayLike = 0.5, **options: Any
) -> Solution:
    r"""The elastic net, `lasso` with `lam * ratio` and `l2 = lam * (1 - ratio)`.

    `min_w |y - X w|^2 / (2 n) + lam (ratio |w|_1 + (1 - ratio) |w|^2 / 2)`.

    Args:
      X: Design (n, p).
      y: Target (n,).
      lam: Strength.
      ratio: Share of the l1 norm, in (0, 1].
      **options: As for `lasso`.

    Returns:
      As `lasso`.

    Reference:
      Zou and Hastie, Regularization and variable selection via the elastic net, 2005.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import solve
      >>> X, y = 2 * jnp.eye(4), jnp.array([4.0, 1.0, 0.0, -2.0])
      >>> solve.enet(X, y, 2.0, ratio=0.5).value.tolist()
      [0.5, 0.0, 0.0, 0.0]
    """
    if known(ratio) and not 0 < float(np.asarray(ratio)) <= 1:
        raise ValueError(f"ratio must be in (0, 1], got {ratio}; as in solve.enet(X, y, 0.1, 0.5).")
    if "l2" in options:
        raise TypeError("enet has its own l2, lam * (1 - ratio); use solve.lasso(..., l2=...).")
    lam, l2 = shares(lam, ratio)
    return lasso(X, y, lam, l2=l2, **options)


def shares(lam: ArrayLike, ratio: ArrayLike) -> tuple[Array, Array]:
    """Strengths of the l1 norm and the ridge; of an infinite one the first alone: it gives 0."""
    lam, ratio = jnp.asarray(lam), jnp.asarray(ratio)
    finite = jnp.where(jnp.isinf(lam), 0, lam)
    return lam * ratio, finite * (1 - ratio)


def lasso_path(
    X: ArrayLike,
    y: ArrayLike,
    lams: ArrayLike | None = None,
    *,
    n_lams: int = 100,
    eps: float = 1e-2,
    throw: bool = True,
    **options: Any,
) -> Solution:
    """The Lasso for a falling sequence of strengths, each started from the last: one scan.

    Args:
      X: Design (n, p).
      y: Target (n,).
      lams: Strengths (k,) > 0, best from large to small; None for a geometric sequence from
        `lambda_max`.
      n_lams: How many strengths, without lams.
      eps: The last strength over the first, without lams.
      throw: Whether to raise if one of them is not solved (outside jit).
      **options: As for `lasso`.

    Returns:
      A `Solution`: `value` (k, p), a result and statistics for each, `stats["lams"]` (k,).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import solve
      >>> X, y = 2 * jnp.eye(2), jnp.array([4.0, 1.0])
      >>> solve.lasso_path(X, y, jnp.array([4.0, 2.0, 1.0])).value[:, 0].tolist()
      [0.0, 1.0, 1.5]
    """
    X, y = matrix_and_target(X, y, 1, "solve.lasso_path(X, y)")
    positive, weights = options.get("positive", False), options.get("weights")
    lams = jnp.asarray(falling(X, y, lams, n_lams, eps, weights, positive), X.dtype)
    tolerance(options.get("tol"), X.dtype)
    arrays = {name: options.pop(name) for name in ("weights", "l2") if name in options}
    problem(X, y, 1.0, weights, arrays.get("l2", 0.0))  # what is wrong is told here
    w0 = options.pop("w0", None)
    start = jnp.zeros(X.shape[1], X.dtype) if w0 is None else jnp.asarray(w0, X.dtype)
    found = _path(X, y, lams, start, arrays, tuple(sorted(options.items())))
    stats = {**found.stats, "lams": lams}
    return finish("lasso_path", Solution(found.value, found.result, stats), throw)


@functools.partial(jax.jit, static_argnames="options")
def _path(X: Array, y: Array, lams: Array, w0: Array, arrays: Any, options: Any) -> Solution:
    solved = functools.partial(lasso, throw=False, **dict(options))

    def step(w, lam):
        found = solved(*frozen[:2], lam, w0=w, **frozen[2])
        return found.value, found

    frozen = lax.stop_gradient((X, y, arrays))
    _, found = lax.scan(step, lax.stop_gradient(w0), lax.stop_gradient(lams))
    # Derivatives are attached outside of the scan, in which JAX would lose those of second order.
    there = functools.partial(solved, max_outer=0, **arrays)
    values = jax.vmap(lambda lam, w: there(X, y, lam, w0=w).value)(lams, found.value)
    return Solution(values, found.result, found.stats)


def falling(X, y, lams: Any, count: int, eps: float, weights: Any, positive: bool) -> Any:
    """The strengths of a path, checked."""
    if lams is None:
        return strengths(lambda_max(X, y, weights=weights, positive=positive), count, eps)
    if np.ndim(lams) != 1 or np.size(lams) == 0:
        raise ValueError(f"lams must be numbers (k,), at least one, got shape {np.shape(lams)}.")
    dtype = jnp.promote_types(jnp.result_type(X, y), jnp.float32)
    check_number("lams", lams, np.shape(lams), dtype)
    return lams


def strengths(largest: ArrayLike, count: int, eps: float) -> Float[Array, " k"]:
    """A geometric sequence from the largest down to eps of it."""
    if count < 1 or not 0 < eps <= 1:
        raise ValueError(f"n_lams must be >= 1 and eps in (0, 1], got {count} and {eps}.")
    return jnp.asarray(largest) * eps ** (jnp.arange(count) / max(count - 1, 1))
