"""Iterative hard thresholding on private gradients, one group of users per round."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..._arguments import checked, known, matrix_and_target
from ..._solution import code, finish
from ..._topk import topk_mask
from ...solve import Solution
from ._mechanisms import (
    PrivacySpent,
    check_positive,
    check_range,
    clip_entries,
    clip_l2,
    l2_randomizer,
)

CALL = "private.ldp_iht(X, y, key=key, k=2, epsilon=1.0, bound_x=1.0, bound_y=1.5)"


class PrivateIHTFit(NamedTuple):
    """The value of the solution of `ldp_iht`.

    Attributes:
      coefficients: The last iterate (d,), with at most `kept` nonzeros and norm <= norm_bound.
      history: The iterate after each round (rounds, d).
      radius: The gradient bound that the randomizer uses.
      spent: Privacy budget spent per user; each user sends one message.
    """

    coefficients: Float[Array, " d"]
    history: Float[Array, "rounds d"]
    radius: float
    spent: PrivacySpent


@checked()
def ldp_iht(
    X: ArrayLike,
    y: ArrayLike,
    *,
    key: Array,
    k: int,
    epsilon: float,
    bound_x: float,
    bound_y: float,
    rounds: int = 5,
    step: float = 1.0,
    kept: int | None = None,
    norm_bound: float = 1.0,
    out_of_range: str = "refuse",
    throw: bool = True,
) -> Solution:
    r"""Sparse regression from private gradients: pure epsilon-privacy, one message per user.

    `theta <- project(top_k(theta - step mean_i R(x_i (<x_i, theta> - y_i))))`, with another group
    of users in each round and R the `l2_randomizer` at
    `radius = sqrt(d) bound_x (sqrt(kept) bound_x norm_bound + bound_y)`, which no gradient of
    clipped data exceeds. Guaranteed: every row has epsilon-local privacy, delta 0, if the bounds,
    k, rounds and step were not taken from the data. The error falls as `k sqrt(d / n) / epsilon`:
    far fewer users than `nldp_regression` needs, in exchange for several rounds.

    Args:
      X: Covariates (n, d), one row per user.
      y: Targets (n,).
      key: A random key; it is split into one key per user.
      k: Size of the support.
      epsilon: The privacy level.
      bound_x: Bound of the entries of X.
      bound_y: Bound of the targets.
      rounds: Number of rounds and of groups of users; n % rounds users are left out.
      step: Step size, about 1 over the largest eigenvalue of the covariance, from public knowledge.
      kept: Entries kept in each round, k by default.
      norm_bound: Bound of |theta|; the iterates are projected onto this ball.
      out_of_range: "refuse" data beyond the bounds, or "clip" them. Under jit they are always
        clipped: the privacy is the same, the estimate biased.
      throw: Whether to raise if an iterate is not finite (outside jit).

    Returns:
      A `Solution` whose value is a `PrivateIHTFit`. The number of rounds is part of the mechanism,
      so there is no tolerance: the result is a success, or `NONFINITE`.

    Raises:
      RuntimeError: If `throw` and an iterate is not finite.
      ValueError: If data are not finite or beyond their bounds, there are fewer users than rounds,
        or an argument is out of its range.

    Reference:
      Wang and Xu, On Sparse Linear Regression in the Local Differential Privacy Model, 2019; Zhu et
      al., 2023, arXiv 2310.07367, algorithm 2.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import private
      >>> X = jax.random.uniform(jax.random.key(0), (50_000, 4), minval=-1, maxval=1)
      >>> found = private.ldp_iht(X, X[:, 2], key=jax.random.key(1), k=1, epsilon=4.0,
      ...                         bound_x=1.0, bound_y=1.0, step=2.4)
      >>> jnp.flatnonzero(found.value.coefficients).tolist(), found.value.spent.delta
      ([2], 0.0)
    """
    X, y = matrix_and_target(X, y, 1, CALL)
    n, d = X.shape
    kept = k if kept is None else kept
    if not 1 <= k <= kept <= d:
        raise ValueError(f"1 <= k <= kept <= {d} must hold, got k={k} and kept={kept}.")
    if isinstance(rounds, bool) or not 1 <= rounds <= n:
        raise ValueError(f"rounds must be from 1 to the number of users, {n}, got {rounds}.")
    for name, x in (("epsilon", epsilon), ("bound_x", bound_x), ("bound_y", bound_y),
                    ("step", step), ("norm_bound", norm_bound)):  # fmt: skip
        check_positive(name, x)
    if known(X) and known(y):
        sizes = {"bound_x": (np.abs(X), bound_x), "bound_y": (np.abs(y), bound_y)}
        check_range(out_of_range, **sizes)
    radius = math.sqrt(d) * bound_x * (math.sqrt(kept) * bound_x * norm_bound + bound_y)
    history, finite = _rounds(
        key, X, y, kept, epsilon, bound_x, bound_y, rounds, step, norm_bound, radius
    )
    fit = PrivateIHTFit(history[-1], history, radius, PrivacySpent(float(epsilon), 0.0))
    result = code(finite.all(), jnp.array(True))
    return finish("ldp_iht", Solution(fit, result, {"n_iter": rounds}), throw)


@functools.partial(jax.jit, static_argnums=tuple(range(3, 11)))
def _rounds(
    key: Array, X: Array, y: Array, kept: int, epsilon: float, bound_x: float, bound_y: float,
    rounds: int, step: float, norm_bound: float, radius: float,
) -> tuple[Array, Array]:  # fmt: skip
    n, d = X.shape
    size = n // rounds
    X = clip_entries(X[: rounds * size], bound_x).reshape(rounds, size, d)
    y = clip_entries(y[: rounds * size], bound_y).reshape(rounds, size)
    keys = jax.random.split(key, rounds * size).reshape(rounds, size)

    def message(key, x, y, theta):
        return l2_randomizer(x * (jnp.vdot(x, theta) - y), radius, epsilon, key=key)

    def turn(theta: Array, group: Any) -> tuple[Array, tuple[Array, Array]]:
        one, x, y = group
        messages = jax.vmap(message, in_axes=(0, 0, 0, None))(one, x, y, theta)
        moved = theta - step * messages.mean(0)
        finite = jnp.isfinite(moved).all()  # clipping would hide it
        moved = jnp.where(topk_mask(jnp.abs(moved), kept), moved, 0)
        theta = clip_l2(moved, norm_bound)
        return theta, (theta, finite)

    return lax.scan(turn, jnp.zeros(d, X.dtype), (keys, X, y))[1]
