"""Active multi-task representation learning: sampling source tasks by their relevance."""

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..._arguments import check_key, checked, matrix_and_target, near_one
from ..._arrays import Units, magnitude
from ..._solution import finish
from ...solve import lasso, max_strength

FINEST = 1e-13  # the least gap over the objective at 0 that float64 resolves
EXPONENT = {"l1": 1.0, "l2": 2.0}


class ActiveMTL(NamedTuple):
    """The representation learned by `active_mtl`, and the samples used.

    Attributes:
      basis: The shared representation (d, k), with orthonormal columns.
      heads: Heads of the source tasks (k, t).
      target_head: Head of the target task (k,): predict with `X @ basis @ target_head`.
      relevance: Relevance of each task in the last round (t,); zeros for uniform sampling.
      counts: Total number of samples of each task (t,).
    """

    basis: Float[Array, "d k"]
    heads: Float[Array, "k t"]
    target_head: Float[Array, " k"]
    relevance: Float[Array, " t"]
    counts: np.ndarray


@checked(tol="(0, inf)")
def task_relevance(
    W: ArrayLike,
    w: ArrayLike,
    kind: str = "l1",
    strength: float | None = None,
    costs: ArrayLike | None = None,
    tol: float = 1e-6,
    throw: bool = True,
) -> Float[Array, " t"]:
    r"""Coefficients nu that represent the head of a target task by the heads of source tasks.

    "l1": `argmin |W nu - w|^2 / 2 + strength |nu|_1`, with about k non-zeros; "l2": the solution of
    `W nu = w` of minimum l2 norm, which is dense. Computed in float64, whatever the dtype of W.

    Args:
      W: Heads of the source tasks (k, t).
      w: Head of the target task (k,), over the same representation.
      kind: "l1" or "l2".
      strength: Strength of the l1 norm; by default 0.02 of the smallest strength at which nu is 0.
      costs: Cost of a sample of each task (t,); the l1 norm is weighted by its square root.
      tol: Duality gap over the objective at nu, at least 1e-13 of the objective at 0.
      throw: Whether to raise if the gap is not reached.

    Returns:
      nu (t,). If `strength` gives nu = 0, a tenth of it is used.

    Raises:
      RuntimeError: If `throw` and the gap is not reached.
      ValueError: If shapes do not match, data are not finite, or kind, strength or costs are
        invalid.

    Reference:
      Wang et al., Improved Active Multi-Task Representation Learning via Lasso, 2023, arXiv
      2306.02556; Chen, Jamieson and Du, Active Multi-Task Representation Learning, 2022, arXiv
      2202.00911.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import multitask
      >>> W = jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
      >>> multitask.task_relevance(W, jnp.array([1.0, 1.0])).argmax().item()
      2
    """
    W, w = matrix_and_target(W, w, 1, "multitask.task_relevance(W, w)", ("W", "w"))
    if kind == "l2":
        return jnp.linalg.pinv(W, rtol=1e-6) @ w
    if kind != "l1":
        raise ValueError(f"task_relevance: kind must be 'l1' or 'l2', got {kind!r}.")
    if strength is not None and not 0 < strength < math.inf:
        raise ValueError(f"task_relevance: strength must be > 0, got {strength}; pass 0.1 or None.")
    with jax.enable_x64(True):
        weights = None if costs is None else jnp.sqrt(_costs(costs, W.shape[1]))
        wide = jnp.asarray(W, jnp.float64), jnp.asarray(w, jnp.float64)
        nu = np.asarray(_least_l1(*wide, strength, weights, tol, throw))
    return jnp.asarray(nu, W.dtype)


def _least_l1(
    W: Array, w: Array, strength: float | None, weights: Array | None, tol: float, throw: bool
) -> Array:
    units = Units(magnitude(W), magnitude(w))
    W, w = W / units.X, w / units.y
    top = float(max_strength(W, w, weights=weights))
    if top == 0:
        return jnp.zeros(W.shape[1], W.dtype)
    # solve.lasso divides the squares by the number of rows, k.
    last = (
        0.02 * top if strength is None else strength / float(units.X) / float(units.y) / W.shape[0]
    )
    last = last / 10 if last >= top else last
    if last >= top:
        return jnp.zeros(W.shape[1], W.dtype)
    # The objective at nu is at least `share (2 - share)` of that at 0, by the dual point
    # `share w / k`; solve.lasso compares the gap with the latter.
    share = last / top
    gap = max(tol * share * (2 - share), FINEST)
    found = lasso(W, w, last, weights=weights, tol=gap, working_set=W.shape[1], throw=False)
    finish("task_relevance", found, throw)
    return units.outside(found.value)


@checked()
def allocate_samples(
    relevance: ArrayLike,
    total: int,
    power: float = 1.0,
    n_min: int = 0,
    costs: ArrayLike | None = None,
) -> np.ndarray:
    """Integer numbers of samples proportional to `|relevance|^power`, with an exact total.

    Args:
      relevance: nu (t,). All zeros give equal parts.
      total: Total number of samples, or the budget if `costs` are given.
      power: 1 for a relevance of minimum l1 norm, 2 for minimum l2 norm.
      n_min: Minimum number of samples per task.
      costs: Cost of a sample of each task (t,): counts are proportional to
        `|nu|^power / sqrt(cost)`, rounded down to stay within the budget.

    Returns:
      Counts (t,). Without costs they are rounded by largest remainder; ties go to the lowest index.

    Raises:
      ValueError: If the total is too small for n_min, or numbers are negative.

    Example:
      >>> import numpy as np
      >>> from sparsejax.contrib import multitask
      >>> multitask.allocate_samples(np.array([2.0, 0.0, -1.0]), 11, n_min=1).tolist()
      [6, 1, 4]
    """
    size = np.abs(np.asarray(relevance, np.float64))
    if size.ndim != 1 or size.size == 0 or not np.isfinite(size).all():
        raise ValueError(f"allocate_samples: relevance must be finite (t,), got {size.shape}.")
    if n_min < 0 or not 0 <= total < math.inf or not 0 < power < math.inf:
        raise ValueError(
            "allocate_samples: total and n_min must be >= 0 and power > 0, got "
            f"{total}, {n_min} and {power}."
        )
    if costs is None and total != int(total):
        raise ValueError(f"allocate_samples: total must be an integer without costs, got {total}.")
    if total >= 2**63:
        raise ValueError(f"allocate_samples: total must be below 2**63, got {total}.")
    price = np.ones(size.size) if costs is None else np.asarray(_costs(costs, size.size), float)
    rest = total - n_min * price.sum()
    if rest < 0:
        raise ValueError(
            f"allocate_samples: total must be at least {n_min * price.sum():g} for {size.size} "
            f"tasks with {n_min} samples each, got {total}; lower n_min or raise the total."
        )
    parts = (size / (size.max() or 1.0)) ** power
    parts = parts if parts.any() else np.ones_like(parts)
    parts = parts / np.sqrt(price)
    if costs is None:
        return _apportioned(parts, int(total) - int(n_min) * size.size) + int(n_min)
    return np.floor(parts * (rest / np.sum(parts * price))).astype(int) + int(n_min)


def _apportioned(parts: np.ndarray, total: int) -> np.ndarray:
    """Integers of a given sum by largest remainder, in exact arithmetic: ties are real ties."""
    exact = [Fraction(float(part)) for part in parts]
    scale = total / sum(exact)
    shares = [part * scale for part in exact]
    counts = [math.floor(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return np.array(counts, int)


def _costs(costs: ArrayLike, t: int) -> Array:
    found = np.asarray(costs)
    if found.shape != (t,) or not (np.isfinite(found).all() and (found > 0).all()):
        raise ValueError(f"costs must be {t} finite numbers > 0, got {costs}.")
    return jnp.asarray(found, float)


@checked(steps="[0, inf)")
def multitask_als(
    grams: ArrayLike, moments: ArrayLike, k: int, *, steps: int = 25
) -> tuple[Float[Array, "d k"], Float[Array, "k t"]]:
    r"""A shared linear representation of several regressions, by alternating least squares.

    `min_{B, w} sum_t |y_t - X_t B w_t|^2`, computed from `X_t^T X_t` and `X_t^T y_t` alone, so that
    shapes do not depend on the number of samples of a task. The head of a task without samples
    is 0.

    Args:
      grams: Gram matrices `X_t^T X_t` (t, d, d).
      moments: Moments `X_t^T y_t` (t, d).
      k: Dimension of the representation.
      steps: Number of alternations.

    Returns:
      B (d, k) with orthonormal columns, and the heads (k, t).

    Raises:
      ValueError: If shapes do not match or k is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import multitask
      >>> c = jnp.array([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]])
      >>> B, heads = multitask.multitask_als(jnp.stack([jnp.eye(3)] * 2), c, 1)
      >>> jnp.abs(B @ heads - c.T).max().item() < 1e-4
      True
    """
    G, c = jnp.asarray(grams), jnp.asarray(moments)
    if c.ndim != 2 or G.shape != (*c.shape, c.shape[1]):
        raise ValueError(
            "multitask_als: grams and moments must have shapes (t, d, d) and (t, d), got "
            f"{G.shape} and {c.shape}."
        )
    if not 1 <= k <= min(c.shape):
        raise ValueError(
            f"multitask_als: k must be from 1 to the smaller of tasks and features, got {k} for "
            f"{c.shape}."
        )
    return _als(G, c, k, steps)


@functools.partial(jax.jit, static_argnames=("k", "steps"))
def _als(G: Array, c: Array, k: int, steps: int) -> tuple[Array, Array]:
    t, d = c.shape
    # In float32 a ridge of 1e-8 is below the rounding of the sums.
    small = (1e-8 if c.dtype == jnp.float64 else 1e-5) * jnp.maximum(jnp.trace(G.sum(0)) / d, 1e-30)
    sizes = jnp.trace(G, axis1=1, axis2=2) / d
    ridge = (small / t + 1e-3 * sizes)[:, None, None] * jnp.eye(d, dtype=c.dtype)[None]
    single = jax.vmap(jnp.linalg.solve)(G + ridge, c) * jnp.sqrt(sizes)[:, None]
    B = jnp.linalg.svd(single.T, full_matrices=False)[0][:, :k]

    def heads(B):
        inner = jnp.einsum("dk,tde,el->tkl", B, G, B) + small / t * jnp.eye(k, dtype=c.dtype)[None]
        return jax.vmap(jnp.linalg.solve)(inner, c @ B)  # (t, k)

    def alternate(_, B):
        w = heads(B)
        right = jnp.einsum("td,tk->dk", c, w)
        apply = lambda B: jnp.einsum("tk,tde,el,tl->dk", w, G, B, w) + small * B  # noqa: E731
        if d * k <= 2000:
            matrix = jnp.einsum("tk,tl,tde->kdle", w, w, G).reshape(d * k, d * k)
            matrix = matrix + small * jnp.eye(d * k, dtype=c.dtype)
            B = jnp.linalg.solve(matrix, right.T.reshape(-1)).reshape(k, d).T
        else:
            B = jax.scipy.sparse.linalg.cg(apply, right, B, maxiter=200)[0]
        return jnp.linalg.qr(B)[0]

    B = jax.lax.fori_loop(0, steps, alternate, B)
    return B, heads(B).T


@checked()
def active_mtl(
    sampler: Callable[[Array, int, int], tuple[Any, Any]],
    target: tuple[ArrayLike, ArrayLike],
    *,
    tasks: int,
    k: int,
    budget: int,
    key: Array,
    method: str = "l1",
    n0: int | None = None,
    n_min: int = 0,
    n_rounds: int = 1,
    strength: float | None = None,
) -> ActiveMTL:
    r"""Learns a representation for a target task from source tasks sampled by their relevance.

    Explores every task with a few samples and fits a representation and heads. Then, in each round,
    represents the target head by the source heads (`task_relevance`), samples the tasks in
    proportion to |nu| ("l1", the paper) or nu^2 ("l2", its baseline), and fits again. The variance
    of the target is proportional to `sum_t nu_t^2 / n_t`, whose minimum `|nu|_1^2 / n` is attained
    at n_t proportional to |nu_t|.

    Args:
      sampler: `sampler(key, task, n) -> (X, y)`, n new labelled samples (n, d), (n,) of a task.
      target: X (m, d) and y (m,) of the target task.
      tasks: Number of source tasks.
      k: Dimension of the representation.
      budget: Total number of samples of all source tasks.
      key: A random key.
      method: "l1", "l2" or "uniform".
      n0: Samples per task in exploration, `max(2 k, budget / (4 tasks))` by default.
      n_min: Minimum number of samples per task after exploration.
      n_rounds: Number of rounds after exploration, each with an updated relevance.
      strength: As for `task_relevance`.

    Returns:
      An `ActiveMTL`.

    Raises:
      ValueError: If the budget is too small, or samples have the wrong shape or are not finite.

    Reference:
      Wang, Chen, Jamieson and Du, Improved Active Multi-Task Representation Learning via Lasso,
      2023, arXiv 2306.02556; the baseline: Chen, Jamieson and Du, 2022, arXiv 2202.00911.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import multitask
      >>> heads = jnp.array([1.0, 0.0, -2.0])
      >>> def sampler(key, task, n):
      ...     X = jax.random.normal(key, (n, 4))
      ...     return X, heads[task] * X[:, 0]
      >>> X, key = jax.random.normal(jax.random.key(0), (30, 4)), jax.random.key(1)
      >>> fit = multitask.active_mtl(sampler, (X, X[:, 0]), tasks=3, k=1, budget=120, key=key)
      >>> fit.counts.sum().item(), fit.counts.argmax().item()
      (120, 2)
    """
    if method not in ("l1", "l2", "uniform"):
        raise ValueError(f"active_mtl: method must be 'l1', 'l2' or 'uniform', got {method!r}.")
    if tasks < 1 or n_rounds < 1 or k < 1:
        raise ValueError(
            f"active_mtl: tasks, k and n_rounds must be >= 1, got {tasks}, {k} and {n_rounds}."
        )
    n0 = max(2 * k, budget // (4 * tasks)) if n0 is None else n0
    if n0 < 1 or (n0 + n_min) * tasks > budget:
        raise ValueError(
            f"active_mtl: budget must be at least {(n0 + n_min) * tasks} for {tasks} tasks with "
            f"{n0} samples each in exploration and {n_min} after it, got {budget}; pass n0 >= 1."
        )
    check_key("key", key)
    sums = _Sums(sampler, tasks, key)
    X, y = _checked(target[0], target[1], None, "target")
    sums.width = X.shape[1]
    sums.draw(allocate_samples(np.ones(tasks), budget) if method == "uniform" else [n0] * tasks)
    nu = jnp.zeros(tasks)
    rest = budget - sums.counts.sum()
    for i in range(n_rounds if method != "uniform" else 0):
        B, heads = multitask_als(sums.grams, sums.moments, k)
        nu = task_relevance(
            heads, _target_head(X, y, B), method, strength if method == "l1" else None
        )
        part = rest * (i + 1) // n_rounds - rest * i // n_rounds
        least = min(n_min, part // tasks)
        sums.draw(allocate_samples(nu, int(part), EXPONENT[method], least))
    B, heads = multitask_als(sums.grams, sums.moments, k)
    return ActiveMTL(B, heads, _target_head(X, y, B), nu, sums.counts)


class _Sums:
    """Gram matrices and moments of all samples drawn so far."""

    def __init__(self, sampler: Callable, tasks: int, key: Array):
        self.sampler, self.key, self.calls = sampler, key, 0
        self.counts = np.zeros(tasks, int)
        self.width = 0
        self.grams: Any = None
        self.moments: Any = None

    def draw(self, counts: Any) -> None:
        for task, n in enumerate(np.asarray(counts)):
            if n == 0:
                continue
            key = jax.random.fold_in(self.key, self.calls)
            self.calls += 1
            X, y = self.sampler(key, task, int(n))
            X, y = _checked(X, y, int(n), f"sampler(key, {task}, {n})")
            if X.shape[1] != self.width:
                raise ValueError(
                    f"active_mtl: sampler(key, {task}, {n}) must return X with {self.width} "
                    f"columns like the target, got {X.shape}."
                )
            if self.grams is None:
                d = X.shape[1]
                self.grams = np.zeros((self.counts.size, d, d), X.dtype)
                self.moments = np.zeros((self.counts.size, d), X.dtype)
            near_one(X=X)
            self.grams[task] += X.T @ X
            self.moments[task] += X.T @ y
            self.counts[task] += n


def _checked(X: Any, y: Any, n: int | None, name: str) -> tuple[np.ndarray, np.ndarray]:
    X, y = np.asarray(X), np.asarray(y)
    X, y = (a.astype(np.promote_types(a.dtype, np.float32)) for a in (X, y))
    if X.ndim != 2 or y.shape != X.shape[:1] or 0 in X.shape or (n is not None and len(X) != n):
        wanted = f"({n if n is not None else 'n'}, d)"
        raise ValueError(f"{name} must be X {wanted} and y, got {X.shape} and {y.shape}.")
    if not (np.isfinite(X).all() and np.isfinite(y).all()):
        raise ValueError(f"{name} holds NaN or infinity.")
    return X, y


def _target_head(X: np.ndarray, y: np.ndarray, B: Array) -> Array:
    return jnp.linalg.lstsq(X @ B, jnp.asarray(y))[0]
