"""Matrix nuclear norm against nuclear norm and matrix entropy: cost, fidelity, layers of models.

    python -m benchmarks hidden_states

Cost: one text of n tokens in d dimensions, float32. The released entropy (2410.10672) takes the SVD
of the d x d covariance; that of sparsejax the eigenvalues of the smaller Gram matrix. Fidelity:
Spearman's rank correlation over 60 random matrices 96 x 128, the range of several seeds. Models:
means of the hidden states of Python's help texts, layer by layer, and their rank correlations.
"""

from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.stats import spearmanr

import sparsejax as sj
from benchmarks._report import save, table_of
from sparsejax.contrib import hidden_states

SCORES = {
    "MNN": hidden_states.matrix_nuclear_norm,
    "nuclear norm": hidden_states.nuclear_norm,
    "entropy": hidden_states.matrix_entropy,
}
SIZES, COUNT = (96, 128), 60


@jax.jit
def released_entropy(h):
    """The published procedure: covariance, its SVD with vectors, entropy of singular values."""
    r = hidden_states.normalise(h)
    covariance = r.T @ r / len(r)
    e = jnp.linalg.svd(covariance / jnp.trace(covariance))[1]
    return -jnp.nansum(e * jnp.log(e)) / jnp.log(h.shape[1])


def cost(sizes: list[tuple[int, int]], rounds: int) -> tuple[list[list[str]], list[float]]:
    """Milliseconds of each score, and the ratio of the released entropy to MNN at each size."""
    rows, ratios = [], []
    calls = {name: jax.jit(f) for name, f in SCORES.items()} | {"released": released_entropy}
    for n, d in sizes:
        h = jax.random.normal(jax.random.key(d), (n, d))
        assert abs(calls["released"](h) - calls["entropy"](h)) < 1e-4
        timed = sj.kernels.measure(
            {name: lambda f=f, h=h: f(h) for name, f in calls.items()}, rounds, seconds=0.05
        )
        best = [timed[name] for name in calls]
        ratios.append(best[-1] / best[0])
        over = [f"{seconds / best[0]:.1f}" for seconds in best[1:]]
        rows.append([f"{n} x {d}", f"{1e3 * best[0]:.2f}", *over])
    return rows, ratios


def matrices(kind: str, seed: int) -> jax.Array:
    """Random matrices of different spectra: along the axes, or products of low rank."""
    rng, (n, d) = np.random.default_rng(seed), SIZES
    scales = lambda most: np.exp(-rng.uniform(0, most) * np.arange(d) / d)  # noqa: E731
    noise = lambda: rng.normal(size=(n, d))  # noqa: E731

    def product():
        k = rng.integers(1, 60)
        return rng.normal(size=(n, k)) @ rng.normal(size=(k, d)) / np.sqrt(k) + 0.05 * noise()

    make = {
        "along the axes": lambda: noise() * scales(6),
        "low rank": product,
        "low rank, columns decay": lambda: product() * scales(3),
    }[kind]
    return jnp.asarray(np.stack([make() for _ in range(COUNT)]), jnp.float32)


def fidelity(kind: str, seeds: int) -> np.ndarray:
    """Spearman correlations by seed: MNN with the nuclear norm, MNN and that with entropy."""
    many = [jax.jit(jax.vmap(f)) for f in SCORES.values()]
    found = []
    for seed in range(seeds):
        mnn, exact, entropy = (f(matrices(kind, seed)) for f in many)
        found.append(
            [spearmanr(*pair)[0] for pair in ((mnn, exact), (mnn, entropy), (exact, entropy))]
        )
    return np.array(found)


def help_texts(count: int) -> list[str]:
    """Texts of similar length: the scores depend on it."""
    return [text for text in topics.values() if len(text) > 2000][:count]


def minilm_layers(count: int) -> dict[str, dict[str, float]]:
    """Mean scores of the layers of MiniLM."""
    model, tokenize = sj.models.minilm()
    ids, mask = tokenize(help_texts(count))
    run = nnx.jit(lambda model, ids, mask: sj.nn.record(model, r"layers/\d+$", ids, mask)[1])
    return scores_of(lambda ids, mask: run(model, ids, mask), [(ids, mask)], lambda ids, mask: mask)


def smollm2_layers(count: int, length: int = 256) -> dict[str, dict[str, float]]:
    """Mean scores of every fifth layer of SmolLM2, and of its final norm."""
    model, tokenizer = sj.models.smollm2()
    ids = np.array([tokenizer.encode(text).ids[:length] for text in help_texts(count)])
    stream = lambda inputs, y: jax.tree.leaves(y)[0]  # noqa: E731  # layers return a cache, too
    run = nnx.jit(
        lambda model, ids: sj.nn.record(model, r"^layers/\d*[05]$|^norm$", ids, reduce=stream)[1]
    )
    return scores_of(lambda ids: run(model, ids), [ids[i : i + 4] for i in range(0, count, 4)])


def scores_of(apply: Any, batches: list[Any], valid: Any = None) -> dict[str, dict[str, float]]:
    """Each score of each layer."""
    return {
        name: hidden_states.score_dataset(apply, batches, f, valid=valid).mean
        for name, f in SCORES.items()
    }


def table_of_layers(title: str, found: dict[str, dict[str, float]]) -> Any:
    """A row for each layer; the caption holds the rank correlations over layers."""
    number = lambda path: [int(x) if x.isdigit() else x for x in path.split("/")]  # noqa: E731
    paths = sorted(found["MNN"], key=number)
    rows = [[path, *(f"{scores[path]:.4f}" for scores in found.values())] for path in paths]
    mnn, exact, entropy = (list(scores.values()) for scores in found.values())
    pairs = {
        "MNN and nuclear norm": (mnn, exact),
        "MNN and entropy": (mnn, entropy),
        "nuclear norm and entropy": (exact, entropy),
    }
    ranks = ", ".join(f"{name} {spearmanr(*pair)[0]:.2f}" for name, pair in pairs.items())
    caption = f"Spearman over layers: {ranks}"
    return table_of(title, ["layer", *found], rows, caption)


def main(quick: bool = False) -> None:
    sizes = [(64, 96), (128, 192)] if quick else [(256, 384), (256, 768), (512, 1536)]
    times, ratios = cost(sizes, 2 if quick else 3)
    seeds = 2 if quick else 10
    found = {kind: fidelity(kind, seeds)
             for kind in ("along the axes", "low rank", "low rank, columns decay")}  # fmt: skip
    spread = lambda x: f"{x.min():.2f} to {x.max():.2f}"  # noqa: E731
    rows = [[kind, *(spread(c) for c in values.T)] for kind, values in found.items()]
    along, low, decay = (values[:, 0] for values in found.values())
    exact = min(values[:, 2].min() for values in found.values())
    claims = [
        [
            f"released entropy over MNN at d = {sizes[1][1]} (goal: above 8)",
            f"{ratios[1]:.0f}",
            ratios[1] > 8,
        ],
        ["ratio grows with d", ", ".join(f"{x:.0f}" for x in ratios), sorted(ratios) == ratios],
        ["along the axes (goal: at least .85)", f"{along.min():.2f}", along.min() >= 0.85],
        ["low rank (goal: at most -.5)", f"{low.max():.2f}", low.max() <= -0.5],
        ["columns decay (goal: at most .6)", f"{decay.max():.2f}", decay.max() <= 0.6],
        ["nuclear norm and entropy (goal: at least .97)", f"{exact:.2f}", exact >= 0.97],
    ]
    texts = 4 if quick else 24
    tables = [table_of_layers(f"MiniLM, {texts} texts of 256 tokens", minilm_layers(texts))]
    if not quick:
        tables += [table_of_layers("SmolLM2-135M, 8 texts of 256 tokens", smollm2_layers(8))]
    save(
        "hidden-states",
        table_of("Milliseconds of MNN, and times as long",
                 ["n x d", "MNN", "nuclear norm", "entropy, smaller Gram", "entropy, released"],
                 times),
        table_of("Spearman correlations of 60 matrices, range of seeds",
                 ["spectrum", "MNN, nuclear norm", "MNN, entropy", "nuclear norm, entropy"], rows),
        *tables,
        table_of("Claims", ["claim", "measured"], [[*row[:2], bool(row[2])] for row in claims]),
        quick=quick, seed=range(seeds),
    )  # fmt: skip
