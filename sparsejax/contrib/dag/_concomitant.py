"""Sparse regression in units of its own noise: coefficients and scale together."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from ...prox import l1
from ...solve._algebra import magnitude
from ...solve._dictionary import largest_eigenvalue
from ...solve._duality import Units, check_number, matrix_and_target


class ConcomitantFit(NamedTuple):
    """Coefficients and the scale of the noise.

    Attributes:
      coefficients: (features,).
      scale: The estimated standard deviation of the noise.
      objective: Its value.
      steps: Steps taken.
      converged: Whether no coefficient moved by more than the tolerance in the last step.
    """

    coefficients: Float[Array, " features"]
    scale: Float[Array, ""]
    objective: Float[Array, ""]
    steps: Int[Array, ""]
    converged: Bool[Array, ""]


def noise_scale(residual: Float[Array, "n ..."], floor: ArrayLike = 0.0) -> Float[Array, "..."]:
    r"""The minimiser of `||r||^2 / (2 n sigma) + sigma / 2` over `sigma >= floor`.

    `sigma = max(||r|| / sqrt(n), floor)`: the exact update of the scale in concomitant estimation.

    Args:
      residual: Residuals along the first axis.
      floor: The smallest scale, which keeps the problem smooth.

    Returns:
      A scale for each column.

    Reference:
      Ndiaye et al., Efficient Smoothed Concomitant Lasso Estimation, 2016 (arXiv 1606.02702).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import dag
      >>> float(dag.noise_scale(jnp.array([3.0, -3.0])))
      3.0
    """
    return jnp.maximum(jnp.sqrt(jnp.mean(residual**2, axis=0)), floor)


def concomitant_lasso(
    features: ArrayLike,
    target: ArrayLike,
    strength: ArrayLike,
    *,
    floor: ArrayLike | None = None,
    max_steps: int = 10_000,
    tolerance: ArrayLike = 1e-6,
) -> ConcomitantFit:
    r"""The smoothed concomitant lasso: a strength that does not depend on the noise level.

    Minimises `||y - X b||^2 / (2 n sigma) + sigma / 2 + strength ||b||_1` over b and
    `sigma >= floor`, which is jointly convex, by a proximal gradient step in b and the exact
    sigma, in turn.

    Args:
      features: X (n, features).
      target: y (n,), centred if there is to be an intercept.
      strength: About `sqrt(log(features) / n)`, whatever the noise. At 0 the coefficients are least
        squares, at infinity 0.
      floor: The smallest scale; by default a hundredth of that of y.
      max_steps: The largest number of steps.
      tolerance: Stop when no coefficient moves by more than this share of the largest.

    Returns:
      A `ConcomitantFit`; for a target of zeros the scale is the smallest float.

    Raises:
      ValueError: If features and target differ in length, are empty or not finite, or a number is
        negative.

    Reference:
      Ndiaye et al., Efficient Smoothed Concomitant Lasso Estimation, 2016 (arXiv 1606.02702).

    Example:
      >>> import jax
      >>> from sparsejax.contrib import dag
      >>> x = jax.random.normal(jax.random.key(0), (200, 10))
      >>> y = 3.0 * x[:, 0] + jax.random.normal(jax.random.key(1), (200,))
      >>> fit = dag.concomitant_lasso(x, y, 0.2)
      >>> (fit.coefficients != 0).astype(int).tolist(), 0.8 < float(fit.scale) < 1.2
      ([1, 0, 0, 0, 0, 0, 0, 0, 0, 0], True)
    """
    call = "dag.concomitant_lasso(X, y, 0.1)"
    features, target = matrix_and_target(features, target, 1, call)
    check_number("strength", strength, (), target.dtype)
    # With X and y of size 1 no square leaves the range of floats.
    units = Units(magnitude(features), magnitude(target))
    features, target = features / units.X, target / units.y
    strength = jnp.asarray(strength, target.dtype) / units.X
    n = len(target)
    if floor is not None:
        check_number("floor", floor, (), target.dtype)
    floor = noise_scale(target) / 100 if floor is None else jnp.asarray(floor) / units.y
    floor = jnp.maximum(jnp.asarray(floor, target.dtype), jnp.finfo(target.dtype).tiny)
    curvature = largest_eigenvalue(features) / n
    penalty = l1(strength)

    def move(state):
        b, scale, taken, _ = state
        gradient = features.T @ (features @ b - target) / n
        new = penalty.prox(b - gradient / curvature, scale / curvature)
        small = tolerance * jnp.maximum(jnp.max(jnp.abs(new)), 1e-30)
        rest = jnp.max(jnp.abs(new - b)) <= small
        return new, noise_scale(target - features @ new, floor), taken + 1, rest

    start = jnp.zeros(features.shape[1], target.dtype)
    begin = start, noise_scale(target, floor), jnp.zeros((), jnp.int32), jnp.array(False)
    b, scale, taken, rest = lax.while_loop(lambda s: (s[2] < max_steps) & ~s[3], move, begin)
    residual = target - features @ b
    objective = jnp.mean(residual**2) / (2 * scale) + scale / 2 + penalty.value(b)
    return ConcomitantFit(units.outside(b), scale * units.y, objective * units.y, taken, rest)
