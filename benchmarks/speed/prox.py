"""Proximal operators against a copy of the array, against a sort, and against other libraries.

    python -m benchmarks prox [--entries 10000000]

Every ratio compares two times of interleaved runs. Other libraries are measured where they are
installed and have the operator. Of these scico is not in the extra `bench`: it needs JAX <= 0.8.1.
"""

import functools
import importlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from benchmarks._report import save, table_of
from sparsejax import kernels, prox

GOAL = 2.0

ELEMENTWISE = {
    "l1": prox.l1(0.5),
    "l0": prox.l0(0.5),
    "ridge": prox.ridge(0.5),
    "elastic_net": prox.elastic_net(0.5),
    "huber": prox.huber(0.5),
    "box": prox.box(-0.5, 0.5),
    "mcp": prox.mcp(0.5, 3.0),
    "mcp, step past the limit": prox.mcp(0.5, 0.5),
    "cel0": prox.cel0(0.5),
    "scad": prox.scad(0.5),
    "capped_l1": prox.capped_l1(0.5),
    "log_sum": prox.log_sum(0.5),
    "exponential": prox.exponential(0.5),
    "geman": prox.geman(0.5),
    "transformed_l1": prox.transformed_l1(0.5),
    "l_half": prox.l_half(0.5),
    "l_two_thirds": prox.l_two_thirds(0.5),
    "lp, p = 0.3": prox.lp(0.5, 0.3),
    "concave (Newton)": prox.concave(jnp.log1p, lambda b: 1 / (1 + b), 0.5),
}

# Penalties that are constants of the program, as in `sj.optim.proximal`.
KNOWN = {"lp, p = 0.3, a constant": jax.jit(prox.lp(0.5, 0.3).prox)}


@jax.jit
def solve(penalty: prox.Penalty, x: jax.Array) -> jax.Array:
    return penalty.prox(x, 1.0)


def elementwise_table(entries: int, rounds: int) -> Table:
    """Each operator against a copy: what memory alone costs."""
    x = jax.random.normal(jax.random.key(0), (entries,))
    copy = jax.jit(lambda x: x + x[0])
    rows = []
    operators = {name: functools.partial(solve, penalty) for name, penalty in ELEMENTWISE.items()}
    for name, operator in (operators | KNOWN).items():
        calls = {"copy": lambda: copy(x), "prox": lambda f=operator: f(x)}
        best = kernels.measure(calls, rounds, seconds=0.05)
        ratio = best["prox"] / best["copy"]
        rows.append([name, f"{1e3 * best['prox']:.1f}", f"{ratio:.2f}", ratio <= GOAL])
    title = f"elementwise, {entries:,} float32, against a copy (goal {GOAL:g})"
    return table_of(title, ["operator", "ms", "times a copy"], rows)


def vector_table(entries: int) -> Table:
    """Each operator of vectors against one sort of the same numbers."""
    x = jax.random.normal(jax.random.key(1), (entries,))
    groups = jnp.arange(entries) % (entries // 100)
    matrix = x[: (entries // 1000) * 1000].reshape(-1, 1000)
    slope = prox.slope(jnp.linspace(1.0, 0.1, entries))
    cases = {
        "simplex": (prox.simplex(), x),
        "l1_ball": (prox.l1_ball(100.0), x),
        "linf": (prox.linf(100.0), x),
        "sef, k = n / 100": (prox.sef(entries // 100), x),
        "wgsef of columns": (prox.wgsef(100, axis=0), matrix),
        "wgsef of labels": (prox.wgsef(100, groups=groups), x),
        "group_lasso of columns": (prox.group_lasso(0.5, axis=0), matrix),
        "group_lasso of labels": (prox.group_lasso(0.5, groups=groups), x),
        "hard_k, k = n / 100": (prox.hard_k(entries // 100), x),
        "nm 2:4": (prox.nm(2, 4), matrix[: matrix.shape[0] // 4 * 4]),
        "exclusive_lasso of columns": (prox.exclusive_lasso(0.5, axis=0), matrix),
        "slope": (slope, x),
        "total_variation": (prox.total_variation(0.5), x[: entries // 10]),
    }
    sort = jax.jit(jnp.sort)
    rows = []
    for name, (penalty, v) in cases.items():
        calls = {
            "sort": lambda v=v: sort(v.reshape(-1)),
            "prox": lambda p=penalty, v=v: solve(p, v),
        }
        best = kernels.measure(calls, rounds=3, seconds=0.05)
        rows.append([name, f"{1e3 * best['prox']:.1f}", f"{best['prox'] / best['sort']:.2f}"])
    title = f"vectors, {entries:,} float32 (total variation a tenth), against a sort of the same"
    return table_of(title, ["operator", "ms", "times a sort"], rows)


def pyproximal_cases(x: np.ndarray) -> dict[str, tuple[Callable, prox.Penalty]]:
    pp = importlib.import_module("pyproximal")
    n = x.size
    return {
        "l1": (lambda: pp.L1(0.5).prox(x, 1.0), prox.l1(0.5)),
        "l0": (lambda: pp.L0(0.5).prox(x, 1.0), prox.l0(0.5)),
        "scad": (lambda: pp.SCAD(0.5).prox(x, 1.0), prox.scad(0.5)),
        "log_sum": (lambda: pp.Log(0.5, 1.3).prox(x, 1.0), prox.log_sum(0.5)),
        "exponential": (lambda: pp.ETP(0.5, 1.0).prox(x, 1.0), prox.exponential(0.5)),
        "geman": (lambda: pp.Geman(0.5, 1.3).prox(x, 1.0), prox.geman(0.5, 1.3)),
        "cel0": (lambda: pp.QuadraticEnvelopeCard(0.5).prox(x, 1.0), prox.cel0(0.5)),
        "simplex": (lambda: pp.Simplex(n, 1.0).prox(x, 1.0), prox.simplex()),
        "l1_ball": (lambda: pp.L1Ball(n, 100.0).prox(x, 1.0), prox.l1_ball(100.0)),
    }


def skglm_cases(x: np.ndarray) -> dict[str, tuple[Callable, prox.Penalty]]:
    f = importlib.import_module("skglm.utils.prox_funcs")
    penalties = importlib.import_module("skglm.penalties")
    numba = importlib.import_module("numba")
    x = x.astype(np.float64)

    def over(one: Callable, *numbers: float) -> Callable:
        @numba.njit
        def loop(x):
            out = np.empty_like(x)
            for i in range(x.size):
                out[i] = one(x[i], *numbers)
            return out

        return lambda: loop(x)

    strengths = np.linspace(1.0, 0.1, x.size)
    return {
        "l1": (over(f.ST, 0.5), prox.l1(0.5)),
        "mcp": (over(f.prox_MCP, 1.0, 0.5, 3.0), prox.mcp(0.5)),
        "scad": (over(f.prox_SCAD, 1.0, 0.5, 3.7), prox.scad(0.5)),
        "l_half": (over(f.prox_05, 0.5), prox.l_half(0.5)),
        "l_two_thirds": (over(f.prox_2_3, 0.5), prox.l_two_thirds(0.5)),
        "log_sum": (over(f.prox_log_sum, 0.5, 1.0), prox.log_sum(0.5)),
        # prox_SLOPE alone expects sorted moduli.
        "slope": (lambda: penalties.SLOPE(strengths).prox_vec(x, 1.0), prox.slope(strengths)),
    }


def scico_cases(x: np.ndarray) -> dict[str, tuple[Callable, prox.Penalty]]:
    sf = importlib.import_module("scico.functional")
    v = jnp.asarray(x)
    run = lambda f: jax.jit(lambda v: f.prox(v, 0.5))  # noqa: E731
    return {
        "l1": (lambda r=run(sf.L1Norm()): r(v), prox.l1(0.5)),
        "l0": (lambda r=run(sf.L0Norm()): r(v), prox.l0(0.5)),
        "huber": (lambda r=run(sf.HuberNorm(1.0)): r(v), prox.huber(0.5)),
        "l2": (lambda r=run(sf.L2Norm()): r(v), prox.l2(0.5)),
        "l1_minus_l2": (lambda r=run(sf.L1MinusL2Norm()): r(v), prox.l1_minus_l2(0.5)),
    }


def peer_table(name: str, cases: Callable, entries: int) -> Table:
    """The time of a library over ours, operator by operator."""
    x = np.random.default_rng(2).normal(size=entries).astype(np.float32)
    v = jnp.asarray(x)
    rows = []
    for operator, (theirs, penalty) in cases(x).items():
        calls = {"theirs": theirs, "ours": lambda p=penalty: solve(p, v)}
        best = kernels.measure(calls, rounds=3, seconds=0.05)
        ratio = best["theirs"] / best["ours"]
        row = [operator, *(f"{1e3 * best[name]:.2f}" for name in calls), f"{ratio:.2f}"]
        rows.append([*row, ratio >= 1])
    columns = ["operator", f"{name} ms", "sparsejax ms", "times faster"]
    return table_of(f"{name}, {entries:,} entries", columns, rows)


def main(quick: bool = False, entries: int = 10_000_000) -> None:
    entries = min(entries, 1_000_000) if quick else entries
    tables = [elementwise_table(entries, 2 if quick else 5), vector_table(entries // 10)]
    for name, cases in (
        ("pyproximal", pyproximal_cases),
        ("skglm", skglm_cases),
        ("scico", scico_cases),
    ):
        try:
            tables.append(peer_table(name, cases, entries // 10))
        except Exception as error:  # a library may be missing, or refuse this JAX
            missing = isinstance(error, ModuleNotFoundError)
            print(f"{name}: {'not installed' if missing else error}")
    save("prox", *tables, quick=quick, seed=(0, 1, 2))
