"""Patterns: which entries stand or fall together, and what fraction of them is zero."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Shaped

from .._select import kept_at, topk_mask
from .._view import matrix_view


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


@dataclass(frozen=True)
class Unstructured(Pooled):
    r"""Any entries: of a leaf of n entries, `n - round(n * sparsity)` stay.

    Args:
      sparsity: Fraction of zeros, in [0, 1].
      stacked: Leading axes that count layers; each slice has the sparsity by itself.

    Raises:
      ValueError: If the sparsity is outside [0, 1].

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.masks.topk(jnp.array([3.0, 1.0, 2.0, 1.0]), sj.Unstructured(0.5)).tolist()
      [True, False, True, False]
    """

    sparsity: float
    stacked: int = 0

    def __post_init__(self):
        check_sparsity(self)

    def units(self, shape: tuple[int, ...]) -> int:
        """Number of entries."""
        check_stacked(self, shape)
        return math.prod(shape)

    def pool(self, scores: Float[Array, "..."]) -> Float[Array, "..."]:
        """The scores themselves; without stacked axes unflattened, so that shards stay put."""
        if not self.stacked:
            return scores[None]
        return scores.reshape(math.prod(scores.shape[: self.stacked]), -1)

    def expand(self, kept: Bool[Array, "..."], shape: tuple[int, ...]) -> Bool[Array, "..."]:
        """The mask, an entry a unit."""
        return kept.reshape(shape)


@dataclass(frozen=True)
class FanIn(Pooled):
    r"""Constant fan-in: every output keeps the same number of its inputs.

    Of K inputs `K - round(K * sparsity)` stay for each output, whichever they are.

    Args:
      sparsity: Fraction of zeros, in [0, 1].
      axis: Contraction axis or axes, as for `NM`.
      stacked: Leading axes that count layers or experts.
      rounding: How `K * sparsity` becomes an integer: "nearest" (half to even) or "down", as
        published for Wanda.

    Raises:
      ValueError: If the sparsity is outside [0, 1].

    Reference:
      Lasby et al., Dynamic Sparse Training with Structured Sparsity, 2023 (arXiv 2305.02299).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = jnp.array([[9.0, 1.0], [8.0, 2.0], [7.0, 3.0], [6.0, 4.0]])
      >>> sj.masks.topk(w, sj.masks.FanIn(0.75)).T.tolist()
      [[True, False, False, False], [False, False, False, True]]
    """

    sparsity: float
    axis: int | Sequence[int] | None = None
    stacked: int = 0
    rounding: str = "nearest"

    def __post_init__(self):
        check_sparsity(self)
        if self.rounding not in ("nearest", "down"):
            raise ValueError(f'rounding={self.rounding!r} must be "nearest" or "down".')
        object.__setattr__(self, "axis", hashable_axis(self.axis))

    def units(self, shape: tuple[int, ...]) -> int:
        """Number of entries."""
        matrix_view(shape, self.axis, self.stacked)
        return math.prod(shape)

    def zeros(self, shape: tuple[int, ...]) -> int:
        """Entries set to zero: as many of the inputs of each output."""
        *outer, k, n = matrix_view(shape, self.axis, self.stacked).matrix_shape
        exact = k * self.sparsity
        each = round(exact) if self.rounding == "nearest" else math.floor(exact + 1e-9)
        return math.prod(outer) * n * each

    def pool(self, scores: Float[Array, "..."]) -> Float[Array, "slices units"]:
        """The scores of the inputs, a slice for each output."""
        matrix = matrix_view(scores.shape, self.axis, self.stacked).to_matrix(scores)
        return jnp.swapaxes(matrix, -1, -2).reshape(-1, matrix.shape[-2])

    def expand(self, kept: Bool[Array, "..."], shape: tuple[int, ...]) -> Bool[Array, "..."]:
        """The mask of the kernel."""
        view = matrix_view(shape, self.axis, self.stacked)
        *outer, k, n = view.matrix_shape
        return view.from_matrix(jnp.swapaxes(kept.reshape(*outer, n, k), -1, -2))


def topk(
    scores: Shaped[ArrayLike, "..."], pattern: Pattern, fraction: ArrayLike = 1.0
) -> Bool[Array, "..."]:
    """The mask of a pattern that keeps the largest scores.

    Exactly the pattern's number of units stays; the lowest index wins ties; NaN ranks last.

    Args:
      scores: Scores of one leaf, of a floating dtype.
      pattern: `Unstructured`, `NM`, `Block`, `Channel`, `Groups` or `Stages`.
      fraction: Fraction of the pattern's zeros to reach, in [0, 1]; may be traced.

    Returns:
      A boolean array, True where kept.

    Raises:
      ValueError: If the pattern does not fit the shape.
      TypeError: If the scores are not floating point numbers.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.masks.topk(jnp.arange(4.0), sj.Unstructured(0.75)).tolist()
      [False, False, False, True]
    """
    if not isinstance(pattern, Pattern):
        raise TypeError(
            f"pattern={pattern!r} is not a pattern; write sj.Unstructured({pattern!r})."
        )
    scores = jnp.asarray(scores)
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise TypeError(f"scores of dtype {scores.dtype} and shape {scores.shape} must be floats.")
    pattern.units(scores.shape)
    return pattern.select(scores, pattern.zeros(scores.shape), fraction)


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
