"""Patterns: which entries stand or fall together, and what fraction of them is zero."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from .._counts import kept_at
from .._topk import topk_mask


class Pattern(ABC):
    """What all patterns share: units (entries, blocks, channels, groups) kept or zeroed whole.

    `stacked` leading axes count layers or experts: every slice is pruned by itself.
    """

    sparsity: float
    stacked: int
    free: bool = True  # whether an allocation may change the sparsity of a leaf

    @abstractmethod
    def units(self, shape: tuple[int, ...]) -> int:
        """Number of units of a leaf; raises if the pattern does not fit its shape."""

    def zeros(self, shape: tuple[int, ...]) -> int:
        """Units set to zero: `round(units * sparsity)` in each slice, half to even."""
        slices = math.prod(shape[: self.stacked])
        return slices * round(self.units(shape) // max(slices, 1) * self.sparsity)

    @abstractmethod
    def select(
        self, scores: Float[Array, "..."], zeros: int, fraction: ArrayLike = 1.0
    ) -> Bool[Array, "..."]:
        """The mask that zeroes `round(fraction * zeros)` units of lowest score."""


class Pooled(Pattern):
    """A pattern whose units have a score each: pool, keep the largest, expand."""

    @abstractmethod
    def pool(self, scores: Float[Array, "..."]) -> Float[Array, "slices *units"]:
        """The score of each unit, slice by slice."""

    @abstractmethod
    def expand(self, kept: Bool[Array, "..."], shape: tuple[int, ...]) -> Bool[Array, "..."]:
        """The mask of the leaf from the kept units."""

    def select(
        self, scores: Float[Array, "..."], zeros: int, fraction: ArrayLike = 1.0
    ) -> Bool[Array, "..."]:
        """The mask that zeroes the units of lowest score; slices differ by at most one unit."""
        if scores.size == 0:
            return jnp.ones(scores.shape, bool)
        pooled = self.pool(scores)
        slices = pooled.shape[0]
        kept = kept_at(fraction, pooled.size, zeros)
        if slices == 1:
            return self.expand(topk_mask(pooled, kept), scores.shape)
        total = jnp.asarray(kept, jnp.uint32)
        extra = jnp.arange(slices, dtype=jnp.uint32) < total % slices
        kept = jax.vmap(topk_mask)(pooled, total // slices + extra.astype(jnp.uint32))
        return self.expand(kept, scores.shape)


def check_sparsity(pattern: Any) -> None:
    s = pattern.sparsity
    if not isinstance(s, int | float | np.floating | np.integer) or not 0 <= s <= 1:
        raise ValueError(
            f"{type(pattern).__name__}(sparsity={s!r}) must be the fraction of zeros, a number in "
            f"[0, 1]: {type(pattern).__name__} with sparsity=0.9 keeps a tenth."
        )
    # Counts are exact in float64: a float32 of NumPy would round them.
    object.__setattr__(pattern, "sparsity", float(s))


def check_stacked(pattern: Any, shape: tuple[int, ...]) -> None:
    if not 0 <= pattern.stacked <= max(len(shape) - 1, 0):
        raise ValueError(f"stacked={pattern.stacked} leaves nothing of a leaf of shape {shape}.")


def hashable_axis(axis: Any) -> Any:
    """Axes as Python integers, in a tuple if there are several, so that patterns hash."""
    if axis is None or is_int(axis):
        return axis if axis is None else int(axis)
    if isinstance(axis, Sequence) and axis and all(map(is_int, axis)):
        return tuple(map(int, axis))
    raise ValueError(f"axis={axis!r} must be an axis or a tuple of axes, as in axis=(0, 1).")


def is_int(x: Any) -> bool:
    """True for integers, not for booleans."""
    return isinstance(x, int | np.integer) and not isinstance(x, bool)
