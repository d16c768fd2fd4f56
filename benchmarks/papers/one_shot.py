"""One-shot pruning of a trained sentence encoder: SparseGPT, Wanda and magnitude.

    python -m benchmarks one_shot

all-MiniLM-L6-v2 is pruned to 50 % without training. Calibration: sentences of half of Python's
help topics. Test: sentences of the other half: the cosine of each sentence vector to that of the
dense model, and the rank correlation of all pairs' similarities with those of the dense model.
"""

import pydoc_data.topics
import re

import jax
import numpy as np
from flax import nnx
from scipy.stats import spearmanr

import sparsejax as sj
from benchmarks._report import save, table_of
from sparsejax.masks import apply_masks, magnitude, wanda
from sparsejax.patterns import FanIn
from sparsejax.recipes import sparsegpt

KERNELS = r"layers/.*kernel$"
PATTERNS = {
    "50 %, any entries": (sj.Unstructured(0.5), FanIn(0.5, rounding="down")),
    "2:4": (sj.NM(2, 4), sj.NM(2, 4)),
    "4:8": (sj.NM(4, 8), sj.NM(4, 8)),
    "blocks of 16 x 16, 50 %": (sj.Block((16, 16), 0.5), sj.Block((16, 16), 0.5)),
}


def sentences() -> tuple[list[str], list[str]]:
    """Sentences of 40 to 300 characters, of every other topic."""
    halves: tuple[list[str], list[str]] = ([], [])
    for i, (_, text) in enumerate(sorted(pydoc_data.topics.topics.items())):
        flat = re.sub(r"\s+", " ", text)
        found = [s for s in re.split(r"(?<=[.!?]) ", flat) if 40 <= len(s) <= 300]
        halves[i % 2].extend(found[:24])
    return halves


def batches_of(tokenize, texts, size=32):
    ordered = sorted(texts, key=len)
    return [tokenize(ordered[i : i + size]) for i in range(0, len(ordered) - size + 1, size)]


def main(quick: bool = False) -> None:
    patterns = dict(list(PATTERNS.items())[:1]) if quick else PATTERNS
    model, tokenize = sj.models.minilm()
    calibration, test = (batches_of(tokenize, texts) for texts in sentences())
    if quick:
        calibration, test = calibration[::6], test[::6]
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params = nnx.as_pure(params)
    call = lambda model, batch: model(*batch)  # noqa: E731
    grams = sj.nn.input_grams(model, calibration, call)

    @jax.jit
    def embed(params, batch):
        return nnx.merge(graphdef, params, rest)(*batch)

    def vectors(params):
        return np.concatenate([embed(params, batch) for batch in test])

    dense = vectors(params)
    upper = np.triu_indices(len(dense), 1)

    def agreement(pruned):
        found = vectors(pruned)
        pairs = [(v @ v.T)[upper] for v in (dense, found)]
        return float(np.mean(np.sum(dense * found, 1))), float(spearmanr(*pairs)[0])

    rows, ordered = [], {}
    for name, (pattern, per_output) in patterns.items():
        plan = sj.plan(params, {KERNELS: pattern})
        fan_in = sj.plan(params, {KERNELS: per_output})
        found = {
            "magnitude": apply_masks(params, plan.masks(magnitude(params))),
            "Wanda": apply_masks(params, fan_in.masks(wanda(params, grams, fan_in))),
            "SparseGPT": sparsegpt(params, grams, plan)[0],
        }
        for method, pruned in found.items():
            cosine, rank = agreement(pruned)
            zeros = [np.mean(x == 0) for x in jax.tree.leaves(pruned["layers"]) if x.ndim == 2]
            ordered[name, method] = cosine, rank
            rows.append([name, method, f"{np.mean(zeros):.3f}", f"{cosine:.4f}", f"{rank:.4f}"])
    columns = ["pattern", "method", "zeros", "cosine to dense", "rank correlation"]
    title = f"all-MiniLM-L6-v2, {len(dense)} sentences, no training"
    claims = [
        [f"{name}: SparseGPT >= Wanda >= magnitude", _falls(ordered, name)] for name in patterns
    ]
    tables = table_of(title, columns, rows), table_of("order", ["claim"], claims)
    save("one-shot", *tables, quick=quick)


def _falls(ordered, name) -> bool:
    methods = ("SparseGPT", "Wanda", "magnitude")
    return all(
        ordered[name, a][i] >= ordered[name, b][i]
        for a, b in zip(methods, methods[1:])
        for i in (0, 1)
    )
