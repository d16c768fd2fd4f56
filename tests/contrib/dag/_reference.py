"""CoLiDE and DAGMA step by step in NumPy, written from the equations."""

import numpy as np


def reference(
    x, strength, kind, path, shifts, max_steps, rate=3e-4, tol=1e-6, every=1000, floor=0.01
):
    x = x - x.mean(0)
    n, d = x.shape
    cov, eye = x.T @ x / n, np.eye(d)
    spread = np.sqrt(np.diag(cov))

    def rescale(w):
        q = np.diag((eye - w).T @ cov @ (eye - w))
        if kind == "unequal":
            return np.maximum(np.sqrt(q), floor * spread)
        if kind == "equal":
            scale = max(np.sqrt(q.mean()), floor * np.sqrt((spread**2).mean()))
            return np.full(d, scale)
        return np.ones(d)

    def objective(w, sigma, mu, s):
        q = np.diag((eye - w).T @ cov @ (eye - w))
        score = (q / sigma).sum() / 2 + strength * np.abs(w).sum()
        score += 0 if kind == "fixed" else sigma.sum() / 2
        return mu * score + d * np.log(s) - np.linalg.slogdet(s * eye - w * w)[1]

    def stage(w, sigma, mu, s, count, lr):
        m = v = np.zeros_like(w)
        old = 1e16
        for t in range(1, count + 1):
            inverse = np.linalg.inv(s * eye - w * w)
            while (inverse < -1e-6).any():
                if t == 1 or s <= 0.9:
                    return None
                w = w + lr * step
                lr /= 2
                if lr <= 1e-16:
                    return w, sigma, t, lr
                w = w - lr * step
                sigma = rescale(w)
                inverse = np.linalg.inv(s * eye - w * w)
            grad = mu * (-cov @ (eye - w) / sigma + strength * np.sign(w)) + 2 * w * inverse.T
            m, v = 0.99 * m + 0.01 * grad, 0.999 * v + 0.001 * grad**2
            step = m / (1 - 0.99**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            w = w - lr * step
            sigma = rescale(w)
            if t % every == 0 or t == count:
                new = objective(w, sigma, mu, s)
                if abs((old - new) / old) <= tol:
                    break
                old = new
        return w, sigma, t, lr

    start = {"unequal": spread, "equal": np.full(d, spread.min()), "fixed": np.ones(d)}[kind]
    w, sigma, steps, rates, restarts = np.zeros((d, d)), start, [], [], 0
    for mu, s, count in zip(path, shifts, max_steps):
        lr = rate
        while (out := stage(w, sigma, mu, s, count, lr)) is None:
            lr, s, restarts = lr / 2, s + 0.1, restarts + 1
        w, sigma, t, lr = out
        steps.append(t)
        rates.append(lr)
    return w, sigma, steps, rates, restarts


def remove_edges(w, threshold):
    """One edge after the other."""
    w = np.where(np.abs(w) > threshold, w, 0.0)
    while np.linalg.matrix_power((w != 0).astype(float) + 0, len(w)).any():
        size = np.where(w != 0, np.abs(w), np.inf)
        w[np.unravel_index(size.argmin(), w.shape)] = 0.0
    return w
