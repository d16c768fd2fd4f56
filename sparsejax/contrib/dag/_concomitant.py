"""The concomitant lasso: joint estimation of coefficients and noise scale."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..._arguments import check_strength, checked, checked_start, matrix_and_target
from ..._arrays import Units, largest_eigenvalue, magnitude
from ..._solution import code, finish
from ...prox import l1
from ...solve import Solution


class ConcomitantFit(NamedTuple):
    """Coefficients and noise scale, the `value` of `concomitant_lasso`.

    Attributes:
      coefficients: Regression coefficients (p,).
      scale: Estimated standard deviation of the noise.
    """

    coefficients: Float[Array, " p"]
    scale: Float[Array, ""]


@checked(floor="[0, inf)")
def noise_scale(residual: Float[Array, "n ..."], floor: ArrayLike = 0.0) -> Float[Array, "..."]:
    r"""The minimiser of `||r||^2 / (2 n sigma) + sigma / 2` over `sigma >= floor`.

    `sigma = max(||r|| / sqrt(n), floor)`: the exact update of the scale in concomitant estimation.

    Args:
      residual: Residuals along the first axis.
      floor: Lower bound of the scale, which keeps the problem smooth.

    Returns:
      One scale per column.

    Reference:
      Ndiaye et al., Efficient Smoothed Concomitant Lasso Estimation, 2016 (arXiv 1606.02702).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import dag
      >>> float(dag.noise_scale(jnp.array([3.0, -3.0])))
      3.0
    """
    return jnp.maximum(jnp.sqrt(jnp.mean(residual**2, axis=0)), floor)


@checked(floor="[0, inf)", tol="[0, inf)", max_steps="[0, inf)")
def concomitant_lasso(
    X: ArrayLike,
    y: ArrayLike,
    strength: ArrayLike,
    *,
    floor: ArrayLike | None = None,
    w0: ArrayLike | None = None,
    tol: ArrayLike = 1e-6,
    max_steps: int = 10_000,
    throw: bool = True,
) -> Solution:
    r"""The smoothed concomitant lasso, whose strength does not depend on the noise level.

    Minimises `||y - X w||^2 / (2 n sigma) + sigma / 2 + strength ||w||_1` over w and
    `sigma >= floor`. The problem is jointly convex; proximal gradient steps in w alternate with
    exact minimisation over sigma.

    Args:
      X: Design matrix (n, p).
      y: Target (n,); centre X and y for an intercept.
      strength: Weight of the l1 norm, about `sqrt(log(p) / n)` at every noise level. 0 gives least
        squares, infinity gives zeros.
      floor: Lower bound of sigma; a hundredth of the scale of y by default.
      w0: Initial coefficients (p,); zeros by default.
      tol: Converged when no coefficient changes by more than this fraction of the largest one.
      max_steps: Maximum number of proximal gradient steps.
      throw: Whether to raise if the tolerance is not reached (outside jit).

    Returns:
      A `Solution` whose `value` is a `ConcomitantFit`; `stats` holds `objective` and `n_iter`. If
      y is zero, the scale is the smallest positive float.

    Raises:
      RuntimeError: If `throw` and the tolerance is not reached.
      ValueError: If X and y differ in length, are empty or not finite, w0 has the wrong shape, or
        a number is negative.

    Reference:
      Ndiaye et al., Efficient Smoothed Concomitant Lasso Estimation, 2016 (arXiv 1606.02702).

    Example:
      >>> import jax
      >>> from sparsejax.contrib import dag
      >>> X = jax.random.normal(jax.random.key(0), (200, 10))
      >>> y = 3.0 * X[:, 0] + jax.random.normal(jax.random.key(1), (200,))
      >>> fit = dag.concomitant_lasso(X, y, 0.2).value
      >>> (fit.coefficients != 0).astype(int).tolist(), 0.8 < float(fit.scale) < 1.2
      ([1, 0, 0, 0, 0, 0, 0, 0, 0, 0], True)
    """
    X, y = matrix_and_target(X, y, 1, "dag.concomitant_lasso(X, y, 0.1)")
    check_strength("strength", strength, (), y.dtype)
    # With X and y of size 1 no square leaves the range of floats.
    units = Units(magnitude(X), magnitude(y))
    X, y = X / units.X, y / units.y
    strength = jnp.asarray(strength, y.dtype) / units.X
    start = units.inside(checked_start("concomitant_lasso", w0, X.shape[1:], X.dtype))
    if floor is not None:
        check_strength("floor", floor, (), y.dtype)
    floor = noise_scale(y) / 100 if floor is None else jnp.asarray(floor) / units.y
    floor = jnp.maximum(jnp.asarray(floor, y.dtype), jnp.finfo(y.dtype).tiny)
    w, scale, taken, done = _descend(X, y, start, strength, floor, tol, max_steps)
    penalty = l1(strength)
    objective = jnp.mean((y - X @ w) ** 2) / (2 * scale) + scale / 2 + penalty.value(w)
    value = ConcomitantFit(units.outside(w), scale * units.y)
    finite = jnp.isfinite(value.coefficients).all() & jnp.isfinite(value.scale)
    stats = {"objective": objective * units.y, "n_iter": taken}
    return finish("concomitant_lasso", Solution(value, code(finite, done), stats), throw)


@jax.jit
def _descend(X, y, start, strength, floor, tol, max_steps) -> tuple[Array, ...]:
    """Coefficients, scale, steps taken and whether the steps have converged."""
    curvature = largest_eigenvalue(X) / len(y)
    penalty = l1(strength)

    def move(state):
        w, scale, taken, _ = state
        gradient = X.T @ (X @ w - y) / len(y)
        new = penalty.prox(w - gradient / curvature, scale / curvature)
        small = tol * jnp.maximum(jnp.max(jnp.abs(new)), 1e-30)
        done = jnp.max(jnp.abs(new - w)) <= small
        return new, noise_scale(y - X @ new, floor), taken + 1, done

    begin = start, noise_scale(y - X @ start, floor), jnp.zeros((), jnp.int32), jnp.array(False)
    return lax.while_loop(lambda s: (s[2] < max_steps) & ~s[3], move, begin)
