"""Which tasks to sample for a target: those whose heads combine to its head at the least cost."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..._arguments import check_key
from ...solve import lambda_max, lasso_path, min_norm
from ...solve._algebra import magnitude
from ...solve._duality import Units, near_one
from ...solve._lasso import strengths

EXPONENT = {"l1": 1.0, "l2": 2.0}


class ActiveMTL(NamedTuple):
    """What `active_mtl` learned, and from which tasks.

    Attributes:
      basis: The shared representation (d, k), orthonormal columns.
      heads: Heads of the source tasks (k, t).
      target_head: Head of the target (k,): predict with `x @ basis @ target_head`.
      relevance: Of each task in the last round (t,); zeros for uniform sampling.
      counts: Samples of each task in all (t,).
    """

    basis: Float[Array, "d k"]
    heads: Float[Array, "k t"]
    target_head: Float[Array, " k"]
    relevance: Float[Array, " t"]
    counts: np.ndarray


def task_relevance(
    W: ArrayLike,
    w: ArrayLike,
    kind: str = "l1",
    lam: float | None = None,
    costs: ArrayLike | None = None,
) -> Float[Array, " t"]:
    r"""How the head of a target combines from the heads of tasks.

    "l1": `argmin |W nu - w|^2 / 2 + lam |nu|_1`, at most about k tasks; "l2": the combination of
    least l2 norm, all of them.

    Args:
      W: Heads (k, t).
      w: Head of the target (k,), over the same representation.
      kind: "l1" or "l2".
      lam: The strength, 0.02 of the one at which nu is 0 by default.
      costs: What a sample of each task costs (t,): weighs the l1 norm by the root of it.

    Returns:
      nu (t,). If lam is so large that it is 0, a tenth of lam is tried.

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
    if kind == "l2":
        return min_norm(W, w)
    if kind != "l1":
        raise ValueError(f"kind must be 'l1' or 'l2', got {kind!r}.")
    W, w = jnp.asarray(W), jnp.asarray(w)
    if lam is not None and not 0 < lam < math.inf:
        raise ValueError(f"lam must be > 0, got {lam}; 0.1 for example, or None.")
    weights = None if costs is None else jnp.sqrt(_costs(costs, W.shape[1]))
    W, w = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (W, w))
    units = Units(magnitude(W), magnitude(w))
    W, w = W / units.X, w / units.y
    top = float(lambda_max(W, w, weights=weights))
    if top == 0:
        return jnp.zeros(W.shape[1], W.dtype)
    # solve.lasso divides the squares by the number of rows, k.
    last = 0.02 * top if lam is None else lam / float(units.X) / float(units.y) / W.shape[0]
    last = last / 10 if last >= top else last
    if last >= top:
        return jnp.zeros(W.shape[1], W.dtype)
    lams = strengths(top, 40, last / top)
    path = lasso_path(W, w, lams, weights=weights, throw=False, working_set=W.shape[1])
    return units.outside(path.value[-1])


def allocate_samples(
    relevance: ArrayLike,
    total: int,
    power: float = 1.0,
    n_min: int = 0,
    costs: ArrayLike | None = None,
) -> np.ndarray:
    """Whole numbers of samples in proportion to `|relevance|^power`, with an exact sum.

    Args:
      relevance: nu (t,). All zeros give equal parts.
      total: The sum, or the budget that `costs` spend.
      power: 1 for the relevance of least l1 norm, 2 for that of least l2 norm.
      n_min: What every task gets at least.
      costs: Cost of a sample of each task (t,): parts go with `|nu|^power / sqrt(cost)`, rounded
        down to the budget.

    Returns:
      Counts (t,). Without costs the largest remainders decide, the lowest index at ties.

    Raises:
      ValueError: If the total does not suffice for n_min, or numbers are negative.

    Example:
      >>> import numpy as np
      >>> from sparsejax.contrib import multitask
      >>> multitask.allocate_samples(np.array([2.0, 0.0, -1.0]), 11, n_min=1).tolist()
      [6, 1, 4]
    """
    size = np.abs(np.asarray(relevance, np.float64))
    if size.ndim != 1 or size.size == 0 or not np.isfinite(size).all():
        raise ValueError(f"relevance must be finite numbers (t,), got shape {size.shape}.")
    if n_min < 0 or not 0 <= total < math.inf or not 0 < power < math.inf:
        raise ValueError(f"total, n_min >= 0 and power > 0, got {total}, {n_min} and {power}.")
    if costs is None and total != int(total):
        raise ValueError(f"total must be a whole number of samples without costs, got {total}.")
    price = np.ones(size.size) if costs is None else np.asarray(_costs(costs, size.size), float)
    rest = total - n_min * price.sum()
    if rest < 0:
        raise ValueError(
            f"{size.size} tasks with {n_min} samples each cost {n_min * price.sum():g}, more than "
            f"the total of {total}; lower n_min or raise the total."
        )
    parts = (size / (size.max() or 1.0)) ** power
    parts = parts if parts.any() else np.ones_like(parts)
    parts = parts / np.sqrt(price)
    exact = parts * (rest / np.sum(parts * price))
    counts = np.floor(exact).astype(int)
    if costs is None:
        order = np.argsort(-(exact - counts), kind="stable")
        counts[order[: int(rest) - counts.sum()]] += 1
    return counts + n_min


def _costs(costs: ArrayLike, t: int) -> Array:
    found = np.asarray(costs)
    if found.shape != (t,) or not (np.isfinite(found).all() and (found > 0).all()):
        raise ValueError(f"costs must be {t} finite numbers > 0, got {costs}.")
    return jnp.asarray(found, float)


def multitask_als(
    grams: ArrayLike, moments: ArrayLike, k: int, iters: int = 25
) -> tuple[Float[Array, "d k"], Float[Array, "k t"]]:
    r"""One linear representation for many regressions, by alternating least squares.

    `min_{B, w} sum_t |y_t - X_t B w_t|^2` from the sums `X_t^T X_t` and `X_t^T y_t` alone, so that
    shapes do not depend on how many samples a task has; one with none gets the head 0.

    Args:
      grams: Sums of x x^T for each task (t, d, d).
      moments: Sums of x y (t, d).
      k: Dimension of the representation.
      iters: How many alternations.

    Returns:
      B (d, k) with orthonormal columns, and the heads (k, t).

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
        raise ValueError(f"grams (t, d, d) and moments (t, d), got {G.shape} and {c.shape}.")
    if not 1 <= k <= min(c.shape):
        raise ValueError(
            f"k must be from 1 to the fewer of tasks and features, got {k} for {c.shape}."
        )
    return _als(G, c, k, iters)


@functools.partial(jax.jit, static_argnames=("k", "iters"))
def _als(G: Array, c: Array, k: int, iters: int) -> tuple[Array, Array]:
    t, d = c.shape
    # In float32 a ridge of 1e-8 is below the rounding of the sums.
    small = (1e-8 if c.dtype == jnp.float64 else 1e-5) * jnp.maximum(jnp.trace(G.sum(0)) / d, 1e-30)
    sizes = jnp.trace(G, axis1=1, axis2=2) / d
    ridge = (small / t + 1e-3 * sizes)[:, None, None] * jnp.eye(d)
    single = jax.vmap(jnp.linalg.solve)(G + ridge, c) * jnp.sqrt(sizes)[:, None]
    B = jnp.linalg.svd(single.T, full_matrices=False)[0][:, :k]

    def heads(B):
        inner = jnp.einsum("dk,tde,el->tkl", B, G, B) + small / t * jnp.eye(k)
        return jax.vmap(jnp.linalg.solve)(inner, c @ B)  # (t, k)

    def alternate(_, B):
        w = heads(B)
        right = jnp.einsum("td,tk->dk", c, w)
        apply = lambda B: jnp.einsum("tk,tde,el,tl->dk", w, G, B, w) + small * B  # noqa: E731
        if d * k <= 2000:
            matrix = jnp.einsum("tk,tl,tde->kdle", w, w, G).reshape(d * k, d * k)
            matrix = matrix + small * jnp.eye(d * k)
            B = jnp.linalg.solve(matrix, right.T.reshape(-1)).reshape(k, d).T
        else:
            B = jax.scipy.sparse.linalg.cg(apply, right, B, maxiter=200)[0]
        return jnp.linalg.qr(B)[0]

    B = jax.lax.fori_loop(0, iters, alternate, B)
    return B, heads(B).T


def active_mtl(
    key: Array,
    sampler: Callable[[Array, int, int], tuple[Any, Any]],
    target: tuple[ArrayLike, ArrayLike],
    *,
    tasks: int,
    k: int,
    budget: int,
    method: str = "l1",
    n0: int | None = None,
    n_min: int = 0,
    n_rounds: int = 1,
    lam: float | None = None,
) -> ActiveMTL:
    r"""Learns a representation for a target from source tasks, sampled by their relevance to it.

    Explores every task a little; fits a representation and heads; combines the target's head from
    theirs (`task_relevance`); samples in proportion to |nu| ("l1", the paper) or nu^2 ("l2", its
    baseline); fits anew. The variance of the target goes with `sum_t nu_t^2 / n_t`, of which
    n in proportion to |nu| is the minimum, `|nu|_1^2 / n`.

    Args:
      key: A key.
      sampler: `sampler(key, task, n) -> (x, y)`, n new labelled samples (n, d), (n,) of a task.
      target: x (m, d) and y (m,) of the target.
      tasks: How many source tasks there are.
      k: Dimension of the representation.
      budget: Samples of all source tasks together.
      method: "l1", "l2" or "uniform".
      n0: Exploration of each task, `max(2 k, budget / (4 tasks))` by default.
      n_min: What every task gets at least in the rest.
      n_rounds: In how many parts the rest is spent, with a new relevance for each.
      lam: As for `task_relevance`.

    Returns:
      An `ActiveMTL`.

    Raises:
      ValueError: If the budget does not suffice, or samples do not fit or are not finite.

    Reference:
      Wang, Chen, Jamieson and Du, Improved Active Multi-Task Representation Learning via Lasso,
      2023, arXiv 2306.02556; the baseline: Chen, Jamieson and Du, 2022, arXiv 2202.00911.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import multitask
      >>> heads = jnp.array([1.0, 0.0, -2.0])
      >>> def sampler(key, task, n):
      ...     x = jax.random.normal(key, (n, 4))
      ...     return x, heads[task] * x[:, 0]
      >>> x = jax.random.normal(jax.random.key(0), (30, 4))
      >>> target = (x, x[:, 0])
      >>> fit = multitask.active_mtl(jax.random.key(1), sampler, target, tasks=3, k=1, budget=120)
      >>> fit.counts.sum().item(), fit.counts.argmax().item()
      (120, 2)
    """
    if method not in ("l1", "l2", "uniform"):
        raise ValueError(f"method must be 'l1', 'l2' or 'uniform', got {method!r}.")
    if tasks < 1 or n_rounds < 1 or k < 1:
        raise ValueError(f"tasks, k, n_rounds >= 1, got {tasks}, {k} and {n_rounds}.")
    n0 = max(2 * k, budget // (4 * tasks)) if n0 is None else n0
    if n0 < 1 or (n0 + n_min) * tasks > budget:
        raise ValueError(
            f"{tasks} tasks with {n0} samples of exploration and {n_min} at least after it need a "
            f"budget of {(n0 + n_min) * tasks}, got {budget}; give n0."
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
        nu = task_relevance(heads, _target_head(X, y, B), method, lam if method == "l1" else None)
        part = rest * (i + 1) // n_rounds - rest * i // n_rounds
        least = min(n_min, part // tasks)
        sums.draw(allocate_samples(nu, int(part), EXPONENT[method], least))
    B, heads = multitask_als(sums.grams, sums.moments, k)
    return ActiveMTL(B, heads, _target_head(X, y, B), nu, sums.counts)


class _Sums:
    """What has been drawn, as sums."""

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
                    f"sampler(key, {task}, {n}) gave x of shape {X.shape}, but the target has "
                    f"{self.width} columns."
                )
            if self.grams is None:
                d = X.shape[1]
                self.grams = np.zeros((self.counts.size, d, d), X.dtype)
                self.moments = np.zeros((self.counts.size, d), X.dtype)
            near_one(x=X)
            self.grams[task] += X.T @ X
            self.moments[task] += X.T @ y
            self.counts[task] += n


def _checked(X: Any, y: Any, n: int | None, name: str) -> tuple[np.ndarray, np.ndarray]:
    X, y = np.asarray(X), np.asarray(y)
    X, y = (a.astype(np.promote_types(a.dtype, np.float32)) for a in (X, y))
    if X.ndim != 2 or y.shape != X.shape[:1] or 0 in X.shape or (n is not None and len(X) != n):
        wanted = f"({n if n is not None else 'n'}, d)"
        raise ValueError(f"{name} must be x {wanted} and y, got {X.shape} and {y.shape}.")
    if not (np.isfinite(X).all() and np.isfinite(y).all()):
        raise ValueError(f"{name} holds NaN or infinity.")
    return X, y


def _target_head(X: np.ndarray, y: np.ndarray, B: Array) -> Array:
    return jnp.linalg.lstsq(X @ B, jnp.asarray(y))[0]
