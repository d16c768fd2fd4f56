"""Active units against the masked dense product, in every form."""

import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu, tpu as pltpu

import sparsejax as sj
from sparsejax.formats import unit_major
from sparsejax.kernels import _mosaic
from sparsejax.kernels.active import active_expand, active_ffn, active_reduce
from sparsejax.select import ActiveSet
from tests.kernels.test_matmul import assert_close

N, D = 32, 16
# units of one and of several neurons; one set and one per token; short and long lists
SETS = {
    "one of 3": (1, 3, False),
    "one of 3, units of 2": (2, 3, False),
    "bucketed": (1, 9, False),
    "more than a quarter": (2, 20, False),
    "all": (1, N, False),
    "by token": (1, 5, True),
    "by token, units of 2": (2, 5, True),
}


def make(name, tokens=3, dtype=jnp.float32, d=D, count=None):
    size, capacity, by_token = SETS[name]
    rng = np.random.default_rng(len(name))
    lists = []
    for _ in range(tokens if by_token else 1):
        active = max(1, capacity - 2) if count is None else count
        index = np.sort(rng.permutation(N)[:active])
        lists.append((np.pad(index, (0, capacity - active)), active))
    index, counts = (np.stack(a) for a in zip(*lists))
    if not by_token:
        index, counts = index[0], counts[0]
    s = ActiveSet(
        jnp.asarray(index, jnp.int32), jnp.asarray(counts, jnp.int32), jnp.zeros(counts.shape, bool)
    )
    x = jnp.asarray(rng.normal(size=(tokens, d)), dtype)
    weights = [jnp.asarray(rng.normal(size=(N, size, d)) / 4, dtype) for _ in range(3)]
    return s, x, weights, member(s, tokens)


def member(s, tokens):
    """(T, n) ones where a unit is active, by hand."""
    mask = np.zeros((tokens, N))
    for t in range(tokens):
        row = np.asarray(s.index if s.index.ndim == 1 else s.index[t])
        count = int(s.count if s.count.ndim == 0 else s.count[t])
        mask[t, row[:count]] = 1
    return mask


def by_place(dense, s):
    """(T, n, g) in the order of the lists, zero in unused places."""
    out = np.zeros((dense.shape[0], s.capacity, dense.shape[2]))
    for t in range(dense.shape[0]):
        row = np.asarray(s.index if s.index.ndim == 1 else s.index[t])
        count = int(s.count if s.count.ndim == 0 else s.count[t])
        out[t, :count] = dense[t, row[:count]]
    return out


def wide(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


@pytest.mark.parametrize("implementation", ["xla", "dense"])
@pytest.mark.parametrize("name", SETS)
def test_reduce_and_expand(name, implementation):
    s, x, (w, *_), mask = make(name)
    X, W = wide(x, w)
    h = np.einsum("td,ngd->tng", X, W) * mask[:, :, None]
    scale = jnp.linspace(0.5, 2, 3 * s.capacity).reshape(3, -1)
    got = active_expand(x, w, s, scale, implementation=implementation)
    assert_close(got, by_place(h, s) * np.asarray(scale)[..., None])
    v = jnp.asarray(np.random.default_rng(1).normal(size=(3, *w.shape[:2])), jnp.float32)
    want = np.einsum("tng,ngd->td", np.asarray(v, np.float64) * mask[:, :, None], W)
    assert_close(active_reduce(v, w, s, implementation=implementation), want)
    compact = (
        jnp.asarray(by_place(np.asarray(v), s), jnp.float32)
        .at[..., -1, :]
        .add(0 if s.capacity == N else jnp.nan)
    )
    # What stands in unused places is not looked at.
    if (np.asarray(s.count) < s.capacity).all():
        got = active_reduce(compact, w, s, gathered=True, implementation=implementation)
        assert_close(got, want)


@pytest.mark.parametrize("name", ["one of 3", "bucketed", "by token, units of 2"])
@pytest.mark.parametrize("form", ["plain", "gate", "gate values"])
def test_ffn_and_its_gradients(name, form):
    s, x, (up, down, gate), mask = make(name)
    scale = jnp.linspace(0.5, 1.5, 3 * s.capacity).reshape(3, -1)
    values = jnp.linspace(-1, 1, 3 * s.capacity * up.shape[1]).reshape(3, s.capacity, -1)

    def sparse(x, up, down, gate, values, scale):
        more = {"plain": {}, "gate": {"w_gate": gate}, "gate values": {"gate_values": values}}[form]
        return active_ffn(x, up, down, s, activation=jax.nn.silu, scale=scale, **more)

    def dense(x, up, down, gate, values, scale):
        spread = partial(sj.kernels.active._dense.spread, s=s, units=N)
        u = jnp.einsum("td,ngd->tng", x, up)
        if form == "plain":
            h = jax.nn.silu(u)
        elif form == "gate":
            h = jax.nn.silu(jnp.einsum("td,ngd->tng", x, gate)) * u
        else:
            h = spread(values) * u
        h = h * mask[..., None] * spread(scale[..., None])
        return jnp.einsum("tng,ngd->td", h, down)

    arguments = x, up, down, gate, values, scale
    assert_close(sparse(*arguments), dense(*arguments))

    def loss(f):
        return jax.jit(jax.grad(lambda *a: jnp.sin(f(*a)).sum(), argnums=tuple(range(6))))

    for got, want in zip(loss(sparse)(*arguments), loss(dense)(*arguments)):
        assert_close(got, want, 1e-4)


@pytest.mark.slow
def test_second_derivatives():
    s, x, (w, *_), mask = make("one of 3, units of 2", tokens=1, d=2)
    mask = jnp.asarray(mask[..., None], jnp.float32)
    sparse = lambda x, w: jnp.sin(active_ffn(x, w, w, s, activation=jnp.tanh)).sum()  # noqa: E731

    def dense(x, w):
        h = jnp.tanh(jnp.einsum("td,ngd->tng", x, w)) * mask
        return jnp.sin(jnp.einsum("tng,ngd->td", h, w)).sum()

    for argument in (0, 1):
        derivative = lambda f: jax.jacrev(jax.grad(f, argument), 1)(x, w)  # noqa: B023, E731
        assert_close(derivative(sparse), derivative(dense), 1e-4)


@pytest.mark.parametrize("count", [0, 1, 3, 5, 8, 9])
def test_every_bucket_gives_the_same(count):
    s, x, (w, *_), mask = make("bucketed", count=count)
    want = np.einsum("td,ngd->tng", *wide(x, w)) * mask[:, :, None]
    got = jax.jit(active_expand)(x, w, s)
    assert_close(got, by_place(want, s))
    assert (np.asarray(got)[:, count:] == 0).all()
    y = active_reduce(got, w, s, gathered=True)
    assert_close(y, np.einsum("tng,ngd->td", want, *wide(w)))
    assert count or (np.asarray(y) == 0).all()


@pytest.mark.slow
def test_vmap_over_sets_is_a_set_per_token():
    s, x, (up, down, _), _ = make("by token")
    together = active_ffn(x, up, down, s)
    one = lambda x, s: active_ffn(x[None], up, down, s)[0]  # noqa: E731
    assert_close(jax.vmap(one)(x, s), together)


@pytest.mark.slow
def test_builders():
    score = jnp.array([[0.0, 3.0, 1.0, 3.0, jnp.nan], [5.0, 0.0, 5.0, 5.0, 1.0]])
    top = sj.select.TopK(2).set(score)
    assert top.index.tolist() == [[1, 3], [0, 2]] and top.count.tolist() == [2, 2]
    assert sj.select.TopK(3).set(jnp.zeros(5)).index.tolist() == [0, 1, 2]
    above = sj.select.Threshold(1.0).set(score, 2)
    assert above.index.tolist() == [[1, 3], [0, 2]]
    assert above.count.tolist() == [2, 2] and above.overflow.tolist() == [False, True]
    by_unit = sj.select.Threshold(jnp.array([9.0, -1, 9, 1, 9])).set(score[1], 4)
    assert by_unit.index.tolist() == [1, 3, 0, 0] and int(by_unit.count) == 2
    union = sj.select.ActiveSet.from_mask(score > 2, 5, union=True)
    assert union.index.tolist() == [0, 1, 2, 3, 0] and int(union.count) == 4
    used = sj.select.NonZero().set(jnp.nan_to_num(score), 5, union=True)
    assert used.index.tolist() == [0, 1, 2, 3, 4]
    nothing = sj.select.NonZero().set(jnp.zeros((2, 3)), 1, union=True)
    assert int(nothing.count) == 0 and not bool(nothing.overflow)


def test_overflow_runs_the_dense_branch():
    score = jnp.array([1.0, 2.0, 3.0])
    for capacity, want in ((3, "active"), (2, "dense")):
        s = sj.select.Threshold(0.5).set(score, capacity)
        found = s.unless_overflow(lambda: 0, lambda: 1)
        assert ["active", "dense"][int(found)] == want


def test_unit_major():
    kernel = jnp.arange(24.0).reshape(4, 6)
    assert_close(unit_major(kernel, 0)[2, 0], kernel[2])
    assert_close(unit_major(kernel, 1, size=3)[1, 2], kernel[:, 5])


def test_mistakes():
    s, x, (w, *_), _ = make("one of 3")
    with pytest.raises(ValueError, match="k must be at most the 3 units, got 9"):
        sj.select.TopK(9).set(jnp.ones(3))
    with pytest.raises(ValueError, match="unit_major.*5 do not divide"):
        unit_major(jnp.ones((4, 6)), 1, 5)
    with pytest.raises(ValueError, match="units come first"):
        active_expand(x[:, :3], w, s)
    with pytest.raises(ValueError, match="32 units"):
        active_reduce(x, w, s)
    with pytest.raises(ValueError, match="not both"):
        active_ffn(x, w, w, s, w_gate=w, gate_values=jnp.ones((3, 3)))
    with pytest.raises(ValueError, match="w_down of shape"):
        active_ffn(x, w, w[:4], s)
    with pytest.raises(ValueError, match="for 3 tokens"):
        active_expand(x, w, make("by token", tokens=2)[0])
    with pytest.raises(ValueError, match="active_ffn.*must be among"):
        active_ffn(x, w, w, s, implementation="triton")
    with pytest.raises(TypeError, match="floats"):
        active_expand(x, jnp.ones((N, D), int), s)
    with pytest.raises(TypeError, match="floats"):
        active_expand(x.astype(int), w, s)
    for call in (active_expand, partial(active_ffn, w_down=w)):
        with pytest.raises(ValueError, match=r"scale of shape \(3, 32\) must be \(3, 3\)"):
            call(x, w, s=s, scale=jnp.ones((3, N)))
    with pytest.raises(ValueError, match=r"gate_values of shape \(3, 32, 1\) must be \(3, 3, 1\)"):
        active_ffn(x, w, w, s, gate_values=jnp.ones((3, N)))


@pytest.mark.parametrize("implementation", ["xla", "dense"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_in_unused_places_changes_nothing(implementation, value):
    s, x, (w, *_), mask = make("bucketed", count=3)
    unused = ~np.asarray(s.used)
    assert unused.any() and not mask[:, 0].any()  # where unused places point to
    scale = np.where(unused, value, np.linspace(1, 2, s.capacity)) * np.ones((3, 1))
    v = jnp.ones((3, *w.shape[:2])).at[:, 0].set(value)
    run = partial(active_reduce, s=s, implementation=implementation)
    y, pull = jax.vjp(lambda v, w, scale: run(v, w, scale=scale), v, w, jnp.asarray(scale, "f"))
    index = np.asarray(s.index)[~unused]
    factors = np.linspace(1, 2, s.capacity)[: len(index)]
    assert_close(y, np.ones((3, 1)) * (factors[:, None] * wide(w)[0][index].sum(1)).sum(0))
    assert all(jnp.isfinite(leaf).all() for leaf in pull(jnp.ones_like(y)))
    h = active_expand(x, w, s, jnp.asarray(scale, "f"), implementation=implementation)
    assert (h[:, unused] == 0).all() and jnp.isfinite(h).all()


@pytest.mark.slow
def test_weights_that_are_not_finite_are_not_met_where_inactive():
    used = np.isin(np.arange(40), [5, 17])
    s = sj.select.ActiveSet.from_mask(jnp.asarray(used)[None], 8, union=True)
    by_token = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), s)
    rng = np.random.default_rng(0)
    x, v, w = (jnp.asarray(rng.normal(size=size), "f") for size in ((3, 6), (3, 40), (40, 6)))
    w = jnp.where(used[:, None], w, jnp.nan)
    for one in (s, by_token):
        V, W = wide(v, w)
        assert_close(active_reduce(v, w, one), V[:, used] @ W[used])
        dx = jax.grad(lambda x, one=one: active_expand(x, w, one).sum())(x)
        assert_close(dx, np.ones((3, 1)) * W[used].sum(0))


@pytest.mark.parametrize("implementation", ["xla", "dense"])
def test_no_tokens_and_arrays_of_numpy(implementation):
    s, x, (w, *_), _ = make("bucketed")
    for tokens in (0, 3):
        some, v = np.asarray(x)[:tokens], np.ones((tokens, *w.shape[:2]), np.float32)
        run = dict(s=s, implementation=implementation)
        assert active_expand(some, w, **run).shape == (tokens, s.capacity, w.shape[1])
        assert active_reduce(v, w, **run).shape == (tokens, w.shape[2])


HARDWARE = [
    ("pallas_tpu", "tpu", jnp.float32, 1, 128),
    ("pallas_tpu", "tpu", jnp.bfloat16, 16, 256),
    ("pallas_gpu", "cuda", jnp.bfloat16, 16, 128),
    ("pallas_gpu", "cuda", jnp.bfloat16, 128, 64),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, platform, dtype, size, d", HARDWARE)
def test_kernels(name, platform, dtype, size, d):
    rng = np.random.default_rng(0)
    up, down = (jnp.asarray(rng.normal(size=(6, size, d)) / 8, dtype) for _ in range(2))
    x = jnp.asarray(rng.normal(size=(3, d)), dtype)
    s = sj.select.ActiveSet.from_mask(jnp.array([[1, 0, 0, 1, 1, 0]]) > 0, 4, union=True)
    ffn = partial(active_ffn, activation=jax.nn.silu, implementation=name)
    with _mosaic.hopper() if name == "pallas_gpu" else sj.kernels.lowering_for("tpu"):
        lowered = jax.jit(ffn).trace(x, up, down, s).lower(lowering_platforms=(platform,))
    assert ("mosaic_gpu" if platform == "cuda" else "tpu_custom_call") in lowered.as_text()
    if name == "pallas_gpu" and not hasattr(plgpu, "InterpretGPUParams"):
        pytest.skip("this JAX has no interpreter for these GPU kernels")
    interpreter = (
        pltpu.force_tpu_interpret_mode()
        if name == "pallas_tpu"
        else plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams())
    )
    want = active_ffn(x, up, down, s, activation=jax.nn.silu, implementation="dense")
    with interpreter, sj.kernels.lowering_for(name.removeprefix("pallas_")):
        got = ffn(x, up, down, s)
    assert_close(got, want, 1e-5 if dtype == jnp.float32 else 2e-2)


@pytest.mark.parametrize("name", ["pallas_tpu", "pallas_gpu"])
def test_what_a_kernel_cannot_do(name):
    s, x, (w, *_), _ = make("by token")
    with pytest.raises(NotImplementedError, match=name):
        active_expand(x, w, s, implementation=name)
    assert active_expand(x, w, s, implementation=(name, "xla")).shape == (3, 5, 1)


NATIVE = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
DTYPES = {
    "float32": (jnp.float32, 1e-5),
    "bfloat16": (jnp.bfloat16, 1e-2),
    "int8": (jnp.int8, 1e-5),
}


@NATIVE
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8, 11])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["one of 3, units of 2", "by token, units of 2", "all"])
def test_native(name, dtype, tokens):
    kind, tolerance = DTYPES[dtype]
    for d, count in ((37, None), (80, 0), (16, 1)):
        s, x, (w, *_), mask = make(name, tokens, d=d, count=count)
        w = (w * 50).astype(kind) if kind == jnp.int8 else w.astype(kind)
        x = x if kind == jnp.int8 else x.astype(kind)
        h = np.einsum("td,ngd->tng", *wide(x, w)) * mask[:, :, None]
        got = jax.jit(partial(active_expand, implementation="native"))(x, w, s)
        assert got.dtype == x.dtype
        assert_close(got, by_place(h, s), tolerance)
        assert_close(active_expand(x, w, s), by_place(h, s), tolerance)
        v = jnp.asarray(np.random.default_rng(1).normal(size=(tokens, *w.shape[:2])), x.dtype)
        want = np.einsum("tng,ngd->td", *wide(v * mask[:, :, None].astype(v.dtype), w))
        for implementation in ("native", "xla"):
            assert_close(active_reduce(v, w, s, implementation=implementation), want, tolerance)


@NATIVE
def test_native_ffn_has_the_same_gradients():
    s, x, (up, down, gate), _ = make("one of 3, units of 2")

    def loss(x, up, down, gate, implementation):
        y = active_ffn(
            x, up, down, s, activation=jax.nn.silu, w_gate=gate, implementation=implementation
        )
        return jnp.sin(y).sum()

    native, xla = (
        jax.jit(jax.grad(partial(loss, implementation=i), argnums=(0, 1, 2, 3)))(x, up, down, gate)
        for i in ("native", "xla")
    )
    for got, want in zip(native, xla):
        assert_close(got, want, 1e-4)
    int8 = (up * 50).astype(jnp.int8)
    grad = jax.grad(lambda x: active_expand(x, int8, s, implementation="native").sum())(x)
    assert_close(grad, jax.grad(lambda x: active_expand(x, int8, s).sum())(x))


@NATIVE
def test_native_refuses_what_it_cannot_read():
    s, x, (w, *_), _ = make("one of 3")
    with pytest.raises(NotImplementedError, match="weights of float16"):
        active_expand(x, w.astype(jnp.float16), s, implementation="native")
    broken = ActiveSet(s.index + 1000, s.count, s.overflow)
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="units that do not exist"):
        jax.block_until_ready(active_expand(x, w, broken, implementation="native"))


@NATIVE
@pytest.mark.parametrize("rows", [(), (1,), (2, 3), (8,), (9,), (0,)])
def test_skipping(rows):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(*rows, 21)) * (rng.random((*rows, 21)) < 0.4), jnp.float32)
    w = jnp.asarray(rng.normal(size=(21, 70)), jnp.float32)
    whole = sj.formats.Skipping.quantized(w)
    assert np.abs(whole.todense() - w).max() <= np.abs(w).max() / 250
    for kind, tolerance in ((w, 1e-5), (w.astype(jnp.bfloat16), 1e-2)):
        made = sj.formats.Skipping(kind)
        assert_close(x @ made, wide(x)[0] @ wide(kind)[0], tolerance)
        for implementation in ("native", "dense") if 0 < x.size <= 8 * 21 else ("dense",):
            got = sj.matmul(x, made, bias=w[0], implementation=implementation)
            assert_close(got, np.asarray(x @ kind + w[0], np.float64), tolerance)
    assert_close(x @ whole, wide(x)[0] @ wide(whole.todense())[0])


@NATIVE
def test_skipping_stacked_differentiated_saved(tmp_path):
    rng = np.random.default_rng(0)
    x, w = jnp.asarray(rng.normal(size=(3, 2, 8))), jnp.asarray(rng.normal(size=(3, 8, 20)))
    x, w = (a.astype(jnp.float32) for a in (jnp.where(x > 0, x, 0), w))
    made = sj.formats.Skipping(w)
    assert_close(jax.jit(sj.matmul)(x, made), np.einsum("lmk,lkn->lmn", *wide(x, w)))
    loss = lambda x, w: jnp.sin(x @ w).sum()  # noqa: E731
    got, want = (jax.grad(loss, (0, 1))(x[0], m) for m in (sj.formats.Skipping(w[0]), w[0]))
    assert_close(got[0], want[0], 1e-4)
    assert_close(got[1].values, want[1], 1e-4)
    tree = {"a": made, "b": sj.formats.Skipping.quantized(w)}
    with pytest.raises(ValueError, match="int8 weights have no gradient"):
        jax.grad(lambda x: (x @ tree["b"]).sum())(x)
    sj.save(tmp_path / "w.safetensors", tree)
    back = sj.load(tmp_path / "w.safetensors")
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert back["a"].scale is None
    with pytest.raises(ValueError, match="scale must have the shape"):
        sj.formats.Skipping(tree["b"].values, jnp.ones(20)).validate()
    with pytest.raises(TypeError, match="int8"):
        x @ sj.formats.Skipping(tree["b"].values)


@pytest.mark.parametrize("shape, count", [((2, 3), 2), ((3,), [2, 2]), ((2, 3), [2])])
def test_a_count_for_each_list(shape, count):
    s = ActiveSet(jnp.zeros(shape, jnp.int32), jnp.array(count, jnp.int32), jnp.zeros((), bool))
    for call in (active_reduce, active_expand):
        with pytest.raises(ValueError, match="count of shape .* must be"):
            call(jnp.ones((2, 4)), jnp.ones((4, 4)), s)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_int8_holds_no_nan(bad):
    w = jnp.full((4, 3), 0.3).at[0, 1].set(bad)
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        sj.formats.Skipping.quantized(w)
    dense = jax.jit(lambda w: sj.formats.Skipping.quantized(w).todense())(w)
    assert np.isnan(dense[:, 1]).all() and np.isfinite(dense[:, ::2]).all()
    assert sj.formats.Skipping.quantized(jnp.ones((0, 3))).shape == (0, 3)
