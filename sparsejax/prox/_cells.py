"""Penalties of the moduli within cells: a slice over axes, or the entries of one label."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .._arrays import poison
from ._partition import Partition
from ._penalty import Symmetric, largest_float


class Cells(Symmetric):
    """A sum over cells. Subclasses have a field `partition` and receive the moduli of one array."""

    takes_tree: ClassVar[bool] = True
    partition: Any

    @property
    def groups(self) -> Any:
        """The labels; None if cells are spanned by axes."""
        return self.partition.labels

    def _flat(self, x: Any) -> tuple[Any, Any, Any]:
        """With labels: x as one vector, the inverse map, and this penalty for that vector."""
        if self.partition.labels is None:
            return x, lambda u: u, self
        vector, back, joint = self.partition.ravel(x)
        return vector, back, dataclasses.replace(self, partition=joint)  # pyright: ignore

    def _value(self, x: Any) -> Array:
        vector, _, penalty = self._flat(x)
        return jnp.sum(penalty._cost(jnp.abs(vector))) + poison(vector)

    def _prox(self, x: Any, t: Array) -> Any:
        vector, back, penalty = self._flat(x)
        return back(super(Cells, penalty)._prox(vector, t))  # pyright: ignore

    def _spread(self, cells: Array) -> Array:
        """Broadcasts a value per cell to the entries."""
        return cells if self.partition.labels is None else cells[self.partition.labels]


def level(b: Array, mass: Array, partition: Partition) -> tuple[Array, Array]:
    """The level of each cell above which the mass is `mass`, as a distance below its maximum.

    `sum (b - top + height)_+ = mass`, by bisection on the height, which stays exact when the mass
    is small relative to b, and then in closed form from the entries above the level.

    Returns:
      The maximum (constant under differentiation: the level does not depend on it) and the height.
    """
    spread = _spreader(partition)
    top = lax.stop_gradient(_max(b, partition))
    top = jnp.where(jnp.isfinite(top), top, 0)
    seen = b - spread(top)
    fixed = lax.stop_gradient(seen)

    def holds(height):
        return partition.sum(jnp.maximum(fixed + spread(height), 0)) <= mass

    height = largest_float(holds, top.shape, b.dtype)
    above = fixed + spread(height) > 0
    count = partition.sum(above.astype(b.dtype))
    exact = (mass - partition.sum(jnp.where(above, seen, 0))) / jnp.where(count > 0, count, 1)
    return top, jnp.where(count > 0, exact, height)


def largest_sum(z: Array, k: Array, partition: Partition) -> Array:
    """The sum of the k largest of the non-negative z in each cell, without a sort."""
    spread = _spreader(partition)
    one = jnp.ones_like(z)
    fixed = lax.stop_gradient(z)

    def holds(cut):
        return partition.sum(jnp.where(fixed >= spread(cut), one, 0)) >= k

    cut = spread(largest_float(holds, partition.sum(fixed).shape, z.dtype))
    above, tie = fixed > cut, fixed == cut
    tied = partition.sum(tie.astype(z.dtype))
    left = jnp.clip(k - partition.sum(above.astype(z.dtype)), 0, tied)
    share = left / jnp.maximum(tied, 1)
    found = partition.sum(jnp.where(above, z, 0)) + share * partition.sum(jnp.where(tie, z, 0))
    return found + poison(z)


def _max(b: Array, partition: Partition) -> Array:
    """The maximum of each cell, also of negative entries."""
    if partition.labels is None:
        return jnp.max(b, partition.axis, keepdims=True)
    low = jnp.min(b)
    return partition.max(b - low) + low


def _spreader(partition: Partition) -> Any:
    if partition.labels is None:
        return lambda cells: cells
    return lambda cells: cells[partition.labels]
