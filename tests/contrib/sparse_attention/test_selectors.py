"""Every selector against the paper's steps in float64: ties, groups, short texts, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.contrib import sparse_attention as sparse
from tests.contrib.sparse_attention import _reference as reference

# n, query heads, key heads, d
SHAPES = {
    "group": (45, 4, 2, 8),
    "plain": (40, 2, 2, 4),
    "short": (6, 2, 1, 4),
    "one": (1, 2, 1, 4),
}
KINDS = ["float32", "bfloat16", "ties"]
FORCED = {"probe": 12, "sinks": 2, "local": 5}


def make(shape, kind="float32"):
    n, heads, key_heads, d = SHAPES[shape]
    rng = np.random.default_rng(n)
    dtype = jnp.bfloat16 if kind == "bfloat16" else jnp.float32
    q, k = (jnp.asarray(rng.normal(size=(n, h, d)) * 2, dtype) for h in (heads, key_heads))
    return (jnp.zeros_like(q), k) if kind == "ties" else (q, k)


def heads_of(q, k):
    """The queries and keys of each query head in float64."""
    q, k = reference.double(q, k)
    shared = q.shape[1] // k.shape[1]
    return [(q[:, h], k[:, h // shared]) for h in range(q.shape[1])]


def sets(mask):
    return [set(np.flatnonzero(row).tolist()) for row in np.asarray(mask)]


def lists_of(blocks):
    index, count = np.asarray(blocks.index), np.asarray(blocks.count)
    return [[set(r[:c].tolist()) for r, c in zip(i, n)] for i, n in zip(index, count)]


def kept_of(chosen):
    index, count = np.asarray(chosen.index), np.asarray(chosen.count)
    return [set(i[:c].tolist()) for i, c in zip(index, count)]


def assert_padding_is_ignored(method, q, k, read, cut=7):
    """A text with rubbish behind it gives what the text alone gives."""
    n = q.shape[0]
    rubbish = [jnp.concatenate([x, 9 * x[:cut] + 1], 0) for x in (q, k)]
    got = jax.jit(method.select)(*rubbish, jnp.int32(n))
    assert read(got) == read(method.select(q, k))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_vertical_slash(shape, kind):
    q, k = make(shape, kind)
    n = q.shape[0]
    for vertical, slash in ((2, 5), (9, 12), (500, 500)):
        method = sparse.VerticalSlash(vertical, slash, **FORCED)
        got = jax.jit(method.select)(q, k)
        for h, (one, keys) in enumerate(heads_of(q, k)):
            columns, offsets = reference.vertical_slash(one, keys, vertical, slash, 12, 2, 5)
            assert (sets(got.columns)[h], sets(got.offsets)[h]) == (columns, offsets)
            mask = reference.stripe_mask(columns, offsets, n)
            np.testing.assert_array_equal(got.to_mask(n)[h], mask)
            assert mask.any(1).all()
    # Of diagonals no more than the length are counted, so a padded text may keep one less.
    read = lambda s: [x & set(range(n)) for x in sets(s.columns)]  # noqa: E731
    assert_padding_is_ignored(sparse.VerticalSlash(9, 12, **FORCED), q, k, read)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_flexprefill(shape, kind):
    q, k = make(shape, kind)
    sizes = set()
    for alpha, least in ((0.3, 5), (0.9, 5), (0.9, 30), (0.0, 5), (1.0, 5)):
        got = jax.jit(lambda m, q, k: m.select(q, k))(
            sparse.FlexPrefill(alpha, least, **FORCED), q, k
        )
        for h, (one, keys) in enumerate(heads_of(q, k)):
            if alpha == 1.0:  # the sum of all may round to more than 1
                assert len(sets(got.columns)[h]) >= min(least, len(one))
                continue
            columns, offsets = reference.flexprefill(one, keys, alpha, least, 12, 2, 5)
            assert (sets(got.columns)[h], sets(got.offsets)[h]) == (columns, offsets)
            sizes.add(len(columns))
    assert len(sizes) > 1 or len(q) <= 6  # as many as the attention needs


def test_flexprefill_counts_before_it_forces():
    """One column holds all attention: 0 sums are <= alpha, and 1 more; the sinks do not count."""
    n = 32
    k = jnp.zeros((n, 1, 2)).at[20, 0, 0].set(100.0)
    q = jnp.zeros((n, 1, 2)).at[:, 0, 0].set(10.0)
    method = sparse.FlexPrefill(0.5, 1, probe=4, sinks=0, local=1)
    assert sets(method.select(q, k).columns) == [{20}]
    counted = sparse.FlexPrefill(0.5, 2, probe=4, sinks=2, local=1)
    assert sets(counted.select(q, k).columns) == [{0, 1}]


@pytest.mark.parametrize("tile", [(4, 4), (8, 4), (4, 8), (7, 5), (64, 64)])
@pytest.mark.parametrize("shape", SHAPES)
def test_tile_closure_is_the_least(shape, tile):
    q, k = make(shape)
    n, (bq, bk) = q.shape[0], tile
    for stripes in (
        sparse.VerticalSlash(3, 5, probe=12, sinks=1, local=1).select(q, k),
        sparse.Stripes(jnp.zeros((1, n), bool), jnp.zeros((1, n), bool)),
    ):
        mask = np.asarray(stripes.to_mask(n))
        want = np.zeros((len(mask), -(-n // bq), -(-n // bk)), bool)
        for h, i, j in zip(*np.nonzero(mask)):
            want[h, i // bq, j // bk] = True
        for closure in (stripes.tile_closure, jax.jit(stripes.tile_closure, static_argnums=0)):
            blocks = closure(tile)
            np.testing.assert_array_equal(blocks.to_block_mask(want.shape[2]), want)
        assert (mask <= np.asarray(blocks.to_mask(n))).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_block_topk(shape, kind):
    q, k = make(shape, kind)
    n = q.shape[0]
    for block, top in ((4, 3), (8, 4), (5, 99)):
        method = sparse.BlockTopK(block, top)
        got = jax.jit(method.select)(q, k)
        lists = lists_of(got)
        for h, (one, keys) in enumerate(heads_of(q, k)):
            assert lists[h] == reference.block_topk(one, keys, block, top)
            assert all(max(row) <= i for i, row in enumerate(lists[h]))  # no block of the future
        mask = got.to_mask(n) & np.tri(n, dtype=bool)
        assert mask[:, np.arange(n), np.arange(n)].all()
    blocks = -(-n // 4)
    read = lambda b: [rows[:blocks] for rows in lists_of(b)]  # noqa: E731
    assert_padding_is_ignored(sparse.BlockTopK(4, 3), q, k, read)


def test_means_count_their_padding():
    """A block of one token and three of padding has a quarter of its mean, and loses by it."""
    q = jnp.ones((13, 1, 1))
    k = jnp.ones((13, 1, 1)).at[4:8].set(0.4).at[12].set(1.5)
    scores = reference.block_topk(*reference.double(q[:, 0], k[:, 0]), 4, 3)
    got = lists_of(sparse.BlockTopK(4, 3).select(q, k))[0]
    assert got == scores and got[-1] == {0, 2, 3}


def test_the_sparsity_of_blocks():
    for n, block, top in ((1000, 16, 8), (64, 16, 3), (40, 16, 64), (16, 16, 3)):
        method = sparse.BlockTopK(block, top)
        q = jax.random.normal(jax.random.key(0), (n, 1, 4))
        kept = int(method.select(q, q).count.sum())
        blocks = -(-n // block)
        assert method.sparsity(n) == pytest.approx(1 - kept / (blocks * (blocks + 1) / 2))
    for wanted in (0.0, 0.5, 0.9, 0.99):
        found = sparse.BlockTopK.at_sparsity(wanted, 1000)
        gaps = [abs(sparse.BlockTopK(16, t).sparsity(1000) - wanted) for t in range(3, 64)]
        assert abs(found.sparsity(1000) - wanted) == min(gaps)


EVICTING = {"window": 12, "kernel": 5, "local": 6, "sinks": 2}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ada", [False, True])
def test_snapkv(shape, kind, ada):
    q, k = make(shape, kind)
    kind_of = sparse.AdaSnapKV if ada else sparse.SnapKV
    for capacity in (9, 20, 500):
        got = jax.jit(kind_of(capacity, **EVICTING).select)(q, k)
        oracle = reference.ada_snapkv if ada else reference.snapkv
        want = oracle(*reference.double(q, k), capacity, 12, 5, 6, 2)
        assert kept_of(got) == want
        for i, c in zip(np.asarray(got.index), np.asarray(got.count)):
            assert (np.diff(i[:c]) > 0).all()  # ascending
    assert_padding_is_ignored(kind_of(9, **EVICTING), q, k, kept_of)


def test_pooling_is_damped_at_the_ends():
    """The divisor is the width also where the window is cut off."""
    scores = sparse.SnapKV(9, window=1, kernel=5, local=0, sinks=0).scores(
        jnp.zeros((10, 1, 2)), jnp.zeros((10, 1, 2))
    )
    np.testing.assert_allclose(scores[0], np.array([3, 4, *[5] * 6, 4, 3]) / 50, rtol=1e-5)


def test_snap_averages_the_group_and_ada_takes_its_largest():
    """Token 5 has all attention of one head of a group, token 9 half of that of both."""
    q = jnp.zeros((16, 2, 2)).at[:, 0, 0].set(1.0).at[:, 1, 1].set(1.0)
    k = jnp.zeros((16, 1, 2)).at[5, 0].set(jnp.array([40.0, 0.0])).at[9, 0].set(39.0)
    sizes = {"window": 4, "kernel": 1, "local": 0, "sinks": 0}
    snap, ada = (m(1, **sizes).scores(q, k)[0] for m in (sparse.SnapKV, sparse.AdaSnapKV))
    assert snap[9] > snap[5] and ada[9] == pytest.approx(1, abs=1e-4)
    assert sets(sparse.SnapKV(1, **sizes).kept(q, k)) == [{9}]


def test_the_probe_is_normalised_over_all_keys():
    from sparsejax.contrib.sparse_attention._probe import probe

    q, k = (jax.random.normal(jax.random.key(i), (20, 4)) for i in range(2))
    p, at = probe(q, k, 5, 20)
    np.testing.assert_allclose(p, reference.probe(*reference.double(q, k), 5), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    assert at.tolist() == [15, 16, 17, 18, 19]


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "ties"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("n", [1, 3, 4, 5, 17, 40, 45])
def test_quest(n, shared, kind):
    q, k = make("group", kind)
    k, q = k[:n], q[n - 1]
    quest = sparse.Quest(budget=12, page=4, shared=shared)
    want = reference.quest_pages(*reference.double(q, k), 12, 4, shared)
    whole = quest.init(k, k, room=48)
    grown = quest.init(k[: n // 2], k[: n // 2], room=48)
    append = jax.jit(quest.append)
    for at in range(n // 2, n):
        grown = append(grown, k[at], k[at])
    for cache in (whole, grown):
        pages = jax.jit(quest.select)(cache, q)
        got = [set(i[:c].tolist()) for i, c in zip(pages.index[:, 0], pages.count[:, 0])]
        assert got == want
        current = (n - 1) // 4
        assert all(current in row for row in got)
        assert current > 3 or all(row == set(range(current + 1)) for row in got)  # dense
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(grown)):
        np.testing.assert_array_equal(a, b)


def test_the_bound_is_a_bound():
    """By channel before the sum: no key of a page scores above it; the sum first is no bound."""
    rng = np.random.default_rng(0)
    k = jnp.asarray(rng.normal(size=(64, 1, 8)), jnp.float32)
    q = jnp.asarray(rng.normal(size=(30, 1, 8)), jnp.float32)
    quest = sparse.Quest(16, 16)
    cache = quest.init(k, k)
    bounds = np.asarray(quest._bounds(q, cache.low, cache.high))[0]
    scores = np.einsum("nd,md->nm", q[:, 0], k[:, 0]).reshape(30, 4, 16).max(-1)
    assert (bounds >= scores - 1e-5).all()
    low, high = (np.asarray(x)[:, 0] for x in (cache.low, cache.high))
    wrong = np.maximum(q[:, 0] @ low.T, q[:, 0] @ high.T)
    assert (wrong < scores - 1e-3).any()


def test_the_current_page_has_the_new_key():
    """Its range is updated before anything is selected, also for the first token of a page."""
    quest = sparse.Quest(4, 4)
    cache = quest.init(jnp.zeros((4, 1, 1)), jnp.zeros((4, 1, 1)), room=12)
    assert cache.low[1, 0, 0] == jnp.inf and cache.high[1, 0, 0] == -jnp.inf
    cache = quest.append(cache, jnp.full((1, 1), 3.0), jnp.ones((1, 1)))
    assert (cache.low[1, 0, 0], cache.high[1, 0, 0]) == (3, 3)
    assert int(quest.select(cache, jnp.ones((1, 1))).index[0, 0, 1]) == 1


def test_mistakes():
    for call, message in (
        (lambda: sparse.VerticalSlash(vertical=3), "vertical=3 must be an integer of at least 4"),
        (lambda: sparse.VerticalSlash(slash=63), "slash=63 must be an integer of at least 64"),
        (lambda: sparse.VerticalSlash(local=0), r"local must be a number in \[1, inf\)"),
        (lambda: sparse.FlexPrefill(alpha=1.5), r"alpha=1.5 must be a fraction"),
        (lambda: sparse.FlexPrefill(least=10), "least=10 must be an integer of at least 64"),
        (lambda: sparse.BlockTopK(top=2), "top=2 must be an integer of at least 3"),
        (lambda: sparse.SnapKV(capacity=132), "capacity=132 must be an integer of at least 133"),
        (lambda: sparse.SnapKV(kernel=4), "kernel must be odd"),
        (lambda: sparse.AdaSnapKV(least=2.0), r"least must be a number in \[0, 1\]"),
        (lambda: sparse.Quest(budget=20), "budget must be a multiple of page"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert hash(sparse.SnapKV()) == hash(sparse.SnapKV())
