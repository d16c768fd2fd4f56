"""The two small experiments: needles while decoding, kinds of heads while reading."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.contrib import sparse_attention as sparse
from sparsejax.kernels import paged_attention

N, D, HEADS, KEY_HEADS, NEEDLES = 2048, 64, 4, 2, 32


def needles(seed, background=0.4):
    """Keys with needles, one-hot values, and queries of which the last ask for half of them."""
    rng = np.random.default_rng(seed)
    k = background * rng.normal(size=(N, KEY_HEADS, D))
    v = np.zeros((N, KEY_HEADS, NEEDLES))
    place = np.sort(rng.permutation(N - 200)[:NEEDLES] + 20)
    directions = rng.normal(size=(NEEDLES, D))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    k[place], v[place] = 8 * directions[:, None], np.eye(NEEDLES)[:, None]
    q = 0.5 * rng.normal(size=(N, HEADS, D))
    seen = rng.permutation(NEEDLES)[: NEEDLES // 2]
    asked = rng.choice(seen, (128, HEADS))
    q[-128:] += 14 * directions[asked]
    later = 16 * directions[:, None] + 0.3 * rng.normal(size=(NEEDLES, HEADS, D))
    return [jnp.asarray(x, jnp.float32) for x in (q, k, v, later)], np.isin(range(NEEDLES), seen)


def hits(y, dense):
    """By needle: the share of heads with the right needle, and more than half of its weight."""
    y, dense = np.asarray(y), np.asarray(dense)
    own = np.arange(NEEDLES)
    right = y.argmax(-1) == own[:, None]
    return (right & (y[own, :, own] > 0.5 * dense[own, :, own])).mean(1)


def attend(q, k, v, mask):
    """Attention of the later queries (m, H, d) over the keys that each key head keeps."""
    mask = jnp.repeat(mask, HEADS // KEY_HEADS, 0)[:, None]
    return jax.nn.dot_product_attention(
        q, k, jnp.pad(v, ((0, 0), (0, 0), (0, D - NEEDLES))), mask=mask
    )[..., :NEEDLES]


def needle_rates(budget, background=0.4):
    """Hit rate of each method for needles seen and unseen by the last queries; two draws."""
    rates = {}
    for seed in range(2):
        (q, k, v, later), seen = needles(seed, background)
        dense = attend(later, k, v, jnp.ones((KEY_HEADS, N), bool))
        sizes = {"window": 128, "kernel": 7, "local": 32, "sinks": 4}
        quest = sparse.Quest((budget - 16) // 16 * 16, 16)
        cache = quest.init(k, v)
        read = lambda q, c=cache, m=quest: paged_attention(q, k, v, m.select(c, q), N)  # noqa: E731, B023
        window = np.zeros((KEY_HEADS, N), bool)
        window[:, :4], window[:, N - budget + 4 :] = True, True
        outputs = {
            "quest": jax.lax.map(read, later),
            "snap": attend(later, k, v, sparse.SnapKV(budget, **sizes).kept(q, k)),
            "ada": attend(later, k, v, sparse.AdaSnapKV(budget, **sizes).kept(q, k)),
            "window": attend(later, k, v, jnp.asarray(window)),
        }
        for name, y in outputs.items():
            hit = hits(y, dense)
            rates.setdefault(name, []).append((hit[seen].mean(), hit[~seen].mean()))
    return {name: np.mean(found, 0) for name, found in rates.items()}


@pytest.mark.slow
def test_needles():
    """Paper: Quest 1.00/1.00 at all; SnapKV 1.00/0.86, 1.00/0.59, 0.58/0.02 at n/5, n/10, n/20."""
    rates = {share: needle_rates(N // share) for share in (5, 10, 20)}
    for found in rates.values():
        assert (found["quest"] >= 0.95).all()
    assert rates[20]["snap"][1] <= 0.1 and rates[20]["ada"][1] <= 0.1
    for share in (5, 10):  # what the last queries ask for is kept
        assert rates[share]["snap"][0] >= 0.95 and rates[share]["ada"][0] >= 0.95
    assert rates[5]["snap"][1] > rates[10]["snap"][1] > rates[20]["snap"][1]
    assert all(found["window"].max() < 0.3 for found in rates.values())
    # The limit of the bound: of keys of unit variance it is loose.
    assert (needle_rates(N // 20, background=1.0)["quest"] < 0.8).all()


def head(kind, seed=0):
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


def error(q, k, v, mask):
    dense = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    got = jax.nn.dot_product_attention(q, k, v, mask=mask & np.tri(N, dtype=bool))
    return float(jnp.linalg.norm(got - dense) / jnp.linalg.norm(dense))


def prefill_errors(kind, density=0.1):
    """Errors of columns and diagonals, of blocks, and of a window, at about this density."""
    q, k, v = head(kind)
    block = sparse.BlockTopK.at_sparsity(1 - density, N)
    mask = block.select(q, k).to_mask(N)
    reached = float(sparse.pair_density(mask)[0])
    found = {"block": error(q, k, v, mask), "block density": reached}
    for vertical in (8, 16, *range(32, N, 32)):
        method = sparse.VerticalSlash(vertical, max(64, vertical), probe=256)
        stripes = method.select(q, k).to_mask(N)
        if sparse.pair_density(stripes)[0] >= reached:
            break
    found["stripes"] = error(q, k, v, stripes)
    found["stripes density"] = float(sparse.pair_density(stripes)[0])
    gap = np.arange(N)[:, None] - np.arange(N)
    found["window"] = error(q, k, v, jnp.asarray(gap < int(density * N / 2))[None])
    return found


@pytest.mark.slow
def test_kinds_of_heads():
    """Paper's prototype: stripes 0.04 and blocks 0.81 on one, 1.11 and 0.31 on the other."""
    vertical, topical = prefill_errors("vertical"), prefill_errors("topical")
    for found in (vertical, topical):
        assert 0.08 < found["block density"] < 0.12 and found["stripes density"] < 0.15
    assert vertical["stripes"] < vertical["block"] / 5
    assert topical["block"] < topical["stripes"] / 2
    assert vertical["window"] > vertical["stripes"] and topical["window"] > topical["block"]
