"""Total variation in one dimension, by dynamic programming in linear time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from .._arguments import checked, checked_number
from .._arrays import zeros_for
from ._elementwise import l1
from ._ordered import along, one_axis
from ._penalty import Leaf, Penalty, register, static
from ._sums import nested


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
    """The minimiser: the mean of each constant segment, shifted by its two jumps.

    The dynamic programme only locates the segments: the values computed from them are exact and
    have the correct derivative.
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
    return jnp.where(m == 0, x, pieces[piece])


@jax.custom_jvp
def _solve(y: Array, m: Array) -> Array:
    """The segments; constant under differentiation."""
    return _sequential(y, m)


@_solve.defjvp
def _solve_jvp(primals, tangents):
    del tangents
    out = _solve(*primals)
    return out, jnp.zeros_like(out)


class _Walk(NamedTuple):
    """State of the dynamic programme: one end of the queue, and a line that must cross a target."""

    i: Array
    upper: Array
    at: Array
    line: Array
    low_at: Array
    low_line: Array
    left: Array
    right: Array
    knot: Array
    knots: Array
    tubes: Array


@jax.custom_batching.sequential_vmap
def _sequential(y: Array, m: Array) -> Array:
    """Johnson's dynamic programme: a forward pass over the knots, a backward pass that clips.

    The derivative of the cost-to-come is piecewise linear and increasing; only its part between -m
    and m matters. Its knots (position, change of slope and of intercept) live in a double-ended
    queue, and each is pushed and popped once. One flat loop: nested loops would copy the queue each
    time.
    """
    n = y.shape[-1]
    middle, line = jnp.int32(n), jnp.stack([jnp.ones((), y.dtype), -y[0]])
    knots, tubes = jnp.zeros((2 * n + 1, 3), y.dtype), jnp.zeros((n, 2), y.dtype)
    start = _Walk(
        i=jnp.int32(0),
        upper=jnp.array(False),
        at=middle,
        line=line,
        low_at=middle,
        low_line=line,
        left=middle,
        right=middle - 1,
        knot=knots[0],
        knots=knots,
        tubes=tubes,
    )
    start = jax.tree.map(lambda x: x + zeros_for((), x.dtype, y, m), start)
    done = lax.while_loop(lambda w: w.i < n, lambda w: _advance(w, y, m), start)
    end = -done.low_line[1] / done.low_line[0]

    def backward(later, tube):
        u = jnp.clip(later, tube[0], tube[1])
        return u, u

    _, before = lax.scan(backward, end, done.tubes[: n - 1], reverse=True)
    return jnp.append(before, end)


def _advance(w: _Walk, y: Array, m: Array) -> _Walk:
    """Drops one knot, switches to the upper end of the queue, or pushes both ends and continues."""
    n, knot, last = y.shape[-1], w.knot, w.i == y.shape[-1] - 1
    way, end = jnp.where(w.upper, -1, 1), jnp.where(w.upper, w.low_at, w.right)
    short = w.line[0] * knot[0] + w.line[1] <= jnp.where(last, 0, -m)
    drops = ((end - w.at) * way >= 0) & short
    turns, pushes = ~drops & ~w.upper, ~drops & w.upper
    left, right = w.low_at - 1, w.at + 1
    low, high = (jnp.stack([(-m - line[1]) / line[0], line[0], line[1] + m])
                 for line in (w.low_line, w.line))  # fmt: skip
    # In place: written in every step (to a spare slot if nothing is pushed) and read afterwards.
    put = lax.dynamic_update_index_in_dim
    knots = put(w.knots, low, jnp.where(pushes, left, 2 * n), 0)
    knots = put(knots, high, jnp.where(pushes, right, 2 * n), 0)
    tubes = put(w.tubes, jnp.stack([low[0], high[0]]), jnp.where(pushes, w.i, n - 1), 0)
    one = jnp.ones((), y.dtype)
    downward = jnp.stack([-one, y[w.i] - jnp.where(w.i == 0, 0, m)])
    upward = jnp.stack([one, -m - y[jnp.minimum(w.i + 1, n - 1)]])
    at = jnp.where(drops, w.at + way, jnp.where(turns, w.right, left))
    return _Walk(
        i=w.i + (pushes | (turns & last)).astype(w.i.dtype),
        upper=turns | (w.upper & drops),
        at=at,
        line=jnp.where(drops, w.line + knot[1:], jnp.where(turns, downward, upward)),
        low_at=jnp.where(turns, w.at, w.low_at),
        low_line=jnp.where(turns, w.line, w.low_line),
        left=jnp.where(pushes, left, w.left),
        right=jnp.where(pushes, right, w.right),
        knot=lax.dynamic_index_in_dim(knots, at, 0, keepdims=False),
        knots=knots,
        tubes=tubes,
    )


def total_variation(strength: ArrayLike, axis: int | None = -1) -> Penalty:
    r"""The total variation of a sequence: piecewise constant with few jumps.

    `f(x) = strength * sum_i |x_(i+1) - x_i|`.

    Args:
      strength: >= 0.
      axis: Axis of the sequences, None for the whole array.

    Returns:
      A convex penalty of real x. Its proximal operator takes linear time in one sequential pass;
      several sequences are processed one after another.

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
    return TotalVariation(
        checked_number("strength", strength, "prox.total_variation(0.1)"), one_axis(axis)
    )


@checked()
def fused_lasso(strength: ArrayLike, l1_strength: ArrayLike, axis: int | None = -1) -> Penalty:
    r"""Total variation plus l1 (fused lasso): constant segments, most of them 0.

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
    return nested(
        total_variation(strength, axis),
        l1(checked_number("l1_strength", l1_strength, "prox.fused_lasso(1.0, 0.5)")),
    )
