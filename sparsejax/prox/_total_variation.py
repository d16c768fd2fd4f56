"""Total variation in one dimension, by dynamic programming in linear time."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from ._check import number
from ._elementwise import l1
from ._ordered import along
from ._penalty import Leaf, Penalty, register, static
from ._sums import Nested, nested


@register
class TotalVariation(Penalty):
    """`strength * sum |x_(i+1) - x_i|`, see `total_variation`."""

    monotone = False
    takes_complex = False

    strength: Leaf
    axis: int | None = static(default=-1)

    def _value(self, x: Array) -> Array:
        x = x.reshape(-1) if self.axis is None else x
        return self.strength * jnp.sum(jnp.abs(jnp.diff(x, axis=self.axis or 0)))

    def _prox(self, x: Array, t: Array) -> Array:
        m = t * self.strength

        def rows(x):
            flat = x.reshape(-1, x.shape[-1])
            return jax.vmap(lambda row: _denoise(row, m))(flat).reshape(x.shape)

        return x if x.size == 0 else along(self.axis, rows, x)


def _denoise(x: Array, m: Array) -> Array:
    """The minimiser, as the mean of each flat piece, raised or lowered by its two steps.

    The dynamic programme only says where the pieces are: what is computed from them is exact and
    has the right derivative.
    """
    n = x.shape[-1]
    if n < 2:
        return x
    centre = lax.stop_gradient(jnp.mean(x))
    rough = lax.stop_gradient(_solve(x - centre, m))
    steps = jnp.sign(jnp.diff(rough))
    piece = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(steps != 0)])
    up = jnp.pad(steps, (0, 1)) - jnp.pad(steps, (1, 0))
    size = jax.ops.segment_sum(jnp.ones_like(x), piece, n)
    total = jax.ops.segment_sum(x - centre + m * up, piece, n)
    pieces = centre + total / jnp.maximum(size, 1)
    return jnp.where(m > 0, pieces[piece], x)


@jax.custom_jvp
def _solve(y: Array, m: Array) -> Array:
    """Where the pieces are; a constant to derivatives, also for JAX, which cannot see through."""
    return _sequential(y, m)


@_solve.defjvp
def _solve_jvp(primals, tangents):
    del tangents
    out = _solve(*primals)
    return out, jnp.zeros_like(out)


@jax.custom_batching.sequential_vmap
def _sequential(y: Array, m: Array) -> Array:
    """Johnson's dynamic programme: forward the knots of the derivative, backward by clipping.

    The derivative of the cost-to-come is piecewise linear and rises; only its part between -m and
    m matters. Its knots live in a double-ended queue, and every knot enters and leaves once.
    """
    n, one = y.shape[-1], jnp.ones((), y.dtype)
    knots = jnp.zeros((3, 2 * n), y.dtype)  # position, change of slope, change of intercept

    def forward(i, carry):
        knots, left, right, tubes = carry
        # No step leads to the first entry.
        edge = jnp.where(i == 0, 0, m)
        low = _pop(knots, left, right, (one, -edge - y[i]), -m, 1)
        high = _pop(knots, right, low[0], (-one, -edge + y[i]), -m, -1)
        left, right = low[0] - 1, high[0] + 1
        ends = [jnp.stack([(-m - bend) / slope, slope, bend + m]) for _, slope, bend in (low, high)]
        knots = knots.at[:, left].set(ends[0]).at[:, right].set(ends[1])
        return knots, left, right, tubes.at[:, i].set(jnp.stack([ends[0][0], ends[1][0]]))

    start = (knots, jnp.int32(n), jnp.int32(n - 1), jnp.zeros((2, n), y.dtype))
    knots, left, right, tubes = lax.fori_loop(0, n - 1, forward, start)
    last = _pop(knots, left, right, (one, -m - y[n - 1]), jnp.zeros_like(m), 1)
    end = -last[2] / last[1]

    def backward(later, tube):
        u = jnp.clip(later, tube[0], tube[1])
        return u, u

    _, before = lax.scan(backward, end, tubes[:, : n - 1].T, reverse=True)
    return jnp.append(before, end)


def _pop(knots: Array, at: Array, end: Array, line: Any, target: Array, way: int) -> Any:
    """Drop knots from one end of the queue, up to the other, until the line passes the target."""

    def passes(state):
        i, slope, bend = state
        return ((end - i) * way >= 0) & (slope * knots[0, i] + bend <= target)

    def drop(state):
        i, slope, bend = state
        return i + way, slope + knots[1, i], bend + knots[2, i]

    return lax.while_loop(passes, drop, (at, *line))


def total_variation(strength: ArrayLike, axis: int | None = -1) -> TotalVariation:
    r"""The total variation of a sequence: flat pieces with few steps.

    `f(x) = strength * sum_i |x_(i+1) - x_i|`.

    Args:
      strength: >= 0.
      axis: Axis of the sequences, None for the whole array.

    Returns:
      A convex penalty of real x. Its proximal operator takes linear time in one sequential pass;
      several sequences go one after another.

    Raises:
      ValueError: If the strength is negative.

    Reference:
      Johnson, A Dynamic Programming Algorithm for the Fused Lasso and L0-Segmentation, 2013.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.total_variation(1.0).prox(jnp.array([0.0, 0.0, 4.0, 4.0])).tolist()
      [0.5, 0.5, 3.5, 3.5]
    """
    return TotalVariation(number("strength", strength, "prox.total_variation(0.1)"), axis)


def fused_lasso(strength: ArrayLike, l1_strength: ArrayLike, axis: int | None = -1) -> Nested:
    r"""Total variation and l1: flat pieces, most of them 0.

    `f(x) = strength * sum_i |x_(i+1) - x_i| + l1_strength * ||x||_1`; the proximal operator is
    that of the total variation, then soft thresholding.

    Args:
      strength: >= 0, of the total variation.
      l1_strength: >= 0.
      axis: Axis of the sequences, None for the whole array.

    Returns:
      A convex penalty of real x.

    Raises:
      ValueError: If a strength is negative.

    Reference:
      Friedman, Hastie, Hoefling and Tibshirani, Pathwise Coordinate Optimization, 2007,
      arXiv 0708.1485.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.fused_lasso(1.0, 0.5).prox(jnp.array([0.0, 0.0, 4.0, 4.0])).tolist()
      [0.0, 0.0, 3.0, 3.0]
    """
    return nested(total_variation(strength, axis), l1(l1_strength))
