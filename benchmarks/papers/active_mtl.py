"""Active multi-task learning: the design value and the measured risk of allocations.

    python -m benchmarks active_mtl

K = 3, 30 tasks, 12 features, unit heads, noise 1, 20 000 samples of the target. First with the
relevance known and 6000 samples, at least 10 of each task; then with 40 samples of exploration for
each task and 3000 in all. Means over 40 seeds; the goals are those of the specification.
"""

import jax
import numpy as np
from rich.table import Table

from benchmarks._report import save, table_of
from sparsejax import solve
from sparsejax.contrib import multitask

jax.config.update("jax_enable_x64", True)
K, T, D = 3, 30, 12


def scene(seed: int):
    rng = np.random.default_rng(seed)
    B = np.linalg.qr(rng.normal(size=(D, K)))[0]
    W = rng.normal(size=(K, T + 1))
    W /= np.linalg.norm(W, axis=0)

    def draw(w, n, r):
        x = r.normal(size=(n, D))
        return x, x @ (B @ w) + r.normal(size=n)

    def sampler(key, task, n):
        r = np.random.default_rng([seed, *np.asarray(jax.random.key_data(key)).tolist()])
        return draw(W[:, task], n, r)

    return W[:, :T], W[:, T], B, sampler, draw(W[:, T], 20_000, rng)


def risk(B, head, truth) -> float:
    return float(np.sum((np.asarray(B @ head) - truth) ** 2))


def known_table(seeds: int, n: int = 6000) -> Table:
    values, risks = {}, {}
    for seed in range(seeds):
        W, w, B, sampler, (x, y) = scene(seed)
        for name, nu, power in (
            ("uniform", np.ones(T), 1.0),
            ("L2, nu known", np.linalg.pinv(W) @ w, 2.0),
            ("L1, nu known", np.asarray(solve.basis_pursuit(W, w)), 1.0),
        ):
            counts = multitask.allocate_samples(nu, n, power, n_min=10)
            G, c = np.zeros((T, D, D)), np.zeros((T, D))
            for t, count in enumerate(counts):
                a, b = sampler(jax.random.key(t), t, int(count))
                G[t], c[t] = a.T @ a, a.T @ b
            basis, _ = multitask.multitask_als(G, c, K)
            head = np.linalg.lstsq(x @ np.asarray(basis), y)[0]
            values.setdefault(name, []).append(float(multitask.design_value(W, w, counts)))
            risks.setdefault(name, []).append(risk(basis, head, B @ w))
    mean = {name: np.mean(r) for name, r in risks.items()}
    rows = []
    for name in values:
        over_uniform = mean[name] / mean["uniform"]
        good = {"uniform": True, "L2, nu known": True}.get(
            name, bool(over_uniform <= 0.5 and mean[name] <= 0.95 * mean["L2, nu known"])
        )
        rows.append([name, f"{np.mean(values[name]):.3f}", f"{mean[name]:.5f}",
                     f"{mean[name] * n / (D - K):.2f}", f"{over_uniform:.2f}", good])  # fmt: skip
    columns = ["allocation", "design value", "excess risk", "risk n / (d - K)", "over uniform"]
    return table_of(f"relevance known, n = {n}, mean of {seeds} seeds", columns, rows)


def active_table(seeds: int, n: int = 3000) -> Table:
    risks: dict[str, list[float]] = {}
    for seed in range(seeds):
        _, w, B, sampler, target = scene(seed)
        for method in ("uniform", "l2", "l1"):
            fit = multitask.active_mtl(
                sampler, target, tasks=T, k=K, budget=n, method=method, n0=40,
                key=jax.random.key(seed),
            )  # fmt: skip
            risks.setdefault(method, []).append(risk(fit.basis, fit.target_head, B @ w))
    mean = {name: np.mean(r) for name, r in risks.items()}
    rows = []
    for name, m in mean.items():
        blocks = np.reshape(risks[name], (4, -1)).mean(1) / np.reshape(risks["l2"], (4, -1)).mean(1)
        ratio = m / mean["uniform"]
        cells = [f"{m:.5f}", f"{ratio:.2f}", " ".join(f"{b:.2f}" for b in blocks)]
        rows.append([name, *cells, bool(name == "uniform" or ratio <= 0.85)])
    columns = ["method", "excess risk", "over uniform", "over L2, four blocks of seeds"]
    return table_of(f"relevance learned, n = {n}, mean of {seeds} seeds", columns, rows)


def main(quick: bool = False) -> None:
    seeds = 4 if quick else 40
    tables = known_table(seeds), active_table(seeds)
    save("active-mtl", *tables, quick=quick, seed=range(seeds))
