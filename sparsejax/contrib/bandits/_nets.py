"""Finite sets of sparse parameters that come near every other."""

import itertools
import math

import numpy as np

LIMIT = 20_000_000


def sphere_net(s: int, h: float) -> np.ndarray:
    """Unit vectors so that none of dimension s is farther than h from one of them.

    Points of a grid on the surface of a cube with `ceil(sqrt(s - 1) / h)` cells a side,
    normalised, which brings points of norm >= 1 no farther apart.

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
        raise ValueError(f"a net of radius {h} in {s} dimensions is too large; raise h.")
    grid = range(-cells, cells + 1, 2)
    faces = [
        (*rest[:i], side, *rest[i:])
        for i in range(s) for side in (-cells, cells)
        for rest in itertools.product(grid, repeat=s - 1)
    ]  # fmt: skip
    points = np.unique(np.array(faces), axis=0) / cells
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def sparse_net(d: int, s: int, h: float, ball: bool = False) -> np.ndarray:
    """`sphere_net` on every support of s of d entries: `O(C(d, s) s (2 sqrt(s) / h)^(s - 1))`.

    Args:
      d: Number of entries.
      s: How many are not 0; 0 gives the zero vector.
      h: Radius of the net.
      ball: Cover the unit ball instead of the sphere.

    Returns:
      An array (m, d), without repeats.

    Raises:
      ValueError: If it would hold more than 20 million numbers.

    Reference:
      Dong and Yang, Does Sparsity Help in Learning Misspecified Linear Bandits?, 2023, arXiv
      2303.16998.

    Example:
      >>> from sparsejax.contrib import bandits
      >>> bandits.sparse_net(3, 1, 0.5).shape
      (6, 3)
    """
    if d < 1 or not 0 <= s <= d:
        raise ValueError(f"0 <= s <= d and d >= 1 must hold, got s={s} and d={d}.")
    if s == 0:
        return np.zeros((1, d))
    local = sphere_net(s, h / 2 if ball else h)
    if ball:
        radii = np.minimum(np.arange(1, math.ceil(1 / h) + 1) * h, 1.0)
        local = np.concatenate([np.zeros((1, s)), *(r * local for r in radii)])
    count = math.comb(d, s) * len(local)
    if count * d > LIMIT:
        raise ValueError(
            f"the net would hold {count} vectors of length {d}, more than {LIMIT} numbers; it "
            f"grows as d^s: raise h (now {h}) or use bandits.lasso_bandit."
        )
    out = np.zeros((count, d))
    for i, support in enumerate(itertools.combinations(range(d), s)):
        out[i * len(local) : (i + 1) * len(local), support] = local
    return np.unique(out.round(12), axis=0)


def _check_net(s: int, h: float) -> None:
    if s < 1 or not (math.isfinite(h) and h > 0):
        raise ValueError(f"s >= 1 and h > 0 must hold, got s={s} and h={h}.")
