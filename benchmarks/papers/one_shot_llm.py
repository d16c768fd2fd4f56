"""One-shot pruning of a language model: magnitude, Wanda, SparseGPT in one pass and in sequence.

    python -m benchmarks one_shot_llm

All 210 kernels of SmolLM2-135M-Instruct lose half of their entries without training. Calibration:
512 tokens of each of 4 of Python's help topics for single entries, of 8 for 2:4. Test: the
perplexity of 512 tokens of six others. The times are those of one run: in one pass all Gram
matrices are collected before anything is pruned; in sequence each layer of the network is pruned
on what the pruned layers before it give. They include compilation. Processor time, of all threads,
is compared, since other programs may share the machine.
"""

import time
from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Any

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
# The pattern, that of Wanda, which compares the inputs of each output, and the number of texts.
PATTERNS = {
    "50 %": (sj.Unstructured(0.5), FanIn(0.5, rounding="down"), 4),
    "2:4": (sj.NM(2, 4), sj.NM(2, 4), 8),
}


def timed(f: Callable[[], Any]) -> tuple[Any, np.ndarray]:
    """The result of a function; its seconds, and those of all processors."""
    clock = lambda: np.array([time.perf_counter(), time.process_time()])  # noqa: E731
    start = clock()
    return jax.block_until_ready(f()), clock() - start


def main(quick: bool = False) -> None:
    model, tokenizer = sj.models.smollm2()
    length, most = (128, 2) if quick else (512, 8)
    # Quick: the first two layers only.
    rule = r"layers/[01]/.*kernel$" if quick else r"layers/.*kernel$"
    tokens = lambda names: tokenizer.encode("\n".join(topics[n] for n in names)).ids  # noqa: E731
    texts = [np.array([tokens([name])[:length]]) for name in CALIBRATION[:most]]
    text = tokens(TEST)[:length]
    perplexity = lambda: sj.models.perplexity(model, text, window=length)  # noqa: E731
    dense_params = nnx.as_pure(nnx.state(model, nnx.Param))
    dense = perplexity()

    rows, found = [["dense", "", "", f"{dense:.2f}", "", ""]], {}
    for name, (pattern, per_output, count) in PATTERNS.items():
        batches = texts[:count]
        plan = sj.plan(model, {rule: pattern})
        fan_in = sj.plan(model, {rule: per_output})
        grams, collected = timed(lambda b=batches: sj.nn.input_grams(model, b))

        methods = {
            "magnitude": lambda p: apply_masks(dense_params, p.masks(magnitude(dense_params))),
            "Wanda": lambda p, g=grams: apply_masks(
                dense_params, p.masks(wanda(dense_params, g, p))
            ),
            "SparseGPT": lambda p, g=grams: sj.recipes.sparsegpt(dense_params, g, p)[0],
            "SparseGPT in sequence": lambda p, b=batches: (
                sj.recipes.sequential_prune(model, b, p, progress=True).params
            ),
        }
        for method, prune in methods.items():
            planned = fan_in if method == "Wanda" else plan
            pruned, seconds = timed(lambda f=prune, p=planned: f(p))
            if method in ("Wanda", "SparseGPT"):
                seconds = seconds + collected
            nnx.update(model, pruned)
            found[name, method] = perplexity(), seconds
            nnx.update(model, dense_params)
            value, seconds = found[name, method]
            used = f"{len(batches)} x {length}"
            rows.append([name, method, used, f"{value:.2f}", *(f"{s:.0f}" for s in seconds)])
            print(*rows[-1], flush=True)
    columns = [
        "pattern",
        "method",
        "calibration tokens",
        "perplexity",
        "seconds",
        "processor seconds",
    ]
    title = f"SmolLM2-135M, perplexity of {length} tokens"
    claims = []
    for name in PATTERNS:
        values = [
            found[name, m][0] for m in ("SparseGPT in sequence", "SparseGPT", "Wanda", "magnitude")
        ]
        claims.append(
            [f"{name}: in sequence < SparseGPT < Wanda < magnitude", values == sorted(values)]
        )
        ratio = found[name, "SparseGPT in sequence"][1] / found[name, "SparseGPT"][1]
        text = f"{name}: in sequence takes {ratio[1]:.2f} of the processor time of one pass"
        claims.append([f"{text}, {ratio[0]:.2f} of the seconds", bool(ratio[1] <= 1.5)])
    save(
        "one-shot-llm",
        table_of(title, columns, rows),
        table_of("claims", ["claim"], claims),
        quick=quick,
    )
