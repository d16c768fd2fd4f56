"""The Lasso on the host, for one large problem or a path, dense or sparse."""

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from .._arguments import check_strength, checked, known
from .._solution import Result, Solution, finish
from . import _host_native, _host_xla, _regression_native, _regression_xla
from ._design import Design, host_data
from ._duality import Problem, balanced
from ._host import Found, Solver, geometric, solve_path, task
from ._lasso import least_squares
from ._model import Loss, Model, check_intercept, check_target, grouped

LASSO: Mapping[str, Solver] = {"native": _host_native.solve, "xla": _host_xla.solve}
REGRESSION: Mapping[str, Solver] = {
    "native": _regression_native.solve, "xla": _regression_xla.solve,
}  # fmt: skip


@checked(tol="(0, inf)", max_steps="[0, inf)", l2="[0, inf)", delta="(0, inf)")
def lasso_host(
    X: Any,
    y: ArrayLike,
    strength: ArrayLike,
    *,
    w0: ArrayLike | None = None,
    tol: float | None = None,
    max_steps: int = 100,
    weights: ArrayLike | None = None,
    positive: bool = False,
    l2: ArrayLike = 0.0,
    loss: Loss = "squared",
    delta: float | None = None,
    intercept: bool = False,
    groups: Any = None,
    implementation: str | None = None,
    throw: bool = True,
) -> Solution:
    r"""`lasso` on the host: coordinate descent in C++ on growing working sets, for sparse X too.

    `min_{w, b} mean_i loss(y_i, x_i^T w + b) + strength sum_g weights_g |w_g| + l2 |w|^2 / 2`,
    where groups are single features unless given. Losses of a prediction u: "squared",
    `(y - u)^2 / 2`; "huber", the same up to `|y - u| = delta` and linear beyond; "logistic",
    `log(1 + exp(-y u))` for y of -1 and 1; "poisson", `exp(u) - y u` for counts. All but the plain
    Lasso are solved in float64.

    Does not support jit, vmap or grad. Solved in float64 if X or y is, even where JAX has no
    float64. The plain Lasso reads X in the order in which it is stored and never copies it as a
    whole; the others copy dense X unless it is in float64 and Fortran order. Features of weight 0
    are not penalised. The C++ of each kind of problem is compiled at first use, in a few seconds;
    without a compiler XLA solves the same problem, slower, with X dense.

    Args:
      X: Design (n, p): an array, or sparse data of SciPy or of `jax.experimental.sparse`.
      y: Target (n,).
      strength: Strength.
      w0: Initial value (p,).
      tol: Duality gap over the objective at 0: by default 1e-6, or 1e-5 in float32.
      max_steps: Maximum number of working sets.
      weights: A weight >= 0 per feature (p,), or per group; infinity forces a zero.
      positive: Whether w must be >= 0.
      l2: Strength of the ridge term.
      loss: "squared", "logistic", "huber" or "poisson".
      delta: Where the loss "huber" becomes linear, in units of y; 1.35 by default.
      intercept: Whether to fit b, which is not penalised; otherwise it is 0.
      groups: A label per feature (p,), numbers or strings in any order, or disjoint lists of
        features. Weights are in the order of sorted labels or of the lists, and 1 by default.
      implementation: "native" (C++) or "xla"; None is the first that runs.
      throw: Whether to raise if the gap is not reached.

    Returns:
      A `Solution`, as for `lasso`; `stats["intercept"]` is b.

    Raises:
      NotImplementedError: If the named implementation does not run here.
      RuntimeError: If `throw` and the gap is not reached.
      TypeError: Inside jit, vmap or grad.

    Reference:
      Massias, Gramfort and Salmon, Celer, 2018, arXiv 1802.07481; Bertrand et al., skglm, 2022,
      arXiv 2204.07826 (working sets, Anderson acceleration).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import solve
      >>> X, y = 2 * jnp.eye(4), jnp.array([4.0, 1.0, 0.0, -2.0])
      >>> solve.lasso_host(X, y, 1.0).value.tolist()
      [1.0, 0.0, 0.0, 0.0]
    """
    design, y = _data(X, y, strength, l2)
    model = _model(loss, delta, groups, positive, design.shape[1])
    check_target(loss, y)
    if intercept:
        check_intercept(loss, y)
    _check_weights(weights, model, design)
    check_strength("strength", strength, (), y.dtype)
    if float(strength) == 0:  # pyright: ignore[reportArgumentType]
        if not model.is_lasso or intercept:
            raise ValueError("strength must be > 0 with a loss, groups or an intercept, got 0.")
        return _least_squares(design, y, weights, positive, float(l2))  # pyright: ignore
    squared = loss == "squared"
    found = fit_path(
        design, y, np.reshape(np.asarray(strength), 1), weights=weights, l2=l2, tol=tol,
        positive=positive, max_steps=max_steps, w0=w0, implementation=implementation,
        model=model._replace(intercept=intercept and not squared),
        intercept=np.ones_like(y) if intercept and squared else None,
    )  # fmt: skip
    value = _array(found.value[0].astype(y.dtype))
    stats = {**{name: x[0] for name, x in found.stats.items()}, "intercept": found.offset[0]}
    return finish("lasso_host", Solution(value, _codes(value, found.result[0]), stats), throw)


@checked(n_strengths="[1, inf)", eps="(0, 1]", tol="(0, inf)", max_steps="[0, inf)", l2="[0, inf)")
def lasso_path_host(
    X: Any,
    y: ArrayLike,
    strengths: ArrayLike | None = None,
    *,
    n_strengths: int = 100,
    eps: float = 1e-2,
    tol: float | None = None,
    max_steps: int = 100,
    weights: ArrayLike | None = None,
    positive: bool = False,
    l2: ArrayLike = 0.0,
    implementation: str | None = None,
    throw: bool = True,
) -> Solution:
    """`lasso_path` on the host by `lasso_host`: each solution starts from the one before.

    Args:
      X: Design (n, p), dense or sparse as for `lasso_host`.
      y: Target (n,).
      strengths: Strengths (k,), preferably decreasing; None for a geometric sequence.
      n_strengths: Number of strengths, if `strengths` is None.
      eps: Ratio of the last strength to the first, if `strengths` is None.
      tol: As for `lasso_host`.
      max_steps: Maximum number of working sets per strength.
      weights: A weight >= 0 per feature (p,); infinity forces a zero.
      positive: Whether w must be >= 0.
      l2: Strength of the ridge term.
      implementation: As for `lasso_host`.
      throw: Whether to raise if one of them does not converge.

    Returns:
      A `Solution`, as for `lasso_path`.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import solve
      >>> X, y = 2 * jnp.eye(2), jnp.array([4.0, 1.0])
      >>> solve.lasso_path_host(X, y, jnp.array([4.0, 2.0, 1.0])).value[:, 0].tolist()
      [0.0, 1.0, 1.5]
    """
    design, y = _data(X, y, 1.0, l2)
    _check_weights(weights, Model(), design)
    if strengths is None:
        largest = largest_strength(design, y, weights, positive)
        strengths = geometric(largest or 1.0, n_strengths, eps)  # 1 where every solution is 0
    strengths = _falling(strengths, y.dtype)
    found = fit_path(
        design, y, strengths, weights=weights, l2=l2, tol=tol, positive=positive,
        max_steps=max_steps, w0=None, implementation=implementation,
    )  # fmt: skip
    values, stats = _array(found.value), {**found.stats, "strengths": strengths}
    results = _codes(values, found.result)
    return finish("lasso_path_host", Solution(values, results, stats), throw)


def fit_path(
    design: Design,
    y: np.ndarray,
    strengths: np.ndarray,
    *,
    intercept: np.ndarray | None = None,
    implementation: str | None = None,
    model: Model = Model(),  # noqa: B008
    **options: Any,
) -> Found:
    """Solutions for some strengths > 0, with a coefficient for the column `intercept` if given."""
    problem = task(design, y, strengths, model=model, **options)
    solvers = LASSO if model.is_lasso and y.ndim == 1 else REGRESSION
    if implementation is not None:
        if implementation not in solvers:
            raise ValueError(f"implementation={implementation!r} must be one of {list(solvers)}.")
        return solve_path(problem, intercept, solvers[implementation])
    try:
        return solve_path(problem, intercept, solvers["native"])
    except NotImplementedError as error:
        _tell(str(error))
        return solve_path(problem, intercept, solvers["xla"])


def _model(loss: Loss, delta: float | None, groups: Any, positive: bool, p: int) -> Model:
    """The loss and the groups of features."""
    if delta is not None and loss != "huber":
        raise ValueError(f'delta={delta} is only read by loss="huber", got loss={loss!r}.')
    delta = 1.35 if delta is None else float(delta)
    if groups is None:
        return Model(loss, delta=delta)
    if positive:
        raise ValueError("positive must be False with groups; use solve.proximal_gradient.")
    start, member = grouped(groups, p)
    return Model(loss, "groups", start, member, delta)


def _codes(value: Array, results: Any) -> Any:
    """The results, or NONFINITE for what the dtype of the value cannot hold."""
    finite = np.isfinite(np.asarray(value)).all(axis=-1)
    return np.where(finite, results, Result.NONFINITE).astype(np.int32)[()]


def _array(value: np.ndarray) -> Array:
    """The value in JAX; what its dtype cannot hold is infinite, and told by the result."""
    with np.errstate(over="ignore", under="ignore"):
        return jnp.asarray(value)


def largest_strength(
    design: Design, y: np.ndarray, weights: Any = None, positive: bool = False
) -> float:
    """The smallest strength at which the solution is 0."""
    c = design.transposed_product(y) / len(y)
    size = np.maximum(c, 0) if positive else np.abs(c)
    weights = np.ones(size.size) if weights is None else np.asarray(weights)
    return float(np.max(np.divide(size, weights, where=weights > 0, out=np.zeros(size.size))))


@functools.cache
def _tell(why: str) -> None:
    warnings.warn(f"Regression is solved in XLA, slower than in C++: {why}.", stacklevel=5)


def _data(X: Any, y: Any, strength: Any, l2: Any) -> tuple[Design, np.ndarray]:
    for x in (X, y, strength, l2):
        if not known(x):
            raise TypeError("lasso_host runs on the host: in jit, vmap or grad use solve.lasso.")
    design, y = host_data(X, y)
    check_strength("l2", l2, (), y.dtype)
    if np.isinf(np.asarray(l2)):
        raise ValueError("l2 must be finite; strength=inf gives 0.")
    return design, y


def _check_weights(weights: Any, model: Model, design: Design) -> None:
    if not known(weights):
        raise TypeError("lasso_host runs on the host: in jit, vmap or grad use solve.lasso.")
    if weights is not None:
        blocks = design.shape[1] if model.start is None else model.start.size - 1
        check_strength("weights", weights, (blocks,))


def _falling(strengths: Any, dtype: Any) -> np.ndarray:
    if np.ndim(strengths) != 1 or np.size(strengths) == 0:
        raise ValueError(
            f"strengths must be numbers (k,), at least one, got shape {np.shape(strengths)}."
        )
    check_strength("strengths", strengths, np.shape(strengths), dtype)
    strengths = np.asarray(strengths, np.float64)
    if not strengths.all():
        raise ValueError(
            "strengths must be > 0; for least squares use solve.lasso_host(X, y, 0.0)."
        )
    return strengths


def _least_squares(design: Design, y: np.ndarray, weights: Any, positive: bool, l2: float) -> Any:
    p = design.shape[1]
    never = np.zeros(p, bool) if weights is None else np.isinf(np.asarray(weights))
    X, target = jnp.asarray(design.dense()), jnp.asarray(y)
    thresholds = jnp.where(never, jnp.inf, jnp.zeros(p, X.dtype))
    pb, units = balanced(Problem(X, target, thresholds, jnp.asarray(l2, X.dtype)))
    return least_squares(pb, units, positive, l2 > 0)
