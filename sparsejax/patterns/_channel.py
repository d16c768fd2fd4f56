"""Whole channels: slices of a leaf along one axis."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._arguments import checked, checked_sparsity
from ._layout import Layout, Order, ambiguous, layout
from ._pattern import Pooled
from ._pool import check_pool, join


@checked(stacked="[0, inf)")
@dataclass(frozen=True)
class Channel(Pooled):
    r"""Prunes whole slices along one axis: neurons, filters, input channels.

    Args:
      sparsity: Fraction of channels that are zero.
      axis: The channel axis. None selects the outputs: the last axis in the layout of
        Flax, the first in that of Equinox and PyTorch. For input channels pass their axis.
      stacked: Leading axes that index layers.
      pool_by: How the scores of a channel are pooled: "mean", "max", "l2" or "sum".

    Raises:
      ValueError: If the sparsity is outside [0, 1] or the axis is not an axis of the leaf.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.masks.topk(jnp.array([[1.0, 5.0], [1.0, 5.0]]), sj.Channel(0.5)).tolist()
      [[False, True], [False, True]]
    """

    sparsity: float
    axis: int | None = None
    stacked: int = 0
    pool_by: str = "mean"
    removes_units: ClassVar[bool] = True

    def __post_init__(self):
        object.__setattr__(self, "sparsity", checked_sparsity("Channel", self.sparsity))
        check_pool(self)

    @property
    def label(self) -> str:
        """ "channels"."""
        return "channels"

    def layout(self, shape: tuple[int, ...], order: Order | None = "in_out") -> Layout:
        """The layout of the framework: the axis indexes channels and is not contracted."""
        return layout(shape, None, self.stacked, order)

    def units(self, layout: Layout) -> int:
        """Number of channels."""
        return layout.slices * layout.shape[self._axis(layout)]

    def unit_axes(self, layout: Layout, ndim: int) -> tuple[int, ...]:
        """The axis of the channels, after the stacked ones."""
        return (self.stacked,)

    def pool(self, scores: Float[Array, "..."], layout: Layout) -> Float[Array, "*slices units"]:
        """The pooled score of each channel."""
        axis = self._axis(layout)
        others = tuple(a for a in range(self.stacked, scores.ndim) if a != axis)
        return join(scores, others, self.pool_by)

    def expand(self, kept: Bool[Array, "*slices units"], layout: Layout) -> Bool[Array, "..."]:
        """The mask of the leaf from its kept channels."""
        axis, shape = self._axis(layout), layout.shape
        thin = [s if a < self.stacked or a == axis else 1 for a, s in enumerate(shape)]
        return jnp.broadcast_to(kept.reshape(thin), shape)

    def _axis(self, layout: Layout) -> int:
        shape = layout.shape
        if self.axis is None:
            if layout.output is None or len(layout.output) != 1:
                raise ValueError(ambiguous(shape))
            return layout.output[0]
        axis = self.axis % len(shape) if -len(shape) <= self.axis < len(shape) else -1
        if not self.stacked <= axis < len(shape):
            raise ValueError(
                f"Channel(axis={self.axis}, stacked={self.stacked}) is not a channel axis of a "
                f"leaf of shape {shape}; axis=None selects outputs."
            )
        return axis
