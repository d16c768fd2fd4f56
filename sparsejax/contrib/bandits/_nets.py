"""Epsilon-nets of sparse parameters."""

import itertools
import math

import numpy as np

from ..._arguments import checked

LIMIT = 20_000_000


@checked()
def sphere_net(s: int, h: float) -> np.ndarray:
    """An h-net of the unit sphere: every unit vector is within h of one of these vectors.

    A grid on the surface of a cube with `ceil(sqrt(s - 1) / h)` cells per side, normalised;
    normalising points of norm >= 1 never increases their distances.

    Args:
      s: Dimension.
      h: Radius of the net, in Euclidean distance.

    Returns:
      An array (m, s), float64.

    Example:
      >>> from sparsejax.contrib import bandits
      >>> bandits.sphere_net(1, 0.5).tolist(), len(bandits.sphere_net(2, 0.5))
      ([[-1.0], [1.0]], 8)
    """
    _check_net(s, h)
    if s == 1:
        return np.array([[-1.0], [1.0]])
    cells = math.ceil(math.sqrt(s - 1) / h)
    if 2 * s * (cells + 1) ** (s - 1) * s > LIMIT:
        raise ValueError(f"sphere_net: radius {h} in {s} dimensions is too small; raise h.")
    grid = range(-cells, cells + 1, 2)
    faces = [
        (*rest[:i], side, *rest[i:])
        for i in range(s) for side in (-cells, cells)
        for rest in itertools.product(grid, repeat=s - 1)
    ]  # fmt: skip
    points = np.unique(np.array(faces), axis=0) / cells
    return points / np.linalg.norm(points, axis=1, keepdims=True)


@checked()
def sparse_net(d: int, s: int, h: float, ball: bool = False) -> np.ndarray:
    """An h-net of s-sparse unit vectors: `sphere_net` on every support of size s.

    Its size m is `O(C(d, s) s (2 sqrt(s) / h)^(s - 1))`.

    Args:
      d: Dimension.
      s: Size of the supports; 0 gives the zero vector.
      h: Radius of the net, in Euclidean distance.
      ball: Whether to cover the unit ball instead of the sphere.

    Returns:
      An array (m, d) of distinct rows, float64.

    Raises:
      ValueError: If s or h is out of range, or the net would hold more than 20 million numbers.

    Reference:
      Dong and Yang, Does Sparsity Help in Learning Misspecified Linear Bandits?, 2023, arXiv
      2303.16998.

    Example:
      >>> from sparsejax.contrib import bandits
      >>> bandits.sparse_net(3, 1, 0.5).shape
      (6, 3)
    """
    if d < 1 or not 0 <= s <= d:
        raise ValueError(f"sparse_net: 0 <= s <= d and d >= 1 must hold, got s={s} and d={d}.")
    if s == 0:
        return np.zeros((1, d))
    local = sphere_net(s, h / 2 if ball else h)
    if ball:
        radii = np.minimum(np.arange(1, math.ceil(1 / h) + 1) * h, 1.0)
        local = np.concatenate([np.zeros((1, s)), *(r * local for r in radii)])
    count = math.comb(d, s) * len(local)
    if count * d > LIMIT:
        raise ValueError(
            f"sparse_net: the net of {count} vectors of length {d} must hold at most {LIMIT} "
            f"numbers; its size grows as d^s: raise h (now {h}) or use bandits.lasso_bandit."
        )
    out = np.zeros((count, d))
    for i, support in enumerate(itertools.combinations(range(d), s)):
        out[i * len(local) : (i + 1) * len(local), support] = local
    return np.unique(out.round(12), axis=0)


def _check_net(s: int, h: float) -> None:
    if s < 1 or not (math.isfinite(h) and h > 0):
        raise ValueError(f"s >= 1 and h > 0 must hold, got s={s} and h={h}.")
