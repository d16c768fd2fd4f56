"""WINA and TEAL, with and without the rotation, on a language model of characters.

    python -m benchmarks wina

Perplexity of 8192 validation characters when each projection keeps a fixed share of its inputs,
without training (2505.19427). CATS drops neurons, so that its numbers compare with none of the
others.
"""

import jax
import numpy as np

import sparsejax as sj
from benchmarks._report import save, table_of
from benchmarks.papers._char_lm import mean_loss, text, trained, windows
from sparsejax.contrib import activation_sparsity as gated

SPARSITIES = (0.25, 0.4, 0.5, 0.65)
METHODS = ("TEAL", "WINA", "TEAL, rotated", "WINA key and gate, rotated", "WINA, rotated", "CATS")


def perplexities(model, ids, sparsities) -> dict[str, list[float]]:
    """By method, for each sparsity."""
    rotated = gated.orthogonalize(model)
    gates = {
        "TEAL": (model, None),
        "WINA": (model, ""),
        "TEAL, rotated": (rotated, None),
        "WINA key and gate, rotated": (rotated, r"(key|gate)$"),
        "WINA, rotated": (rotated, ""),
    }

    def run(name, sparsity):
        if name == "CATS":
            taps = gated.activation_gates(model, sparsity)
            return sj.nn.replace(model, taps)
        on, weighted = gates[name]
        taps = gated.input_gates(on, sparsity, weighted=weighted, dense_prefix=0.0)
        return sj.nn.replace(on, taps)

    return {
        name: [float(np.exp(mean_loss(run(name, s), ids))) for s in sparsities] for name in METHODS
    }


def ordered(found: dict[str, list[float]]) -> bool:
    """WINA rotated below TEAL rotated below TEAL, at each sparsity, for both kinds of weights."""
    rows = (found[name] for name in ("WINA, rotated", METHODS[3], "TEAL, rotated", "TEAL"))
    return all(max(a, b) < c < d for a, b, c, d in zip(*rows))


def main(quick: bool = False) -> None:
    model = list(trained("silu", quick).values())[-1]
    ids = windows(text().validation, 32 if quick else 128)
    sparsities = SPARSITIES[1:3] if quick else SPARSITIES
    found = perplexities(model, ids, sparsities)
    rows = [[name, *(f"{x:.3f}" for x in values)] for name, values in found.items()]
    dense = float(np.exp(jax.block_until_ready(mean_loss(model, ids))))
    title = f"Perplexity by sparsity, dense {dense:.3f}"
    first = table_of(title, ["method", *(f"{s:.0%}" for s in sparsities)], rows)
    claim = ["rotated WINA < rotated TEAL < TEAL at each sparsity", str(ordered(found))]
    save("wina", first, table_of("Claims", ["claim", "holds"], [[*claim, ordered(found)]]),
         quick=quick, seed=0)  # fmt: skip
