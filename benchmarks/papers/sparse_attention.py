"""Sparse attention without training: needles, kinds of heads, and perplexity of SmolLM2.

    python -m benchmarks sparse_attention

The heads of the first two tables are those of `_attention_heads.py`. For the third, 2195 tokens of
Python's help topics are read at once. Density is the mean share of the causal pairs that the heads
of all layers see, measured on the patterns that they choose. The methods for reading (columns and
diagonals, blocks) choose by the whole text, also by tokens behind a query. Quest reads each token
as if it were decoded, with pages of its own. SnapKV evicts after the first half, so only tokens of
the second half are read sparsely: their perplexity is the last column, for all methods. The density
of that half is given beside it. The window sees as many of the nearest tokens, and the first four.
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
from benchmarks.papers._attention_heads import N, needle_rates, prefill_errors
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
        "window": [Window(size) for size in (512, 256, 128)],
        "Vertical-Slash": [
            VerticalSlash(size, max(size, 64), tile=None) for size in (512, 256, 128, 64)
        ],
        "FlexPrefill": [FlexPrefill(alpha, 64, probe=256, tile=None) for alpha in (0.9, 0.65, 0.3)],
        "Block-Sparse": [BlockTopK(16, top) for top in (38, 18, 9)],
        "Quest": [Quest(size, 16) for size in (1024, 512, 256, 128)],
        "SnapKV": [SnapKV(size, **evicting) for size in (512, 256, 64)],
        "Ada-SnapKV": [AdaSnapKV(size, **evicting) for size in (256, 64)],
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
        return jax.nn.dot_product_attention(q, k, v, mask=mask), shares

    x, cache = model.features_by(attend, known)
    logits = model.logits(x).astype(jnp.float32)[0]
    losses = jax.nn.logsumexp(logits, -1) - logits[jnp.arange(len(logits)), ids[0, 1:]]
    return losses, *cache.states


def needle_table(shares: tuple[int, ...]) -> tuple[Any, list[list[Any]]]:
    rates = {share: needle_rates(N // share) for share in shares}
    loose = needle_rates(N // shares[-1], background=1.0)
    cell = lambda seen, unseen: f"{seen:.2f} / {unseen:.2f}"  # noqa: E731
    rows = [
        [name, *(cell(*found[name]) for found in rates.values()), cell(*loose[name])]
        for name in loose
    ]
    columns = ["method", *(f"n/{share}" for share in shares), f"n/{shares[-1]}, unit keys"]
    worst = min(found["Quest"].min() for found in rates.values())
    missed = rates[shares[-1]]["SnapKV"][1]
    claims = [
        [f"needles: Quest finds at least {worst:.2f} at every budget (goal 0.95)", worst >= 0.95],
        [f"SnapKV finds {missed:.2f} of the others at n/{shares[-1]} (at most 0.1)", missed <= 0.1],
    ]
    title = f"share of needles found among {N} tokens: those that the prompt asks for / others"
    caption = "Keys have a deviation of 0.4; in the last column of 1, where the bound is loose."
    return table_of(title, columns, rows, caption), [[t, bool(ok)] for t, ok in claims]


def head_table() -> tuple[Any, list[list[Any]]]:
    found = {kind: prefill_errors(kind) for kind in ("vertical", "topical")}
    rows = [
        [
            name,
            *(f"{error:.3f} at {share:.1%}" for error, share in (f[name] for f in found.values())),
        ]
        for name in found["vertical"]
    ]
    of = lambda kind, name: found[kind][name][0]  # noqa: E731
    vertical = of("vertical", "Block-Sparse") / of("vertical", "Vertical-Slash")
    topical = of("topical", "Vertical-Slash") / of("topical", "Block-Sparse")
    claims = [
        [
            f"vertical head: error of blocks over Vertical-Slash {vertical:.1f} (goal 5)",
            vertical > 5,
        ],
        [f"topical head: error of Vertical-Slash over blocks {topical:.1f} (goal 2)", topical > 2],
    ]
    title = f"relative error of the output of a head, {N} tokens, at the share of pairs"
    return table_of(title, ["method", "vertical", "topical"], rows), claims


def main(quick: bool = False) -> None:
    needles, first = needle_table((20,) if quick else (5, 10, 20))
    heads, second = head_table()
    reading, last = smollm2_table(quick)
    claims = table_of("claims", ["claim"], [*first, *second, *last])
    save("sparse-attention", needles, heads, reading, claims, quick=quick, seed=(0, 1))


def smollm2_table(quick: bool) -> tuple[Any, list[list[Any]]]:
    model, tokenizer = sj.models.smollm2(scan=True)
    text = "\n".join(topics[name] for name in TEXT)
    ids = np.array(tokenizer.encode(text).ids[: 512 if quick else None])[None]
    of = lambda losses: float(np.exp(np.mean(losses, dtype=np.float64)))  # noqa: E731
    half = (ids.shape[1] - 1) // 2
    dense = sj.models.token_losses(model, ids[0], window=ids.shape[1])
    rows = [["dense", "", "100.0%", f"{of(dense):.3f}", "100.0%", f"{of(dense[half:]):.3f}"]]
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
    return table_of(title, columns, rows), claims(found, of(dense))


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


def claims(found: dict[str, list[tuple[float, float]]], dense: float) -> list[list[Any]]:
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
    return rows
