"""Every activation in plain NumPy, one token at a time, in float64."""

import numpy as np


def top_k(z, k, scores=None, value=lambda z: max(z, 0.0)):
    """Features by a sort of (score descending, index ascending) for each token."""
    z = np.asarray(z, np.float64)
    scores = z if scores is None else np.asarray(scores, np.float64)
    f = np.zeros(z.shape)
    for at in np.ndindex(z.shape[:-1]):
        order = sorted(range(z.shape[-1]), key=lambda i: (-scores[at][i], i))  # noqa: B023
        for i in order[:k]:
            f[at][i] = value(z[at][i])
    return f


def batch_top_k(z, k):
    z = np.asarray(z, np.float64)
    flat, n = z.ravel(), int(np.prod(z.shape[:-1]))
    order = sorted(range(flat.size), key=lambda i: (-flat[i], i))
    f = np.zeros(flat.size)
    for i in order[: int(np.floor(k * n + 1e-9))]:
        f[i] = max(flat[i], 0.0)
    return f.reshape(z.shape)


def top_afa(z, x, rows):
    """Tries every k."""
    f = np.zeros(z.shape)
    norms = np.linalg.norm(rows, axis=1)
    for n, (row, sample) in enumerate(zip(np.maximum(z, 0), x)):
        order = sorted(range(len(row)), key=lambda i: (-row[i] * norms[i], i))  # noqa: B023
        contributions = (row * norms)[order]
        reached = [np.sqrt(np.sum(contributions[:k] ** 2)) for k in range(1, len(row) + 1)]
        gaps = [abs(c - np.linalg.norm(sample)) for c in reached]
        best = gaps.index(min(gaps)) + 1
        f[n, order[:best]] = row[order[:best]]
    return f


def pursuit(x, rows, steps, residual=0.0, stop=False):
    f = np.zeros((len(x), len(rows)))
    for n, r in enumerate(np.array(x, np.float64)):
        before = f[n] != 0
        for _ in range(steps):
            i = int(np.argmax(rows @ r))
            v = max(rows[i] @ r, 0.0)
            f[n, i] += v
            r = r - v * rows[i]
            support = f[n] != 0
            if (stop and (support == before).all()) or np.linalg.norm(r) < residual:
                break
            before = support
    return f


def numeric_gradient(f, x, eps=1e-5):
    """Central differences of a scalar function."""
    x = np.array(x, np.float64)
    g = np.zeros_like(x)
    for at in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[at] += eps
        down[at] -= eps
        g[at] = (f(up) - f(down)) / (2 * eps)
    return g
