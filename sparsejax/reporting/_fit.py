"""The strictest pattern that a mask fits, and the probability of a chance fit."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Bool

from .._arguments import checked
from .._sharding import on_host
from ..patterns import NM, Block, Layout, Pattern, Unstructured, layout as layout_of

_BLOCKS = (64, 32, 16, 8, 4)
# Each is contained in the next: at most 2 of 8 means at most 2 of 4, at most 1 of 4 at most 2 of 8.
_GROUPS = ((1, 8), (1, 4), (2, 8), (2, 4), (4, 8), (8, 16))
_EXACT_UP_TO = 4096  # entries for which the chance of N:M is computed exactly


@dataclass(frozen=True)
class Fit:
    """A pattern that a mask fits.

    Args:
      name: "dense", "channel", "block 16x16", "2:4", ..., or "unstructured".
      pattern: The pattern as a value; None for "dense" and "channel".
      chance: Probability that a uniformly random mask with as many kept entries fits, too.
    """

    name: str
    pattern: Pattern | None
    chance: float

    @property
    def significant(self) -> bool:
        """Whether the fit is unlikely to be chance."""
        return self.chance <= 1e-3


@checked()
def fit_pattern(
    mask: Bool[Array, "..."] | Bool[np.ndarray, "..."],
    axis: int | tuple[int, ...] | None = None,
    stacked: int = 0,
) -> Fit:
    r"""The strictest pattern that a mask fits.

    Tried in the order dense; channel (the mask is an outer product of live rows and columns);
    blocks of 64, 32, 16, 8, 4 squared; 1:8, 1:4, 2:8, 2:4, 4:8, 8:16 along the contraction (at most
    n of each m kept); unstructured. A very sparse or very small random mask fits one of these by
    chance: see `chance`.

    Args:
      mask: A boolean array, True where kept.
      axis: Contraction axis or axes, as for `sj.NM`. If it is unknown (a 3-D kernel), only dense,
        channel and unstructured are tried.
      stacked: Leading axes that index layers; each slice must fit.

    Returns:
      A `Fit`.

    Reference:
      Liu and Wang, 2023 (arXiv 2302.02596).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from sparsejax.reporting import fit_pattern
      >>> w = jnp.sin(jnp.arange(64.0)).reshape(8, 8)
      >>> fit_pattern(sj.masks.topk(w, sj.NM(2, 4))).name
      '2:4'
    """
    kept = on_host(mask)
    stacked = min(stacked, max(kept.ndim - 1, 0))
    return fit_layout(kept, layout_of(kept.shape, axis, stacked))


def fit_layout(kept: np.ndarray, layout: Layout) -> Fit:
    """The strictest pattern that a mask fits, in a given layout."""
    if kept.all():
        return Fit("dense", None, 1.0)
    slices = _as_matrices(kept, layout)
    if all(_is_outer_product(x) for x in slices):
        return Fit("channel", None, _chance(sum(map(_log_channel_chance, slices))))
    if layout.contraction:
        for found in _structured(slices, layout):
            return found
    sparsity = 1 - int(kept.sum()) / kept.size
    return Fit("unstructured", Unstructured(sparsity, len(layout.stacked)), 1.0)


def _structured(slices: np.ndarray, layout: Layout) -> Iterator[Fit]:
    sparsity, stacked = 1 - int(slices.sum()) / slices.size, len(layout.stacked)
    default = layout_of(layout.shape, None, stacked).contraction == layout.contraction
    axis = None if default else layout.contraction
    axis = axis[0] if axis and len(axis) == 1 else axis
    # Larger blocks consist of the smallest: if those do not fit, none does.
    for b in _BLOCKS if _fits_blocks(slices, _BLOCKS[-1]) else ():
        if _fits_blocks(slices, b):
            block = Block((b, b), sparsity, axis, stacked)
            chance = _chance(sum(_log_block_chance(x, b) for x in slices))
            yield Fit(f"block {b}x{b}", block, chance)
    for n, m in _GROUPS:
        if divides(nm := NM(n, m, axis, stacked), layout) and largest_group(slices, m) <= n:
            yield Fit(f"{n}:{m}", nm, _chance(_log_nm_chance(slices.size, int(slices.sum()), n, m)))


def divides(p: Pattern, layout: Layout) -> bool:
    """Whether a pattern fits the shape of a leaf."""
    try:
        p.units(layout)
    except ValueError:
        return False
    return True


def largest_group(slices: np.ndarray, m: int) -> int:
    """The largest number of entries kept in any group of m along the contraction."""
    s, k, n = slices.shape
    return int(slices.reshape(s, k // m, m, n).sum(axis=2).max(initial=0))


def _as_matrices(kept: np.ndarray, layout: Layout) -> np.ndarray:
    """The kernel as (slices, contraction, output), as far as its axes are known."""
    if not layout.contraction or layout.output is None:
        if layout.output is not None:  # a bias
            return kept.reshape(-1, 1, kept.shape[-1] if kept.ndim else 1)
        return kept.reshape(1, -1, kept.shape[-1])
    order = layout.stacked + layout.contraction + layout.output
    return kept.transpose(order).reshape(layout.slices, *layout.matrix_shape[-2:])


def _is_outer_product(x: np.ndarray) -> bool:
    rows, columns = x.any(axis=1), x.any(axis=0)
    return int(x.sum()) == int(rows.sum()) * int(columns.sum())


def _fits_blocks(slices: np.ndarray, b: int) -> bool:
    s, k, n = slices.shape
    if k % b or n % b:
        return False
    sums = slices.reshape(s, k // b, b, n // b, b).sum(axis=(2, 4))
    return bool(np.isin(sums, (0, b * b)).all())


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_channel_chance(x: np.ndarray) -> float:
    (rows, columns), kept = x.shape, int(x.sum())
    if kept == 0:
        return 0.0
    terms = [
        _log_binomial(rows, a) + _log_binomial(columns, kept // a)
        for a in range(1, rows + 1)
        if kept % a == 0 and kept // a <= columns
    ]
    return float(np.logaddexp.reduce(terms)) - _log_binomial(x.size, kept)


def _log_block_chance(x: np.ndarray, b: int) -> float:
    kept = int(x.sum())
    return _log_binomial(x.size // b**2, kept // b**2) - _log_binomial(x.size, kept)


def _log_nm_chance(size: int, kept: int, n: int, m: int) -> float:
    """Of all masks with `kept` entries, the share with at most n in every group of m.

    The number of such masks is a coefficient of `(sum_{i<=n} C(m, i) t^i)^groups`, read off as a
    probability after tilting by the t for which `kept` is the mean.
    """
    groups = size // m
    if kept in (0, groups * n):
        return groups * _log_binomial(m, n) * (kept > 0) - _log_binomial(size, kept)
    ways = np.array([_log_binomial(m, i) for i in range(n + 1)])
    log_t = _tilt(ways, kept / groups)
    tilted = ways + np.arange(n + 1) * log_t
    log_z = float(np.logaddexp.reduce(tilted))
    hit = _log_hit(np.exp(tilted - log_z), groups, kept, size)
    return groups * log_z - kept * log_t + hit - _log_binomial(size, kept)


def _tilt(ways: np.ndarray, mean: float) -> float:
    low, high = -60.0, 60.0
    counts = np.arange(len(ways))
    for _ in range(100):
        middle = (low + high) / 2
        weights = ways + counts * middle
        p = np.exp(weights - np.logaddexp.reduce(weights))
        low, high = (middle, high) if p @ counts < mean else (low, middle)
    return (low + high) / 2


def _log_hit(p: np.ndarray, groups: int, kept: int, size: int) -> float:
    """Log-probability that `groups` independent counts add up to `kept`."""
    counts = np.arange(len(p))
    variance = groups * (p @ counts**2 - (p @ counts) ** 2)
    if size > _EXACT_UP_TO:  # by the local limit theorem
        return -0.5 * math.log(2 * math.pi * max(variance, 1 / (2 * math.pi)))
    total, power = np.ones(1), p
    while groups:
        if groups % 2:
            total = np.convolve(total, power)[: kept + 1]
        power, groups = np.convolve(power, power)[: kept + 1], groups // 2
    return math.log(max(total[kept], 1e-300))


def _chance(log: float) -> float:
    return math.exp(min(log, 0.0))
