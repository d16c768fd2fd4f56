"""Indicators of convex sets: balls, the simplex, planes."""

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array

from .._arguments import checked, checked_number
from ._cells import level
from ._partition import Axes, Partition, partition, ratio
from ._penalty import Indicator, Leaf, Penalty, Symmetric, register, relu, static


@register
class L1Ball(Indicator, Symmetric):
    """The indicator of `||x||_1 <= radius`, see `l1_ball`."""

    radius: Leaf
    partition: Partition

    def _violation(self, x: Array) -> Array:
        return _excess(self.partition.sum(jnp.abs(x)), self.radius)

    def _shrink(self, b: Array, t: Array) -> Array:
        del t
        inside = self.partition.sum(b) <= self.radius
        return jnp.where(inside, b, _onto_simplex(b, self.radius, self.partition))


@register
class Simplex(Indicator):
    """The indicator of `x >= 0, sum x = radius`, see `simplex`."""

    monotone = False
    takes_complex = False

    radius: Leaf
    partition: Partition

    def _violation(self, x: Array) -> Array:
        gap = jnp.abs(self.partition.sum(x) - self.radius) / jnp.maximum(self.radius, 1e-30)
        return jnp.where(jnp.any(x < 0), jnp.inf, gap)

    def _prox(self, x: Array, t: Array) -> Array:
        del t
        u = _onto_simplex(x, self.radius, self.partition)
        return jnp.where(jnp.isnan(x), x, u)


@register
class L2Ball(Indicator):
    """The indicator of `||x|| <= radius`, see `l2_ball`."""

    radius: Leaf
    partition: Partition

    def _violation(self, x: Array) -> Array:
        return _excess(self.partition.norms(x), self.radius)

    def _prox(self, x: Array, t: Array) -> Array:
        del t
        r = self.partition.norms(x)
        return x * jnp.where(r <= self.radius, 1, ratio(jnp.minimum(r, self.radius), r))


@register
class Plane(Indicator):
    """The indicator of `<normal, x> = offset` or `<=`, see `hyperplane` and `half_space`."""

    monotone = False
    takes_complex = False

    normal: Leaf
    offset: Leaf
    one_sided: bool = static(default=False)

    def _violation(self, x: Array) -> Array:
        gap = jnp.vdot(self.normal, x) - self.offset
        scale = jnp.vdot(jnp.abs(self.normal), jnp.abs(x)) + jnp.abs(self.offset)
        return (relu(gap) if self.one_sided else jnp.abs(gap)) / jnp.maximum(scale, 1e-30)

    def _prox(self, x: Array, t: Array) -> Array:
        del t
        halves = optax.projections.projection_halfspace
        project = halves if self.one_sided else optax.projections.projection_hyperplane
        return project(x, jnp.broadcast_to(self.normal, x.shape), self.offset)


@register
class Affine(Indicator):
    """The indicator of `matrix @ x = offset`, see `affine`."""

    monotone = False
    takes_complex = False

    matrix: Leaf
    offset: Leaf

    def _violation(self, x: Array) -> Array:
        gap = jnp.abs(self.matrix @ x - self.offset)
        scale = jnp.abs(self.matrix) @ jnp.abs(x) + jnp.abs(self.offset)
        return jnp.max(gap / jnp.maximum(scale, 1e-30), initial=0)

    def _prox(self, x: Array, t: Array) -> Array:
        del t
        back = jnp.linalg.pinv(self.matrix)
        for _ in range(2):  # the second pass removes the rounding error of the first
            x = x - back @ (self.matrix @ x - self.offset)
        return x


def _onto_simplex(x: Array, radius: ArrayLike, cells: Partition) -> Array:
    shape = jnp.sum(x, cells.axis, keepdims=True).shape
    top, height = level(x, jnp.broadcast_to(radius, shape).astype(x.dtype), cells)
    return relu(x - top + height)


def _excess(size: Array, radius: ArrayLike) -> Array:
    over = relu(size - radius)
    return jnp.where(over > 0, over / jnp.maximum(jnp.asarray(radius, over.dtype), 1e-30), 0)


def l1_ball(radius: ArrayLike = 1.0, axis: Axes = -1) -> Penalty:
    r"""The indicator of the l1 ball: projection by soft thresholding.

    `f(x) = 0 if ||x||_1 <= radius, else infinity`.

    Args:
      radius: >= 0.
      axis: Axes of the vectors, None for the whole array.

    Returns:
      A convex penalty; its value allows for rounding.

    Raises:
      ValueError: If the radius is negative.

    Reference:
      Duchi, Shalev-Shwartz, Singer and Chandra, Efficient Projections onto the l1-Ball for
      Learning in High Dimensions, 2008.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.l1_ball(2.0).prox(jnp.array([3.0, -2.0, 0.5])).tolist()
      [1.5, -0.5, 0.0]
    """
    call = "prox.l1_ball(1.0)"
    return L1Ball(checked_number("radius", radius, call), partition(axis, call=call))


def simplex(radius: ArrayLike = 1.0, axis: Axes = -1) -> Penalty:
    r"""The indicator of the simplex: non-negative entries that sum to the radius.

    `f(x) = 0 if x >= 0 and sum x = radius, else infinity`.

    Args:
      radius: >= 0.
      axis: Axes of the vectors, None for the whole array.

    Returns:
      A convex penalty of real x; its value allows for rounding.

    Raises:
      ValueError: If the radius is negative.

    Reference:
      Condat, Fast Projection onto the Simplex and the l1 Ball, 2016.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.simplex().prox(jnp.array([1.0, 0.5, -1.0])).tolist()
      [0.75, 0.25, 0.0]
    """
    call = "prox.simplex(1.0)"
    return Simplex(checked_number("radius", radius, call), partition(axis, call=call))


def l2_ball(radius: ArrayLike = 1.0, axis: Axes = -1) -> Penalty:
    r"""The indicator of the l2 ball: radial scaling.

    `f(x) = 0 if ||x|| <= radius, else infinity`.

    Args:
      radius: >= 0.
      axis: Axes of the vectors, None for the whole array.

    Returns:
      A convex penalty; its value allows for rounding.

    Raises:
      ValueError: If the radius is negative.

    Reference:
      Parikh and Boyd, Proximal Algorithms, 2014.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.l2_ball(2.5).prox(jnp.array([3.0, 4.0])).tolist()
      [1.5, 2.0]
    """
    call = "prox.l2_ball(1.0)"
    return L2Ball(checked_number("radius", radius, call), partition(axis, call=call))


@checked(offset="[-inf, inf]")
def half_space(normal: ArrayLike, offset: ArrayLike) -> Penalty:
    r"""The indicator of a half-space: `<normal, x> <= offset`.

    Args:
      normal: An array that broadcasts to the shape of x, not 0.
      offset: A number.

    Returns:
      A convex penalty of real x (the whole array); its value allows for rounding.

    Raises:
      ValueError: If the normal is 0.

    Reference:
      Parikh and Boyd, Proximal Algorithms, 2014; computed by `optax.projections`.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.half_space(jnp.array([1.0, 1.0]), 2.0).prox(jnp.array([3.0, 1.0])).tolist()
      [2.0, 0.0]
    """
    return _plane(normal, offset, True)


@checked(offset="[-inf, inf]")
def hyperplane(normal: ArrayLike, offset: ArrayLike) -> Penalty:
    r"""The indicator of a hyperplane: `<normal, x> = offset`.

    Args:
      normal: An array that broadcasts to the shape of x, not 0.
      offset: A number.

    Returns:
      A convex penalty of real x (the whole array); its value allows for rounding.

    Raises:
      ValueError: If the normal is 0.

    Reference:
      Parikh and Boyd, Proximal Algorithms, 2014; computed by `optax.projections`.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.hyperplane(jnp.array([1.0, 1.0]), 2.0).prox(jnp.array([0.0, 0.0])).tolist()
      [1.0, 1.0]
    """
    return _plane(normal, offset, False)


def _plane(normal: ArrayLike, offset: ArrayLike, one_sided: bool) -> Plane:
    call = "prox.half_space(jnp.ones(n), 1.0)"
    size = jnp.max(jnp.abs(jnp.asarray(normal, float)), initial=0)
    checked_number("the largest entry of normal", size, call, positive=True)
    checked_number("the size of offset", jnp.abs(jnp.asarray(offset, float)), call)
    return Plane(jnp.asarray(normal, float), jnp.asarray(offset, float), one_sided)


@checked()
def affine(matrix: ArrayLike, offset: ArrayLike) -> Penalty:
    r"""The indicator of `matrix @ x = offset`, whose projection uses the pseudo-inverse.

    Args:
      matrix: Array `(m, n)`; its rows may be linearly dependent if the equations are consistent.
      offset: Array `(m,)`.

    Returns:
      A convex penalty of real vectors `(n,)`; its value allows for rounding.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Parikh and Boyd, Proximal Algorithms, 2014.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> penalty = prox.affine(jnp.array([[1.0, 1.0]]), jnp.array([2.0]))
      >>> penalty.prox(jnp.zeros(2)).round(5).tolist()
      [1.0, 1.0]
    """
    matrix, offset = jnp.asarray(matrix, float), jnp.asarray(offset, float)
    if matrix.ndim != 2 or offset.shape != matrix.shape[:1]:
        raise ValueError(
            f"matrix of shape {matrix.shape} and offset of shape {offset.shape} do not fit: "
            "(m, n) and (m,) as in prox.affine(jnp.ones((1, n)), jnp.ones(1))."
        )
    return Affine(matrix, offset)
