"""Visibility of single pairs within listed blocks, and the scale of the scores."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Int

LOW = -1e30  # the score of hidden pairs: below all others, and its differences are finite


@dataclass(frozen=True)
class Rule:
    """The pairs of a listed block that are visible: of what token, at what scale.

    Args:
      keys: Number of keys; places from there on are padding. A scalar within kernels.
      causal: Whether a query sees no later key.
      window: Number of keys up to the query itself that are visible; None for all.
      sinks: Number of first keys that the window does not hide.
      scale: Factor of the scores.
    """

    keys: int | Int[Array, ""]
    causal: bool = True
    window: int | None = None
    sinks: int = 0
    scale: float = 1.0

    def visible(self, i: Any, j: Any) -> Any:
        """Whether query i sees key j; integers that broadcast."""
        seen = j < self.keys
        if self.causal:
            seen = seen & (j <= i)
        if self.window is not None:
            seen = seen & ((i - j < self.window) | (j < self.sinks))
        return seen
