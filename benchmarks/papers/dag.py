"""Acyclic graphs: time per step against NumPy implementations, and accuracy at all noise levels.

    python -m benchmarks dag

The `dagma` package is timed if it is installed: `pip install --no-deps dagma tqdm`, since its
linear part needs no torch. CoLiDE has no package; its peer is the step-by-step NumPy of the tests.
Everything runs in float64.
"""

import importlib.util
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from benchmarks._report import save, table_of
from sparsejax import kernels
from sparsejax.contrib import dag

jax.config.update("jax_enable_x64", True)
ROOT = pathlib.Path(__file__).parents[2]
SHORT = (5000, 5000, 5000, 15_000)


def reference() -> Callable:
    spec = importlib.util.spec_from_file_location(
        "reference", ROOT / "tests/contrib/dag/_reference.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.reference


def data(seed: int, d: int, edges: int, scale: jax.Array | float, n: int = 1000, **weights):
    graph, weight, sample = jax.random.split(jax.random.key(seed), 3)
    truth = dag.edge_weights(dag.erdos_renyi_dag(d, edges, key=graph), **weights, key=weight)
    return truth, dag.sample_sem(truth, n, scale, key=sample)


def step_table(sizes: tuple[int, ...], rounds: int) -> Table:
    """One stage of `steps` steps, without the compilation, divided by their number."""
    rows = []
    steps = 200
    stage = {"path": (1.0,), "shifts": (1.0,), "max_steps": (steps,), "throw": False}
    for d in sizes:
        _, x = data(0, d, 2 * d, 1.0)
        covariance = jnp.cov(x.T, bias=True)
        numpy = np.asarray(x)

        def ours(solver, covariance=covariance, **options):
            options |= stage
            return lambda: solver(covariance, precomputed=True, **options)

        def theirs(kind, numpy=numpy):
            return lambda: reference()(numpy, 0.05, kind, (1.0,), (1.0,), (steps,))

        pairs = {
            "CoLiDE-EV": (theirs("equal"), ours(dag.colide)),
            "CoLiDE-NV": (theirs("unequal"), ours(dag.colide, equal_variance=False)),
        }
        if importlib.util.find_spec("dagma"):
            pairs["DAGMA, package"] = (_package(numpy, steps), ours(dag.dagma))
        for name, (their, our) in pairs.items():
            # A run is long: one in each round.
            best = kernels.measure({"theirs": their, "ours": our}, rounds, seconds=0)
            ratio = best["theirs"] / best["ours"]
            micro = [f"{1e6 * s / steps:.0f}" for s in (best["theirs"], best["ours"])]
            rows.append([f"{name}, d = {d}", *micro, f"{ratio:.2f}", ratio >= 1])
    columns = ["solver", "NumPy us", "sparsejax us", "times faster"]
    return table_of(f"microseconds a step, {steps} steps", columns, rows)


def _package(x: np.ndarray, steps: int) -> Callable:
    from dagma.linear import DagmaLinear

    def run():
        DagmaLinear("l2").fit(
            x.copy(), lambda1=0.03, T=1, s=[1.0], warm_iter=steps, max_iter=steps, w_threshold=0.0
        )

    return run


def graph_table(seeds: int, kinds: int, max_steps: tuple[int, ...]) -> Table:
    """d = 20 with 40 expected edges, n = 1000: SHD of each seed, and the noise that was found."""
    rows = []
    run = {
        "least squares": lambda x: dag.dagma(
            x, 0.05, path=(1.0, 0.1, 0.01, 0.001), shifts=(1.0, 0.9, 0.8, 0.7), max_steps=max_steps
        ),
        "CoLiDE-EV": lambda x: dag.colide(x, max_steps=max_steps),
        "CoLiDE-NV": lambda x: dag.colide(x, equal_variance=False, max_steps=max_steps),
    }
    cases = {f"variance {v:g}": (lambda _, v=v: v**0.5, {}) for v in (0.5, 1.0, 5.0, 10.0)}
    cases["variances in [0.5, 10], weights in [0.25, 1]"] = (
        lambda seed: jnp.sqrt(jax.random.uniform(jax.random.key(100 + seed), (20,)) * 9.5 + 0.5),
        {"low": 0.25, "high": 1.0},
    )
    for case, (scale, weights) in list(cases.items())[:kinds]:
        scales = [scale(seed) for seed in range(seeds)]
        pairs = [data(seed, 20, 40, scales[seed], **weights) for seed in range(seeds)]
        samples = jnp.stack([x for _, x in pairs])
        for name, solver in run.items():
            fits = jax.vmap(solver)(samples).value
            found = [dag.shd(w, t) for w, (t, _) in zip(fits.weights, pairs)]
            scores = [dag.edge_scores(w, t) for w, (t, _) in zip(fits.weights, pairs)]
            sids = [dag.sid(w, t) for w, (t, _) in zip(fits.weights, pairs)]
            wrong = [float(jnp.mean(jnp.abs(s / t - 1))) for s, t in zip(fits.scale, scales)]
            tpr, fdr = (np.mean([s[i] for s in scores]) for i in (0, 1))
            off = "-" if name == "least squares" else f"{100 * np.mean(wrong):.1f} %"
            cells = [f"{np.mean(found):.2f}", str(found), f"{np.mean(sids):.1f}"]
            rows.append([f"{case}: {name}", *cells, f"{tpr:.3f}", f"{fdr:.3f}", off])
    columns = ["data: solver", "SHD", "of each seed", "SID", "TPR", "FDR", "scale off by"]
    title = f"d = 20, 40 expected edges, n = 1000, one strength of 0.05, {sum(max_steps)} steps"
    return table_of(title, columns, rows)


def main(quick: bool = False) -> None:
    seeds = 1 if quick else 4
    sizes, rounds = ((20,), 1) if quick else ((20, 50, 100, 200), 5)
    kinds = 1 if quick else 5
    tables = step_table(sizes, rounds), graph_table(seeds, kinds, SHORT)
    save(f"dag-{jax.default_backend()}", *tables, quick=quick, seed=range(seeds))
