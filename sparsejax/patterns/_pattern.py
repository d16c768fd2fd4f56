"""Base classes of patterns: the units pruned together, and the fraction of zeros."""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from .._counts import count_dtype, kept_in_slice
from .._topk import flat_index, topk_mask
from ._layout import Layout, Order, layout


class Pattern(ABC):
    """Base class of patterns: frozen, hashable values that select the mask of a leaf.

    A custom pattern implements `units` and `select`, and has a `sparsity`; the other methods have
    defaults. Functions that take a pattern call only these methods.

    Units (entries, blocks, channels, groups) are kept or zeroed as a whole. `stacked` leading axes
    index layers or experts: every slice is pruned separately. `axis` are the contracted axes; None
    selects those of the framework of the kernel.

    Example:
      >>> import dataclasses, jax.numpy as jnp, sparsejax as sj
      >>> @dataclasses.dataclass(frozen=True)
      ... class FirstHalf(sj.patterns.Pattern):
      ...     sparsity: float = 0.5
      ...     def units(self, layout):
      ...         return layout.shape[0]
      ...     def select(self, scores, layout, zeros, fraction=1.0):
      ...         kept = self.units(layout) - round(fraction * zeros)
      ...         return jnp.broadcast_to(jnp.arange(scores.shape[0]) < kept, scores.shape)
      >>> sj.masks.topk(jnp.ones(4), FirstHalf()).tolist()
      [True, True, False, False]
    """

    sparsity: float
    stacked: int = 0
    axis: Any = None
    free: ClassVar[bool] = True  # whether an allocation may change the sparsity of a leaf
    balanced: bool = False  # whether counts are fixed within a leaf, so that leaves cannot compete
    structured: ClassVar[bool] = True  # whether hardware can use the zeros
    removes_units: ClassVar[bool] = False  # whether it removes inputs or outputs intentionally

    @property
    def label(self) -> str:
        """A short name for tables."""
        return type(self).__name__

    @property
    def final(self) -> "Pattern":
        """The final pattern of training, such as the last stage."""
        return self

    def layout(self, shape: tuple[int, ...], order: Order | None = "in_out") -> Layout:
        """The layout of a leaf of this shape from a framework with this order of axes."""
        return layout(shape, self.axis, self.stacked, order)

    @abstractmethod
    def units(self, layout: Layout) -> int:
        """Number of units of a leaf; raises ValueError if the pattern does not fit its shape."""

    def zeros(self, layout: Layout) -> int:
        """Units set to zero: `round(units * sparsity)` in each slice, half to even."""
        slices = layout.slices
        return slices * round(self.units(layout) // max(slices, 1) * self.sparsity)

    @abstractmethod
    def select(
        self, scores: Float[Array, "..."], layout: Layout, zeros: int, fraction: ArrayLike = 1.0
    ) -> Bool[Array, "..."]:
        """The mask that zeroes `round(fraction * zeros)` units of lowest score."""

    def follows_matrix(self, layout: Layout) -> bool:
        """Whether its units are those of the matrix `(K, N)`: else it has no compressed form."""
        del layout
        return True

    def compressed(self, matrix: Float[Array, "... k n"], mask: Bool[Array, "... k n"]) -> Any:
        """The masked matrix in a compressed format; None if the pattern has none."""
        del matrix, mask
        return None

    def pool(self, scores: Float[Array, "..."], layout: Layout) -> Float[Array, "..."]:
        """The score of each unit; raises TypeError if units cannot be pooled.

        Scores and units may be sharded: reduce axes in place instead of flattening them.
        """
        raise TypeError(
            f"{self.label} does not define pool() and expand(), so its units cannot be compared "
            "across leaves or dropped and grown; use sj.Unstructured, sj.Block or sj.Channel."
        )

    def unit_axes(self, layout: Layout, ndim: int) -> tuple[int, ...]:
        """The axes of `pool`, of `ndim` axes, whose units compete, the slowest first.

        The others index slices. By default the first one does: `(slices, *units)`.
        """
        return tuple(range(1, ndim))

    def slices(self, layout: Layout) -> int:
        """Number of slices of `pool`, each of which is pruned by itself."""
        return layout.slices

    def expand(self, kept: Bool[Array, "..."], layout: Layout) -> Bool[Array, "..."]:
        """The mask of the leaf from its kept units."""
        raise TypeError(f"{self.label} does not define expand().")

    def active(self, mask: Bool[Array, "..."], layout: Layout) -> Bool[Array, "*slices units"]:
        """The units of which a mask keeps an entry."""
        return self.pool(mask.astype(jnp.float32), layout) > 0

    @property
    def pooled(self) -> bool:
        """Whether `pool` and `expand` are defined."""
        return type(self).pool is not Pattern.pool

    def fits(self, mask: Bool[Array, "..."], layout: Layout) -> bool:
        """Whether a mask conforms to the pattern, for any count."""
        if not self.pooled or mask.size == 0:
            return True
        live = self.active(mask, layout)
        return bool(jnp.array_equal(self.expand(live, layout), mask))

    @property
    def rows_at_once(self) -> int | None:
        """Number of matrix rows that can be selected independently, as SparseGPT does.

        None: the pattern needs the scores of the whole matrix; 0: any number of rows.
        """
        return None

    def select_rows(
        self, scores: Float[Array, "k n"], sparsity: float, rows: int
    ) -> Bool[Array, "k n"]:
        """The mask of consecutive rows; only the first `rows` are selected, the others are kept."""
        raise TypeError(f"{self.label} does not define select_rows().")


class Pooled(Pattern):
    """A pattern with one score per unit: pool, keep the largest, expand."""

    @abstractmethod
    def pool(self, scores: Float[Array, "..."], layout: Layout) -> Float[Array, "..."]:
        """The score of each unit."""

    @abstractmethod
    def expand(self, kept: Bool[Array, "..."], layout: Layout) -> Bool[Array, "..."]:
        """The mask of the leaf from its kept units."""

    def select(
        self, scores: Float[Array, "..."], layout: Layout, zeros: int, fraction: ArrayLike = 1.0
    ) -> Bool[Array, "..."]:
        """The mask that zeroes the units of lowest score; slices differ by at most one unit."""
        if scores.size == 0:
            return jnp.ones(scores.shape, bool)
        pooled = self.pool(scores, layout)
        axes = self.unit_axes(layout, pooled.ndim)
        shape = tuple(1 if axis in axes else size for axis, size in enumerate(pooled.shape))
        others = tuple(axis for axis in range(pooled.ndim) if axis not in axes)
        slices = math.prod(shape)
        index = flat_index(shape, others, count_dtype(slices))
        kept = kept_in_slice(fraction, pooled.size // slices, zeros, slices, index)
        return self.expand(topk_mask(pooled, kept, axes), layout)
