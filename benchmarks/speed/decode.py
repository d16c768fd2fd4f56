"""Decoding with activation sparsity on a CPU: products of one token, and a whole language model.

    python -m benchmarks decode
    python -m benchmarks decode --part products    or models

Products: R contracts over the inputs in use, E computes the outputs in use, each over
`jnp.matmul(x, W)` of the same dtype in the same run. The matrices of a cell fill 96 MB and the sets
change from call to call, so that weights come from memory as in a model. Goal: 0.8 / density, 5 at
density 0.1; ! marks what is below. int8 is compared with bfloat16, since XLA has no such product;
its bfloat16 product of one token is so slow on a CPU that these ratios say little.

Models: tokens per second of SmolLM2-135M behind a prompt of 32 tokens, one at a time, without the
time to read the prompt, with the perplexity of 512 other tokens. WINA (thresholds from two help
topics of Python) gates all linear layers but the head, CATS the neurons of the feed-forward
networks; both run by `fast_decoder`, which reads the rows of kernels in use and makes few calls.
CSparse keeps half of the neurons for the prompt; Sirius corrects it. "Over dense" compares with the
model as XLA runs it, "over the same ungated" with the fused decoder of the same weights and head.
Pruned models have magnitude masks: the perplexity says nothing of what pruning can do (see
one_shot_llm), the speed is of the format.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

import sparsejax as sj
from benchmarks._report import save, table_of
from sparsejax.contrib import activation_sparsity as gated

SHAPES = ((576, 1536), (1536, 576), (576, 576), (576, 49152), (4096, 11008))
DENSITIES = (0.1, 0.2, 0.3, 0.5)
DTYPES = ("float32", "bfloat16", "int8")
TEST = ("context-managers", "slicings", "booleans", "integers", "assert", "typesmodules")
SIRIUS = "CSparse 50%, Sirius"
CALIBRATION = ("specialnames", "compound")


def goal(density: float) -> float:
    """Speed over dense."""
    return min(0.8 / density, 5.0)


def cell(k: int, n: int, dtype: str, rounds: int) -> dict[str, float]:
    """Speed over dense by product and density."""
    rng = np.random.default_rng(0)
    stored = jnp.bfloat16 if dtype == "int8" else jnp.dtype(dtype)
    count = max(1, min(30, int(96e6 / (k * n * jnp.dtype(stored).itemsize))))
    dense = [jnp.asarray(rng.normal(size=(k, n)) / 30, stored) for _ in range(count)]
    by_output = [w.T for w in dense]
    skipping = [sj.formats.Skipping(w) for w in dense]
    if dtype == "int8":
        skipping = [sj.formats.Skipping.quantized(w) for w in dense]
        by_output = [sj.formats.Skipping.quantized(w).values for w in by_output]
    x = jnp.asarray(rng.normal(size=(1, k)), stored)

    def looped(f: Callable[..., Any]) -> Callable[..., Any]:
        """All matrices in one program, with a set for each."""
        return jax.jit(lambda x, ws, sets: sum(
            f(x * (1 + i), w, s).astype(jnp.float32) for i, (w, s) in enumerate(zip(ws, sets))
        ))  # fmt: skip

    product = looped(lambda x, w, s: x @ w)
    reduce = looped(lambda x, w, s: jnp.where(s, x, 0) @ w)
    expand = looped(lambda x, w, s: sj.kernels.active_expand(x, w, s, implementation="native"))
    calls = {"dense": lambda: product(x, dense, [None] * count)}
    for d in DENSITIES:
        masks = [[jnp.asarray(rng.permutation(k) < d * k) for _ in dense] for _ in range(4)]
        sets = [
            [
                sj.select.ActiveSet.from_mask(
                    jnp.asarray(rng.permutation(n) < d * n), int(np.ceil(d * n))
                )
                for _ in dense
            ]
            for _ in range(4)
        ]  # fmt: skip
        masks, sets = itertools.cycle(masks), itertools.cycle(sets)
        calls[f"R {d}"] = lambda masks=masks: reduce(x, skipping, next(masks))
        calls[f"E {d}"] = lambda sets=sets: expand(x, by_output, next(sets))
    best = sj.kernels.measure(calls, rounds, seconds=0.02)
    ratios = {name: best["dense"] / seconds for name, seconds in best.items()}
    return ratios | {"dense": best["dense"] / count}


def products(quick: bool) -> Table:
    """The table of products."""
    table = Table(
        title="Products of one token, speed over dense",
        caption="Goal: 0.8 / density, 5 at 0.1; ! marks what is below.",
    )
    columns = (
        "shape",
        "dtype",
        "dense us",
        *(f"{p} {d}" for p in "RE" for d in DENSITIES),
    )
    for column in columns:
        table.add_column(column, justify="right")
    for k, n in SHAPES[:1] if quick else SHAPES:
        for dtype in DTYPES[:1] if quick else DTYPES:
            found = cell(k, n, dtype, 3 if quick else 15)
            cells = [
                f"{found[f'{p} {d}']:.2f}{'!' if found[f'{p} {d}'] < goal(d) else ''}"
                for p in "RE"
                for d in DENSITIES
            ]
            table.add_row(f"{k} x {n}", dtype, f"{found['dense'] * 1e6:.0f}", *cells)
            print(k, n, dtype, *cells, flush=True)
    return table


def pruned(model: Any) -> dict[str, Any]:
    """Compressed kernels of all layers: N:M and blocks, by magnitude."""
    patterns = {
        "2:4": sj.NM(2, 4), "1:4": sj.NM(1, 4), "blocks of 32, 75 %": sj.Block(32, 0.75)
    }  # fmt: skip
    plans = {name: sj.plan(model, {r"layers/.*kernel$": p}) for name, p in patterns.items()}
    return {name: sj.compress(model, plan) for name, plan in plans.items()}


def gated_models(model: Any, batches: list[Any], quick: bool) -> dict[str, tuple[Any, str]]:
    """Decoders by name, each with the ungated one of the same weights and head."""
    made = {"fused": (gated.fast_decoder(model), "dense")}
    counts = gated.input_counts(model, batches[:1] if quick else batches)
    for sparsity in (0.5,) if quick else (0.25, 0.4, 0.5, 0.65):
        gates = gated.input_gates(model, sparsity, counts)
        made[f"WINA {sparsity:.0%}"] = gated.fast_decoder(model, gates), "fused"
    if quick:
        return made
    taps = sj.nn.replace(gated.skip_inputs(model), gated.input_gates(model, 0.5, counts))
    made["WINA 50%, not fused"] = taps, "fused"
    half = lambda gates=None, **how: gated.fast_decoder(  # noqa: E731
        model, gates, head=jnp.bfloat16, **how
    )
    made["fused, bfloat16 head"] = half(), "dense"
    made["fused, int8, bfloat16 head"] = half(int8=True), "dense"
    for sparsity in (0.5, 0.65):
        gates, name = gated.input_gates(model, sparsity, counts), f"WINA {sparsity:.0%}"
        made[f"{name}, bfloat16 head"] = half(gates), "fused, bfloat16 head"
        made[f"{name}, int8, bfloat16 head"] = half(gates, int8=True), "fused, int8, bfloat16 head"
    gates = gated.activation_gates(model, 0.5, gated.activation_counts(model, batches))
    made["CATS 50%"] = gated.fast_decoder(model, gates), "fused"
    return made


def models(quick: bool) -> Iterator[Table]:
    """The table of whole models, then what the chooser picks."""
    model, tokenizer = sj.models.smollm2()
    tokens = lambda names: tokenizer.encode("\n".join(topics[n] for n in names)).ids  # noqa: E731
    text, prompt = tokens(TEST)[:512], tokens(["class"])[:32]
    batches = [np.array([tokens([name])[:512]]) for name in CALIBRATION]
    made = {"dense": (model, "dense")} | gated_models(model, batches, quick)
    coarse = gated.coarse_sparse(model, prompt, 0.5)
    made["CSparse 50%"] = gated.fast_decoder(coarse), "fused"
    if not quick:
        made |= {name: (m, "dense") for name, m in pruned(model).items()}
    steps = 8 if quick else 48
    run = {
        name: lambda stop=(-1,), m=m: sj.models.generate(m, [prompt], steps + 1, stop=stop)
        for name, (m, _) in made.items()
    }
    fused = made["fused"][0], made["CSparse 50%"][0]
    run[SIRIUS] = lambda: gated.corrected_generate(*fused, prompt, steps + 1, period=8)
    reads: dict[str, Callable[[], Any]] = {}
    for name, call in run.items():
        text_of = call()
        if name != SIRIUS:  # the same program, which stops at its first token
            reads[name] = lambda call=call, first=text_of[0][0]: call(stop=(first,))
        print(name, "compiled", flush=True)
    whole, read = (dict.fromkeys(calls, float("inf")) for calls in (run, reads))
    for _ in range(2 if quick else 6):
        for calls, least in ((run, whole), (reads, read)):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                least[name] = min(least[name], time.perf_counter() - start)
    read[SIRIUS] = read["fused"] + read["CSparse 50%"]
    best = {name: whole[name] - read[name] for name in run}
    goals, rows = {"WINA 50%": 1.5, "WINA 65%": 2.0}, []
    for name in run:
        m, same = made.get(name, (None, "fused"))
        ratio = best["dense"] / best[name]
        quality = "" if quick or m is None else f"{sj.models.perplexity(m, text):.2f}"
        cells = [f"{steps / best[name]:.1f}", f"{ratio:.2f}", f"{best[same] / best[name]:.2f}"]
        rows.append([name, *cells, quality, ratio >= goals.get(name, 0)])
        print(*rows[-1], flush=True)
    length = gated.corrected_generate(*fused, prompt, steps, period=8).advance_length
    yield table_of(
        "SmolLM2-135M, one token at a time",
        ["setting", "tokens per second", "over dense", "over the same ungated", "perplexity"], rows,
        f"Goals: WINA 50% 1.5 times dense, 65% twice. Sirius: period 8, AAL {length:.2f}, the text "
        "of the full model where it accepts only its own tokens.",
    )  # fmt: skip
    picked, names = [], [name for name in made if name != "dense"]
    del run, reads, calls, call, fused, coarse, m
    for name in names:  # a model at a time: all of them and their programs take 24 GB
        jax.clear_caches()
        choice = gated.choose_decoder(model, {name: made.pop(name)[0]}, prompt, steps=8, rounds=3)
        ratio = choice.speeds[choice.name] / choice.speeds["dense"]
        picked.append([name, choice.name, f"{ratio:.2f}", bool(ratio >= 0.95)])
    yield table_of(
        "What the chooser picks", ["candidate", "picked", "over dense"], picked,
        "Goal: no picked setting below 0.95 times dense.",
    )  # fmt: skip


def main(quick: bool = False, part: str = "all") -> None:
    if part in ("all", "models"):
        tables = []
        for table in models(quick):  # the first is kept if the second fails
            tables.append(table)
            save("decode-cpu", *tables, quick=quick, seed=0)
    if part in ("all", "products"):
        save("decode-products-cpu", products(quick), quick=quick, seed=0)
