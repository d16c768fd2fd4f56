"""One-shot pruning of a language model: magnitude, Wanda, SparseGPT in one pass and in sequence.

    python -m benchmarks one_shot_llm

All 210 kernels of SmolLM2-135M-Instruct lose half of their entries without training. Calibration:
512 tokens of each of 8 of Python's help topics. Test: the perplexity of 512 tokens of six others.
The times are those of one run: in one pass all Gram matrices are collected before anything is
pruned; in sequence each layer of the network is pruned on what the pruned layers before it give.
"""

import time
from pydoc_data.topics import topics

import jax
import numpy as np
from flax import nnx

import sparsejax as sj
from benchmarks._report import save, table_of
from sparsejax.masks import apply_masks, magnitude, wanda
from sparsejax.patterns import FanIn

TEST = ("context-managers", "slicings", "booleans", "integers", "assert", "typesmodules")
CALIBRATION = (
    "specialnames", "compound", "objects", "types", "formatstrings", "import", "function", "class",
)  # fmt: skip
PATTERNS = {
    "50 %": (sj.Unstructured(0.5), FanIn(0.5, rounding="down")),
    "2:4": (sj.NM(2, 4), sj.NM(2, 4)),
}


def main(quick: bool = False) -> None:
    model, tokenizer = sj.models.smollm2()
    length, count = (128, 2) if quick else (512, 8)
    # Quick: the first two layers only.
    rule = r"layers/[01]/.*kernel$" if quick else r"layers/.*kernel$"
    tokens = lambda names: tokenizer.encode("\n".join(topics[n] for n in names)).ids  # noqa: E731
    batches = [np.array([tokens([name])[:length]]) for name in CALIBRATION[:count]]
    text = tokens(TEST)[:length]
    perplexity = lambda: sj.models.perplexity(model, text, window=length)  # noqa: E731
    dense_params = nnx.as_pure(nnx.state(model, nnx.Param))
    dense = perplexity()

    rows, found = [["dense", "", f"{dense:.2f}", ""]], {}
    for name, (pattern, per_output) in PATTERNS.items():
        plan = sj.plan(model, {rule: pattern})
        fan_in = sj.plan(model, {rule: per_output})
        start = time.perf_counter()
        grams = sj.nn.input_grams(model, batches)
        jax.block_until_ready(grams)
        collected = time.perf_counter() - start

        methods = {
            "magnitude": lambda p: apply_masks(dense_params, p.masks(magnitude(dense_params))),
            "Wanda": lambda p, g=grams: apply_masks(
                dense_params, p.masks(wanda(dense_params, g, p))
            ),
            "SparseGPT": lambda p, g=grams: sj.recipes.sparsegpt(dense_params, g, p)[0],
            "SparseGPT in sequence": lambda p: (
                sj.recipes.sequential_prune(model, batches, p, progress=True).params
            ),
        }
        for method, prune in methods.items():
            start = time.perf_counter()
            pruned = jax.block_until_ready(prune(fan_in if method == "Wanda" else plan))
            seconds = time.perf_counter() - start
            if method in ("Wanda", "SparseGPT"):
                seconds += collected
            nnx.update(model, pruned)
            found[name, method] = perplexity(), seconds
            nnx.update(model, dense_params)
            value, seconds = found[name, method]
            rows.append([name, method, f"{value:.2f}", f"{seconds:.0f}"])
            print(*rows[-1], flush=True)
    columns = ["pattern", "method", "perplexity", "seconds"]
    title = f"SmolLM2-135M, {count} x {length} tokens of calibration, {length} of test"
    claims = []
    for name in PATTERNS:
        values = [
            found[name, m][0] for m in ("SparseGPT in sequence", "SparseGPT", "Wanda", "magnitude")
        ]
        claims.append(
            [f"{name}: in sequence < SparseGPT < Wanda < magnitude", values == sorted(values)]
        )
        ratio = found[name, "SparseGPT in sequence"][1] / found[name, "SparseGPT"][1]
        claims.append(
            [f"{name}: in sequence takes {ratio:.2f} of the time of one pass", ratio <= 1.5]
        )
    save(
        "one-shot-llm",
        table_of(title, columns, rows),
        table_of("claims", ["claim"], claims),
        quick=quick,
    )
