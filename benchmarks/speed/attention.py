"""Attention over lists of key blocks on a CPU, over dense causal attention in the same run.

    python -m benchmarks attention

One head of width 64, blocks of 64 x 64, at random below the diagonal, which is always listed; the
lists hold about the same share of the causal blocks in each row. Dense is the faster of
`jax.nn.dot_product_attention(is_causal=True)` and of the dense implementation of the library. A
ratio above 1 means that the lists are faster. The second table decodes one token over pages of 16.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

import sparsejax as sj
from benchmarks._report import save
from sparsejax.kernels import KeyBlocks, block_sparse_attention, paged_attention

WIDTH, BLOCK, PAGE = 64, 64, 16
LENGTHS = (128, 512, 2048, 4096, 8192, 16384)
DENSITIES = (0.1, 0.25, 0.5, 1.0)
GOALS = {0.1: 5.0, 0.25: 2.5}  # from 2048 tokens on; 0.95 elsewhere
DTYPES = {"float32": (jnp.float32, 1e-5), "bfloat16": (jnp.bfloat16, 2e-2)}


def lists(n: int, density: float, rng: np.random.Generator) -> KeyBlocks:
    """This share of the blocks of each row, the diagonal among them."""
    blocks = -(-n // BLOCK)
    mask = np.zeros((blocks, blocks), bool)
    for i in range(blocks):
        mask[i, rng.permutation(i)[: max(round(density * (i + 1)), 1) - 1]] = True
    return KeyBlocks.from_mask(mask, (BLOCK, BLOCK))


def dense(q: Any, k: Any, v: Any) -> Any:
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def bytes_of(f: Any, *arguments: Any) -> int:
    """Temporary memory of the compiled program."""
    return f.lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def compare(n: int, dtype: Any, densities: Any, rounds: int) -> tuple[list[float], float, Any]:
    """Time of dense over that of the lists, relative difference, and memory of both."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(n, 1, WIDTH)), dtype) for _ in range(3))
    run = jax.jit(block_sparse_attention)
    all_scores = jax.jit(lambda *a: block_sparse_attention(*a, implementation="dense"))
    blocks = {d: lists(n, d, rng) for d in densities}
    plain = jax.jit(dense)
    calls = {d: lambda b=b: run(q, k, v, b) for d, b in blocks.items()}
    calls |= {"jax": lambda: plain(q, k, v), "masked": lambda: all_scores(q, k, v, blocks[1.0])}
    best = sj.kernels.measure(calls, rounds, seconds=0.05)
    base = min(best["jax"], best["masked"])
    want = np.asarray(plain(q, k, v), np.float64)
    got = np.asarray(run(q, k, v, blocks[1.0]), np.float64)
    memory = bytes_of(run, q, k, v, blocks[1.0]), bytes_of(plain, q, k, v)
    return (
        [base / best[d] for d in densities],
        np.linalg.norm(got - want) / np.linalg.norm(want),
        memory,
    )


def prefill(name: str, lengths: Any, rounds: int) -> Table:
    dtype, _ = DTYPES[name]
    table = Table(title=f"Causal attention, {name}: density of the pairs", caption="")
    for column in ("tokens", *(f"{d:.0%}" for d in DENSITIES), "MB", "MB dense"):
        table.add_column(column, justify="right")
    worst = 0.0
    for n in lengths:
        ratios, error, memory = compare(n, dtype, DENSITIES, rounds)
        worst = max(worst, error)
        cells = []
        for density, ratio in zip(DENSITIES, ratios):
            goal = GOALS.get(density, 0.95) if n >= 2048 else 0.95
            cells.append(f"{ratio:.2f}{'!' if ratio < goal else ''}")
        table.add_row(str(n), *cells, *(f"{m / 2**20:.1f}" for m in memory))
        print(name, n, *cells, flush=True)
    table.caption = (
        "Goals from 2048 tokens on: 5 at 10 %, 2.5 at 25 %; 0.95 elsewhere; ! marks what is below. "
        f"Temporary memory of the compiled programs. Largest relative difference: {worst:.0e}."
    )
    return table


def decode(lengths: Any, rounds: int) -> Table:
    """One token of 8 heads in 2 groups over all pages, and over 1024 tokens of them."""
    table = Table(title="One token, 8 heads, 2 key heads, float32: pages of 1024 tokens over all")
    for column in ("tokens", "ratio"):
        table.add_column(column, justify="right")
    rng = np.random.default_rng(0)
    for n in lengths:
        k, v = (jnp.asarray(rng.normal(size=(n, 2, WIDTH)), jnp.float32) for _ in range(2))
        q = jnp.asarray(rng.normal(size=(8, WIDTH)), jnp.float32)
        count = min(1024, n) // PAGE
        index = np.stack([np.sort(rng.permutation(n // PAGE)[:count]) for _ in range(2)])
        pages = KeyBlocks(
            jnp.asarray(index[:, None], jnp.int32), jnp.full((2, 1), count), (1, PAGE)
        )
        run, plain = jax.jit(paged_attention), jax.jit(dense_step)
        best = sj.kernels.measure(
            {"pages": lambda: run(q, k, v, pages, n), "dense": lambda: plain(q, k, v)},  # noqa: B023
            rounds, seconds=0.05,
        )  # fmt: skip
        table.add_row(str(n), f"{best['dense'] / best['pages']:.2f}")
    table.caption = "A ratio above 1 means that the pages are faster."
    return table


def dense_step(q: Any, k: Any, v: Any) -> Any:
    return jax.nn.dot_product_attention(q[None], k, v)


def main(quick: bool = False) -> None:
    lengths, rounds = ((128, 2048), 2) if quick else (LENGTHS, 5)
    tables = [prefill(name, lengths, rounds) for name in (["float32"] if quick else DTYPES)]
    save("attention-cpu", *tables, decode(lengths[1:], rounds), quick=quick, seed=0)
