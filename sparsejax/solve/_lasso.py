"""The Lasso and the elastic net in fixed shapes: compatible with jit, vmap and grad."""

import functools
import warnings
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from .._arguments import (
    check_strength,
    checked,
    checked_start,
    known,
    matrix_and_target,
    path_strengths,
)
from .._arrays import Units, wide_dtype, zeros_for
from .._solution import Result, Solution, code, finish, refuse_infinite
from . import _lasso_native
from ._duality import (
    Problem,
    balanced,
    correlations,
    cost,
    default_tol,
    gap_of,
    max_strength,
    problem,
)
from ._gram import masked_solve, quadratic, solve_gram

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


@checked(tol="(0, inf)", max_steps="[0, inf)", working_set="[1, inf)", l2="[0, inf)")
def lasso(
    X: ArrayLike,
    y: ArrayLike,
    strength: ArrayLike,
    *,
    w0: ArrayLike | None = None,
    tol: float | None = None,
    max_steps: int = 50,
    working_set: int | None = None,
    weights: ArrayLike | None = None,
    positive: bool = False,
    l2: ArrayLike = 0.0,
    implementation: Literal["native", "xla"] | None = None,
    throw: bool = True,
) -> Solution:
    r"""The Lasso, solved to a certified duality gap, in fixed shapes.

    `min_w |y - X w|^2 / (2 n) + strength sum_j weights_j |w_j| + l2 |w|^2 / 2`.

    Uses working sets: the support, then the features that violate the optimality conditions most,
    never those excluded by gap-safe screening. Each is solved by coordinate descent and projected
    Newton steps on a Gram matrix: on CPUs in C++, compiled at first use, with one call and several
    threads for a batch under `jax.vmap`; elsewhere in XLA, in fixed shapes. Differentiable in X, y,
    strength, weights and l2 by the implicit function theorem on the support; JAX drops second
    derivatives of every `custom_jvp` within `lax.scan`: use `jax.vmap` or `lasso_path`.

    Args:
      X: Design (n, p), not centred: centre X and y for an intercept.
      y: Target (n,).
      strength: Strength, a scalar. 0 gives the least squares solution of minimal norm (with l2
        ridge regression), with a warning and a gap of 0; a traced 0 is reported as not converged
        and a traced negative value as `Result.NONFINITE`. Infinity gives 0.
      w0: Initial value (p,), such as the solution for another strength.
      tol: Duality gap over the objective at 0: by default 1e-6, or 1e-5 in float32.
      max_steps: Maximum number of working sets.
      working_set: Maximum size of the support, min(p, 256) by default.
      weights: A weight > 0 per feature (p,); infinity forces a zero.
      positive: Whether w must be >= 0.
      l2: Strength of the ridge term.
      implementation: "native" (C++ on CPUs) or "xla", which `jax.export` can serialise and which
        splits a batch over devices; None is the first that runs.
      throw: Whether to raise if the gap is not reached (outside jit).

    Returns:
      A `Solution`: `value` (p,); `result` is `Result.WORKING_SET` if the support outgrew the cap;
      `stats` holds `gap`, `n_iter` (working sets), `n_rounds` and `support_size`.

    Raises:
      NotImplementedError: If `implementation="native"` and there is no C++ compiler.
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
      >>> jax.grad(lambda strength: solve.lasso(X, y, strength).value[0])(1.0).round(4).item()
      -1.0
    """
    pb = problem(X, y, strength, weights, l2)
    p = pb.thresholds.size
    pb, units = balanced(pb)
    if known(strength) and float(np.asarray(strength)) == 0 and known(l2):
        return least_squares(pb, units, positive, bool(np.asarray(l2) > 0))
    tol = default_tol(tol, pb.y.dtype)
    if working_set is not None and not 1 <= working_set:
        raise ValueError(f"working_set must be >= 1, got {working_set}; 64 for example.")
    m = min(p, working_set or WORKING_SET)
    w = checked_start("lasso", w0, (p,), pb.y.dtype)
    frozen, w = lax.stop_gradient((pb, units.inside(w)))
    native = _runs_native(implementation)
    w, result, stats = _solve(frozen, w, tol, m, max_steps, positive, native)
    value = units.outside(attach(pb, w, min(m, p)))
    stats = {**stats, "gap": units.objective(stats["gap"])}
    return finish("lasso", Solution(value, refuse_infinite(value, result), stats), throw)


def _runs_native(implementation: str | None) -> bool:
    why = None if implementation == "xla" else _lasso_native.problem_with_compiling()
    if implementation == "native" and why is not None:
        raise NotImplementedError(f'lasso: implementation="native" does not run here: {why}')
    return implementation != "xla" and why is None


@functools.partial(jax.jit, static_argnames=("m", "max_steps", "positive", "native"))
def _solve(
    pb: Problem, w: Array, tol: Any, m: int, max_steps: int, positive: bool, native: bool
) -> Any:
    norms = jnp.sqrt(jnp.sum(pb.X**2, axis=0))
    movable = (norms > 0) & jnp.isfinite(pb.thresholds)
    scale = jnp.vdot(pb.y, pb.y) / (2 * pb.y.size)
    # Screened coefficients are 0; an initial value with too many entries keeps the largest.
    w = jnp.where(movable & ~jnp.isnan(w), jnp.maximum(w, 0) if positive else w, 0)
    kept = lax.top_k(jnp.abs(w), m)[1]
    w = jnp.zeros_like(w).at[kept].set(w[kept])
    r = pb.y - pb.X @ w
    value = jnp.vdot(r, r) / (2 * r.size) + cost(w, pb.thresholds) + pb.l2 / 2 * jnp.vdot(w, w)
    w = jnp.where(value <= 2 * scale, w, 0)  # far worse than 0, or not a number, is not used

    def in_xla(w: Array) -> Any:
        return _rounds(pb, w, norms, movable, scale, tol, m, max_steps, positive)

    def in_cpp(w: Array) -> Any:
        found = _lasso_native.solve(pb, w, norms, tol, max_steps, positive)
        # A call has results that do not vary over devices, whatever its arguments.
        w, gap, counts = jax.tree.map(lambda x: x + zeros_for((), x.dtype, w, pb.X), found)
        outer, rounds, support, ended = counts
        result = jnp.where(support > m, Result.WORKING_SET, ended)
        seen = jnp.isfinite(jnp.sum(norms)) & jnp.isfinite(scale)  # C++ leaves out other columns
        result = jnp.where(seen, result, Result.NONFINITE).astype(jnp.int32)
        stats = {"gap": gap, "n_iter": outer, "n_rounds": rounds, "support_size": support}
        return w, result, stats

    return lax.platform_dependent(w, cpu=in_cpp, default=in_xla) if native else in_xla(w)


def _rounds(
    pb: Problem,
    w: Array,
    norms: Array,
    movable: Array,
    scale: Array,
    tol: Any,
    m: int,
    max_steps: int,
    positive: bool,
) -> Any:
    """Working sets of m features until the gap is small, in XLA."""

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

    zero = zeros_for((), jnp.int32, w, pb.X)
    first = measured(w, zero, zero, zero > 0)
    # At 0 and above max_strength the gap is exactly 0, despite the rounding of P - D.
    empty = jnp.all(jnp.abs(first.c) <= pb.thresholds) & jnp.all(w == 0)
    first = first._replace(gap=jnp.where(empty & jnp.isfinite(scale), 0, first.gap))
    last = lax.while_loop(lambda s: (s.gap > tol * scale) & (s.outer < max_steps), outer, first)
    support = jnp.sum(last.w != 0, dtype=jnp.int32)
    stats = {
        "gap": last.gap, "n_iter": last.outer, "n_rounds": last.rounds, "support_size": support,
    }  # fmt: skip
    finite = jnp.isfinite(last.gap) & jnp.isfinite(scale)
    why = jnp.where(last.full, Result.WORKING_SET, Result.MAX_STEPS)
    return last.w, code(finite, last.gap <= tol * scale, why), stats


def _choose(pb: Problem, s: _State, norms: Array, movable: Array, m: int, positive: bool) -> Any:
    """The support, then the largest ratios of correlation to threshold, without screened ones."""
    size = jnp.maximum(s.c, 0) if positive else jnp.abs(s.c)
    column = jnp.sqrt(norms**2 / pb.y.size + pb.l2)
    safe = s.scale * size < pb.thresholds - jnp.sqrt(2 * s.gap) * column
    on = s.w != 0
    score = jnp.where(
        pb.thresholds > 0, size / jnp.where(pb.thresholds > 0, pb.thresholds, 1), size
    )
    score = jnp.where(on, jnp.inf, jnp.where(movable & ~safe, score, -jnp.inf))
    best, chosen = lax.top_k(score, m)
    # Full: more features violate their bound than fit into the working set.
    full = jnp.sum(on | (movable & (size > pb.thresholds))) > m
    return chosen, best > -jnp.inf, full


def least_squares(pb: Problem, units: Units, positive: bool, ridge: bool) -> Solution:
    """The Lasso at strength = 0: least squares."""
    if positive:
        raise ValueError(
            "strength must be > 0 with positive=True; for non-negative least squares use "
            "solve.proximal_gradient(smooth, prox.box(0.0, jnp.inf), w0)."
        )
    warnings.warn(
        "lasso with strength=0 is least squares: returning the solution of minimal norm",
        stacklevel=3,
    )
    X = jnp.where(jnp.isinf(pb.thresholds), 0, pb.X)  # an infinite weight forces a zero
    if ridge:
        w, gap = _ridge(X, pb.y, pb.l2)
    else:
        w, gap = jnp.linalg.lstsq(X, pb.y)[0], jnp.zeros((), X.dtype)
    w = units.outside(w)
    none = jnp.zeros((), jnp.int32)
    stats = {
        "gap": units.objective(gap), "n_iter": none, "n_rounds": none,
        "support_size": jnp.sum(w != 0),
    }  # fmt: skip
    return Solution(w, none, stats)


def _ridge(X: Array, y: Array, l2: Array) -> tuple[Array, Array]:
    """The minimiser of `||y - X w||^2 / (2n) + l2 ||w||^2 / 2` and a bound of its gap.

    By a QR decomposition, since the Gram matrix has the square of the condition of X: of X above a
    multiple of the identity, or beside it, where the solution is that of least norm.
    """
    n, p = X.shape
    root = jnp.sqrt(n * l2)
    if p > n:
        q, r = jnp.linalg.qr(jnp.concatenate([X.T, root * jnp.eye(n, dtype=X.dtype)]))
        w = q[:p] @ solve_triangular(r, y, trans=1)
    else:
        q, r = jnp.linalg.qr(jnp.concatenate([X, root * jnp.eye(p, dtype=X.dtype)]))
        w = solve_triangular(r, q[:n].T @ y)
    slope = (y - X @ w) @ X / n - l2 * w
    return w, slope @ slope / (2 * l2)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def attach(pb: Problem, w: Array, m: int) -> Float[Array, " p"]:
    """Attaches the derivatives of a Lasso solution to w; m is at least the size of the support."""
    del pb, m
    return w


@attach.defjvp
def _attach_jvp(m: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    # X_S^T (y - X_S w_S) / n - l2 w_S - a_S s = 0, differentiated on a fixed support.
    (pb, w), (dpb, _) = primals, tangents
    w = attach(pb, w, m)  # so that the following lines are differentiable too
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


@checked(ratio="[0, 1]")
def enet(
    X: ArrayLike, y: ArrayLike, strength: ArrayLike, ratio: ArrayLike = 0.5, **options: Any
) -> Solution:
    r"""The elastic net, `lasso` with `strength * ratio` and `l2 = strength * (1 - ratio)`.

    `min_w |y - X w|^2 / (2 n) + strength (ratio |w|_1 + (1 - ratio) |w|^2 / 2)`.

    Args:
      X: Design (n, p).
      y: Target (n,).
      strength: Strength.
      ratio: Fraction of the l1 norm, in (0, 1].
      **options: As for `lasso`.

    Returns:
      A `Solution`, as for `lasso`.

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
        raise TypeError(
            "enet has its own l2, strength * (1 - ratio); use solve.lasso(..., l2=...)."
        )
    check_strength("strength", strength, ())
    strength, l2 = shares(strength, ratio)
    return lasso(X, y, strength, l2=l2, **options)


def shares(strength: ArrayLike, ratio: ArrayLike) -> tuple[Array, Array]:
    """Strengths of the l1 norm and the ridge; an infinite one sets the l1 norm only."""
    strength, ratio = jnp.asarray(strength), jnp.asarray(ratio)
    finite = jnp.where(jnp.isinf(strength), 0, strength)
    return strength * ratio, finite * (1 - ratio)


@checked(n_strengths="[1, inf)", eps="(0, 1]")
def lasso_path(
    X: ArrayLike,
    y: ArrayLike,
    strengths: ArrayLike | None = None,
    *,
    n_strengths: int = 100,
    eps: float = 1e-2,
    throw: bool = True,
    **options: Any,
) -> Solution:
    """The Lasso for a decreasing sequence of strengths with warm starts, in one scan.

    Args:
      X: Design (n, p).
      y: Target (n,).
      strengths: Strengths (k,) > 0, preferably decreasing; None for a geometric sequence from
        `max_strength`.
      n_strengths: Number of strengths, if `strengths` is None.
      eps: Ratio of the last strength to the first, if `strengths` is None.
      throw: Whether to raise if one of them does not converge (outside jit).
      **options: As for `lasso`.

    Returns:
      A `Solution`: `value` (k, p), a result and statistics for each, `stats["strengths"]` (k,).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import solve
      >>> X, y = 2 * jnp.eye(2), jnp.array([4.0, 1.0])
      >>> solve.lasso_path(X, y, jnp.array([4.0, 2.0, 1.0])).value[:, 0].tolist()
      [0.0, 1.0, 1.5]
    """
    X, y = matrix_and_target(X, y, 1, "solve.lasso_path(X, y)")
    positive, weights = options.get("positive", False), options.get("weights")
    strengths = jnp.asarray(falling(X, y, strengths, n_strengths, eps, weights, positive), X.dtype)
    default_tol(options.get("tol"), X.dtype)
    arrays = {name: options.pop(name) for name in ("weights", "l2") if name in options}
    problem(X, y, 1.0, weights, arrays.get("l2", 0.0))  # validate eagerly, before tracing
    start = checked_start("lasso_path", options.pop("w0", None), (X.shape[1],), X.dtype)
    found = _path(X, y, strengths, start, arrays, tuple(sorted(options.items())))
    stats = {**found.stats, "strengths": strengths}
    return finish("lasso_path", Solution(found.value, found.result, stats), throw)


@functools.partial(jax.jit, static_argnames="options")
def _path(X: Array, y: Array, strengths: Array, w0: Array, arrays: Any, options: Any) -> Solution:
    solved = functools.partial(lasso, throw=False, **dict(options))

    def step(w, strength):
        found = solved(*frozen[:2], strength, w0=w, **frozen[2])
        return found.value, found

    frozen = lax.stop_gradient((X, y, arrays))
    _, found = lax.scan(step, lax.stop_gradient(w0), lax.stop_gradient(strengths))
    # Attach derivatives outside the scan, inside which JAX would drop those of second order.
    there = functools.partial(solved, max_steps=0, **arrays)
    values = jax.vmap(lambda strength, w: there(X, y, strength, w0=w).value)(strengths, found.value)
    return Solution(values, found.result, found.stats)


def falling(X, y, strengths: Any, count: int, eps: float, weights: Any, positive: bool) -> Any:
    """The validated strengths of a path."""
    if strengths is None:
        return path_strengths(max_strength(X, y, weights=weights, positive=positive), count, eps)
    if np.ndim(strengths) != 1 or np.size(strengths) == 0:
        raise ValueError(
            f"strengths must be numbers (k,), at least one, got shape {np.shape(strengths)}."
        )
    dtype = wide_dtype(X, y)
    check_strength("strengths", strengths, np.shape(strengths), dtype)
    return strengths
