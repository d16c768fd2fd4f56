"""Proximal gradient descent over pyproximal and jaxopt: same objective, same steps, one run.

    python -m benchmarks prox_solvers

`|X w - y|^2 / (2 n) + strength |w|_1` in float64 by ISTA and FISTA with the step 1 / L. Each solver
runs for a fixed number of steps, which is timed. The objective it ends at is computed from its
coefficients in NumPy, the same for all: it shows that the iterates agree. Compiling is not timed.
Peers that are not installed are left out, which the table says.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._report import save, table_of
from sparsejax import kernels, prox, solve

jax.config.update("jax_enable_x64", True)
# Few enough that none stops early at an exact fixed point, which `main` checks for ours.
STEPS = 50
PEERS = ("pyproximal", "jaxopt")


def data(n: int, p: int) -> tuple[np.ndarray, np.ndarray, float, float]:
    """A design with 20 true features, strength a tenth of the largest, and 1 / L."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, p))
    w = np.where(np.arange(p) < 20, rng.choice([-1, 1], p), 0)
    y = X @ w + rng.normal(size=n)
    return X, y, float(np.abs(X.T @ y).max() / n / 10), n / np.linalg.norm(X, 2) ** 2


def objective(X: np.ndarray, y: np.ndarray, w: Any, strength: float) -> float:
    w = np.asarray(w)
    return float(np.sum((y - X @ w) ** 2) / (2 * len(y)) + strength * np.abs(w).sum())


def ours(X: Any, y: Any, strength: float, step: float, accelerate: bool) -> Callable:
    A, b, w0 = jnp.asarray(X), jnp.asarray(y), jnp.zeros(X.shape[1])

    @jax.jit
    def run(A, b, strength):
        return solve.proximal_gradient(
            lambda w: jnp.sum((A @ w - b) ** 2) / (2 * b.size), prox.l1(strength), w0, step=step,
            accelerate=accelerate, tol=0.0, max_steps=STEPS, throw=False,
        )  # fmt: skip

    if (done := int(run(A, b, strength).stats["n_iter"])) != STEPS:
        raise RuntimeError(f"{done} steps instead of {STEPS}: the comparison would not be fair.")
    return lambda: run(A, b, strength).value


def by_pyproximal(X: Any, y: Any, strength: float, step: float, accelerate: bool) -> Callable:
    import pylops
    import pyproximal
    from pyproximal.optimization.primal import ProximalGradient

    scale = len(y) ** -0.5
    # Their smooth part is |A w - b|^2 / 2.
    smooth = pyproximal.L2(Op=pylops.MatrixMult(X * scale), b=y * scale)
    return functools.partial(
        ProximalGradient, smooth, pyproximal.L1(sigma=strength), np.zeros(X.shape[1]), tau=step,
        niter=STEPS, acceleration="fista" if accelerate else None, tol=None,
    )  # fmt: skip


def by_jaxopt(X: Any, y: Any, strength: float, step: float, accelerate: bool) -> Callable:
    import jaxopt

    A, b, w0 = jnp.asarray(X), jnp.asarray(y), jnp.zeros(X.shape[1])
    solver = jaxopt.ProximalGradient(
        fun=lambda w, A, b: jnp.sum((A @ w - b) ** 2) / (2 * b.size), prox=jaxopt.prox.prox_lasso,
        stepsize=step, maxiter=STEPS, tol=0.0, acceleration=accelerate, implicit_diff=False,
    )  # fmt: skip
    run = jax.jit(lambda A, b, strength: solver.run(w0, strength, A, b).params)
    return lambda: run(A, b, strength)


def main(quick: bool = False) -> None:
    there = [name for name in PEERS if importlib.util.find_spec(name)]
    makers = {"sparsejax": ours, "pyproximal": by_pyproximal, "jaxopt": by_jaxopt}
    rows = []
    for n, p in ((200, 500),) if quick else ((200, 500), (1000, 2000)):
        X, y, strength, step = data(n, p)
        for method in ("ISTA", "FISTA"):
            calls = {
                name: makers[name](X, y, strength, step, method == "FISTA")
                for name in ("sparsejax", *there)
            }
            best = kernels.measure(calls, rounds=2 if quick else 5, seconds=0.05)
            ends = {name: objective(X, y, call(), strength) for name, call in calls.items()}
            for name in calls:
                seconds = best[name]
                faster = seconds / best["sparsejax"]
                cells = [f"{1e3 * seconds:.1f}", f"{ends[name]:.8f}", f"{faster:.2f}"]
                rows.append([f"{method}, n={n} p={p}, {name}", *cells, faster >= 1])
    missing = [name for name in PEERS if name not in there]
    caption = "Ratio: its time over that of sparsejax; below 1 the peer is faster."
    caption += f" Not installed: {', '.join(missing)}." if missing else ""
    columns = ["method, problem, solver", "ms", "objective", "over sparsejax"]
    table = table_of(f"{STEPS} steps of the step 1 / L", columns, rows, caption)
    save("prox-solvers-cpu", table, quick=quick, seed=0)
