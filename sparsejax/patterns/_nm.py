"""N:M sparsity: n of every m consecutive entries along the contraction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from .._counts import kept_at
from .._topk import nm_mask
from ._layout import matrix_view
from ._pattern import Pattern, hashable_axis, is_int


@dataclass(frozen=True)
class NM(Pattern):
    r"""N:M sparsity: `n` of every `m` consecutive entries along the contraction stay.

    While a schedule is at fraction c, `m - round(c * (m - n))` of each m stay.

    Args:
      n: Entries kept of each group; 0 keeps nothing, m everything.
      m: Length of a group.
      axis: Contraction axis or axes. None means axis 0 of `(in, out)` and the input channels of a
        convolution `(h, w, in, out)`; a 3-D kernel must say it.
      stacked: Leading axes that count layers or experts.

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
        object.__setattr__(self, "axis", hashable_axis(self.axis))

    @property
    def sparsity(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """`1 - n / m`, by definition."""
        return 1 - self.n / self.m

    def units(self, shape: tuple[int, ...]) -> int:
        """Number of entries; raises if m does not divide the contraction length."""
        view = matrix_view(shape, self.axis, self.stacked)
        # A convolution groups input channels, never across two positions of the kernel.
        length = shape[view.contraction[-1]] if self.axis is None else view.matrix_shape[-2]
        if length % self.m:
            raise ValueError(
                f"NM({self.n}, {self.m}) needs a contraction length divisible by {self.m}, but a "
                f"kernel of shape {shape} contracts {length} entries along axis "
                f"{view.contraction[-1] if self.axis is None else self.axis}; choose an m that "
                f"divides {length} or leave this leaf out with a rule `pattern: None`."
            )
        return math.prod(shape)

    def zeros(self, shape: tuple[int, ...]) -> int:
        """Entries set to zero: `m - n` of each group."""
        return self.units(shape) // self.m * (self.m - self.n)

    def select(
        self, scores: Float[Array, "..."], zeros: int | None = None, fraction: ArrayLike = 1.0
    ) -> Bool[Array, "..."]:
        """The mask by rank within each group; `zeros` is implied by the pattern."""
        del zeros
        view = matrix_view(scores.shape, self.axis, self.stacked)
        kept = kept_at(fraction, self.m, self.m - self.n)
        kept = kept if isinstance(kept, int) else kept.astype(jnp.int32)
        return view.from_matrix(nm_mask(view.to_matrix(scores), kept, self.m))
