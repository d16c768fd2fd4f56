"""Numbers of zeros of leaves: rounded, at least so many kept, distributed by an allocation."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ._allocate import Allocation, Layer, joint
from ._planned_leaf import PlannedLeaf

ROUNDINGS = {
    "nearest": round,
    "down": lambda x: math.floor(x + 1e-9),
    "up": lambda x: math.ceil(x - 1e-9),
}


def zeros_of(
    leaves: Sequence[PlannedLeaf],
    allocate: Allocation | None,
    rounding: str,
    min_kept: int,
    most: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Zeroed units of each leaf; `most` is the largest number kept of each after an allocation."""
    alone = {leaf.name: _zeros(leaf, rounding, min_kept) for leaf in leaves}
    if allocate is None:
        return alone
    free = {leaf.name: leaf for leaf in leaves if leaf.pattern.free and leaf.size}
    if allocate is joint:  # rounded once, in total
        allocate = lambda layers, s: dict.fromkeys(layers, s)  # noqa: E731
    units = {name: leaf.units for name, leaf in free.items()}
    least = {name: min(min_kept * leaf.slices, units[name]) for name, leaf in free.items()}
    return alone | _redistributed(allocate, free, rounding, least, units | dict(most or {}))


def _zeros(leaf: PlannedLeaf, rounding: str, min_kept: int) -> int:
    """Zeroed units of a leaf by itself."""
    zeros = leaf.pattern.zeros(leaf.layout)
    if not leaf.pattern.free or not leaf.units:
        return zeros
    each = leaf.units // leaf.slices
    if rounding != "nearest":
        zeros = leaf.slices * ROUNDINGS[rounding](each * leaf.pattern.sparsity)
    return min(zeros, leaf.slices * max(each - min_kept, 0))


def _redistributed(
    allocate: Allocation,
    free: Mapping[str, PlannedLeaf],
    rounding: str,
    least: Mapping[str, int],
    most: Mapping[str, int],
) -> dict[str, int]:
    """Zeroed units of the free leaves after an allocation, at the same total."""
    if not free:
        return {}
    exact = sum(leaf.size * leaf.pattern.sparsity for leaf in free.values())
    total = sum(leaf.size for leaf in free.values())
    given = allocate({name: Layer(leaf.layout) for name, leaf in free.items()}, exact / total)
    sparsities = {name: _checked(name, given[name]) for name in free}
    units = {name: leaf.units for name, leaf in free.items()}
    unit = _unit_size({name: leaf.size for name, leaf in free.items()}, units)
    requested = sum(free[name].size * sparsities[name] for name in free)
    if abs(requested - exact) > 0.5 + 1e-6 * total:
        raise ValueError(
            f"plan: the allocation zeroes {requested:,.0f} entries where the patterns require "
            f"{exact:,.0f}; an allocation must keep the total, as sj.masks.erk does. Pass "
            "patterns of the intended sparsity."
        )
    budget = sum(units.values()) - ROUNDINGS[rounding](exact / unit)
    if sum(least.values()) > budget:
        raise ValueError(
            f"plan: min_kept keeps {sum(least.values()):,} units of {', '.join(free)}, and the "
            f"patterns only {budget:,}; pass patterns of a lower sparsity, or a smaller min_kept."
        )
    ideal = {name: units[name] * (1 - sparsities[name]) for name in free}
    kept = _largest_remainder(ideal, budget, least, most)
    return {name: units[name] - kept[name] for name in free}


def _unit_size(sizes: dict[str, int], units: dict[str, int]) -> float:
    """Entries per unit if equal for all leaves; otherwise the mean (exact in units, not entries).

    Raises if the leaves mix units of different sizes: no exact total is possible then.
    """
    found = {name: sizes[name] / max(units[name], 1) for name in sizes}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name}: {size:g}" for name, size in found.items())
        raise ValueError(
            "an allocation keeps the total exactly, which is impossible for leaves with different "
            f"entries per unit ({listed}); use patterns with equal units, or plan them separately."
        )
    return next(iter(found.values()))


def _largest_remainder(
    ideal: Mapping[str, float], total: int, least: Mapping[str, int], most: Mapping[str, int]
) -> dict[str, int]:
    """Integers near `ideal` that add up to `total`; the largest remainder gets one more."""
    kept = {n: min(max(math.floor(x + 1e-9), least[n]), most[n]) for n, x in ideal.items()}
    while (missing := total - sum(kept.values())) != 0:
        step = 1 if missing > 0 else -1
        room = [n for n in ideal if least[n] <= kept[n] + step <= most[n]]
        order = sorted(room, key=lambda n: -step * (ideal[n] - kept[n]))
        for name in order[: abs(missing)]:
            kept[name] += step
    return kept


def _checked(name: str, sparsity) -> float:
    if sparsity is None or not -1e-9 <= sparsity <= 1 + 1e-9 or np.isnan(sparsity):
        raise ValueError(f"the allocation gives {name} a sparsity of {sparsity}, not in [0, 1].")
    return min(max(float(sparsity), 0.0), 1.0)
