"""Groups defined by labels."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._arguments import checked, checked_sparsity, is_int
from .._arrays import wide_dtype
from ._layout import Layout
from ._pattern import Pooled
from ._pool import check_pool


@checked(stacked="[0, inf)")
@dataclass(frozen=True, eq=False)
class Groups(Pooled):
    r"""Groups defined by an integer label per entry: attention heads, n x 1 strips, or any others.

    Args:
      labels: Integers 0..G-1 in the shape of the leaf (without the stacked axes).
      sparsity: Fraction of groups that are zero.
      stacked: Leading axes that index layers.
      pool_by: How the scores of a group are pooled: "mean", "max", "l2" or "sum".

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
    removes_units: ClassVar[bool] = True

    def __post_init__(self):
        object.__setattr__(self, "sparsity", checked_sparsity("Groups", self.sparsity))
        check_pool(self)
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

    @property
    def label(self) -> str:
        """ "groups"."""
        return "groups"

    def units(self, layout: Layout) -> int:
        """Number of groups."""
        if self.labels.shape != layout.shape[self.stacked :]:
            raise ValueError(
                f"Groups: labels of shape {self.labels.shape} do not fit a leaf of shape "
                f"{layout.shape} with stacked={self.stacked}."
            )
        return layout.slices * self.count

    def unit_axes(self, layout: Layout, ndim: int) -> tuple[int, ...]:
        """The axis of the groups, after the stacked ones."""
        return (self.stacked,)

    def pool(self, scores: Float[Array, "..."], layout: Layout) -> Float[Array, "*slices units"]:
        """The pooled score of each group."""
        wide = scores.astype(wide_dtype(scores))
        at_group = (*[slice(None)] * self.stacked, jnp.asarray(self.labels))
        shape = (*layout.shape[: self.stacked], self.count)
        if self.pool_by == "max":
            return jnp.full(shape, -jnp.inf, wide.dtype).at[at_group].max(wide)
        values = wide**2 if self.pool_by == "l2" else wide
        sums = jnp.zeros(shape, wide.dtype).at[at_group].add(values)
        if self.pool_by != "mean":
            return jnp.sqrt(sums) if self.pool_by == "l2" else sums
        sizes = np.bincount(self.labels.ravel(), minlength=self.count)
        return sums / jnp.asarray(sizes, wide.dtype).reshape(*[1] * self.stacked, -1)

    def active(self, mask: Bool[Array, "..."], layout: Layout) -> Bool[Array, "*slices units"]:
        """The groups of which a mask keeps an entry."""
        at_group = (*[slice(None)] * self.stacked, jnp.asarray(self.labels))
        none = jnp.zeros((*layout.shape[: self.stacked], self.count), jnp.uint8)
        return none.at[at_group].max(mask.astype(jnp.uint8)) > 0  # a quarter of the bytes of floats

    def expand(self, kept: Bool[Array, "*slices units"], layout: Layout) -> Bool[Array, "..."]:
        """The mask of the leaf from its kept groups."""
        return kept[..., self.labels]


@checked()
def filter_groups(shape: tuple[int, ...], n: int, *, taps: bool = False) -> Int[np.ndarray, "..."]:
    r"""Labels for `Groups` of n neighbouring outputs with a common input; the last may be smaller.

    Args:
      shape: Shape of a kernel `(in, out)` or `(kh, kw, in, out)`.
      n: Outputs in a group.
      taps: Whether each position of the window is a group by itself; otherwise whole kernels are.

    Returns:
      Integers of that shape, numbered along outputs first, then inputs.

    Raises:
      ValueError: If the shape is not that of a kernel, or n is less than 1.

    Reference:
      Xu et al., SparseByteNN, 2023 (arXiv 2310.19509).

    Example:
      >>> import sparsejax as sj
      >>> sj.patterns.filter_groups((2, 3), 2).tolist()
      [[0, 0, 1], [2, 2, 3]]
    """
    if len(shape) < 2 or not is_int(n) or n < 1:
        raise ValueError(
            f"filter_groups(shape={shape}, n={n}) must have a kernel shape (..., in, out) and n "
            ">= 1."
        )
    *window, inputs, outputs = shape
    blocks = -(-outputs // n)
    channel = np.arange(inputs)[:, None] * blocks + np.arange(outputs) // n
    place = np.arange(math.prod(window)).reshape(*window, 1, 1) if taps else np.zeros((1, 1), int)
    return np.broadcast_to(place * inputs * blocks + channel, shape).astype(np.int32)
