"""Structured patterns: blocks, channels and labelled groups."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._layout import matrix_view
from ._pattern import Pooled, check_sparsity, hashable_axis, is_int
from ._pool import check_pool, join


@dataclass(frozen=True)
class Block(Pooled):
    r"""Rectangular blocks of the kernel seen as a (contraction, output) matrix stay or fall whole.

    `Block((1, n), s)` are the groups of n outputs that share an input; with the input channel as
    the slowest of the contracted axes, `Block((kh * kw, n), s, axis=(2, 0, 1))` are those of whole
    kernels of a convolution `(kh, kw, in, out)`. Where n does not divide the outputs, see
    `sj.patterns.group_labels`.

    Args:
      shape: Block shape (rows along the contraction, columns along the output), or one number for
        both.
      sparsity: Fraction of blocks that are zero.
      axis: Contraction axis or axes, as for `NM`.
      stacked: Leading axes that count layers or experts.
      pool_by: How the scores of a block are joined: "mean", "max", "l2" or "sum".
      balanced: Keep the same number of blocks in each block column (up to one), so that a padded
        format wastes nothing.

    Raises:
      ValueError: If the sparsity is outside [0, 1], or (against a shape) if blocks do not divide.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = jnp.array([[1.0, 1.0, 5.0, 5.0], [1.0, 1.0, 5.0, 5.0]])
      >>> sj.masks.topk(w, sj.Block((2, 2), 0.5))[0].tolist()
      [False, False, True, True]
    """

    shape: Any  # becomes a tuple
    sparsity: float
    axis: int | Sequence[int] | None = None
    stacked: int = 0
    pool_by: str = "mean"
    balanced: bool = False

    def __post_init__(self):
        check_sparsity(self)
        check_pool(self)
        shape = (self.shape,) * 2 if is_int(self.shape) else tuple(self.shape)
        if len(shape) != 2 or not all(is_int(b) and b >= 1 for b in shape):
            raise ValueError(f"Block(shape={self.shape}) must be two positive integers: (64, 64).")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "axis", hashable_axis(self.axis))

    def units(self, shape: tuple[int, ...]) -> int:
        """Number of blocks; raises if the blocks do not divide the matrix."""
        *stacked, rows, columns = matrix_view(shape, self.axis, self.stacked).matrix_shape
        if rows % self.shape[0] or columns % self.shape[1]:
            raise ValueError(
                f"Block({self.shape}) does not divide a kernel of shape {shape}, seen as a "
                f"({rows}, {columns}) matrix; choose a block that divides it or leave this leaf "
                "out with a rule `pattern: None`."
            )
        return math.prod(stacked) * (rows // self.shape[0]) * (columns // self.shape[1])

    def pool(self, scores: Float[Array, "..."]) -> Float[Array, "slices units"]:
        """The joined score of each block; balanced patterns take each block column as a slice."""
        rows, columns = self.shape
        matrix = matrix_view(scores.shape, self.axis, self.stacked).to_matrix(scores)
        matrix = matrix.reshape(-1, *matrix.shape[-2:])
        slices, k, n = matrix.shape
        tiles = matrix.reshape(slices, k // rows, rows, n // columns, columns)
        blocks = join(tiles, (2, 4), self.pool_by)
        if self.balanced:
            return blocks.swapaxes(1, 2).reshape(-1, k // rows)
        return blocks.reshape(slices, -1)

    def expand(
        self, kept: Bool[Array, "slices units"], shape: tuple[int, ...]
    ) -> Bool[Array, "..."]:
        """The mask of the kernel from its kept blocks."""
        view = matrix_view(shape, self.axis, self.stacked)
        *stacked, k, n = view.matrix_shape
        grid = (math.prod(stacked), k // self.shape[0], n // self.shape[1])
        if self.balanced:
            kept = kept.reshape(grid[0], grid[2], grid[1]).swapaxes(1, 2)
        blocks = kept.reshape(grid)[:, :, None, :, None]
        tiles = jnp.broadcast_to(blocks, (*grid[:2], self.shape[0], grid[2], self.shape[1]))
        return view.from_matrix(tiles.reshape(view.matrix_shape))
