"""Tiles of a kernel, cut without moving an axis, so that shards stay where they are."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from ._layout import Layout
from ._pool import join


@dataclass(frozen=True)
class Grid:
    """A leaf as tiles of consecutive inputs and outputs: each axis is split in two, in place.

    Args:
      layout: The layout that is cut.
      sizes: Length of a tile along each axis.
      source: The layout of the leaf, if tiles cross its axes and it is cut as a matrix.
    """

    layout: Layout
    sizes: tuple[int, ...]
    source: Layout | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of tiles along each axis."""
        return tuple(n // size for n, size in zip(self.layout.shape, self.sizes))

    def within(self, axes: Iterable[int]) -> tuple[int, ...]:
        """The axes of `split(x)` that run within a tile along the given axes."""
        return tuple(2 * axis + 1 for axis in axes)

    def pool(self, x: Float[Array, "..."], pool_by: str) -> Float[Array, "..."]:
        """One score for each tile."""
        return join(self.split(x), self.within(range(len(self.sizes))), pool_by)

    def split(self, x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """The leaf with each axis as (tiles, within a tile)."""
        x = x if self.source is None else self.source.to_matrix(x)
        return x.reshape(self._pairs())

    def merge(self, x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """Inverse of `split`."""
        x = x.reshape(self.layout.shape)
        return x if self.source is None else self.source.from_matrix(x)

    def fill(self, kept: Bool[Array, "..."]) -> Bool[Array, "..."]:
        """The leaf from one value for each tile."""
        return self.merge(jnp.broadcast_to(kept.reshape(self._pairs(False)), self._pairs()))

    def _pairs(self, whole: bool = True) -> tuple[int, ...]:
        return tuple(
            x for n, size in zip(self.shape, self.sizes) for x in (n, size if whole else 1)
        )


def grid(layout: Layout, rows: int, columns: int = 1) -> Grid:
    """The tiles of `rows` consecutive inputs and `columns` outputs, which divide the matrix."""
    contraction, output = layout.sides
    sizes = [1] * len(layout.shape)
    for axes, length in ((contraction, rows), (output, columns)):
        found = _split([layout.shape[axis] for axis in axes], length)
        if found is None:
            n = len(layout.stacked)
            matrix = Layout(layout.matrix_shape, layout.stacked, (n,), (n + 1,))
            return Grid(matrix, (1,) * n + (rows, columns), layout)
        for axis, size in zip(axes, found):
            sizes[axis] = size
    return Grid(layout, tuple(sizes))


def _split(sizes: Sequence[int], length: int) -> list[int] | None:
    """The lengths along each axis of `length` consecutive entries; None if they are not a box."""
    found = []
    for size in reversed(sizes):
        part = math.gcd(size, length)
        if part not in (size, length):
            return None
        found.append(part)
        length //= part
    return found[::-1]
