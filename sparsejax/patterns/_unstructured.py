"""Patterns of single entries: unstructured, and a constant fan-in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._layout import matrix_view
from ._pattern import Pooled, check_sparsity, check_stacked, hashable_axis


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
      >>> sj.masks.topk(w, sj.patterns.FanIn(0.75)).T.tolist()
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
