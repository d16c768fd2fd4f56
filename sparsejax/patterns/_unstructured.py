"""Patterns of single entries: unstructured, and a constant fan-in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
from jaxtyping import Array, Bool, Float

from .._arguments import checked, checked_axis, checked_sparsity
from .._topk import topk_mask
from ._layout import Layout
from ._pattern import Pooled


@checked(stacked="[0, inf)")
@dataclass(frozen=True)
class Unstructured(Pooled):
    r"""Single entries: of a leaf of n entries, `n - round(n * sparsity)` are kept.

    Args:
      sparsity: Fraction of zeros, in [0, 1].
      stacked: Leading axes that index layers; each slice has the sparsity.

    Raises:
      ValueError: If the sparsity is outside [0, 1].

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.masks.topk(jnp.array([3.0, 1.0, 2.0, 1.0]), sj.Unstructured(0.5)).tolist()
      [True, False, True, False]
    """

    sparsity: float
    stacked: int = 0
    structured: ClassVar[bool] = False

    def __post_init__(self):
        object.__setattr__(self, "sparsity", checked_sparsity("Unstructured", self.sparsity))

    @property
    def label(self) -> str:
        """ "unstructured"."""
        return "unstructured"

    def units(self, layout: Layout) -> int:
        """Number of entries."""
        return math.prod(layout.shape)

    def unit_axes(self, layout: Layout, ndim: int) -> tuple[int, ...]:
        """All axes but the stacked ones."""
        return tuple(range(self.stacked, len(layout.shape)))

    def pool(self, scores: Float[Array, "..."], layout: Layout) -> Float[Array, "..."]:
        """The scores, one unit per entry."""
        return scores

    def expand(self, kept: Bool[Array, "..."], layout: Layout) -> Bool[Array, "..."]:
        """The mask, one unit per entry."""
        return kept

    @property
    def rows_at_once(self) -> int | None:
        """0: the entries of any rows can be selected together."""
        return 0

    def select_rows(
        self, scores: Float[Array, "k n"], sparsity: float, rows: int
    ) -> Bool[Array, "k n"]:
        """The mask of some rows, `floor(size * sparsity)` of whose entries are zeroed."""
        zeros = math.floor(rows * scores.shape[1] * sparsity + 1e-9)
        return topk_mask(scores, scores.size - zeros)


@checked(stacked="[0, inf)")
@dataclass(frozen=True)
class FanIn(Pooled):
    r"""Constant fan-in: every output keeps the same number of its inputs.

    Of K inputs `K - round(K * sparsity)` are kept for each output, independently of the others.

    Args:
      sparsity: Fraction of zeros, in [0, 1].
      axis: Contraction axis or axes, as for `NM`.
      stacked: Leading axes that index layers or experts.
      rounding: How `K * sparsity` is rounded: "nearest" (half to even) or "down", as published for
        Wanda.

    Raises:
      ValueError: If the sparsity is outside [0, 1].

    Reference:
      Lasby et al., Dynamic Sparse Training with Structured Sparsity, 2023 (arXiv 2305.02299).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = jnp.array([[9.0, 1.0], [8.0, 2.0], [7.0, 3.0], [6.0, 4.0]])
      >>> sj.masks.topk(w, sj.patterns.FanIn(0.75)).T.tolist()
      [[True, False, False, False], [False, False, False, True]]
    """

    sparsity: float
    axis: int | Sequence[int] | None = None
    stacked: int = 0
    rounding: str = "nearest"

    def __post_init__(self):
        object.__setattr__(self, "sparsity", checked_sparsity("FanIn", self.sparsity))
        if self.rounding not in ("nearest", "down"):
            raise ValueError(f'FanIn: rounding must be "nearest" or "down", got {self.rounding!r}.')
        object.__setattr__(self, "axis", checked_axis(self.axis))

    @property
    def label(self) -> str:
        """ "fan-in"."""
        return "fan-in"

    def units(self, layout: Layout) -> int:
        """Number of entries."""
        return math.prod(layout.matrix_shape)

    def zeros(self, layout: Layout) -> int:
        """Entries set to zero: the same number of inputs for each output."""
        exact = layout.matrix_shape[-2] * self.sparsity
        each = round(exact) if self.rounding == "nearest" else math.floor(exact + 1e-9)
        return self.slices(layout) * each

    def slices(self, layout: Layout) -> int:
        """Number of outputs, whose inputs are selected separately."""
        *outer, _, n = layout.matrix_shape
        return math.prod(outer) * n

    def unit_axes(self, layout: Layout, ndim: int) -> tuple[int, ...]:
        """The contracted axes."""
        return layout.sides[0]

    def pool(self, scores: Float[Array, "..."], layout: Layout) -> Float[Array, "..."]:
        """The scores, one unit per entry."""
        return scores

    def expand(self, kept: Bool[Array, "..."], layout: Layout) -> Bool[Array, "..."]:
        """The mask, one unit per entry."""
        return kept

    @property
    def rows_at_once(self) -> int | None:
        """0: the inputs of any rows can be selected together."""
        return 0

    def select_rows(
        self, scores: Float[Array, "k n"], sparsity: float, rows: int
    ) -> Bool[Array, "k n"]:
        """The mask of some rows, `floor(rows * sparsity)` of which are zeroed for each output."""
        zeros = math.floor(rows * sparsity + 1e-9)
        return jax.vmap(topk_mask, (1, None), 1)(scores, scores.shape[0] - zeros)
