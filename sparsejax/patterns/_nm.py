"""N:M sparsity: n of every m consecutive entries along the contraction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from .._arguments import checked, checked_axis, is_int
from .._counts import kept_at
from .._topk import group_mask, nm_mask
from ._grid import grid
from ._layout import Layout
from ._pattern import Pattern


@checked(stacked="[0, inf)")
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
      pad: Whether m need not divide the contraction: its last r entries (of each position of a
        convolution's window) are then a group padded to m, of which `min(n, r)` are kept.

    Raises:
      ValueError: If not 0 <= n <= m, or (against a shape) if m does not divide the contraction
        without `pad`.

    Reference:
      Zhou et al., Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch, 2021
      (arXiv 2102.04010).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = jnp.array([[4.0], [1.0], [3.0], [2.0]])
      >>> sj.masks.topk(w, sj.NM(2, 4)).ravel().tolist()
      [True, False, True, False]
      >>> padded = sj.NM(2, 4, pad=True)
      >>> sj.masks.topk(jnp.arange(7.0)[:, None], padded).ravel().tolist()
      [False, False, True, True, False, True, True]
    """

    n: int
    m: int
    axis: int | Sequence[int] | None = None
    stacked: int = 0
    pad: bool = False
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
        """Number of entries; raises if m does not divide the contraction length, unless padded."""
        # A convolution groups input channels, never across two positions of the kernel.
        if layout.run % self.m and not self.pad:
            contraction, _ = layout.sides
            axis = contraction[-1] if self.axis is None else self.axis
            raise ValueError(
                f"NM({self.n}, {self.m}) needs a contraction length divisible by {self.m}, but a "
                f"kernel of shape {layout.shape} contracts {layout.run} entries along axis {axis}; "
                f"choose an m that divides {layout.run}, pad its last group by NM({self.n}, "
                f"{self.m}, pad=True), or exclude this leaf by a rule `pattern: None`."
            )
        return math.prod(layout.shape)

    def zeros(self, layout: Layout) -> int:
        """Entries set to zero: `m - n` of each group, and `max(r - n, 0)` of a padded one."""
        size, (groups, rest) = self.units(layout), divmod(layout.run, self.m)
        each = groups * (self.m - self.n) + max(rest - self.n, 0)
        return size // layout.run * each if size else 0

    def groups(self, layout: Layout) -> int:
        """Number of groups of a leaf, padded ones included."""
        size = self.units(layout)
        return size // layout.run * -(-layout.run // self.m) if size else 0

    def follows_matrix(self, layout: Layout) -> bool:
        """False if every position of a window has a padded group, which cuts the rows unevenly."""
        return layout.run % self.m == 0 or layout.run == layout.matrix_shape[-2]

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
        return self.select_kept(
            scores, layout, kept if isinstance(kept, int) else kept.astype(jnp.int32)
        )

    def select_kept(
        self, scores: Float[Array, "..."], layout: Layout, kept: int | Int[Array, ""]
    ) -> Bool[Array, "..."]:
        """The mask that keeps `kept` of every m; the number may be traced."""
        # NaN ranks last, and of equals the first: padding is never kept instead of an entry.
        whole, padded = self._padded(scores, layout, jnp.nan)
        groups = grid(padded, self.m)
        inputs = groups.within(groups.layout.sides[0])
        mask = groups.merge(group_mask(groups.split(whole), kept, inputs))
        return self._cut(mask, layout)

    def fits(self, mask: Bool[Array, "..."], layout: Layout) -> bool:
        """Whether at most n of each m are kept."""
        whole, padded = self._padded(mask, layout, False)
        groups = grid(padded, self.m)
        kept = groups.split(whole).sum(groups.within(groups.layout.sides[0]))
        return bool(jnp.all(kept <= self.n))

    def _padded(
        self, x: Shaped[Array, "..."], layout: Layout, value: Any
    ) -> tuple[Shaped[Array, "..."], Layout]:
        """The leaf with whole groups; one that is grouped across axes is padded as a matrix."""
        missing = -layout.run % self.m
        if not missing:
            return x, layout
        axis = self._run_axis(layout)
        if axis is None:
            x, axis, n = layout.to_matrix(x), -2, len(layout.stacked)
            layout = Layout(layout.matrix_shape, layout.stacked, (n,), (n + 1,))
        width = [(0, 0)] * x.ndim
        width[axis] = (0, missing)
        x = jnp.pad(x, width, constant_values=value)
        return x, replace(layout, shape=x.shape)

    def _cut(self, mask: Bool[Array, "..."], layout: Layout) -> Bool[Array, "..."]:
        """Inverse of `_padded`."""
        if layout.run % self.m == 0:
            return mask
        axis = self._run_axis(layout)
        if axis is None:
            return layout.from_matrix(mask[..., : layout.run, :])
        return lax.slice_in_dim(mask, 0, layout.run, axis=axis)

    def _run_axis(self, layout: Layout) -> int | None:
        """The axis that is cut into groups; None if several are together."""
        inputs = [axis for axis in layout.sides[0] if axis not in layout.spatial]
        return inputs[0] if len(inputs) == 1 else None

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
