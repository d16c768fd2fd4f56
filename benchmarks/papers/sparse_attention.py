"""Sparse attention without training: perplexity of SmolLM2 against the density of six methods.

    python -m benchmarks sparse_attention

2195 tokens of Python's help topics are read at once. Density is the mean share of the causal pairs
that the heads of all layers see, measured on the patterns that they choose. The methods for reading
(columns and diagonals, blocks) choose by the whole text, also by tokens behind a query. Quest reads
each token as if it were decoded, with pages of its own. SnapKV evicts after the first half, so only
tokens of the second half are read sparsely: their perplexity is the last column, for all methods.
The density of that half is given beside it. The window sees as many of the nearest tokens, and the
first four.
"""

import dataclasses
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import sparsejax as sj
from benchmarks._report import save, table_of
from sparsejax.contrib.sparse_attention import (
    AdaSnapKV,
    BlockTopK,
    FlexPrefill,
    Quest,
    SnapKV,
    SparseAttention,
    VerticalSlash,
)

TEXT = ("context-managers", "slicings", "booleans", "integers", "assert", "typesmodules")


@sj.register
@dataclasses.dataclass(frozen=True)
class Window(SparseAttention):
    """The nearest tokens and the first four: a method is a mask."""

    size: Any

    def mask(self, q, k, counts):
        gap = jnp.arange(q.shape[1])[:, None] - jnp.arange(q.shape[1])
        return ((gap >= 0) & ((gap < self.size) | (jnp.arange(q.shape[1]) < 4)))[None, None]


def methods(quick: bool) -> dict[str, list[Any]]:
    """Each method at several budgets, the largest first."""
    evicting = {"window": 64, "kernel": 21, "local": 32}
    found = {
        "window": [Window(size) for size in (512, 256, 128, 64)],
        "Vertical-Slash": [
            VerticalSlash(size, max(size, 64), tile=None) for size in (512, 256, 128, 64)
        ],
        "FlexPrefill": [
            FlexPrefill(alpha, 64, probe=256, tile=None) for alpha in (0.9, 0.8, 0.65, 0.3)
        ],
        "Block-Sparse": [BlockTopK(16, top) for top in (38, 18, 9, 5)],
        "Quest": [Quest(size, 16) for size in (1024, 512, 256, 128, 64)],
        "SnapKV": [SnapKV(size, **evicting) for size in (512, 256, 128, 64)],
        "Ada-SnapKV": [AdaSnapKV(size, **evicting) for size in (512, 256, 128, 64)],
    }
    return {name: values[1:2] for name, values in found.items()} if quick else found


@nnx.jit
def read(model: Any, method: Any, ids: Any) -> tuple[Any, Any, Any]:
    """Losses of all tokens but the first, and the share of pairs that each head sees: of all
    queries, and of those of the second half."""
    known, counts = ids[:, :-1], jnp.array([ids.shape[1] - 1])
    half = known.shape[1] // 2

    def attend(q, k, v, state):
        mask = method.mask(q, k, counts)
        seen = jnp.broadcast_to(mask, (1, q.shape[2], *mask.shape[2:])).sum(-1, dtype=jnp.float32)
        causal = jnp.arange(1.0, q.shape[1] + 1)
        shares = seen.sum(-1) / causal.sum(), seen[..., half:].sum(-1) / causal[half:].sum()
        return method.attend(q, k, v, counts), shares

    x, cache = model.features_by(attend, known)
    logits = model.logits(x).astype(jnp.float32)[0]
    losses = jax.nn.logsumexp(logits, -1) - logits[jnp.arange(len(logits)), ids[0, 1:]]
    return losses, *cache.states


def main(quick: bool = False) -> None:
    model, tokenizer = sj.models.smollm2(scan=True)
    text = "\n".join(topics[name] for name in TEXT)
    ids = np.array(tokenizer.encode(text).ids[: 512 if quick else None])[None]
    of = lambda losses: float(np.exp(np.mean(losses, dtype=np.float64)))  # noqa: E731
    half = (ids.shape[1] - 1) // 2
    dense = sj.models.token_losses(model, ids[0], window=ids.shape[1])
    rows = [["dense", "", "100.0 %", f"{of(dense):.3f}", "100.0 %", f"{of(dense[half:]):.3f}"]]
    found = {}
    for name, budgets in methods(quick).items():
        for method in budgets:
            losses, *shares = read(model, method, ids)
            share, late = (float(jnp.mean(s)) for s in shares)
            losses = np.asarray(losses)
            found.setdefault(name, []).append((late, of(losses[half:])))
            rows.append([
                name, budget_of(method), f"{share:.1%}", f"{of(losses):.3f}", f"{late:.1%}",
                f"{of(losses[half:]):.3f}",
            ])  # fmt: skip
            print(*rows[-1], flush=True)
    columns = ["method", "budget", "pairs", "perplexity", "pairs, 2nd half", "perplexity, 2nd half"]
    title = f"SmolLM2-135M, {ids.shape[1]} tokens, attention of all layers"
    save("sparse-attention", table_of(title, columns, rows), claims(found, of(dense)), quick=quick)


def budget_of(method: Any) -> str:
    """The field of a method that is its budget."""
    fields = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    name = next(
        n for n in ("top", "size", "vertical", "alpha", "budget", "capacity") if n in fields
    )
    return f"{name} {fields[name]}"


def at_density(found: dict[str, Any], density: float, names: Any) -> dict[str, float]:
    """The perplexity of the second half by method at one density, the lowest first.

    Between two budgets of a method; methods without a budget on either side are left out.
    """
    value = {}
    for name in names:
        densities, perplexities = zip(*sorted(found[name]))
        if densities[0] <= density <= densities[-1]:
            value[name] = float(np.interp(density, densities, perplexities))
    return dict(sorted(value.items(), key=lambda item: item[1]))


def claims(found: dict[str, list[tuple[float, float]]], dense: float) -> Any:
    """Findings of the paper, on the second half: Quest is best while decoding, and overall."""
    rows = [[f"dense: {dense:.3f}; 11.842 at 2195 tokens", abs(dense - 11.842) < 0.02]]
    for what, names, density in (
        ("of the methods for decoding", ("Quest", "SnapKV", "Ada-SnapKV"), 0.4),
        ("of all that reach it", tuple(found), 0.15),
    ):
        value = at_density(found, density, names)
        order = ", ".join(f"{name} {p:.2f}" for name, p in value.items())
        rows.append([f"{density:.0%} of the pairs, {what}, Quest is nearest to dense: {order}",
                     next(iter(value), "") == "Quest"])  # fmt: skip
    return table_of("claims", ["claim"], rows)
