"""A leaf of a plan."""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ..patterns import Layout, Pattern


@dataclass(frozen=True)
class PlannedLeaf:
    """A leaf of a plan: its path, layout, pattern, and number of zeroed units."""

    name: str
    layout: Layout
    pattern: Pattern
    zeros: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the leaf."""
        return self.layout.shape

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def units(self) -> int:
        """Number of units, each kept or zeroed as a whole."""
        return self.pattern.units(self.layout)

    @property
    def slices(self) -> int:
        """Number of slices, each of which is pruned by itself."""
        return self.pattern.slices(self.layout)

    @property
    def kept(self) -> int | None:
        """Number of kept entries; None if it depends on the mask (groups of unequal size)."""
        if self.units == 0:
            return 0
        size, rest = divmod(self.size, self.units)
        return None if rest else size * (self.units - self.zeros)

    @property
    def sparsity(self) -> float:
        """Fraction of units that are zeroed."""
        return self.zeros / max(self.units, 1)

    def select(self, scores: Any, fraction: ArrayLike) -> Any:
        """The mask of the largest scores, checked: patterns may be a user's own."""
        mask = self.pattern.select(scores, self.layout, self.zeros, fraction)
        found = tuple(np.shape(mask)), jnp.result_type(mask)
        if found != (self.shape, bool):
            raise ValueError(
                f"{self.name} {self.shape}: {type(self.pattern).__name__}.select must give "
                f"booleans of this shape, got {found[1]} {found[0]}."
            )
        return mask
