"""Distribution of zeros over leaves by an allocation: whole units, at the same total."""

import math
from collections.abc import Mapping

import numpy as np

from ._allocate import Allocation, Layer
from ._plan import PlannedLeaf


def redistributed(allocate: Allocation, chosen: Mapping[str, PlannedLeaf]) -> dict[str, int]:
    """Zeroed units of the free leaves after an allocation, at the same total."""
    free = {name: leaf for name, leaf in chosen.items() if leaf.pattern.free and leaf.size}
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
    kept = _largest_remainder(
        {name: units[name] * (1 - sparsities[name]) for name in free},
        sum(units.values()) - round(exact / unit),
        units,
    )
    return {name: units[name] - kept[name] for name in free}


def rounded_jointly(chosen: Mapping[str, PlannedLeaf]) -> dict[str, int]:
    """Zeroed units of jointly selected leaves: the total rounded once."""
    return redistributed(lambda layers, s: dict.fromkeys(layers, s), chosen)


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


def _largest_remainder(ideal: dict[str, float], total: int, units: dict[str, int]):
    """Integers near `ideal` that add up to `total`; the largest remainder gets one more."""
    kept = {name: min(max(math.floor(x + 1e-9), 0), units[name]) for name, x in ideal.items()}
    while (missing := total - sum(kept.values())) != 0:
        step = 1 if missing > 0 else -1
        room = [n for n in ideal if 0 <= kept[n] + step <= units[n]]
        order = sorted(room, key=lambda n: -step * (ideal[n] - kept[n]))
        for name in order[: abs(missing)]:
            kept[name] += step
    return kept


def _checked(name: str, sparsity) -> float:
    if sparsity is None or not -1e-9 <= sparsity <= 1 + 1e-9 or np.isnan(sparsity):
        raise ValueError(f"the allocation gives {name} a sparsity of {sparsity}, not in [0, 1].")
    return min(max(float(sparsity), 0.0), 1.0)
