"""Penalties that depend on the order of the entries: l_inf, SLOPE, l1 minus l2."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from .._arguments import checked, checked_axis, checked_number, known
from .._arrays import quotient
from ._cells import Cells, level
from ._elementwise import outside
from ._partition import Axes, Partition, fit, partition
from ._penalty import Leaf, Penalty, Symmetric, register, relu, static

_LOW, _INDEX = 2**32 - 1, 2**31 - 1


@register
class LInf(Cells):
    """`strength * sum_g w_g max |x_g|`, see `linf` and `l1_inf`."""

    strength: Leaf
    partition: Partition
    weights: Leaf = None

    def _cost(self, b: Array) -> Array:
        top = self.partition.max(b)
        return self.strength * fit(self.weights, top.shape) * top

    def _shrink(self, b: Array, t: Array) -> Array:
        # Moreau: b minus its projection on the l1 ball of radius m is clipped at the level.
        total = self.partition.sum(b)
        mass = jnp.broadcast_to(t * self.strength * fit(self.weights, total.shape), total.shape)
        top, height = level(b, mass, self.partition)
        kept = self._spread(relu(top - height))
        return jnp.where(self._spread(total <= mass), 0, jnp.where(b <= kept, b, kept))

    def _conjugate_value(self, y: PyTree) -> Array:
        y, _, flat = self._flat(y)
        total = flat.partition.sum(jnp.abs(y))
        radius = flat.strength * fit(flat.weights, total.shape)
        return outside(total, radius)


@register
class Slope(Symmetric):
    """`sum_i strength_i |x|_(i)`, the moduli in descending order, see `slope`."""

    strength: Leaf
    axis: int | None = static(default=-1)

    def _cost(self, b: Array) -> Array:
        return jnp.sum(along(self.axis, lambda rows: -jnp.sort(-rows) * self._each(rows), b))

    def _each(self, rows: Array) -> Array:
        """The strengths with as many axes as the rows."""
        return lax.expand_dims(jnp.asarray(self.strength), range(rows.ndim - 1))

    def _shrink(self, b: Array, t: Array) -> Array:
        def rows(b):
            order = descending(lax.stop_gradient(b))
            fitted = relu(isotonic(jnp.take_along_axis(b, order, -1) - t * self._each(b)))
            return jnp.put_along_axis(jnp.zeros_like(b), order, fitted, -1, inplace=False)

        return along(self.axis, rows, b)

    def _conjugate_value(self, y: Array) -> Array:
        tops = jnp.cumsum(along(self.axis, lambda rows: -jnp.sort(-rows), jnp.abs(y)), -1)
        return outside(tops, jnp.cumsum(self.strength))


@register
class L1MinusL2(Symmetric):
    """`strength * (||x||_1 - alpha ||x||)`, see `l1_minus_l2`."""

    monotone = False

    strength: Leaf
    alpha: Leaf
    axis: int | None = static(default=-1)

    @property
    def weak_convexity(self) -> ArrayLike:
        """Infinity, since the curvature of the l2 norm is unbounded near 0; 0 if alpha is 0."""
        return jnp.where(jnp.asarray(self.alpha) > 0, jnp.inf, 0.0)

    def _cost(self, b: Array) -> Array:
        norms = Partition(axis=None if self.axis is None else (self.axis,)).norms(b)
        return self.strength * (jnp.sum(b) - self.alpha * jnp.sum(norms))

    def _shrink(self, b: Array, t: Array) -> Array:
        m = t * self.strength

        def rows(b):
            top = jnp.max(b, -1, keepdims=True)
            soft = relu(b - m)
            norm = Partition(axis=(-1,)).norms(soft)
            unit = quotient(soft, jnp.where(norm > 0, norm, 1))
            place = lax.broadcasted_iota(jnp.int32, b.shape, b.ndim - 1)
            first = place == jnp.argmax(b, -1, keepdims=True).astype(jnp.int32)
            single = jnp.where(first, relu(b + (self.alpha - 1) * m), 0)
            single = jnp.where(top > 0, single, 0)
            return jnp.where(norm > 0, soft + self.alpha * m * unit, single)

        return along(self.axis, rows, b)


def one_axis(axis: int | None) -> int | None:
    """An axis, or None for all entries; raises for anything else."""
    found = checked_axis(axis)
    if isinstance(found, tuple):
        raise ValueError(f"axis must be one axis or None, got {axis}; for example axis=-1.")
    return found


def along(axis: int | None, f, x: Array) -> Array:
    """Applies `f` to x with the axis moved last; to x as one vector if the axis is None."""
    if axis is None:
        return f(x.reshape(-1)).reshape(x.shape)
    return jnp.moveaxis(f(jnp.moveaxis(x, axis, -1)), -1, axis)


def descending(b: Array) -> Array:
    """The order of numbers >= 0 along the last axis, the largest first, the lowest index of equals.

    XLA sorts single integers four times as fast as pairs or floats: each sort takes 32 bits of the
    numbers, which are ordered like floats, above the index. NaN counts as 0.
    """
    bits = jnp.finfo(b.dtype).bits
    if b.shape[-1] >= 2**31:
        return jnp.argsort(-b, axis=-1)
    with jax.enable_x64(True):
        b = jnp.where(b > 0, b, jnp.zeros_like(b))  # not -0, whose sign bit is set
        image = lax.bitcast_convert_type(b, jnp.dtype(f"int{bits}")).astype(jnp.int64)
        place = lax.broadcasted_iota(jnp.int64, b.shape, b.ndim - 1)
        order = _sorted_by(image & _LOW, place)
        if bits > 32:
            higher = jnp.take_along_axis(image >> 32, order, -1)
            order = jnp.take_along_axis(order, _sorted_by(higher, place), -1)
        return order.astype(jnp.int32)


def _sorted_by(digit: Array, place: Array) -> Array:
    """The places, sorted by 32 bits, the largest first."""
    return lax.sort(((_LOW - digit) << 31) | place, is_stable=False) & _INDEX


def isotonic(z: Array) -> Array:
    """The non-increasing sequence nearest to z along the last axis.

    Halves that are already monotone are merged by the level that pools their ends: log2(n)
    parallel rounds, which map and shard.
    """
    n = z.shape[-1]
    size = 1 << max(n - 1, 0).bit_length()
    # The padding is lower than every entry, so that it never pools.
    pad = jnp.broadcast_to(lax.stop_gradient(jnp.min(z, -1, keepdims=True)), (*z.shape[:-1], size))
    y = jnp.concatenate([z, pad[..., : size - n]], -1)
    half = 1
    while half < size:
        blocks = y.reshape(*y.shape[:-1], size // (2 * half), 2 * half)
        y = _pooled(blocks[..., :half], blocks[..., half:]).reshape(y.shape)
        half *= 2
    return y[..., :n]


def _pooled(left: Array, right: Array) -> Array:
    """Merges two non-increasing halves at the level at which they balance.

    Entries below the level on the left and above it on the right are set to the level.
    """
    level = _level(*lax.stop_gradient((left, right)))
    lacks, exceeds = left < level, right > level
    mean = level + _above(left, right, level)
    return jnp.concatenate([jnp.where(lacks, mean, left), jnp.where(exceeds, mean, right)], -1)


def _above(left: Array, right: Array, level: Array) -> Array:
    """The mean of the pooled entries minus the level; 0 without any."""
    lacks, exceeds = left < level, right > level
    moved = jnp.sum(jnp.where(exceeds, right - level, 0), -1, keepdims=True)
    moved -= jnp.sum(jnp.where(lacks, level - left, 0), -1, keepdims=True)
    count = jnp.sum(lacks, -1, keepdims=True, dtype=jnp.int32)
    count += jnp.sum(exceeds, -1, keepdims=True, dtype=jnp.int32)
    return moved / jnp.maximum(count, 1).astype(left.dtype)


def _level(left: Array, right: Array) -> Array:
    """The level that is the mean of what it pools, by Newton's method within a bracket.

    The mean is a Newton step, and exact once the pool is right; every fourth step bisects, so that
    the bracket shrinks to the precision of the dtype in any case.
    """
    low, high = left[..., -1:], right[..., :1]
    joins = low < high
    start = jnp.where(joins, low + (high - low) / 2, low)
    # The pool is then right up to rounding of its ends, and its mean is exact.
    fine = jnp.finfo(left.dtype).eps * (jnp.abs(low) + jnp.abs(high))
    steps = 4 * (jnp.finfo(left.dtype).nmant + 6)

    def narrow(state):
        i, level, lo, hi, _ = state
        move = _above(left, right, level)
        lo, hi = jnp.where(move > 0, level, lo), jnp.where(move < 0, level, hi)
        mean, middle = level + move, lo + (hi - lo) / 2
        inside = (mean >= lo) & (mean <= hi) & (i % 4 != 3)
        moved = joins & (jnp.abs(move) > fine) & (mean != level) & (middle != level)
        new = jnp.where(moved, jnp.where(inside, mean, middle), level)
        return i + 1, new, lo, hi, jnp.any(moved)

    first = (jnp.zeros((), jnp.int32), start, low, high, jnp.any(joins))
    level = lax.while_loop(lambda s: s[4] & (s[0] < steps), narrow, first)[1]
    # Without a violation nothing is below the level on the left or above it on the right.
    return jnp.where(joins, level, low)


def linf(strength: ArrayLike, axis: Axes = -1) -> Penalty:
    r"""The largest modulus: clips the largest entries to one level.

    `f(x) = strength * max |x_i|`, `prox(v, t) = v - projection of v on the l1 ball of radius
    t strength`.

    Args:
      strength: >= 0.
      axis: Axes of the vectors, None for the whole array.

    Returns:
      A convex penalty.

    Raises:
      ValueError: If the strength is negative.

    Reference:
      Parikh and Boyd, Proximal Algorithms, 2014.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.linf(2.0).prox(jnp.array([5.0, -4.0, 1.0])).tolist()
      [3.5, -3.5, 1.0]
    """
    call = "prox.linf(0.1)"
    return LInf(checked_number("strength", strength, call), partition(axis, call=call))


def l1_inf(
    strength: ArrayLike,
    axis: Axes = None,
    groups: PyTree = None,
    num_groups: int | None = None,
    weights: ArrayLike | None = None,
) -> Penalty:
    r"""The sum over groups of the largest modulus, which zeroes groups.

    `f(x) = strength * sum_g w_g max |x_g|`.

    Args:
      strength: >= 0.
      axis: Axes that span one group; see `on_norm`.
      groups: Labels; see `on_norm`.
      num_groups: Number of groups; required if the labels are traced.
      weights: A weight per group, 1 by default.

    Returns:
      A convex penalty of arrays, or of pytrees if the labels are one.

    Raises:
      ValueError: If a number is negative, or groups overlap or do not fit.

    Reference:
      Quattoni, Carreras, Collins and Darrell, An Efficient Projection for l1,infinity
      Regularization, 2009.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.l1_inf(2.0, axis=1).prox(jnp.array([[5.0, -4.0], [1.0, 0.5]])).tolist()
      [[3.5, -3.5], [0.0, 0.0]]
    """
    call = "prox.l1_inf(0.1, axis=0)"
    if weights is not None:
        weights = checked_number("weights", weights, call)
    cells = partition(axis, groups, num_groups, call)
    return LInf(checked_number("strength", strength, call), cells, weights)


@checked()
def slope(strength: ArrayLike, axis: int | None = -1) -> Penalty:
    r"""Sorted l1 (SLOPE, OWL): larger entries are penalised more.

    `f(x) = sum_i strength_i |x|_(i)` with the moduli in descending order. Equal strengths give
    `l1`, `(s, 0, ..., 0)` is `linf`, linear ones are OSCAR.

    Args:
      strength: >= 0 and not increasing, one per entry of a vector.
      axis: Axis of the vectors, None for the whole array.

    Returns:
      A convex penalty.

    Raises:
      ValueError: If the strengths are negative, increasing, or not a vector.

    Reference:
      Bogdan, van den Berg, Sabatti, Su and Candes, SLOPE: Adaptive Variable Selection via Convex
      Optimization, 2015, arXiv 1407.3824.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.slope(jnp.array([2.0, 1.0, 0.5])).prox(jnp.array([-3.0, 5.0, 0.25])).tolist()
      [-2.0, 3.0, 0.0]
    """
    call = "prox.slope(jnp.linspace(0.2, 0.1, n))"
    strength = checked_number("strength", strength, call)
    if jnp.ndim(strength) < 1:
        raise ValueError(
            f"strength must be a vector, got shape {jnp.shape(strength)}; as in {call}."
        )
    if known(strength) and jnp.any(jnp.diff(jnp.asarray(strength)) > 0):
        raise ValueError(f"strength must not increase, got {strength}; for example {call}.")
    return Slope(strength, one_axis(axis))


def l1_minus_l2(strength: ArrayLike, alpha: ArrayLike = 1.0, axis: int | None = -1) -> Penalty:
    r"""The l1 norm minus a fraction of the l2 norm: no bias for a single large entry.

    `f(x) = strength * (||x||_1 - alpha ||x||)`.

    Args:
      strength: >= 0.
      alpha: Between 0 (l1) and 1.
      axis: Axis of the vectors, None for the whole array.

    Returns:
      A penalty that is not weakly convex.

    Raises:
      ValueError: If the strength is negative or alpha outside [0, 1].

    Reference:
      Lou and Yan, Fast L1-L2 Minimization via a Proximal Operator, 2018, arXiv 1609.09530.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.l1_minus_l2(1.0).prox(jnp.array([5.0, 0.5])).tolist()
      [5.0, 0.0]
    """
    call = "prox.l1_minus_l2(0.1, alpha=1.0)"
    alpha = checked_number("alpha", alpha, call)
    if known(alpha):
        checked_number("1 - alpha", 1 - alpha, call)
    return L1MinusL2(checked_number("strength", strength, call), alpha, one_axis(axis))
