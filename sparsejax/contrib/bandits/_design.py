"""Optimal designs: how often each action is queried."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from ..._arguments import checked, matrix_and_target
from ..._solution import code, finish
from ...solve import Solution


@checked(tol="[0, inf)", max_steps="[0, inf)")
def g_optimal(
    X: ArrayLike, *, tol: float = 0.01, max_steps: int = 10_000, throw: bool = True
) -> Solution:
    r"""The G-optimal design, `min_p max_a x_a^T M(p)^-1 x_a` with `M(p) = sum_a p_a x_a x_a^T`.

    Frank-Wolfe on `log det M(p)`; at the optimum the largest leverage equals the rank d of X
    (Kiefer-Wolfowitz).

    Args:
      X: Features of the actions in rows (a, d).
      tol: Converged at a largest leverage of `(1 + tol) rank`.
      max_steps: Maximum number of steps.
      throw: Whether to raise if the tolerance is not reached.

    Returns:
      A `Solution` whose `value` are the shares of the actions (a,), with sum 1; `stats` holds
      `n_iter` and `leverage`, the largest leverage before the last step over the rank.

    Raises:
      RuntimeError: If `throw` and the tolerance is not reached.
      ValueError: If X is not a finite matrix.

    Reference:
      Kiefer and Wolfowitz, The equivalence of two extremum problems, 1960; Lattimore, Szepesvari
      and Weisz, Learning with Good Feature Representations, 2020, arXiv 1911.07676.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import bandits
      >>> design = bandits.g_optimal(jnp.array([[2.0, 0.0], [0.0, 1.0]])).value
      >>> [round(p, 2) for p in design.tolist()]
      [0.5, 0.5]
    """
    X, _ = matrix_and_target(X, jnp.zeros(jnp.shape(X)[:1]), 1, "bandits.g_optimal(X)")
    u, sizes, _ = jnp.linalg.svd(X, full_matrices=False)
    rank = max(int(jnp.sum(sizes > 1e-5 * sizes[0])), 1)
    Q = u[:, :rank]  # leverages do not depend on the basis
    n, p, g = _frank_wolfe(Q, tol, max_steps)
    result = code(jnp.isfinite(p).all(), g <= (1 + tol) * rank)
    return finish("g_optimal", Solution(p, result, {"n_iter": n, "leverage": g / rank}), throw)


@jax.jit
def _frank_wolfe(Q: Array, tol: ArrayLike, max_steps: ArrayLike) -> tuple[Array, Array, Array]:
    """Steps taken, shares of the actions, and the largest leverage before the last step."""
    actions, rank = Q.shape
    p = jnp.full(actions, 1 / actions, Q.dtype)

    def step(s):
        i, p, _ = s
        leverage = jnp.sum((Q @ jnp.linalg.inv((Q * p[:, None]).T @ Q)) * Q, axis=1)
        a = jnp.argmax(leverage)
        g = leverage[a]
        gain = jnp.where(g > rank, (g / rank - 1) / jnp.maximum(g - 1, 1e-30), 0)
        return i + 1, (p * (1 - gain)).at[a].add(gain), g

    unfinished = lambda s: (s[0] < max_steps) & (s[2] > (1 + tol) * rank)  # noqa: E731
    return lax.while_loop(
        unfinished, step, (jnp.zeros((), jnp.int32), p, jnp.asarray(jnp.inf, Q.dtype))
    )
