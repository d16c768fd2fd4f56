"""The Lasso over scikit-learn, celer and skglm: same problems, one run, one thread.

    python -m benchmarks lasso             every cell, about 15 minutes, most of them scikit-learn's
    python -m benchmarks lasso --quick     without the cells where scikit-learn takes minutes

With OMP_NUM_THREADS set, that number of threads is used instead of one.

Every solver runs at the loosest tolerance of a few whose duality gap is at most 1e-6 of the
objective at 0; the gap is computed from its coefficients in NumPy, the same for all. A ratio is
over the fastest peer that reaches the gap: below 1 sparsejax takes less time, above 1 it is bold.
Compiling is timed apart. Peers that are not installed are left out, which the tables say.
"""

import functools
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import importlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from rich.table import Table
from scipy.special import xlogy
from sklearn.linear_model import Lasso, LassoCV

from benchmarks._report import save
from sparsejax import solve
from sparsejax.solve import estimators

jax.config.update("jax_enable_x64", True)
GAP = 1e-6
WIDTH = 10  # of a group
SIZES = ((100, 200), (200, 1000), (200, 4000))  # of the problems that are solved together
Fit = Callable[[Any], np.ndarray]


def design(n: int, p: int, support: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Columns of an AR(1) process of correlation 0.5, 50 true ones, noise of a tenth of it."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(n, p))
    X = np.empty((n, p), order="F")
    X[:, 0] = noise[:, 0]
    for j in range(1, p):
        X[:, j] = 0.5 * X[:, j - 1] + 0.75**0.5 * noise[:, j]
    w = np.zeros(p)
    w[rng.permutation(p)[:support]] = rng.choice([-1, 1], support)
    y = X @ w
    return X, y + rng.normal(size=n) * np.std(y) / 10**0.5


def sparse_design(n: int, p: int, density: float, seed: int = 0) -> tuple[Any, np.ndarray]:
    """Normal entries at random places of compressed columns, 50 true ones, noise of a tenth."""
    rng = np.random.default_rng(seed)
    entries = {"rng": rng, "data_sampler": rng.standard_normal}
    X = scipy.sparse.csc_matrix(scipy.sparse.random_array((n, p), density=density, **entries))
    w = np.zeros(p)
    w[rng.permutation(p)[:50]] = rng.choice([-1, 1], 50)
    y = X @ w
    return X, y + rng.normal(size=n) * np.std(y) / 10**0.5


def relative_gap(X: np.ndarray, y: np.ndarray, w: np.ndarray, strength: float) -> float:
    """Primal minus dual over the objective at 0, by hand."""
    n, r = len(y), y - X @ w
    theta = r / n * min(1, strength / max(np.abs(X.T @ r / n).max(), 1e-300))
    primal = r @ r / (2 * n) + strength * np.abs(w).sum()
    dual = y @ y / (2 * n) - n / 2 * np.sum((theta - y / n) ** 2)
    return float((primal - dual) / (y @ y / (2 * n)))


def candidates(X: np.ndarray, y: np.ndarray, strength: float) -> dict[str, tuple[Fit, tuple]]:
    """Fits by name, from a tolerance to coefficients, and the tolerances to try."""
    found: dict[str, tuple[Fit, tuple]] = {
        "sparsejax": (
            lambda tol: np.asarray(solve.lasso_host(X, y, strength, tol=tol).value),
            (GAP,),
        ),
        "scikit-learn": (
            lambda tol: (
                Lasso(strength, fit_intercept=False, tol=tol, max_iter=100_000).fit(X, y).coef_
            ),
            (4e-7, 1e-7),
        ),
    }
    if celer := module("celer"):
        found["celer"] = (
            lambda tol: celer.Lasso(strength, fit_intercept=False, tol=tol).fit(X, y).coef_,
            (4e-7, 1e-7, 1e-8),
        )
    if skglm := module("skglm"):
        found["skglm"] = (
            lambda tol: skglm.Lasso(strength, fit_intercept=False, tol=tol).fit(X, y).coef_,
            (1e-4, 1e-5, 1e-6, 1e-7, 1e-8),
        )
    return found


def module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def timed(fit: Fit, tol: Any) -> tuple[float, float, np.ndarray]:
    """Best time of a few runs (one if it is long), the first time, and the coefficients."""
    start = time.perf_counter()
    w = fit(tol)
    first = best = time.perf_counter() - start
    if first > 20:
        return first, first, w
    for _ in range(3):
        start = time.perf_counter()
        w = fit(tol)
        best = min(best, time.perf_counter() - start)
    return best, first, w


def single(title: str, X: Any, y: np.ndarray, share: float) -> list[tuple]:
    strength = float(np.abs(X.T @ y).max() / len(y)) * share
    gap = functools.partial(relative_gap, X, y, strength=strength)
    return compared(title, candidates(X, y, strength), gap)


def compared(
    title: str, fits: dict[str, tuple[Fit, tuple]], gap_of: Callable[[np.ndarray], float]
) -> list[tuple]:
    """A row for each solver at the loosest of its tolerances that reaches the gap."""
    rows = []
    for name, (fit, tols) in fits.items():
        for tol in tols:
            best, first, w = timed(fit, tol)
            gap = gap_of(w)
            if gap <= GAP:
                break
        rows.append((title, name, best, first - best, gap, int(np.count_nonzero(w))))
    return rows


def path(title: str, X: np.ndarray, y: np.ndarray, peers: bool) -> list[tuple]:
    """100 strengths down to a hundredth of the largest; the worst gap counts."""
    largest = float(np.abs(X.T @ y).max() / len(y))
    strengths = largest * 0.01 ** (np.arange(100) / 99)
    from sklearn.linear_model import lasso_path

    fits: dict[str, tuple[Fit, Any]] = {
        "sparsejax": (
            lambda tol: np.asarray(solve.lasso_path_host(X, y, strengths, tol=tol).value),
            GAP,
        )
    }
    if peers:
        fits["scikit-learn"] = (
            lambda tol: lasso_path(X, y, alphas=strengths, tol=tol, max_iter=100_000)[1].T,
            4e-7,
        )
    if celer := module("celer"):
        fits["celer"] = (
            lambda tol: celer.celer_path(X, y, "lasso", alphas=strengths, tol=tol)[1].T,
            1e-7,
        )
    rows = []
    for name, (fit, tol) in fits.items():
        best, first, w = timed(fit, tol)
        gap = max(relative_gap(X, y, row, strength) for row, strength in zip(w, strengths))
        rows.append((title, name, best, first - best, gap, int(np.count_nonzero(w[-1]))))
    return rows


def batch(count: int = 64, sizes: tuple[tuple[int, int], ...] = SIZES) -> Table:
    """Many problems at once by vmap, over a loop of scikit-learn."""
    table = Table(
        title=f"{count} Lassos by vmap, a quarter of the largest strength",
        caption="Goal: 5 times faster than the loop.",
    )
    for column in ("n", "p", "vmap s", "compiling s", "gap", "loop s", "its gap", "loop / vmap"):
        table.add_column(column, justify="right")
    for n, p in sizes:
        X, Y, strengths = many(count, n, p)
        solve_one = lambda y, s, A: solve.lasso(A, y, s, tol=GAP, working_set=64).value  # noqa: E731
        together = jax.jit(jax.vmap(solve_one, in_axes=(0, 0, None)))
        arrays = jnp.asarray(Y), jnp.asarray(strengths), jnp.asarray(X)
        best, first, w = timed(lambda _: np.asarray(together(*arrays)), None)  # noqa: B023

        def loop(tol):
            fit = functools.partial(Lasso, fit_intercept=False, tol=tol, max_iter=100_000)
            fits = [fit(strength) for strength in strengths]  # noqa: B023
            return np.stack([fit.fit(X, y).coef_ for fit, y in zip(fits, Y)])  # noqa: B023

        theirs, _, v = timed(loop, 4e-7)
        gaps = [
            max(relative_gap(X, y, u, strength) for u, y, strength in zip(us, Y, strengths))
            for us in (w, v)
        ]
        table.add_row(
            str(n), str(p), f"{best:.4f}", f"{first - best:.1f}", f"{gaps[0]:.1e}",
            f"{theirs:.4f}", f"{gaps[1]:.1e}", f"{theirs / best:.2f}",
        )  # fmt: skip
    return table


def many(count: int, n: int, p: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One design, targets from different coefficients, a strength for each."""
    X, _ = design(n, p, 10)
    rng = np.random.default_rng(1)
    w = np.where(rng.random((count, p)) < 10 / p, rng.choice([-1, 1], (count, p)), 0)
    Y = w @ X.T
    Y += rng.normal(size=Y.shape) * (np.std(Y, axis=1, keepdims=True) + 1e-3) / 10**0.5
    return X, Y, np.abs(Y @ X).max(1) / n / 4


def logistic_gap(X: Any, y: np.ndarray, w: np.ndarray, strength: float) -> float:
    """Primal minus dual of logistic regression over log 2, by hand; y of -1 and 1."""
    z = y * (X @ w)
    theta = 1 / (1 + np.exp(z))
    q = theta * min(1, strength / max(np.abs(X.T @ (y * theta) / len(y)).max(), 1e-300))
    dual = -np.mean(xlogy(q, q) + xlogy(1 - q, 1 - q))
    primal = np.mean(np.logaddexp(0, -z)) + strength * np.abs(w).sum()
    return float((primal - dual) / np.log(2))


def group_norms(v: np.ndarray) -> np.ndarray:
    return np.linalg.norm(v.reshape(-1, WIDTH), axis=1)


def group_gap(X: Any, y: np.ndarray, w: np.ndarray, strength: float) -> float:
    """Primal minus dual of the group Lasso over the objective at 0, by hand; weights are 1."""
    n, r = len(y), y - X @ w
    s = min(1, strength / max(group_norms(X.T @ r / n).max(), 1e-300))
    primal = r @ r / (2 * n) + strength * group_norms(w).sum()
    dual = s * (r @ y) / n - s * s * (r @ r) / (2 * n)
    return float((primal - dual) / (y @ y / (2 * n)))


def logistic(title: str, X: Any, y: np.ndarray, share: float) -> list[tuple]:
    """Classes above and below the median, without an intercept."""
    y = np.where(y > np.median(y), 1.0, -1.0)
    strength = float(np.abs(X.T @ y).max() / len(y) / 2) * share
    options = {"fit_intercept": False}
    fits: dict[str, tuple[Fit, tuple]] = {
        "sparsejax": (
            lambda tol: (
                estimators.SparseLogisticRegression(strength, tol=tol, **options).fit(X, y).coef_[0]
            ),
            (GAP,),
        )
    }
    if skglm := module("skglm"):
        fits["skglm"] = (
            lambda tol: (
                skglm.SparseLogisticRegression(strength, tol=tol, **options).fit(X, y).coef_[0]
            ),
            (1e-4, 1e-5, 1e-6, 1e-7, 1e-8),
        )
    return compared(title, fits, lambda w: logistic_gap(X, y, w, strength))


def grouped(title: str, X: Any, y: np.ndarray, share: float) -> list[tuple]:
    """Groups of neighbours of weight 1."""
    strength = float(group_norms(X.T @ y).max() / len(y)) * share
    weights = np.ones(X.shape[1] // WIDTH)
    options = {"weights": weights, "alpha": strength, "fit_intercept": False}
    fits: dict[str, tuple[Fit, tuple]] = {
        "sparsejax": (
            lambda tol: estimators.GroupLasso(WIDTH, tol=tol, **options).fit(X, y).coef_,
            (GAP,),
        )
    }
    if skglm := module("skglm"):
        fits["skglm"] = (
            lambda tol: skglm.GroupLasso(WIDTH, tol=tol, **options).fit(X, y).coef_,
            (1e-3, 1e-4, 1e-5, 1e-6, 1e-7),
        )
    return compared(title, fits, lambda w: group_gap(X, y, w, strength))


def cross_validated() -> Table:
    """LassoCV on noise, with the default arguments of both."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(100, 150)), rng.normal(size=100)
    ours, _, _ = timed(lambda _: estimators.LassoCV(cv=5).fit(X, y).coef_, None)
    theirs, _, _ = timed(lambda _: LassoCV(cv=5).fit(X, y).coef_, None)
    table = Table(title="LassoCV, 5 folds, 100 x 150 of noise", caption="Goal: at most 1.")
    for column in ("sparsejax s", "scikit-learn s", "ratio"):
        table.add_column(column, justify="right")
    table.add_row(f"{ours:.4f}", f"{theirs:.4f}", marked(ours / theirs))
    return table


def marked(ratio: float) -> str:
    return f"**{ratio:.3f}**" if ratio > 1 else f"{ratio:.3f}"


def main(quick: bool = False) -> None:
    warnings.filterwarnings("ignore")
    # Compiled before anything is timed.
    estimators.SparseLogisticRegression().fit([[0.0], [1.0]], [0, 1])
    rows = []
    small, wide = design(1000, 5000), design(500, 20_000)
    rows += single("n=1000 p=5000, lam_max/10", *small, 0.1)
    rows += single("n=500 p=20000, lam_max/10", *wide, 0.1)
    thin, tall = sparse_design(2000, 20_000, 0.01), sparse_design(20_000, 1000, 0.005)
    for share in (0.1, 0.01):
        rows += single(f"n=200 p=1000, lam_max/{1 / share:.0f}", *design(200, 1000), share)
        rows += single(f"sparse n=2000 p=20000, lam_max/{1 / share:.0f}", *thin, share)
        rows += single(f"sparse n=20000 p=1000, lam_max/{1 / share:.0f}", *tall, share)
        for kind, rows_of in (("logistic", logistic), ("groups of 10", grouped)):
            about = f"lam_max/{1 / share:.0f}"
            rows += rows_of(f"{kind}, n=200 p=2000, {about}", *design(200, 2000), share)
            rows += rows_of(f"{kind}, sparse n=2000 p=20000, {about}", *thin, share)
            if not quick:
                rows += rows_of(f"{kind}, n=1000 p=5000, {about}", *small, share)
    rows += path("path of 100, n=200 p=1000", *design(200, 1000), True)
    if not quick:
        rows += single("n=1000 p=5000, lam_max/100", *small, 0.01)
        rows += path("path of 100, n=1000 p=5000", *small, True)
        rows += single("n=500 p=20000, lam_max/100", *wide, 0.01)
    missing = [name for name in ("celer", "skglm") if module(name) is None]
    table = Table(
        title="One problem, driven from the host",
        caption="Over the fastest peer that reaches the gap; goals: 0.7, 0.9 at n=1000 p=5000, "
        "lam_max/100, 0.5 on the path, and 1 for the logistic loss and groups."
        + (f" Not installed: {', '.join(missing)}." if missing else ""),
    )
    for column in (
        "problem",
        "solver",
        "seconds",
        "first call more",
        "gap",
        "nonzeros",
        "over best",
    ):
        table.add_column(column, justify="left" if column == "problem" else "right")
    # The fastest peer that reaches the gap.
    base: dict[str, float] = {}
    for title, name, best, _, gap, _ in rows:
        if name != "sparsejax" and gap <= GAP:
            base[title] = min(best, base.get(title, best))
    for title, name, best, compiling, gap, nonzeros in rows:
        ratio = best / base.get(title, best)  # 1 where no peer reaches the gap
        text = marked(ratio) if name == "sparsejax" else f"{ratio:.3f}"
        told = f"{gap:.1e}{'' if gap <= GAP else ' !'}"
        table.add_row(title, name, f"{best:.4f}", f"{compiling:.1f}", told, str(nonzeros), text)
    together = batch(sizes=((100, 200),) if quick else SIZES)
    save("lasso-cpu", table, cross_validated(), together, quick=quick, seed=(0, 1))
