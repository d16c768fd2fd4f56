"""Linear bandits whose model is a little wrong: elimination of sparse parameters, and baselines."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import io_callback
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from ...solve import lambda_max, lasso_host
from ...solve._algebra import magnitude
from ...solve._duality import Units, matrix_and_target

Reward = ArrayLike | Callable[[int], float]


class BanditResult(NamedTuple):
    """The action that was chosen, and what it took.

    Attributes:
      action: Index of the action.
      value: Its reward as observed, or as predicted where it was never queried.
      queries: How many distinct actions were asked.
      alive: How many parameters were still possible; 0 where none are kept.
      ok: Whether the method ended as its guarantee asks: False says that eps was too small.
    """

    action: Any
    value: Any
    queries: Any
    alive: Any
    ok: Any


class LinearBandit(NamedTuple):
    """A parameter that was estimated from queries, and the action it likes best.

    Attributes:
      action: Index of the action.
      theta: The parameter (d,).
      queried: Which actions were asked, with repeats left out (n,).
    """

    action: int
    theta: Float[Array, " d"]
    queried: Int[np.ndarray, " n"]


def parameter_elimination(
    features: ArrayLike,
    reward: Reward,
    candidates: ArrayLike,
    eps: float,
    h: float,
    *,
    eps_stat: float = 0.0,
    max_queries: int | None = None,
) -> BanditResult:
    r"""The best action up to `2 (eps + L h)`, from rewards that are linear up to eps.

    Asks the best action of the most hopeful candidate; returns it if the reward is as that
    candidate said, up to `eps + L h`; else drops all candidates that were wrong about it. With
    |reward - features theta| <= eps and a candidate within h of theta, that candidate is never
    dropped: whatever d is, the gap is at most `2 (eps + L h)`, L the longest feature.

    Args:
      features: One row for each action (a, d).
      reward: Rewards (a,), or a function of the index of an action, called once for each.
      candidates: Parameters (m, d), such as `sparse_net(d, s, h)`.
      eps: Bound of the misspecification.
      h: Radius of the net.
      eps_stat: What averaged noise may add to a reward.
      max_queries: The most queries; None for no bound.

    Returns:
      A `BanditResult`: `ok` is False if no candidate was left or the queries ran out; then the
      action is the best that was asked. Works under jit for an array of rewards.

    Reference:
      Dong and Yang, Does Sparsity Help in Learning Misspecified Linear Bandits?, 2023, arXiv
      2303.16998.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import bandits
      >>> found = bandits.parameter_elimination(
      ...     jnp.eye(3), jnp.array([0.1, 0.0, 1.0]), bandits.sparse_net(3, 1, 0.1), 0.1, 0.1)
      >>> int(found.action), bool(found.ok)
      (2, True)
    """
    Phi, theta, ask = _checked(features, reward, candidates)
    for name, x in (("eps", eps), ("h", h), ("eps_stat", eps_stat)):
        if not (math.isfinite(x) and x >= 0):
            raise ValueError(f"{name} must be finite and >= 0, got {x}.")
    if max_queries is not None and max_queries < 1:
        raise ValueError(f"max_queries must be >= 1, got {max_queries}.")
    limit = math.inf if max_queries is None else max_queries
    length = jnp.max(jnp.linalg.norm(Phi, axis=1))
    # Rounding must not eliminate the truth where eps and h are 0.
    tol = eps + length * h + eps_stat + 8 * jnp.finfo(Phi.dtype).eps * length * Phi.shape[1]
    best, hope = lax.map(lambda t: _greedy(Phi, t), theta, batch_size=256)

    def turn(s):
        alive, seen, values, _, _ = s
        i = jnp.argmax(jnp.where(alive, hope, -jnp.inf))
        a = best[i]
        r = lax.cond(seen[a], lambda: values[a], lambda: ask(a))
        close = jnp.abs(hope[i] - r) <= tol
        off = jnp.abs(theta @ Phi[a] - r) > tol
        alive = jnp.where(close, alive, alive & ~off & (jnp.arange(alive.size) != i))
        return alive, seen.at[a].set(True), values.at[a].set(r), a, close

    def more(s):
        alive, seen, _, _, done = s
        # What was asked already may still be what the next candidate hopes for.
        again = seen[best[jnp.argmax(jnp.where(alive, hope, -jnp.inf))]]
        return ~done & jnp.any(alive) & (again | (jnp.sum(seen) < limit))

    zeros = jnp.zeros(Phi.shape[0], Phi.dtype)
    start = (jnp.ones(len(theta), bool), zeros != 0, zeros, jnp.zeros((), best.dtype),
             jnp.zeros((), bool))  # fmt: skip
    alive, seen, values, a, done = lax.while_loop(more, turn, start)
    a = jnp.where(done, a, jnp.argmax(jnp.where(seen, values, -jnp.inf)).astype(a.dtype))
    return BanditResult(a, values[a], jnp.sum(seen), jnp.sum(alive), done)


def exhaustive_bandit(features: ArrayLike, reward: Reward, candidates: ArrayLike) -> BanditResult:
    """Asks every action that is the best one of some candidate: gap `2 (eps + L h)` without eps.

    Args:
      features: One row for each action (a, d).
      reward: Rewards (a,), or a function of the index of an action.
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
    Phi, theta, ask = _checked(features, reward, candidates)
    best = np.unique(np.asarray(lax.map(lambda t: _greedy(Phi, t)[0], theta, batch_size=256)))
    values = np.array([float(ask(jnp.asarray(a))) for a in best])
    i = int(np.argmax(values))
    return BanditResult(int(best[i]), float(values[i]), len(best), 0, True)


def lasso_bandit(
    key: Array,
    features: ArrayLike,
    reward: Reward,
    s: int,
    n_queries: int | None = None,
    eps: float = 0.0,
    *,
    refit: bool = True,
) -> LinearBandit:
    r"""Random queries and a Lasso: error `O(s eps)` with `O(s log d)` queries, for good features.

    Good are entries bounded by c and random rows with a restricted eigenvalue, such as random
    signs. The strength is `2 c eps`.

    Args:
      key: A key.
      features: One row for each action (a, d).
      reward: Rewards (a,), or a function of the index of an action.
      s: Length of the support of the parameter.
      n_queries: How many actions to ask, `10 s log d` by default.
      eps: Bound of the misspecification.
      refit: Least squares on the s largest entries.

    Returns:
      A `LinearBandit`.

    Reference:
      Dong and Yang, 2023, arXiv 2303.16998, section on poly(s) queries.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import bandits
      >>> signs = jax.random.rademacher(jax.random.key(0), (100, 30), float)
      >>> bandits.lasso_bandit(jax.random.key(1), signs, signs[:, 3], 1).theta.argmax().item()
      3
    """
    Phi, _, ask = _checked(features, reward, jnp.zeros((1, jnp.shape(features)[-1])))
    a, d = Phi.shape
    if not 1 <= s <= d:
        raise ValueError(f"s must be from 1 to {d}, got {s}.")
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps must be finite and >= 0, got {eps}.")
    n = math.ceil(10 * s * math.log(max(d, 2))) if n_queries is None else n_queries
    if not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"n_queries must be an integer >= 1, got {n}.")
    asked = np.asarray(jax.random.permutation(key, a))[: min(n, a)]
    X = Phi[asked]
    y = jnp.stack([ask(jnp.asarray(i)) for i in asked])
    units = Units(magnitude(X), magnitude(y))
    X, y = X / units.X, y / units.y
    top = lambda_max(X, y)
    bias = 2 * float(jnp.max(jnp.abs(Phi)) / units.X) * float(eps / units.y)
    theta = jnp.zeros(d, Phi.dtype)
    if float(top) > 0:
        theta = lasso_host(X, y, jnp.maximum(bias, 1e-4 * top), throw=False).value
    if refit and jnp.any(theta != 0):
        chosen = jnp.argsort(-jnp.abs(theta), stable=True)[:s]
        theta = jnp.zeros_like(theta).at[chosen].set(jnp.linalg.lstsq(X[:, chosen], y)[0])
    theta = units.outside(theta)
    return LinearBandit(int(jnp.argmax(Phi @ theta)), theta, np.sort(asked))


def g_optimal(features: ArrayLike, iters: int = 400, tol: float = 0.01) -> Float[Array, " a"]:
    r"""The design with the least worst-case variance: `min_p max_a phi_a^T M(p)^-1 phi_a`.

    Frank-Wolfe on `log det M(p)`; at the optimum the worst leverage is d (Kiefer-Wolfowitz).

    Args:
      features: One row for each action (a, d).
      iters: The most steps.
      tol: Ends at a worst leverage of `(1 + tol) rank`.

    Returns:
      Shares of the actions (a,), which sum to 1.

    Reference:
      Kiefer and Wolfowitz, The equivalence of two extremum problems, 1960; Lattimore, Szepesvari
      and Weisz, Learning with Good Feature Representations, 2020, arXiv 1911.07676.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import bandits
      >>> [round(p, 2) for p in bandits.g_optimal(jnp.array([[2.0, 0.0], [0.0, 1.0]])).tolist()]
      [0.5, 0.5]
    """
    Phi, _ = matrix_and_target(features, jnp.zeros(jnp.shape(features)[:1]), 1, "g_optimal(Phi)")
    u, sizes, _ = jnp.linalg.svd(Phi, full_matrices=False)
    rank = max(int(jnp.sum(sizes > 1e-5 * sizes[0])), 1)
    Q = u[:, :rank]  # leverages do not depend on the basis
    p = jnp.full(Phi.shape[0], 1 / Phi.shape[0], Phi.dtype)

    def step(s):
        i, p, _ = s
        leverage = jnp.sum((Q @ jnp.linalg.inv((Q * p[:, None]).T @ Q)) * Q, axis=1)
        a = jnp.argmax(leverage)
        g = leverage[a]
        gain = jnp.where(g > rank, (g / rank - 1) / jnp.maximum(g - 1, 1e-30), 0)
        return i + 1, (p * (1 - gain)).at[a].add(gain), g

    keep_on = lambda s: (s[0] < iters) & (s[2] > (1 + tol) * rank)  # noqa: E731
    return lax.while_loop(keep_on, step, (0, p, jnp.asarray(jnp.inf, Phi.dtype)))[1]


def ols_bandit(features: ArrayLike, reward: Reward, iters: int = 400) -> LinearBandit:
    """The dense baseline: a G-optimal design and weighted least squares, error `eps (1 + sqrt(d))`.

    Args:
      features: One row for each action (a, d).
      reward: Rewards (a,), or a function of the index of an action.
      iters: Steps of `g_optimal`.

    Returns:
      A `LinearBandit`.

    Reference:
      Lattimore, Szepesvari and Weisz, Learning with Good Feature Representations, 2020, arXiv
      1911.07676.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import bandits
      >>> bandits.ols_bandit(jnp.eye(2), jnp.array([0.5, 1.0])).action
      1
    """
    Phi, _, ask = _checked(features, reward, jnp.zeros((1, jnp.shape(features)[-1])))
    p = g_optimal(Phi, iters)
    asked = np.flatnonzero(np.asarray(p) > 0)
    y = jnp.stack([ask(jnp.asarray(a)) for a in asked])
    root = jnp.sqrt(p[asked])
    theta = jnp.linalg.lstsq(Phi[asked] * root[:, None], y * root)[0]
    return LinearBandit(int(jnp.argmax(Phi @ theta)), theta, asked)


def _greedy(Phi: Array, theta: Array) -> tuple[Array, Array]:
    values = Phi @ theta
    a = jnp.argmax(values)
    return a, values[a]


def _checked(features: Any, reward: Any, candidates: Any) -> tuple[Array, Array, Callable]:
    """Features, parameters, and a function from an action to its reward that jit can call."""
    call = "solve.parameter_elimination(features, rewards, solve.sparse_net(d, s, h), eps, h)"
    if callable(reward):
        Phi, _ = matrix_and_target(features, jnp.zeros(jnp.shape(features)[:1]), 1, call)
        shape = jax.ShapeDtypeStruct((), Phi.dtype)

        def host(a):
            r = float(np.asarray(reward(int(a))))
            if not math.isfinite(r):
                raise ValueError(f"reward({int(a)}) is {r}; it must be a finite number.")
            return np.asarray(r, Phi.dtype)

        ask = lambda a: io_callback(host, shape, a, ordered=True)  # noqa: E731
    else:
        Phi, rewards = matrix_and_target(features, reward, 1, call)
        ask = lambda a: rewards[a]  # noqa: E731
    theta, _ = matrix_and_target(candidates, jnp.zeros(jnp.shape(candidates)[:1]), 1, call)
    if theta.shape[1] != Phi.shape[1]:
        raise ValueError(
            f"candidates must have {Phi.shape[1]} columns, as features have, got {theta.shape}."
        )
    return Phi, theta.astype(Phi.dtype), ask
