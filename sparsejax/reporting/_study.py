"""One leaf under study: its mask, counts and fit, before anything is said about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._masks import count, row_counts
from ..masks import Plan, PlannedLeaf
from ..patterns import NM, Block, Pattern, Stages
from ._fit import Fit, divides, pattern
from ._leaves import Entry, checked_masks, is_prunable

# Kept values this much smaller than the largest of their leaf were meant to be zero.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Study:
    """A leaf, the mask that counts, and what the plan says of it.

    `mask` is None where nothing is pruned, or where only shapes are known.
    """

    entry: Entry
    mask: np.ndarray | None
    planned: PlannedLeaf | None
    prunable: bool
    axis: int | tuple[int, ...] | None

    @property
    def path(self) -> str:
        """The path of the leaf."""
        return self.entry.path

    @property
    def pattern(self) -> Pattern | None:
        """The claimed pattern; of stages the last one."""
        claimed = self.planned.pattern if self.planned else None
        return claimed.patterns[-1] if isinstance(claimed, Stages) else claimed

    @property
    def divisible(self) -> bool:
        """Whether the claimed pattern can be laid over the leaf at all."""
        return self.pattern is None or divides(self.pattern, self.entry.shape)

    @property
    def stacked(self) -> int:
        """Leading axes that count layers, as the plan says."""
        return self.pattern.stacked if self.pattern else 0

    @cached_property
    def planned_kept(self) -> int | None:
        """Entries that the plan keeps; None if it does not say."""
        if self.planned is None or not self.divisible:
            return None
        return self.planned.kept

    @cached_property
    def kept(self) -> int:
        """Entries that stay: of the mask; without one, of the plan for shapes; else all."""
        if self.mask is not None:
            return count(self.mask)
        known = self.entry.dense is not None
        planned = None if known else self.planned_kept
        return self.entry.size if planned is None else planned

    @cached_property
    def fit(self) -> Fit | None:
        """The strictest pattern of the mask."""
        if self.mask is None or self.mask.ndim == 0:
            return None
        return pattern(self.mask, self.axis, self.stacked)

    @cached_property
    def values(self) -> dict[str, int] | None:
        """Exact zeros, non-zeros under the mask, near-zeros among the kept, NaN and infinities."""
        w = self.entry.dense
        if w is None:
            return None
        mask = np.ones((), bool) if self.mask is None else self.mask
        parts = _value_counts(jnp.asarray(w), jnp.asarray(mask))
        names = ("zeros", "under_mask", "near_zeros", "not_finite")
        return {n: int(np.asarray(p).sum(dtype=np.int64)) for n, p in zip(names, parts)}


@jax.jit
def _value_counts(w, mask):
    size = jnp.abs(w.astype(jnp.promote_types(w.dtype, jnp.float32)))
    near = (size > 0) & (size <= TOLERANCE * jnp.max(size, initial=0)) & mask
    under_mask = (size != 0) & ~mask
    return tuple(map(row_counts, (size == 0, under_mask, near, ~jnp.isfinite(size))))


def studies(
    found: Mapping[str, Entry], masks: PyTree, plan: Plan | None, rows_are_outputs: bool
) -> dict[str, Study]:
    """Every leaf with its mask; without masks the exact zeros of prunable leaves count."""
    given = checked_masks(masks, found)
    studied = {}
    for name, entry in found.items():
        planned = plan[name] if plan is not None and name in plan else None
        prunable = is_prunable(entry, plan, name in given)
        mask = _mask_of(entry, given.get(name), masks is None and prunable)
        axis = _axis(entry, planned, rows_are_outputs)
        studied[name] = Study(entry, mask, planned, prunable, axis)
    return studied


def _mask_of(entry: Entry, given: Any, from_values: bool) -> np.ndarray | None:
    if given is not None and not isinstance(given, jax.ShapeDtypeStruct):
        return np.asarray(given)
    # A compressed kernel is sparse whether or not its mask is handed over.
    if (from_values or entry.compressed) and entry.dense is not None:
        return np.asarray(entry.dense) != 0
    return None


def _axis(entry: Entry, planned: PlannedLeaf | None, rows_are_outputs: bool) -> Any:
    """The contraction axis that the plan names; Equinox weights are (out, in, ...)."""
    claimed = planned.pattern if planned else None
    if isinstance(claimed, Stages):
        claimed = claimed.patterns[-1]
    if isinstance(claimed, NM | Block) and claimed.axis is not None:
        return claimed.axis
    is_weight = rows_are_outputs and entry.path.endswith("weight") and len(entry.shape) >= 2
    return 1 if is_weight else None
