"""Misspecified linear bandits: queries and gaps of elimination over a sparse net, and baselines.

    python -m benchmarks bandits

Rewards are linear in unit features up to eps, with random or (for least squares) worst signs.
"""

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from benchmarks._report import save, table_of
from sparsejax.contrib import bandits

jax.config.update("jax_enable_x64", True)


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def elimination_table(seeds: int, eps: float = 0.2) -> Table:
    rows = []
    for d, s in ((6, 2), (12, 2), (18, 2), (6, 3), (12, 3)):
        net = bandits.sparse_net(d, s, eps)
        gaps, queries, every = [], [], []
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            theta = np.zeros(d)
            theta[rng.choice(d, s, replace=False)] = unit(rng, s)
            X = unit(rng, 400, d)
            reward = X @ theta + eps * rng.choice([-1, 1], 400)
            found = bandits.parameter_elimination(X, reward, net, eps, eps).value
            gaps.append(float(reward.max() - reward[int(found.action)]))
            queries.append(int(found.queries))
            every.append(bandits.exhaustive_bandit(X, reward, net).queries)
        rows.append([f"d = {d}, s = {s}", len(net), f"{max(gaps):.2f}", f"{4 * eps:.1f}",
                     f"{min(queries)}..{max(queries)}", f"{min(every)}..{max(every)}",
                     bool(max(gaps) <= 4 * eps)])  # fmt: skip
    columns = ["problem", "net", "largest gap", "proved", "queries", "queries of exhaustive"]
    return table_of(f"parameter_elimination, 400 actions, eps = h = {eps}", columns, rows)


def least_squares_table(actions: int = 1500) -> Table:
    rows = []
    for d in (4, 8, 16, 32):
        X = jnp.asarray(unit(np.random.default_rng(d), actions, d))
        p = bandits.g_optimal(X, max_steps=400, throw=False).value
        # Error at a is sum_b p_b x_a M^-1 x_b nu_b: worst where every sign of nu agrees.
        weights = jnp.abs(X @ jnp.linalg.inv((X.T * p) @ X) @ (X.T * p)).sum(1)
        worst = float(weights.max())
        rows.append([f"d = {d}", f"{worst:.2f}", f"{worst / d**0.5:.2f}", f"{1 + d**0.5:.2f}"])
    columns = ["problem", "error / eps", "over sqrt(d)", "bound"]
    return table_of("least squares on a G-optimal design, worst misspecification", columns, rows)


def lasso_table(seeds: int, d: int = 200, n: int = 120, eps: float = 0.05) -> Table:
    rows = []
    for s in (1, 2, 4, 8):
        cells = []
        for equal in (True, False):
            off = []
            for seed in range(seeds):
                rng = np.random.default_rng(seed)
                theta = np.zeros(d)
                values = rng.choice([-1, 1], s) / s**0.5 if equal else unit(rng, s)
                theta[rng.choice(d, s, replace=False)] = values
                X = rng.choice([-1.0, 1.0], (400, d))
                reward = X @ theta + eps * rng.choice([-1, 1], 400)
                fit = bandits.lasso_bandit(X, reward, s, n, eps, key=jax.random.key(seed)).value
                error = np.abs(X @ (np.asarray(fit.theta) - theta)).max()
                off.append(float(error) / eps)
            cells += [f"{np.mean(off):.2f}", f"{min(off):.2f}..{max(off):.2f}"]
        rows.append([f"s = {s}", *cells])
    title = f"lasso_bandit, signs, d = {d}, {n} queries, eps = {eps}: value error / eps"
    columns = ["problem", "entries of equal size", "seeds", "of any size", "seeds "]
    caption = "Entries below the strength 2 eps are not found, and each costs its size."
    return table_of(title, columns, rows, caption)


def main(quick: bool = False) -> None:
    few, many = (1, 1) if quick else (3, 5)
    tables = elimination_table(many), least_squares_table(), lasso_table(few)
    save("bandits", *tables, quick=quick, seed=range(many))
