"""Random-reference preconditioning against the Lasso: where designs are badly scaled, where not.

    python -m benchmarks random_support

Noise of variance 1 and a signal of mean square 1 on 4 random columns, uniform on the sphere of
their span. The first two methods are at the best strength of their whole path (scikit-learn's
`lasso_path`), which needs the truth; `m="auto"` chooses width and strength from the data, by
cross-validation, and "Lasso, CV" chooses its strength in the same way. float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table
from sklearn.linear_model import lasso_path

from benchmarks._report import save, table_of
from sparsejax.contrib import random_support

jax.config.update("jax_enable_x64", True)
CASES = [
    ("mixed", 800, 200), ("mixed", 800, 400), ("scales", 800, 150), ("scales", 800, 300),
    ("Gaussian", 400, 100), ("Gaussian", 400, 200),
]  # fmt: skip


def design(kind: str, n: int, p: int, rng: np.random.Generator) -> np.ndarray:
    common, own = rng.normal(size=(n, 1)), rng.normal(size=(n, p))
    if kind == "Gaussian":
        return own
    if kind == "scales":
        return common + 10.0 ** (-3 * rng.uniform(size=p)) * own
    alone = rng.permutation(p) < p // 4
    return np.where(alone, own, common + 1e-3 * own)


def problem(kind: str, n: int, p: int, seed: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    X = design(kind, n, p, rng)
    span = np.linalg.qr(X[:, rng.choice(p, 4, replace=False)])[0]
    signal = span @ rng.normal(size=4)
    signal *= np.sqrt(n) / np.linalg.norm(signal)
    return X, signal, signal + rng.normal(size=n)


def best_error(m: int, X: np.ndarray, y: np.ndarray, signal: np.ndarray, seed: int) -> float:
    found = random_support.random_reference(X, m, key=jax.random.key(seed))
    basis, residual = np.asarray(found.basis), np.asarray(found.residual)
    part = basis @ (basis.T @ y)
    target = y - part
    alphas = np.geomspace(1, 3e-2, 60) * np.abs(residual.T @ target).max() / len(target)
    path = lasso_path(residual, target, alphas=alphas, tol=1e-6, max_iter=20_000)[1]
    off = (part - signal)[:, None] + residual @ path
    return float((off**2).mean(0).min())


def prediction_table(seeds: int, cases: list[tuple[str, int, int]]) -> Table:
    rows = []
    for kind, p, n in cases:
        found: dict[str, list[float]] = {"ours": [], "lasso": [], "auto": [], "lasso cv": []}
        widths = []
        for seed in range(seeds):
            X, signal, y = problem(kind, n, p, seed)
            found["ours"].append(best_error(24, X, y, signal, seed))
            found["lasso"].append(best_error(0, X, y, signal, seed))
            for name, m, strength in (("auto", "auto", None), ("lasso cv", 0, "cv")):
                key = jax.random.key(seed)
                fit = random_support.random_support_lasso(
                    X, y, k=4, key=key, m=m, strength=strength
                ).value
                found[name].append(float(jnp.mean((fit.prediction - signal) ** 2)))
                if name == "auto":
                    widths.append(fit.preconditioner.basis.shape[1])
        middle = {name: float(np.median(e)) for name, e in found.items()}
        won = np.mean(np.array(found["ours"]) < np.array(found["lasso"]))
        over = middle["auto"] / min(middle["ours"], middle["lasso"])
        good = bool(over <= 1.25)
        cells = [f"{middle[name]:.3f}" for name in ("ours", "lasso", "auto", "lasso cv")]
        used = f"{min(widths)}..{max(widths)} ({np.median(widths):.0f})"
        rows.append([f"{kind}, p = {p}, n = {n}", *cells[:2], f"{won:.0%}", *cells[2:], used,
                     f"{over:.2f}", good])  # fmt: skip
        print(rows[-1], flush=True)
    columns = ["design", "m = 24, best", "Lasso, best", "seeds won", 'm="auto"', "Lasso, CV",
               "widths (median)", "auto over the better best"]  # fmt: skip
    title = f"prediction error |X w - prediction|^2 / n, median of {seeds} seeds"
    caption = (
        "The goal of 1.25 compares a strength chosen from the data with the best one of the truth."
    )
    return table_of(title, columns, rows, caption)


def bound_table(trials: int, p: int = 320, n: int = 160) -> Table:
    """How often a coefficient exceeds |X w| / sqrt(n), for the worst w of each random support."""
    rows = []
    for kind in ("walk", "spectrum", "clusters", "Gaussian"):
        for k, blocks in ((2, 2), (2, 16), (4, 4), (4, 8), (4, 16)):
            bad = 0
            for trial in range(trials):
                rng = np.random.default_rng(trial)
                X = rng.normal(size=(n, p))
                if kind == "walk":
                    X = np.cumsum(X, axis=1)
                elif kind == "spectrum":
                    u, _, vt = np.linalg.svd(X, full_matrices=False)
                    X = u * 2.0 ** -np.arange(n) @ vt
                elif kind == "clusters":
                    X = X[:, np.arange(p) // 8] + 1e-4 * X
                support = rng.choice(p, k, replace=False)
                w = np.linalg.svd(X[:, support])[2][-1]
                key = jax.random.key(trial)
                found = random_support.random_reference(X, blocks * (k - 1), key=key)
                a = np.where(found.live, 1, 0)[support] * w * np.asarray(found.scale)[support]
                bad += np.abs(a).max() > np.linalg.norm(X[:, support] @ w) / np.sqrt(n)
            most = k / (blocks + 1)
            cells = [f"{bad / trials:.3f}", f"{min(1, most):.2f}", bool(bad / trials <= most)]
            rows.append([f"{kind}, k = {k}, B = {blocks}", *cells])
    title = f"coefficients beyond the bound, {trials} supports, p = {p}, n = {n}"
    return table_of(title, ["design", "share", "proved to be at most"], rows)


def main(quick: bool = False) -> None:
    trials, seeds, cases = (5, 1, CASES[-2:-1]) if quick else (300, 12, CASES)
    tables = bound_table(trials), prediction_table(seeds, cases)
    save("random-support", *tables, quick=quick, seed=range(seeds))
