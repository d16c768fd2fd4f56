"""Rectangular blocks of the kernel as a matrix."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Bool, Float

from .._arguments import checked, checked_axis, checked_sparsity, is_int
from ._grid import Grid, grid
from ._layout import Layout
from ._pattern import Pooled
from ._pool import check_pool


@checked(stacked="[0, inf)")
@dataclass(frozen=True)
class Block(Pooled):
    r"""Prunes rectangular blocks of the (contraction, output) matrix of a kernel.

    `Block((1, n), s)` are the groups of n outputs that share an input; with the input channel as
    the slowest of the contracted axes, `Block((kh * kw, n), s, axis=(2, 0, 1))` are those of whole
    kernels of a convolution `(kh, kw, in, out)`. If n does not divide the outputs, see
    `sj.patterns.filter_groups`.

    Args:
      shape: Block shape (rows along the contraction, columns along the output), or one number for
        both.
      sparsity: Fraction of blocks that are zero.
      axis: Contraction axis or axes, as for `NM`.
      stacked: Leading axes that index layers or experts.
      pool_by: How the scores of a block are pooled: "mean", "max", "l2" or "sum".
      balanced: Keep the same number of blocks in each block column (up to one), so that a padded
        format has no padding.

    Raises:
      ValueError: If the sparsity is outside [0, 1], or (against a shape) if blocks do not divide.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = jnp.array([[1.0, 1.0, 5.0, 5.0], [1.0, 1.0, 5.0, 5.0]])
      >>> sj.masks.topk(w, sj.Block((2, 2), 0.5))[0].tolist()
      [False, False, True, True]
    """

    shape: Any  # converted to a tuple
    sparsity: float
    axis: int | Sequence[int] | None = None
    stacked: int = 0
    pool_by: str = "mean"
    balanced: bool = False

    def __post_init__(self):
        object.__setattr__(self, "sparsity", checked_sparsity("Block", self.sparsity))
        check_pool(self)
        several = isinstance(self.shape, Sequence)
        shape = tuple(self.shape) if several else (self.shape,) * 2
        if len(shape) != 2 or not all(is_int(b) and b >= 1 for b in shape):
            raise ValueError(f"Block(shape={self.shape}) must be two positive integers: (64, 64).")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "axis", checked_axis(self.axis))

    @property
    def label(self) -> str:
        """ "blocks RxC"."""
        return f"blocks {self.shape[0]}x{self.shape[1]}"

    def units(self, layout: Layout) -> int:
        """Number of blocks; raises if the blocks do not divide the matrix."""
        *stacked, rows, columns = layout.matrix_shape
        if rows % self.shape[0] or columns % self.shape[1]:
            raise ValueError(
                f"Block({self.shape}) does not divide a kernel of shape {layout.shape}, reshaped "
                "to a "
                f"({rows}, {columns}) matrix; choose a block that divides it or exclude this leaf "
                "by a rule `pattern: None`."
            )
        return math.prod(stacked) * (rows // self.shape[0]) * (columns // self.shape[1])

    def slices(self, layout: Layout) -> int:
        """Number of stacked matrices; of their block columns if balanced."""
        return layout.slices * (layout.matrix_shape[-1] // self.shape[1] if self.balanced else 1)

    def unit_axes(self, layout: Layout, ndim: int) -> tuple[int, ...]:
        """All axes but the stacked ones; the contracted ones if block columns are balanced."""
        contraction, output = self._grid(layout).layout.sides
        return contraction if self.balanced else contraction + output

    def pool(self, scores: Float[Array, "..."], layout: Layout) -> Float[Array, "..."]:
        """The pooled score of each block, in the order of the axes of the leaf."""
        return self._grid(layout).pool(scores, self.pool_by)

    def expand(self, kept: Bool[Array, "..."], layout: Layout) -> Bool[Array, "..."]:
        """The mask of the kernel from its kept blocks."""
        return self._grid(layout).fill(kept)

    def _grid(self, layout: Layout) -> Grid:
        return grid(layout, *self.shape)
