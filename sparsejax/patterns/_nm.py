"""N:M sparsity: n of every m consecutive entries along the contraction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from .._arguments import checked_axis, is_int
from .._counts import kept_at
from .._topk import group_mask, nm_mask
from ._grid import grid
from ._layout import Layout
from ._pattern import Pattern


@dataclass(frozen=True)
class NM(Pattern):
    r"""N:M sparsity: `n` of every `m` consecutive entries along the contraction are kept.

    At fraction c of a schedule, `m - round(c * (m - n))` of each m are kept.

    Args:
      n: Entries kept of each group; 0 keeps nothing, m everything.
      m: Length of a group.
      axis: Contraction axis or axes. None selects the inputs of a linear layer and the input
        channels of a convolution, in the layout of its framework; a 3-D kernel needs an explicit
        axis.
      stacked: Leading axes that index layers or experts.

    Raises:
      ValueError: If not 0 <= n <= m, or (against a shape) if m does not divide the contraction.

    Reference:
      Zhou et al., Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch, 2021
      (arXiv 2102.04010).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = jnp.array([[4.0], [1.0], [3.0], [2.0]])
      >>> sj.masks.topk(w, sj.NM(2, 4)).ravel().tolist()
      [True, False, True, False]
    """

    n: int
    m: int
    axis: int | Sequence[int] | None = None
    stacked: int = 0
    free: ClassVar[bool] = False  # the sparsity of N:M is its definition

    def __post_init__(self):
        if not (is_int(self.n) and is_int(self.m) and 0 <= self.n <= self.m and self.m >= 1):
            raise ValueError(
                f"NM({self.n}, {self.m}) must keep 0 <= n <= m of m >= 1 entries, as in NM(2, 4)."
            )
        object.__setattr__(self, "axis", checked_axis(self.axis))

    @property
    def sparsity(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """`1 - n / m`, by definition."""
        return 1 - self.n / self.m

    @property
    def label(self) -> str:
        """ "n:m"."""
        return f"{self.n}:{self.m}"

    def units(self, layout: Layout) -> int:
        """Number of entries; raises if m does not divide the contraction length."""
        # A convolution groups input channels, never across two positions of the kernel.
        if layout.run % self.m:
            contraction, _ = layout.sides
            axis = contraction[-1] if self.axis is None else self.axis
            raise ValueError(
                f"NM({self.n}, {self.m}) needs a contraction length divisible by {self.m}, but a "
                f"kernel of shape {layout.shape} contracts {layout.run} entries along axis {axis}; "
                f"choose an m that divides {layout.run} or exclude this leaf by a rule "
                "`pattern: None`."
            )
        return math.prod(layout.shape)

    def zeros(self, layout: Layout) -> int:
        """Entries set to zero: `m - n` of each group."""
        return self.units(layout) // self.m * (self.m - self.n)

    def select(
        self,
        scores: Float[Array, "..."],
        layout: Layout,
        zeros: int | None = None,
        fraction: ArrayLike = 1.0,
    ) -> Bool[Array, "..."]:
        """The mask by rank within each group; `zeros` is implied by the pattern."""
        del zeros
        kept = kept_at(fraction, self.m, self.m - self.n)
        kept = kept if isinstance(kept, int) else kept.astype(jnp.int32)
        groups = grid(layout, self.m)
        inputs = groups.within(groups.layout.sides[0])
        return groups.merge(group_mask(groups.split(scores), kept, inputs))

    def fits(self, mask: Bool[Array, "..."], layout: Layout) -> bool:
        """Whether at most n of each m are kept."""
        groups = grid(layout, self.m)
        return bool(
            jnp.all(groups.split(mask).sum(groups.within(groups.layout.sides[0])) <= self.n)
        )

    @property
    def rows_at_once(self) -> int | None:
        """m: whole groups are selected together."""
        return self.m

    def select_rows(
        self, scores: Float[Array, "k n"], sparsity: float, rows: int
    ) -> Bool[Array, "k n"]:
        """The mask of whole groups."""
        del sparsity, rows
        return nm_mask(scores, self.n, self.m)
