"""Minimisers found by force, in float64 NumPy and from the textbook's formulas only."""

import numpy as np

GOLDEN = (np.sqrt(5) - 1) / 2


def minimum(f, b, step, knots=()):
    """`min_u 0.5 (u - b)^2 + step f(u)` over 0 <= u <= b, for arrays of b >= 0 and step.

    A grid, even and geometric, with the kinks of f among its points; then golden section around
    its three best points.
    """
    shares = np.unique(np.concatenate([np.linspace(0, 1, 400), np.geomspace(1e-12, 1, 300)]))
    points = [b[:, None] * shares] + [np.clip(k, 0, b)[:, None] for k in knots]
    grid = np.sort(np.concatenate(points, axis=1), axis=1)

    def objective(u):
        shape = (-1,) + (1,) * (u.ndim - 1)
        column = [np.reshape(a, shape) for a in (b, step)]
        return 0.5 * (u - column[0]) ** 2 + column[1] * f(u)

    values = objective(grid)
    best = np.argsort(values, axis=1)[:, :3]
    low = np.take_along_axis(grid, np.maximum(best - 1, 0), 1)
    high = np.take_along_axis(grid, np.minimum(best + 1, grid.shape[1] - 1), 1)
    for _ in range(100):
        width = GOLDEN * (high - low)
        left, right = high - width, low + width
        down = objective(left) <= objective(right)
        low, high = np.where(down, low, left), np.where(down, right, high)
    refined = objective((low + high) / 2).min(axis=1)
    return np.minimum(refined, values.min(axis=1))


def excess(f, u, b, step, knots=()):
    """By how much u misses the minimum, relative to the minimum."""
    u, b, step = (np.asarray(a, np.float64) for a in (u, b, step))
    best = minimum(f, b, step, knots)
    reached = 0.5 * (u - b) ** 2 + step * f(u[:, None])[:, 0]
    return (reached - best) / np.maximum(best, np.finfo(np.float64).tiny)


def l1_ball(x, radius):
    """Projection by sorting."""
    b = np.abs(x)
    return x if b.sum() <= radius else np.sign(x) * simplex(b, radius)


def simplex(x, radius):
    """Projection by sorting."""
    if radius == 0:
        return np.zeros_like(x)
    s = np.sort(x)[::-1]
    levels = (np.cumsum(s) - radius) / np.arange(1, len(s) + 1)
    last = np.nonzero(s > levels)[0][-1]
    return np.maximum(x - levels[last], 0)


def isotonic(z):
    """Non-increasing regression by the min-max formula."""
    n, total = len(z), np.concatenate([[0], np.cumsum(z)])
    means = np.full((n, n), np.nan)
    for i in range(n):
        means[i, i:] = (total[i + 1 :] - total[i]) / np.arange(1, n - i + 1)
    return np.array([min(np.nanmax(means[i, k:]) for i in range(k + 1)) for k in range(n)])


def exclusive(x, m):
    """`prox of m/2 ||x||_1^2` by sorting."""
    s = np.sort(np.abs(x))[::-1]
    levels = m * np.cumsum(s) / (1 + np.arange(1, len(s) + 1) * m)
    last = np.nonzero(s > levels)[0]
    return np.sign(x) * np.maximum(np.abs(x) - levels[last[-1]], 0) if len(last) else 0 * x


def envelope(a, k):
    """Half the squared k-support norm, by the unique split into free and shared entries."""
    z = np.sort(np.abs(a))[::-1]
    if k >= len(z):
        return 0.5 * np.sum(z**2)
    tails = np.cumsum(z[::-1])[::-1]
    for r in range(k):
        free, tail = k - r - 1, tails[k - r - 1]
        before = np.inf if free == 0 else z[free - 1]
        if before > tail / (r + 1) >= z[free]:
            break
    return 0.5 * (np.sum(z[:free] ** 2) + tail**2 / (r + 1))


def envelope_conjugate(y, k):
    """Half the sum of the k largest squares."""
    return 0.5 * np.sum(np.sort(np.abs(y))[::-1][:k] ** 2)
