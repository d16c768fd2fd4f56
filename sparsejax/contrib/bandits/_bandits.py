"""Misspecified linear bandits: elimination of sparse parameters, and baselines."""

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import io_callback
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from ..._arguments import check_key, checked, matrix_and_target
from ..._arrays import Units, magnitude
from ..._solution import code, finish
from ...solve import Result, Solution, lasso_host, max_strength
from ._design import g_optimal

Reward = ArrayLike | Callable[[int], float]


class BanditResult(NamedTuple):
    """The selected action and the cost of finding it.

    Attributes:
      action: Index of the action.
      reward: Its observed reward.
      queries: Number of distinct actions that were queried.
    """

    action: Any
    reward: Any
    queries: Any


class LinearBandit(NamedTuple):
    """A parameter estimated from queries, and the action with the highest predicted reward.

    Attributes:
      action: Index of the action.
      theta: The estimated parameter (d,).
      queried: Sorted indices of the distinct actions that were queried (n,).
    """

    action: int
    theta: Float[Array, " d"]
    queried: Int[np.ndarray, " n"]


@checked()
def parameter_elimination(
    X: Shaped[ArrayLike, "a d"],
    reward: Reward,
    candidates: ArrayLike,
    eps: float,
    h: float,
    *,
    eps_stat: float = 0.0,
    max_queries: int | None = None,
    throw: bool = True,
) -> Solution:
    r"""The best action up to `2 (eps + L h)`, for rewards that are linear up to eps.

    Queries the best action of the candidate with the highest predicted reward. If the reward agrees
    with the prediction up to `eps + L h`, that action is returned; otherwise all candidates whose
    prediction is further off are eliminated. If |reward - X theta| <= eps and a candidate lies
    within h of theta, that candidate is never eliminated. The gap is then at most `2 (eps + L h)`
    in every dimension d, where L is the largest norm of a row of X.

    Args:
      X: Features of the actions in rows (a, d).
      reward: Rewards (a,), or a function from the index of an action to its reward, called at most
        once per action.
      candidates: Parameters (m, d), such as `sparse_net(d, s, h)`.
      eps: Bound of the misspecification.
      h: Radius of the net.
      eps_stat: Bound of the statistical error of averaged rewards.
      max_queries: Maximum number of distinct actions to query; None for no limit.
      throw: Whether to raise if no prediction was confirmed (outside jit).

    Returns:
      A `Solution` whose `value` is a `BanditResult`. `result` is `Result.INFEASIBLE` if all
      candidates were eliminated, which means that eps or h is too small, and `Result.MAX_STEPS` if
      the queries ran out; the action is then the best one queried. `stats` holds `n_iter` and
      `n_candidates`, the number of candidates that were not eliminated. Works under jit for an
      array of rewards.

    Raises:
      RuntimeError: If `throw` and no prediction was confirmed.
      ValueError: If shapes do not match, data are not finite, or a number is negative.

    Reference:
      Dong and Yang, Does Sparsity Help in Learning Misspecified Linear Bandits?, 2023, arXiv
      2303.16998.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import bandits
      >>> found = bandits.parameter_elimination(
      ...     jnp.eye(3), jnp.array([0.1, 0.0, 1.0]), bandits.sparse_net(3, 1, 0.1), 0.1, 0.1)
      >>> int(found.value.action), int(found.result)
      (2, 0)
    """
    X, theta, ask = _checked(X, reward, candidates)
    for name, x in (("eps", eps), ("h", h), ("eps_stat", eps_stat)):
        if not (math.isfinite(x) and x >= 0):
            raise ValueError(f"parameter_elimination: {name} must be finite and >= 0, got {x}.")
    if max_queries is not None and max_queries < 1:
        raise ValueError(f"parameter_elimination: max_queries must be >= 1, got {max_queries}.")
    limit = math.inf if max_queries is None else max_queries
    length = jnp.max(jnp.linalg.norm(X, axis=1))
    # Rounding must not eliminate the true parameter where eps and h are 0.
    tol = eps + length * h + eps_stat + 8 * jnp.finfo(X.dtype).eps * length * X.shape[1]
    eliminate = _eliminate if callable(reward) else jax.jit(_eliminate)
    left, seen, values, n, a, done = eliminate(X, theta, ask, tol, limit)
    a = jnp.where(done, a, jnp.argmax(jnp.where(seen, values, -jnp.inf)).astype(a.dtype))
    failure = jnp.where(jnp.any(left), Result.MAX_STEPS, Result.INFEASIBLE)
    result = code(jnp.isfinite(values[a]), done, failure)
    value = BanditResult(a, values[a], jnp.sum(seen))
    stats = {"n_iter": n, "n_candidates": jnp.sum(left)}
    return finish("parameter_elimination", Solution(value, result, stats), throw)


def _eliminate(X: Array, theta: Array, ask: Partial, tol: ArrayLike, limit: ArrayLike) -> tuple:
    """Candidates left, actions seen, their rewards, turns, the last action, and if it is good."""
    best, predicted = _greedy(X, theta)

    def turn(s):
        left, seen, values, n, _, _ = s
        i = jnp.argmax(jnp.where(left, predicted, -jnp.inf))
        a = best[i]
        r = lax.cond(seen[a], lambda: values[a], lambda: ask(a))
        close = jnp.abs(predicted[i] - r) <= tol
        off = jnp.abs(theta @ X[a] - r) > tol
        left = jnp.where(close, left, left & ~off & (jnp.arange(left.size) != i))
        return left, seen.at[a].set(True), values.at[a].set(r), n + 1, a, close

    def more(s):
        left, seen, _, _, _, done = s
        # An action that was already queried needs no further query.
        again = seen[best[jnp.argmax(jnp.where(left, predicted, -jnp.inf))]]
        return ~done & jnp.any(left) & (again | (jnp.sum(seen) < limit))

    zeros = jnp.zeros(X.shape[0], X.dtype)
    start = (jnp.ones(len(theta), bool), zeros != 0, zeros, jnp.zeros((), jnp.int32),
             jnp.zeros((), best.dtype), jnp.zeros((), bool))  # fmt: skip
    return lax.while_loop(more, turn, start)


@checked()
def exhaustive_bandit(
    X: Shaped[ArrayLike, "a d"], reward: Reward, candidates: ArrayLike
) -> BanditResult:
    """Queries the best action of every candidate: gap `2 (eps + L h)` without knowing eps.

    Args:
      X: Features of the actions in rows (a, d).
      reward: Rewards (a,), or a function from the index of an action to its reward.
      candidates: Parameters (m, d).

    Returns:
      A `BanditResult`.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import bandits
      >>> rewards = jnp.array([0.1, 0.0, 1.0])
      >>> int(bandits.exhaustive_bandit(jnp.eye(3), rewards, bandits.sparse_net(3, 1, 0.1)).queries)
      3
    """
    X, theta, ask = _checked(X, reward, candidates)
    best = np.unique(np.asarray(_greedy(X, theta)[0]))
    values = np.array([float(ask(jnp.asarray(a))) for a in best])
    i = int(np.argmax(values))
    return BanditResult(int(best[i]), float(values[i]), len(best))


@checked(eps="[0, inf)", tol="[0, inf)", max_steps="[0, inf)")
def lasso_bandit(
    X: Shaped[ArrayLike, "a d"],
    reward: Reward,
    s: int,
    n_queries: int | None = None,
    eps: float = 0.0,
    *,
    key: Array,
    refit: bool = True,
    tol: float | None = None,
    max_steps: int = 100,
    throw: bool = True,
) -> Solution:
    r"""Random queries and a Lasso: error `O(s eps)` with `O(s log d)` queries.

    The guarantee requires entries of X bounded by c and a restricted eigenvalue of random rows, as
    for random signs. The strength is `2 c eps`.

    Args:
      X: Features of the actions in rows (a, d).
      reward: Rewards (a,), or a function from the index of an action to its reward.
      s: Size of the support of the parameter.
      n_queries: Number of actions to query, `10 s log d` by default.
      eps: Bound of the misspecification.
      key: A random key.
      refit: Whether to refit the s largest entries by least squares.
      tol: As for `solve.lasso_host`.
      max_steps: As for `solve.lasso_host`.
      throw: Whether to raise if the Lasso does not converge.

    Returns:
      A `Solution` with a `LinearBandit` as `value` and the result and stats of the Lasso.

    Raises:
      RuntimeError: If `throw` and the Lasso does not converge.
      ValueError: If shapes do not match, data are not finite, or s, n_queries or eps is out of
        range.

    Reference:
      Dong and Yang, 2023, arXiv 2303.16998, section on poly(s) queries.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import bandits
      >>> signs = jax.random.rademacher(jax.random.key(0), (100, 30), float)
      >>> found = bandits.lasso_bandit(signs, signs[:, 3], 1, key=jax.random.key(1))
      >>> found.value.theta.argmax().item()
      3
    """
    check_key("key", key)
    X, _, ask = _checked(X, reward, jnp.zeros((1, jnp.shape(X)[-1])))
    a, d = X.shape
    if not 1 <= s <= d:
        raise ValueError(f"lasso_bandit: s must be from 1 to {d}, got {s}.")
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"lasso_bandit: eps must be finite and >= 0, got {eps}.")
    n = math.ceil(10 * s * math.log(max(d, 2))) if n_queries is None else n_queries
    if not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"lasso_bandit: n_queries must be an integer >= 1, got {n}.")
    asked = np.asarray(jax.random.permutation(key, a))[: min(n, a)]
    rows, y = X[asked], jnp.stack([ask(jnp.asarray(i)) for i in asked])
    units = Units(magnitude(rows), magnitude(y))
    rows, y = rows / units.X, y / units.y
    top = max_strength(rows, y)
    if float(top) > 0:
        bias = 2 * float(jnp.max(jnp.abs(X)) / units.X) * float(eps / units.y)
        strength = jnp.maximum(bias, 1e-4 * top)
        found = lasso_host(rows, y, strength, tol=tol, max_steps=max_steps, throw=False)
    else:
        found = Solution(jnp.zeros(d, X.dtype), Result.SUCCESSFUL, {"gap": 0.0, "n_iter": 0})
    stats = {**found.stats, "gap": units.objective(jnp.asarray(found.stats["gap"]))}
    theta = found.value
    if refit and jnp.any(theta != 0):
        chosen = jnp.argsort(-jnp.abs(theta), stable=True)[:s]
        theta = jnp.zeros_like(theta).at[chosen].set(jnp.linalg.lstsq(rows[:, chosen], y)[0])
    theta = units.outside(theta)
    value = LinearBandit(int(jnp.argmax(X @ theta)), theta, np.sort(asked))
    return finish("lasso_bandit", Solution(value, found.result, stats), throw)


@checked(tol="[0, inf)", max_steps="[0, inf)")
def ols_bandit(
    X: Shaped[ArrayLike, "a d"],
    reward: Reward,
    *,
    tol: float = 0.01,
    max_steps: int = 10_000,
    throw: bool = True,
) -> Solution:
    """The dense baseline: a G-optimal design and weighted least squares, error `eps (1 + sqrt(d))`.

    Args:
      X: Features of the actions in rows (a, d).
      reward: Rewards (a,), or a function from the index of an action to its reward.
      tol: As for `g_optimal`.
      max_steps: As for `g_optimal`.
      throw: Whether to raise if the design does not converge.

    Returns:
      A `Solution` with a `LinearBandit` as `value` and the result and stats of `g_optimal`.

    Raises:
      RuntimeError: If `throw` and the design does not converge.
      ValueError: If shapes do not match or data are not finite.

    Reference:
      Lattimore, Szepesvari and Weisz, Learning with Good Feature Representations, 2020, arXiv
      1911.07676.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import bandits
      >>> bandits.ols_bandit(jnp.eye(2), jnp.array([0.5, 1.0])).value.action
      1
    """
    X, _, ask = _checked(X, reward, jnp.zeros((1, jnp.shape(X)[-1])))
    design = g_optimal(X, tol=tol, max_steps=max_steps, throw=False)
    p = design.value
    asked = np.flatnonzero(np.asarray(p) > 0)
    y = jnp.stack([ask(jnp.asarray(a)) for a in asked])
    root = jnp.sqrt(p[asked])
    theta = jnp.linalg.lstsq(X[asked] * root[:, None], y * root)[0]
    value = LinearBandit(int(jnp.argmax(X @ theta)), theta, asked)
    return finish("ols_bandit", Solution(value, design.result, design.stats), throw)


@jax.jit
def _greedy(X: Array, theta: Array) -> tuple[Array, Array]:
    """The best action of each parameter, and its predicted reward."""

    def one(theta):
        values = X @ theta
        a = jnp.argmax(values)
        return a, values[a]

    return lax.map(one, theta, batch_size=256)


def _checked(X: Any, reward: Any, candidates: Any) -> tuple[Array, Array, Partial]:
    """Features, parameters, and a function from an action to its reward that works under jit."""
    call = "bandits.parameter_elimination(X, reward, bandits.sparse_net(d, s, h), eps, h)"
    if callable(reward):
        X, _ = matrix_and_target(X, jnp.zeros(jnp.shape(X)[:1]), 1, call)
        shape = jax.ShapeDtypeStruct((), X.dtype)

        def host(a):
            r = float(np.asarray(reward(int(a))))
            if not math.isfinite(r):
                raise ValueError(f"reward({int(a)}) must be finite, got {r}.")
            return np.asarray(r, X.dtype)

        ask = Partial(lambda a: io_callback(host, shape, a, ordered=True))
    else:
        X, rewards = matrix_and_target(X, reward, 1, call, ("X", "reward"))
        ask = Partial(operator.getitem, rewards)
    theta, _ = matrix_and_target(
        candidates, jnp.zeros(jnp.shape(candidates)[:1]), 1, call, ("candidates", "y")
    )
    if theta.shape[1] != X.shape[1]:
        raise ValueError(
            f"candidates must have {X.shape[1]} columns like X, got {theta.shape}; as in {call}."
        )
    return X, theta.astype(X.dtype), ask
