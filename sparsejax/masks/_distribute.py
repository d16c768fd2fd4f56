"""Zeros of several leaves that an allocation distributes: whole units, at the same total."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..patterns import Pattern
from ._allocate import Allocation, Layer

Chosen = Mapping[str, Pattern]
Leaves = Mapping[str, Any]


def redistributed(allocate: Allocation, chosen: Chosen, leaves: Leaves) -> dict[str, int]:
    """Zeroed units of the free leaves after an allocation, at the same total."""
    free = {
        name: pattern
        for name, pattern in chosen.items()
        if pattern.free and math.prod(leaves[name].shape)
    }
    if not free:
        return {}
    shapes = {name: tuple(leaves[name].shape) for name in free}
    layers = {
        name: Layer(shapes[name][p.stacked :], math.prod(shapes[name][: p.stacked]))
        for name, p in free.items()
    }
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    asked = sum(sizes[name] * p.sparsity for name, p in free.items()) / sum(sizes.values())
    given = allocate(layers, asked)
    sparsities = {name: _checked(name, given[name]) for name in free}
    units = {name: p.units(shapes[name]) for name, p in free.items()}
    unit = _unit_size(sizes, units)
    wanted = sum(sizes[name] * sparsities[name] for name in free)
    exact = sum(sizes[name] * p.sparsity for name, p in free.items())
    if abs(wanted - exact) > 0.5 + 1e-6 * sum(sizes.values()):
        raise ValueError(
            f"plan: the allocation zeroes {wanted:,.0f} entries where the patterns ask for "
            f"{exact:,.0f}; an allocation keeps the total, as sj.masks.erk does. Give the leaves "
            "patterns of the sparsity that you want."
        )
    kept = _largest_remainder(
        {name: units[name] * (1 - sparsities[name]) for name in free},
        sum(units.values()) - round(exact / unit),
        units,
    )
    return {name: units[name] - kept[name] for name in free}


def rounded_together(chosen: Chosen, leaves: Leaves) -> dict[str, int]:
    """Zeroed units of jointly selected leaves: the total rounded once."""
    return redistributed(lambda layers, s: dict.fromkeys(layers, s), chosen, leaves)


def _unit_size(sizes: dict[str, int], units: dict[str, int]) -> float:
    """Entries per unit, if the same for all leaves; else the mean, which meets units, not entries.

    Raises if the leaves mix units of different sizes: no total can then be met exactly.
    """
    found = {name: sizes[name] / max(units[name], 1) for name in sizes}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name}: {size:g}" for name, size in found.items())
        raise ValueError(
            "an allocation keeps the total exactly, which leaves with different entries per unit "
            f"cannot promise ({listed}); give them patterns with equal units, or plan them apart."
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
