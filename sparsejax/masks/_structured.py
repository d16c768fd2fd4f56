"""Structured patterns: blocks, channels and labelled groups."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._view import matrix_view
from ._pattern import Pooled, check_sparsity, check_stacked, hashable_axis, is_int


@dataclass(frozen=True)
class Block(Pooled):
    r"""Rectangular blocks of the kernel seen as a (contraction, output) matrix stay or fall whole.

    `Block((1, n), s)` are the groups of n outputs that share an input; with the input channel as
    the slowest of the contracted axes, `Block((kh * kw, n), s, axis=(2, 0, 1))` are those of whole
    kernels of a convolution `(kh, kw, in, out)`. Where n does not divide the outputs, see
    `sj.masks.group_labels`.

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
        _check_pool(self)
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
        blocks = _join(tiles, (2, 4), self.pool_by)
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


@dataclass(frozen=True)
class Channel(Pooled):
    r"""Whole slices along one axis stay or fall: neurons, filters (axis -1), input channels (-2).

    Args:
      sparsity: Fraction of channels that are zero.
      axis: The axis that counts channels.
      stacked: Leading axes that count layers.
      pool_by: How the scores of a channel are joined: "mean", "max", "l2" or "sum".

    Raises:
      ValueError: If the sparsity is outside [0, 1] or the axis is not one of the leaf.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.masks.topk(jnp.array([[1.0, 5.0], [1.0, 5.0]]), sj.Channel(0.5)).tolist()
      [[False, True], [False, True]]
    """

    sparsity: float
    axis: int = -1
    stacked: int = 0
    pool_by: str = "mean"

    def __post_init__(self):
        check_sparsity(self)
        _check_pool(self)

    def _axis(self, shape: tuple[int, ...]) -> int:
        axis = self.axis % len(shape) if -len(shape) <= self.axis < len(shape) else -1
        if not self.stacked <= axis < len(shape):
            raise ValueError(
                f"Channel(axis={self.axis}, stacked={self.stacked}) is not a channel axis of a "
                f"leaf of shape {shape}; axis=-1 counts outputs, axis=-2 inputs."
            )
        return axis

    def units(self, shape: tuple[int, ...]) -> int:
        """Number of channels."""
        check_stacked(self, shape)
        return math.prod(shape[: self.stacked]) * shape[self._axis(shape)]

    def pool(self, scores: Float[Array, "..."]) -> Float[Array, "slices units"]:
        """The joined score of each channel."""
        axis = self._axis(scores.shape)
        others = tuple(a for a in range(self.stacked, scores.ndim) if a != axis)
        joined = _join(scores, others, self.pool_by)
        return joined.reshape(math.prod(scores.shape[: self.stacked]), scores.shape[axis])

    def expand(
        self, kept: Bool[Array, "slices units"], shape: tuple[int, ...]
    ) -> Bool[Array, "..."]:
        """The mask of the leaf from its kept channels."""
        axis = self._axis(shape)
        thin = [s if a < self.stacked or a == axis else 1 for a, s in enumerate(shape)]
        return jnp.broadcast_to(kept.reshape(thin), shape)


@dataclass(frozen=True, eq=False)
class Groups(Pooled):
    r"""Groups given by an integer label per entry: attention heads, n x 1 strips, anything.

    Args:
      labels: Integers 0..G-1 in the shape of the leaf (without the stacked axes).
      sparsity: Fraction of groups that are zero.
      stacked: Leading axes that count layers.
      pool_by: How the scores of a group are joined: "mean", "max", "l2" or "sum".

    Raises:
      ValueError: If labels are not integers 0..G-1, each used, or do not fit the leaf.

    Example:
      >>> import jax.numpy as jnp, numpy as np, sparsejax as sj
      >>> heads = sj.Groups(np.array([0, 0, 1, 1]), 0.5)
      >>> sj.masks.topk(jnp.array([1.0, 9.0, 4.0, 4.0]), heads).tolist()
      [True, True, False, False]
    """

    labels: Any
    sparsity: float
    stacked: int = 0
    pool_by: str = "mean"

    def __post_init__(self):
        check_sparsity(self)
        _check_pool(self)
        labels = np.asarray(self.labels)
        used = np.unique(labels)
        if labels.dtype.kind not in "iu" or not np.array_equal(used, np.arange(used.size)):
            raise ValueError("Groups(labels) must be integers 0..G-1 with every label used.")
        object.__setattr__(self, "labels", labels.astype(np.int32))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Groups) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self._content())

    def _content(self) -> tuple[Any, ...]:
        labels = (self.labels.shape, self.labels.tobytes())
        return (*labels, self.sparsity, self.stacked, self.pool_by)

    @property
    def count(self) -> int:
        """Number of groups of one slice."""
        return int(self.labels.max(initial=-1)) + 1

    def units(self, shape: tuple[int, ...]) -> int:
        """Number of groups."""
        check_stacked(self, shape)
        if self.labels.shape != tuple(shape[self.stacked :]):
            raise ValueError(
                f"Groups(labels of shape {self.labels.shape}) does not fit a leaf of shape "
                f"{shape} with stacked={self.stacked}."
            )
        return math.prod(shape[: self.stacked]) * self.count

    def pool(self, scores: Float[Array, "..."]) -> Float[Array, "slices units"]:
        """The joined score of each group."""
        flat = scores.reshape(math.prod(scores.shape[: self.stacked]), -1)
        labels = jnp.asarray(self.labels.ravel())
        wide = flat.astype(jnp.promote_types(flat.dtype, jnp.float32)).T
        if self.pool_by == "max":
            return jax.ops.segment_max(wide, labels, self.count).T
        values = wide**2 if self.pool_by == "l2" else wide
        sums = jax.ops.segment_sum(values, labels, self.count).T
        if self.pool_by != "mean":
            return jnp.sqrt(sums) if self.pool_by == "l2" else sums
        return sums / jnp.asarray(np.bincount(self.labels.ravel(), minlength=self.count))

    def expand(
        self, kept: Bool[Array, "slices units"], shape: tuple[int, ...]
    ) -> Bool[Array, "..."]:
        """The mask of the leaf from its kept groups."""
        return kept[:, self.labels.ravel()].reshape(shape)


def group_labels(shape: tuple[int, ...], n: int, *, taps: bool = False) -> Int[np.ndarray, "..."]:
    r"""Labels for `Groups` of n neighbouring outputs that share an input; the last may be fewer.

    Args:
      shape: Shape of a kernel `(in, out)` or `(kh, kw, in, out)`.
      n: Outputs in a group.
      taps: Whether each position of the window is a group by itself; otherwise whole kernels are.

    Returns:
      Integers of that shape, counted along outputs first, then inputs.

    Raises:
      ValueError: If the shape is no kernel's or n is less than 1.

    Reference:
      Xu et al., SparseByteNN, 2023 (arXiv 2310.19509).

    Example:
      >>> import sparsejax as sj
      >>> sj.masks.group_labels((2, 3), 2).tolist()
      [[0, 0, 1], [2, 2, 3]]
    """
    if len(shape) < 2 or not is_int(n) or n < 1:
        raise ValueError(
            f"group_labels(shape={shape}, n={n}) takes a kernel (..., in, out) and n >= 1."
        )
    *window, inputs, outputs = shape
    blocks = -(-outputs // n)
    channel = np.arange(inputs)[:, None] * blocks + np.arange(outputs) // n
    place = np.arange(math.prod(window)).reshape(*window, 1, 1) if taps else np.zeros((1, 1), int)
    return np.broadcast_to(place * inputs * blocks + channel, shape).astype(np.int32)


def _join(x: Float[Array, "..."], axes: tuple[int, ...], how: str) -> Float[Array, "..."]:
    if how == "max":
        return jnp.max(x, axes)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if how == "l2":
        return jnp.sqrt(jnp.sum(x * x, axes))
    return jnp.mean(x, axes) if how == "mean" else jnp.sum(x, axes)


def _check_pool(pattern: Any) -> None:
    if pattern.pool_by not in ("mean", "max", "l2", "sum"):
        raise ValueError(f'pool_by={pattern.pool_by!r} must be "mean", "max", "l2" or "sum".')
