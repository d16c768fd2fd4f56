"""Attention over lists against float64 with the mask of pairs, in every form."""

from contextlib import contextmanager, nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu, tpu as pltpu

import sparsejax as sj
from sparsejax.kernels import KeyBlocks, _mosaic, block_sparse_attention, paged_attention
from sparsejax.kernels.attention import _xla
from sparsejax.kernels.attention._api import _order
from tests.kernels.test_matmul import assert_close

# Length, heads, key heads, width of keys and of values, block.
SHAPES = {
    "whole blocks": (64, 4, 2, 8, 8, (16, 16)),
    "a part of a block": (50, 2, 2, 8, 4, (16, 16)),
    "wide tiles": (70, 3, 1, 8, 8, (32, 16)),
    "long tiles": (70, 2, 1, 8, 8, (8, 32)),
    "one block": (5, 2, 1, 4, 4, (64, 64)),
    "one token": (1, 2, 1, 4, 4, (4, 4)),
}
RULES = {
    "causal": {},
    "full": {"causal": False},
    "window and sinks": {"window": 9, "sinks": 2, "scale": 0.3},
}


def make(name, dtype=jnp.float32, batch=2, density=0.4):
    n, heads, key_heads, d, e, (bq, bk) = SHAPES[name]
    rng = np.random.default_rng(len(name))
    shapes = (n, heads, d), (n, key_heads, d), (n, key_heads, e)
    q, k, v = (jnp.asarray(rng.normal(size=(batch, *s)), dtype) for s in shapes)
    mask = rng.random((batch, heads, -(-n // bq), -(-n // bk))) < density
    return q, k, v, KeyBlocks.from_mask(mask, (bq, bk))


def pairs(blocks, n, m, causal=True, window=None, sinks=0, **_):
    """The visible pairs by hand, from the lists."""
    index, count, (bq, bk) = np.asarray(blocks.index), np.asarray(blocks.count), blocks.block
    mask = np.zeros((*index.shape[:-2], n, m), bool)
    for at in np.ndindex(count.shape):
        *lead, i = at
        for j in index[at][: count[at]]:
            mask[(*lead, slice(i * bq, (i + 1) * bq), slice(j * bk, (j + 1) * bk))] = True
    gap = np.arange(n)[:, None] - np.arange(m)
    if causal:
        mask &= gap >= 0
    if window is not None:
        mask &= (gap < window) | (np.arange(m) < sinks)
    return mask


def in_double(q, k, v, mask, scale=None, **_):
    """Dense attention of float64, zeros for a query that sees nothing."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    shared = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, shared, 2), np.repeat(v, shared, 2)
    s = np.einsum("bihd,bjhd->bhij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    top = np.where(mask, s, -1e30).max(-1, keepdims=True)
    p = np.where(mask, np.exp(np.minimum(s - top, 0)), 0)
    p = p / np.maximum(p.sum(-1, keepdims=True), 1e-300)
    return np.einsum("bhij,bjhe->bihe", p, v)


@pytest.mark.parametrize("implementation", ["xla", "dense", None])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SHAPES)
def test_against_float64(name, rule, implementation):
    q, k, v, blocks = make(name)
    n, how = q.shape[1], RULES[rule]
    want = in_double(q, k, v, pairs(blocks, n, n, **how), **how)
    got = block_sparse_attention(q, k, v, blocks, implementation=implementation, **how)
    assert got.dtype == q.dtype
    assert_close(got, want)
    one = jax.tree.map(lambda x: x[1], blocks)
    got = block_sparse_attention(q[1], k[1], v[1], one, implementation=implementation, **how)
    assert_close(got, want[1])


@pytest.mark.parametrize("implementation", ["xla", "dense"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype, implementation):
    q, k, v, blocks = make("whole blocks", dtype)
    want = in_double(q, k, v, pairs(blocks, 64, 64))
    got = block_sparse_attention(q, k, v, blocks, implementation=implementation)
    assert got.dtype == dtype
    assert_close(got, want, 2e-2)


@pytest.mark.parametrize("implementation", ["xla", "dense"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["whole blocks", "a part of a block", "wide tiles", "long tiles"])
def test_gradients(name, rule, implementation):
    """Against those of plain attention with the mask."""
    q, k, v, blocks = make(name)
    how = RULES[rule]
    mask = jnp.asarray(pairs(blocks, q.shape[1], q.shape[1], **how))

    def plain(q, k, v):
        shared = q.shape[2] // k.shape[2]
        k, v = jnp.repeat(k, shared, 2), jnp.repeat(v, shared, 2)
        s = jnp.einsum("bihd,bjhd->bhij", q, k) * how.get("scale", q.shape[-1] ** -0.5)
        p = jax.nn.softmax(jnp.where(mask, s, -jnp.inf), -1)
        return jnp.sin(jnp.einsum("bhij,bjhe->bihe", p, v)).sum()

    def sparse(q, k, v):
        y = block_sparse_attention(q, k, v, blocks, implementation=implementation, **how)
        return jnp.sin(y).sum()

    for got, want in zip(jax.grad(sparse, (0, 1, 2))(q, k, v), jax.grad(plain, (0, 1, 2))(q, k, v)):
        assert_close(got, want, 2e-5)


@pytest.mark.parametrize("implementation", ["xla", "dense"])
def test_queries_that_see_nothing_are_zero(implementation):
    """Lists by hand may be empty, or hold only hidden blocks; no NaN, and no gradient."""
    q, k, v, _ = make("whole blocks", batch=1)
    index = jnp.array([[0, 0], [3, 0], [1, 2], [0, 3]])
    blocks = KeyBlocks(index, jnp.array([0, 1, 2, 2]), (16, 16))  # 3 is behind block 1
    mask = np.broadcast_to(pairs(blocks, 64, 64), (1, 4, 64, 64))
    assert not mask[..., :32, :].any()
    run = partial(block_sparse_attention, blocks=blocks, implementation=implementation)
    y = run(q, k, v)
    assert (y[:, :32] == 0).all()
    assert_close(y, in_double(q, k, v, mask))
    grads = jax.grad(lambda *a: jnp.sin(run(*a)).sum(), (0, 1, 2))(q, k, v)
    assert all(np.isfinite(g).all() for g in grads) and (grads[0][:, :32] == 0).all()


def test_hidden_keys_are_not_read():
    """NaN in blocks that no query lists stays there."""
    q, k, v, _ = make("whole blocks")
    blocks = KeyBlocks.from_mask(np.eye(4) > 0, (16, 16))
    bad = [x.at[:, :16].set(jnp.nan) for x in (k, v)]
    got = block_sparse_attention(q, *bad, blocks, implementation="xla")
    assert_close(
        got[:, 16:], block_sparse_attention(q, k, v, blocks, implementation="dense")[:, 16:]
    )


@pytest.mark.parametrize("implementation", ["xla", "dense", "pallas_tpu"])
def test_nan_is_kept(implementation):
    q, k, v, blocks = tiled("pallas_tpu", (32, 2, 1, 128, 128, (16, 128)))
    on_tpu = implementation == "pallas_tpu"
    for bad in ((q.at[0, 20, 0, 0].set(jnp.nan), k), (q, k.at[0, 20, 0, 0].set(jnp.nan))):
        with interpreted(implementation) if on_tpu else nullcontext():
            y = block_sparse_attention(*bad, v, blocks, implementation=implementation)
        assert np.isnan(y[0, 20, 0]).all() and np.isfinite(y[0, :20]).all()


def test_several_chunks_and_large_scores(monkeypatch):
    """A running maximum over chunks: scores of thousands in any order."""
    monkeypatch.setattr(_xla, "KEYS", 32)
    q, k, v, blocks = make("whole blocks", density=1.0)
    how = {"scale": 301.0}
    want = in_double(q, k, v, pairs(blocks, 64, 64), **how)
    run = jax.jit(lambda *a: block_sparse_attention(*a, blocks, implementation="xla", **how))
    assert_close(run(q, k, v), want, 1e-4)


def test_vmap_and_one_program_for_all_patterns():
    q, k, v, blocks = make("whole blocks")
    want = block_sparse_attention(q, k, v, blocks)
    assert_close(jax.vmap(block_sparse_attention)(q, k, v, blocks), want)
    traced = []

    @jax.jit
    def run(q, k, v, blocks):
        traced.append(1)
        return block_sparse_attention(q, k, v, blocks)

    for density in (0.1, 0.9):
        mask = np.random.default_rng(0).random((4, 4)) < density
        run(q, k, v, KeyBlocks.from_mask(mask, (16, 16), slots=4))
    assert len(traced) == 1


@pytest.mark.parametrize("bq, bk", [(4, 4), (8, 4), (4, 8), (5, 3)])
@pytest.mark.parametrize("window, sinks", [(1, 0), (3, 1), (4, 9), (100, 0)])
def test_sliding_window_lists_what_it_sees(bq, bk, window, sinks):
    blocks = KeyBlocks.sliding_window(22, (bq, bk), window, sinks=sinks)
    all_tiles = np.ones((-(-22 // bq), -(-22 // bk)), bool)
    seen = pairs(KeyBlocks.from_mask(all_tiles, (bq, bk)), 22, 22, window=window, sinks=sinks)
    hit = np.zeros(all_tiles.shape, bool)
    for i, j in zip(*np.nonzero(seen)):
        hit[i // bq, j // bk] = True
    np.testing.assert_array_equal(blocks.to_block_mask(hit.shape[1]), hit)


def test_short_lists_keep_the_diagonal():
    mask = np.tri(6, dtype=bool)
    for slots in (1, 2, 4):
        blocks = KeyBlocks.from_mask(mask, (4, 4), slots=slots)
        for i in range(6):
            want = {i, *range(min(i, slots - 1))}
            assert set(np.asarray(blocks.index[i][: blocks.count[i]]).tolist()) == want
    wide = KeyBlocks.from_mask(np.zeros((2, 4), bool), (8, 4))  # two blocks of a diagonal
    assert wide.index.tolist() == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="slots must be an integer from 2, for the diagonal"):
        KeyBlocks.from_mask(np.zeros((2, 4), bool), (8, 4), slots=1)


def test_memory_is_linear_in_the_length():
    def compiled(n):
        q = jax.ShapeDtypeStruct((n, 1, 64), jnp.float32)
        nb = n // 64
        lists = [jax.ShapeDtypeStruct(s, jnp.int32) for s in ((nb, nb), (nb,))]

        def loss(q, k, v, index, count):
            blocks = KeyBlocks(index, count, (64, 64))
            return block_sparse_attention(q, k, v, blocks, implementation="xla").sum()

        run = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
        return run.lower(q, q, q, *lists).compile().memory_analysis().temp_size_in_bytes

    small, large = compiled(2048), compiled(8192)
    assert large < 4.5 * small and large < 30 * 8192 * 64 * 4  # of 8192^2 * 4 = 268 MB


TILED = {
    "pallas_tpu": [(300, 4, 2, 64, 64, (16, 128)), (256, 2, 1, 128, 64, (32, 128))],
    "pallas_gpu": [
        (300, 4, 2, 64, 64, (64, 64)),
        (300, 2, 1, 128, 64, (64, 128)),
        (200, 2, 2, 64, 128, (128, 64)),
        (200, 2, 2, 128, 128, (128, 128)),
    ],
}
CASES = [pytest.param(name, shape, id=f"{name}-{shape}") for name in TILED for shape in TILED[name]]


def tiled(name, shape):
    n, heads, key_heads, d, e, (bq, bk) = shape
    dtype = jnp.bfloat16 if name == "pallas_gpu" else jnp.float32
    rng = np.random.default_rng(0)
    shapes = (n, heads, d), (n, key_heads, d), (n, key_heads, e)
    q, k, v = (jnp.asarray(rng.normal(size=(1, *s)), dtype) for s in shapes)
    mask = rng.random((1, heads, -(-n // bq), -(-n // bk))) < 0.4
    return q, k, v, KeyBlocks.from_mask(mask, (bq, bk))


@contextmanager
def interpreted(name):
    """Runs the kernels of a platform by their interpreter."""
    if name == "pallas_gpu" and not hasattr(plgpu, "InterpretGPUParams"):
        pytest.skip("this JAX has no interpreter for these GPU kernels")
    mode = (
        pltpu.force_tpu_interpret_mode()
        if name == "pallas_tpu"
        else plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams())
    )
    with mode, sj.kernels.lowering_for(name.removeprefix("pallas_")):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name, shape", CASES)
def test_kernels_interpreted(name, shape):
    q, k, v, blocks = tiled(name, shape)
    how = {"window": 150, "sinks": 3}
    with interpreted(name):
        got = block_sparse_attention(q, k, v, blocks, implementation=name, **how)
    want = in_double(q, k, v, pairs(blocks, shape[0], shape[0], **how))
    assert_close(got, want, 1e-5 if name == "pallas_tpu" else 2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("foreign", [-1, -(10**8), 3, 2**31 // 64 + 1])
@pytest.mark.parametrize("name", TILED)
def test_kernels_hide_foreign_blocks(name, foreign):
    """Inside jit; the keys behind the block that is read in their place do not count either."""
    shape = TILED[name][0]
    q, k, v, blocks = tiled(name, shape)
    first = blocks.index.at[:, 1::2, :, 0].set(foreign)  # half of the heads
    bad = KeyBlocks(first, blocks.count, blocks.block)
    run = lambda implementation: jax.jit(  # noqa: E731
        partial(block_sparse_attention, causal=False, implementation=implementation)
    )
    with interpreted(name):
        got = run(name)(q, k, v, bad)
    assert_close(got, run("xla")(q, k, v, bad), 1e-5 if name == "pallas_tpu" else 2e-2)
    assert np.isfinite(got).all()


@pytest.mark.slow
def test_kernels_have_the_gradients_of_xla():
    q, k, v, blocks = tiled("pallas_tpu", TILED["pallas_tpu"][0])

    def loss(implementation, *args):
        return jnp.sin(block_sparse_attention(*args, blocks, implementation=implementation)).sum()

    with interpreted("pallas_tpu"):
        got = jax.grad(partial(loss, "pallas_tpu"), (0, 1, 2))(q, k, v)
    for a, b in zip(got, jax.grad(partial(loss, "xla"), (0, 1, 2))(q, k, v)):
        assert_close(a, b)


@pytest.mark.parametrize("name, shape", CASES)
def test_lowering(name, shape):
    arguments = tiled(name, shape)
    run = jax.jit(partial(block_sparse_attention, window=150, sinks=3, implementation=name))
    platform, call = {
        "pallas_tpu": ("tpu", "tpu_custom_call"),
        "pallas_gpu": ("cuda", "mosaic_gpu"),
    }[name]
    with _mosaic.hopper() if name == "pallas_gpu" else sj.kernels.lowering_for("tpu"):
        lowered = run.trace(*arguments).lower(lowering_platforms=(platform,))
    assert call in lowered.as_text()


@pytest.mark.aot
@pytest.mark.parametrize("shape", TILED["pallas_gpu"], ids=str)
def test_compiles_for_the_h200(shape):
    pytest.importorskip("jax_plugins.xla_cuda13", reason="needs the CUDA plugin, no GPU")
    run = partial(block_sparse_attention, window=150, sinks=3, implementation="pallas_gpu")
    assert _mosaic.compile_for_hopper(run, *tiled("pallas_gpu", shape))


@pytest.mark.parametrize("name", TILED)
def test_what_a_kernel_cannot_do_is_left_to_xla(name):
    q, k, v, blocks = make("whole blocks")
    with sj.kernels.lowering_for(name.removeprefix("pallas_")):
        with pytest.raises(NotImplementedError, match=name):
            block_sparse_attention(q, k, v, blocks, implementation=name)
    got = block_sparse_attention(q, k, v, blocks, implementation=(name, "xla"))
    assert_close(got, in_double(q, k, v, pairs(blocks, 64, 64)))


def test_the_choice():
    """Dense for few keys, and where the loop is sequential; lists where scores would not fit."""

    def chosen(n, slots, platform, side=64):
        blocks = jax.eval_shape(
            lambda: KeyBlocks(
                jnp.zeros((n // side, slots), int), jnp.zeros(n // side, int), (side,) * 2
            )
        )
        return _order(("xla", "dense"), blocks, (4, n, n), platform)[0]

    assert chosen(128, 2, "cpu") == "dense" and chosen(2048, 4, "cpu") == "xla"
    assert chosen(2048, 32, "cpu") == "xla" and chosen(512, 32, "cpu", 16) == "dense"
    assert chosen(2**15, 2**9, "cpu") == "xla"
    assert chosen(4096, 8, "gpu") == "dense" and chosen(2**17, 8, "gpu") == "xla"


def paged(lists, room, page, sizes=(4, 2, 8, 8), batch=2):
    """Arguments of `paged_attention`, and what it has to give."""
    rng = np.random.default_rng(0)
    heads, key_heads, d, e = sizes
    q = jnp.asarray(rng.normal(size=(batch, heads, d)), jnp.float32)
    k, v = (jnp.asarray(rng.normal(size=(batch, room, key_heads, x)), jnp.float32) for x in (d, e))
    length = jnp.array([room - 7, room])
    count = {"heads": heads, "key heads": key_heads, "shared by all": 1}[lists]
    held = -(-room // page)
    index = np.zeros((batch, count, 1, held - 2), np.int32)
    for at in np.ndindex(batch, count):
        index[at] = np.sort(rng.permutation(held)[: held - 2])
    used = rng.integers(1, held - 1, (batch, count, 1))
    pages = KeyBlocks(jnp.asarray(index), jnp.asarray(used, jnp.int32), (1, page))
    seen = np.zeros((batch, count, room), bool)
    for b, h in np.ndindex(batch, count):
        for p in index[b, h, 0, : used[b, h, 0]]:
            seen[b, h, p * page : (p + 1) * page] = True
    seen &= (np.arange(room) < np.asarray(length)[:, None])[:, None]
    want = in_double(q[:, None], k, v, np.repeat(seen, heads // count, 1)[:, :, None])[:, 0]
    return (q, k, v, pages, length), want


LISTS = ["heads", "key heads", "shared by all"]


@pytest.mark.parametrize("implementation", ["xla", "dense"])
@pytest.mark.parametrize("lists", LISTS)
def test_paged(lists, implementation):
    args, want = paged(lists, 30, 4)
    assert_close(paged_attention(*args, implementation=implementation), want)
    got = paged_attention(*jax.tree.map(lambda x: x[0], args), implementation=implementation)
    assert_close(got, want[0])
    assert_close(jax.vmap(partial(paged_attention, implementation=implementation))(*args), want)


PAGED = [(4, 2, 128, 128), (6, 2, 128, 256), (3, 1, 64, 32), (2, 2, 128, 128)]


@pytest.mark.slow
@pytest.mark.parametrize("lists", LISTS)
@pytest.mark.parametrize("sizes", PAGED, ids=str)
def test_paged_kernel_interpreted(sizes, lists):
    args, want = paged(lists, 96, 16, sizes)
    with interpreted("pallas_tpu"):
        got = paged_attention(*args, implementation="pallas_tpu")
        one = jax.tree.map(lambda x: x[1], args)
        again = paged_attention(*one, implementation="pallas_tpu")
        # A foreign page is read as another one, and hidden.
        q, k, v, pages, length = args
        bad = KeyBlocks(pages.index.at[0, :, :, 0].set(99), pages.count, pages.block)
        hidden = jax.jit(partial(paged_attention, implementation="pallas_tpu"))(
            q, k, v, bad, length
        )
    assert_close(got, want)
    assert_close(again, want[1])
    assert_close(
        hidden, jax.jit(partial(paged_attention, implementation="xla"))(q, k, v, bad, length)
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("sizes", PAGED, ids=str)
def test_paged_kernel_lowers(sizes, dtype):
    (q, k, v, *rest), _ = paged("key heads", 96, 16, sizes)
    arrays = [x.astype(dtype) for x in (q, k, v)]
    run = jax.jit(partial(paged_attention, implementation="pallas_tpu"))
    with sj.kernels.lowering_for("tpu"):
        lowered = run.trace(*arrays, *rest).lower(lowering_platforms=("tpu",))
    assert "tpu_custom_call" in lowered.as_text()


@pytest.mark.parametrize(
    "room, page, sizes, reason",
    [
        (96, 4, PAGED[0], "multiple of 16"),
        (90, 16, PAGED[0], "whole pages"),
        (96, 16, (4, 2, 64, 128), "multiples of 128"),
    ],
)
def test_what_the_paged_kernel_cannot_do_is_left_to_xla(room, page, sizes, reason):
    args, want = paged("key heads", room, page, sizes)
    with sj.kernels.lowering_for("tpu"):
        with pytest.raises(NotImplementedError, match=reason):
            paged_attention(*args, implementation="pallas_tpu")
    assert_close(paged_attention(*args, implementation=("pallas_tpu", "xla")), want)


def test_mistakes():
    q, k, v, blocks = make("whole blocks")
    with pytest.raises(ValueError, match=r"blocks with index .* must have the shapes"):
        block_sparse_attention(q[:, :20], k[:, :20], v[:, :20], blocks)
    with pytest.raises(ValueError, match="multiple of the heads of the keys"):
        block_sparse_attention(q[:, :, :3], k, v, blocks)
    with pytest.raises(ValueError, match="causal=False"):
        block_sparse_attention(q, k[:, :32], v[:, :32], blocks)
    with pytest.raises(TypeError, match="q must hold floats"):
        block_sparse_attention(jnp.ones(q.shape, int), k, v, blocks)
    with pytest.raises(ValueError, match="block must be two positive integers"):
        KeyBlocks(blocks.index, blocks.count, (16, 0))
    with pytest.raises(ValueError, match="implementation"):
        block_sparse_attention(q, k, v, blocks, implementation="fast")
    pages = KeyBlocks(jnp.zeros((4, 1, 2), int), jnp.ones((4, 1), int), (2, 4))
    with pytest.raises(ValueError, match="blocks of one query"):
        paged_attention(q[0, 0], k[0], v[0], pages, 3)


HOSTILE = {
    "the index of": lambda b: KeyBlocks(b.index.at[1, 1].set(10**8), b.count, b.block),
    "to 3, for 4": lambda b: KeyBlocks(b.index - 1, b.count, b.block),
    "the count of": lambda b: KeyBlocks(b.index, b.count + 9, b.block),
    "holds a block twice": lambda b: KeyBlocks(0 * b.index, 0 * b.count + 2, b.block),
}


@pytest.mark.parametrize("wrong", HOSTILE)
def test_lists_of_foreign_blocks(wrong):
    """Refused by name; inside jit, where they cannot be seen, foreign blocks are not read."""
    q, k, v, _ = make("whole blocks")
    blocks = KeyBlocks.from_mask(np.tril(np.ones((4, 4), bool)), (16, 16), slots=3)
    bad = HOSTILE[wrong](blocks)
    with pytest.raises(ValueError, match=rf"block_sparse_attention: .*{wrong}"):
        block_sparse_attention(q, k, v, bad)
    if "index" in wrong or "to 3" in wrong:
        dense, xla = (
            jax.jit(partial(block_sparse_attention, implementation=name))(q, k, v, bad)
            for name in ("dense", "xla")
        )
        assert_close(xla, dense)
    page = KeyBlocks(bad.index[None, 1:2], bad.count[None, 1:2], (1, 16))
    with pytest.raises(ValueError, match=rf"paged_attention: .*{wrong}"):
        paged_attention(q[0, 0], k[0], v[0], page, 64)
    if "index" in wrong or "to 3" in wrong:
        dense, xla = (
            jax.jit(partial(paged_attention, implementation=name))(q[0, 0], k[0], v[0], page, 99)
            for name in ("dense", "xla")
        )
        assert_close(xla, dense)
