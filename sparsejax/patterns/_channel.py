"""Whole channels: slices of a leaf along one axis."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._pattern import Pooled, check_sparsity, check_stacked
from ._pool import check_pool, join


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
        check_pool(self)

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
        joined = join(scores, others, self.pool_by)
        return joined.reshape(math.prod(scores.shape[: self.stacked]), scores.shape[axis])

    def expand(
        self, kept: Bool[Array, "slices units"], shape: tuple[int, ...]
    ) -> Bool[Array, "..."]:
        """The mask of the leaf from its kept channels."""
        axis = self._axis(shape)
        thin = [s if a < self.stacked or a == axis else 1 for a, s in enumerate(shape)]
        return jnp.broadcast_to(kept.reshape(thin), shape)
