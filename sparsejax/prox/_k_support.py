"""The k-support norm: the square root of twice the sparse envelope."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from .._arguments import checked_integer, checked_number, known
from ._cells import Cells, largest_sum
from ._elementwise import outside
from ._envelope import SEF, fill
from ._partition import Axes, Partition, partition
from ._penalty import Leaf, Penalty, implicit, largest_float, register


@register
class KSupportNorm(Cells):
    """`strength * ||x||_k`, the k-support norm per cell, see `k_support_norm`."""

    strength: Leaf
    k: Leaf
    partition: Partition

    def _cost(self, b: Array) -> Array:
        top = lax.stop_gradient(self.partition.max(b))
        top = jnp.where((top > 0) & (top < jnp.inf), top, 1)
        envelope = SEF(1.0, self.k, self.partition)
        twice = 2 * self.partition.sum(envelope._cost(b / self._spread(top)))
        return self.strength * top * _root(twice)

    def _shrink(self, b: Array, t: Array) -> Array:
        m = t * self.strength
        scale = lax.stop_gradient(self.partition.max(b))
        scale = jnp.where((scale > 0) & (scale < jnp.inf), scale, 1)
        unit, mass = b / self._spread(scale), m / scale
        alive = self._dual(lax.stop_gradient(unit)) > lax.stop_gradient(mass)
        # All-zero cells are replaced by ones with zero mass, for finite derivatives.
        unit = jnp.where(self._spread(alive), unit, 1)
        beta = self._beta(unit, jnp.where(alive, mass, 0), alive.shape)
        v = unit * self._factor(unit, beta)[0]
        return jnp.where(self._spread(alive), self._spread(scale) * v, 0)

    def _dual(self, b: Array) -> Array:
        """The dual norm of each cell: the l2 norm of the k largest."""
        return jnp.sqrt(largest_sum(b**2, jnp.asarray(self.k, b.dtype), self.partition))

    def _factor(self, b: Array, beta: Array) -> tuple[Array, Array]:
        """The proximal operator of `beta SEF` at b, divided by b, and beta times its norm."""
        beta = self._spread(beta)
        u = fill(b, beta, jnp.asarray(self.k, b.dtype), self)
        whole = jnp.where(u > 0, beta + u, 1)
        # This order avoids underflow for every beta.
        squares = jnp.where(u > 0, (b * (beta / whole)) ** 2 * u, 0)
        return jnp.where(u > 0, u / whole, 0), _root(self.partition.sum(squares))

    def _beta(self, b: Array, m: Array, shape: tuple[int, ...]) -> Array:
        """The strength for which `prox_{m norm}(b) = prox_{beta SEF}(b)`.

        The norm is sqrt(2 SEF), whose gradient at v is that of SEF over the norm of v: beta is the
        root of `beta * norm(prox_{beta SEF}(b)) = m`, whose left side increases with beta.
        """

        def excess(beta, b, m):
            return self._factor(b, beta)[1] - m

        fixed, mass = lax.stop_gradient(b), lax.stop_gradient(m)
        beta = largest_float(lambda beta: excess(beta, fixed, mass) <= 0, shape, b.dtype)
        return implicit(excess, beta, b, m)

    def _conjugate_value(self, y: Any) -> Array:
        y, _, flat = self._flat(y)
        return outside(flat._dual(jnp.abs(y)), flat.strength)


def _root(x: Array) -> Array:
    """The square root, with derivative 0 at 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), x)


def k_support_norm(strength: ArrayLike, k: ArrayLike, axis: Axes = -1) -> Penalty:
    r"""The k-support norm: its unit ball is the convex hull of k-sparse vectors of norm 1.

    `f(x) = strength * ||x||_k`, `||x||_k = sqrt(2 S_k(x))` with the envelope of `sef`: l1 for
    k = 1, l2 for k = n. Its proximal operator differs from that of `sef`.

    Args:
      strength: >= 0.
      k: An integer; may be traced.
      axis: Axes of the vectors, None for the whole array.

    Returns:
      A convex penalty.

    Raises:
      TypeError: If k is not an integer.
      ValueError: If the strength is negative or k < 1.

    Reference:
      Argyriou, Foygel and Srebro, Sparse Prediction with the k-Support Norm, 2012,
      arXiv 1204.5043.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.k_support_norm(5.0, k=2).value(jnp.array([3.0, 4.0, 0.0])).item()
      25.0
    """
    call = "prox.k_support_norm(0.1, k=4)"
    k = checked_integer("k", k, call)
    if known(k) and k < 1:
        raise ValueError(f"k must be at least 1, got {k}; for example {call}.")
    return KSupportNorm(checked_number("strength", strength, call), k, partition(axis, call=call))
