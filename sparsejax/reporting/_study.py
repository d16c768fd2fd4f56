"""Analysis of one leaf: its mask, counts and fit."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._arrays import wide_dtype
from .._masks import count, row_counts
from .._sharding import on_host
from ..masks import Plan, PlannedLeaf
from ..patterns import Layout, Pattern, layout as layout_of
from ._fit import Fit, divides, fit_layout
from ._leaves import Entry, checked_masks, is_prunable

# Kept values below this fraction of the largest of their leaf are near-zeros.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Study:
    """A leaf, its effective mask, and its plan.

    `mask` is None if nothing is pruned, or if only shapes are known.
    """

    entry: Entry
    mask: np.ndarray | None
    planned: PlannedLeaf | None
    prunable: bool
    layout: Layout

    @property
    def path(self) -> str:
        """The path of the leaf."""
        return self.entry.path

    @property
    def pattern(self) -> Pattern | None:
        """The claimed pattern; the last one of stages."""
        return self.planned.pattern.final if self.planned else None

    @property
    def divisible(self) -> bool:
        """Whether the claimed pattern fits the shape of the leaf."""
        return self.pattern is None or divides(self.pattern, self.layout)

    @cached_property
    def planned_kept(self) -> int | None:
        """Entries kept by the plan; None if undetermined."""
        if self.planned is None or not self.divisible:
            return None
        return self.planned.kept

    @cached_property
    def kept(self) -> int:
        """Kept entries: of the mask; without one, of the plan for shapes; otherwise all."""
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
        return fit_layout(self.mask, self.layout)

    @cached_property
    def values(self) -> dict[str, int] | None:
        """Exact zeros, non-zeros under the mask, near-zeros among the kept, NaN and infinities."""
        w = self.entry.dense
        if w is None:
            return None
        mask = np.ones((), bool) if self.mask is None else self.mask
        parts = _value_counts(jnp.asarray(w), jnp.asarray(mask))
        names = ("zeros", "under_mask", "near_zeros", "not_finite")
        return {n: int(on_host(p).sum(dtype=np.int64)) for n, p in zip(names, parts)}


@jax.jit
def _value_counts(w, mask):
    size = jnp.abs(w.astype(wide_dtype(w)))
    near = (size > 0) & (size <= TOLERANCE * jnp.max(size, initial=0)) & mask
    under_mask = (size != 0) & ~mask
    return tuple(map(row_counts, (size == 0, under_mask, near, ~jnp.isfinite(size))))


def studies(
    found: Mapping[str, Entry], masks: PyTree, plan: Plan | None, orders: Mapping[str, Any]
) -> dict[str, Study]:
    """Every leaf with its mask; without masks the exact zeros of prunable leaves are used."""
    given = checked_masks(masks, found)
    studied = {}
    for name, entry in found.items():
        planned = plan[name] if plan is not None and name in plan else None
        prunable = is_prunable(entry, plan, name in given)
        mask = _mask_of(entry, given.get(name), masks is None and prunable)
        order = entry.value.order if entry.compressed else orders.get(name)
        layout = planned.layout if planned else layout_of(entry.shape, order=order)
        studied[name] = Study(entry, mask, planned, prunable, layout)
    return studied


def _mask_of(entry: Entry, given: Any, from_values: bool) -> np.ndarray | None:
    if given is not None and not isinstance(given, jax.ShapeDtypeStruct):
        return on_host(given)
    # A compressed kernel is sparse even if its mask is not passed.
    if (from_values or entry.compressed) and entry.dense is not None:
        return on_host(entry.dense != 0)
    return None
