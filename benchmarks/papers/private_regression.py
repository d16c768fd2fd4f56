"""Private sparse regression: error in the number of users, features and epsilon.

    python -m benchmarks private_regression

Gaussian covariates of variance 1, theta of norm 1 on k of d features, delta = 1e-6. For the
non-interactive methods the mean messages of n users are drawn as n grows, by the central limit
theorem (covariance of the moments and of the noise), so that n can be 1e12. `ldp_iht` runs with
real users.
"""

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from benchmarks._report import save, table_of
from sparsejax.contrib import private

jax.config.update("jax_enable_x64", True)


def error(seed: int, d: int, k: int, n: float, epsilon: float, public: bool, **options) -> tuple:
    rng = np.random.default_rng(seed)
    theta = np.zeros(d)
    theta[:k] = k**-0.5
    how = private.moment_mechanism(d, int(n), epsilon, 1e-6, public=public, **options)
    upper = np.triu_indices(d)
    sample = rng.normal(size=(d, d)) / n**0.5
    sample = (np.triu(sample) + np.triu(sample, 1).T) * np.where(np.eye(d), 2**0.5, 1)
    S = np.eye(d) + sample
    c = S @ theta + how.cross_sigma * rng.normal(size=d) / n**0.5
    if not public:
        S = S[upper] + how.second_sigma * rng.normal(size=len(upper[0])) / n**0.5
    fit = private.nldp_server(S, c, int(n), how, throw=False).value
    return tuple(float(np.linalg.norm(w - theta)) for w in (fit.coefficients, fit.raw))


def median(seeds: int, **options) -> tuple[float, float]:
    found = np.median([error(seed, **options) for seed in range(seeds)], axis=0)
    return float(found[0]), float(found[1])


def slope(x, y) -> str:
    return f"{np.log(y[-1] / y[0]) / np.log(x[-1] / x[0]):.2f}"


def rate_table(quick: bool) -> Table:
    base = {"d": 32, "k": 4, "n": 1e12, "epsilon": 1.0}
    sweeps = [
        ("n", [1e10, 1e11, 1e12], base, "-0.5"),
        ("k", [1, 4, 16], base, "0.5"),
        ("epsilon", [0.25, 0.5, 1.0], base, "-1"),
        ("d", [64, 128, 256], base | {"n": 1e13}, "1 / 0.5 public"),
    ]
    rows = []
    for name, values, fixed, theory in sweeps[:3] if quick else sweeps:
        for public in (False, True):
            seeds = 1 if quick else 5 if name == "d" else 9
            found = [median(seeds, public=public, **(fixed | {name: v})) for v in values]
            soft, raw = zip(*found)
            label = f"{name} = {', '.join(f'{v:g}' for v in values)}"
            cells = [" ".join(f"{e:.4f}" for e in soft), slope(values, soft)]
            cells += [" ".join(f"{e:.4f}" for e in raw), slope(values, raw), theory]
            rows.append([f"{label}{', public covariates' if public else ''}", *cells])
    columns = ["sweep", "error", "slope", "without threshold", "slope ", "theory"]
    return table_of("l2 error of the non-interactive method, medians", columns, rows)


def accounting_table(quick: bool) -> Table:
    rows = []
    for name, options in (
        ("exact Gaussian accounting, both clips", {}),
        ("the same, entries clipped", {"clip": "entries"}),
        ("half of the users for each message", {"split": "users"}),
        ("halves of epsilon and delta, classic formula", {"accounting": "paper"}),
    ):
        fixed = {"d": 32, "k": 4, "n": 1e11, "epsilon": 1.0}
        if name.startswith("half of"):
            fixed["n"] = fixed["n"] / 2  # what each moment is averaged over
        rows.append([name, f"{median(1 if quick else 9, public=False, **fixed, **options)[0]:.4f}"])
    return table_of("d = 32, k = 4, n = 1e11, epsilon 1, delta 1e-6", ["accounting", "error"], rows)


def iht_table(quick: bool) -> Table:
    rows = []
    theta = np.zeros(20)
    theta[:2] = 2**-0.5
    sizes = ((100_000, 2),) if quick else ((100_000, 9), (400_000, 9), (1_600_000, 5))
    for n, seeds in sizes:
        errors = []
        for seed in range(seeds):
            data, key = jax.random.split(jax.random.key(seed))
            X = jax.random.uniform(data, (n, 20), jnp.float32, -1, 1)
            found = private.ldp_iht(X, X @ theta.astype(np.float32), key=key, k=2, epsilon=1.0,
                                    bound_x=1.0, bound_y=1.5, rounds=5, step=2.4)  # fmt: skip
            errors.append(float(np.linalg.norm(found.value.coefficients - theta)))
        goal = {100_000: (0.9, 2.0), 400_000: (0.0, 2.0), 1_600_000: (0.0, 0.35)}[n]
        middle = float(np.median(errors))
        rows.append([f"n = {n}", f"{middle:.3f}", f"{min(errors):.2f}..{max(errors):.2f}",
                     f"{goal[0]}..{goal[1]}", bool(goal[0] <= middle <= goal[1])])  # fmt: skip
    columns = ["users", "median error", "range", "expected"]
    return table_of("ldp_iht, d = 20, k = 2, epsilon 1, delta 0", columns, rows)


def main(quick: bool = False) -> None:
    tables = rate_table(quick), accounting_table(quick), iht_table(quick)
    save("private-regression", *tables, quick=quick, seed=range(9))
