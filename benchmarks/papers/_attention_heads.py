"""Heads by hand (2504.17768): needles while decoding, and two kinds of heads while reading.

Needles: 32 keys of norm 8 among 2048, with one-hot values. The last 128 queries of the prompt ask
for half of them, later queries for all. A hit is the right value, with more than half of its dense
weight.

Kinds: all queries of the vertical head attend to 24 keys; those of the topical head attend to the
segments of 32 tokens with their own one of 16 topics.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.contrib import sparse_attention as sparse
from sparsejax.kernels import paged_attention

N, D, HEADS, KEY_HEADS, NEEDLES = 2048, 64, 4, 2, 32
SIZES: dict[str, Any] = {"window": 128, "kernel": 7, "local": 32, "sinks": 4}


def needles(seed: int, background: float) -> tuple[list[jax.Array], np.ndarray]:
    """Queries, keys, values and later queries, and which needles the prompt asks for."""
    rng = np.random.default_rng(seed)
    k = background * rng.normal(size=(N, KEY_HEADS, D))
    v = np.zeros((N, KEY_HEADS, NEEDLES))
    place = np.sort(rng.permutation(N - 200)[:NEEDLES] + 20)
    directions = rng.normal(size=(NEEDLES, D))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    k[place], v[place] = 8 * directions[:, None], np.eye(NEEDLES)[:, None]
    q = 0.5 * rng.normal(size=(N, HEADS, D))
    seen = rng.permutation(NEEDLES)[: NEEDLES // 2]
    q[-128:] += 14 * directions[rng.choice(seen, (128, HEADS))]
    later = 16 * directions[:, None] + 0.3 * rng.normal(size=(NEEDLES, HEADS, D))
    return [jnp.asarray(x, jnp.float32) for x in (q, k, v, later)], np.isin(range(NEEDLES), seen)


def hits(y: Any, dense: Any) -> np.ndarray:
    """The share of heads with a hit, by needle."""
    y, dense, own = np.asarray(y), np.asarray(dense), np.arange(NEEDLES)
    right = y.argmax(-1) == own[:, None]
    return (right & (y[own, :, own] > 0.5 * dense[own, :, own])).mean(1)


def attend(q: Any, k: Any, v: Any, mask: Any) -> jax.Array:
    """Attention of later queries (m, H, d) over the keys that each key head keeps."""
    mask = jnp.repeat(mask, HEADS // KEY_HEADS, 0)[:, None]
    v = jnp.pad(v, ((0, 0), (0, 0), (0, D - NEEDLES)))
    return jax.nn.dot_product_attention(q, k, v, mask=mask)[..., :NEEDLES]


def readers(budget: int) -> dict[str, Callable[..., jax.Array]]:
    """Each method as a function of `(q, k, v, later)`."""
    quest = sparse.Quest((budget - 16) // 16 * 16, 16)
    snap, ada = sparse.SnapKV(budget, **SIZES), sparse.AdaSnapKV(budget, **SIZES)
    place = np.arange(N)
    window = jnp.asarray(np.tile((place < 4) | (place >= N - budget + 4), (KEY_HEADS, 1)))

    def paged(q, k, v, later):
        del q
        cache = quest.init(k, k)
        return jax.lax.map(lambda q: paged_attention(q, k, v, quest.select(cache, q), N), later)

    return {
        "Quest": paged,
        "SnapKV": lambda q, k, v, later: attend(later, k, v, snap.kept(q, k)),
        "Ada-SnapKV": lambda q, k, v, later: attend(later, k, v, ada.kept(q, k)),
        "window": lambda q, k, v, later: attend(later, k, v, window),
    }


def needle_rates(budget: int, background: float = 0.4, draws: int = 2) -> dict[str, np.ndarray]:
    """The hit rates of each method for needles that the prompt asks for, and for the others."""
    rates = {}
    for seed in range(draws):
        (q, k, v, later), seen = needles(seed, background)
        dense = attend(later, k, v, jnp.ones((KEY_HEADS, N), bool))
        for name, read in readers(budget).items():
            hit = hits(read(q, k, v, later), dense)
            rates.setdefault(name, []).append((hit[seen].mean(), hit[~seen].mean()))
    return {name: np.mean(found, 0) for name, found in rates.items()}


def head(kind: str, seed: int = 0) -> list[jax.Array]:
    """Queries, keys and values of one head."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(N, 1, D)) for _ in range(3))
    q *= 0.6
    if kind == "vertical":
        u = rng.normal(size=D)
        u *= 9 / np.linalg.norm(u)
        q += u
        k[rng.permutation(N)[:24]] += u
    else:
        topics = rng.normal(size=(16, D))
        topics *= 7 / np.linalg.norm(topics, axis=1, keepdims=True)
        own = topics[np.repeat(rng.integers(0, 16, N // 32), 32)][:, None]
        q += own
        k += 0.7 * own
    return [jnp.asarray(x, jnp.float32) for x in (q, k, v)]


def error(q: Any, k: Any, v: Any, mask: Any) -> float:
    """The relative error of the output with a mask."""
    dense = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    got = jax.nn.dot_product_attention(q, k, v, mask=mask & np.tri(N, dtype=bool))
    return float(jnp.linalg.norm(got - dense) / jnp.linalg.norm(dense))


def prefill_errors(kind: str, density: float = 0.1) -> dict[str, tuple[float, float]]:
    """The error and the density of each method, at about one density."""
    q, k, v = head(kind)
    blocks = sparse.BlockTopK.at_sparsity(1 - density, N).select(q, k).to_mask(N)
    share = lambda mask: float(sparse.pair_density(mask)[0])  # noqa: E731
    for vertical in (8, 16, *range(32, N, 32)):
        method = sparse.VerticalSlash(vertical, max(64, vertical), probe=256)
        stripes = method.select(q, k).to_mask(N)
        if share(stripes) >= share(blocks):
            break
    gap = np.arange(N)[:, None] - np.arange(N)
    window = jnp.asarray((gap >= 0) & (gap < int(density * N / 2)))[None]
    masks = {"Vertical-Slash": stripes, "Block-Sparse": blocks, "window": window}
    return {name: (error(q, k, v, mask), share(mask)) for name, mask in masks.items()}
