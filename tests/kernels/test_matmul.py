"""Every implementation and form on every case, against float64."""

import dataclasses
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj
from sparsejax.formats import BlockArray, NMArray
from sparsejax.kernels import _table
from sparsejax.kernels.matmul import _xla_block, _xla_nm
from sparsejax.kernels.matmul._cases import SMALL

IMPLEMENTATIONS = ("xla", "dense")
CASES = [pytest.param(case, id=case.name) for case in SMALL]
BY_NAME = {case.name: case for case in SMALL}
DOT = {"precision": None, "preferred_element_type": jnp.float32}


def assert_close(got, want, tol=1e-5):
    """Relative to the norm of what is wanted."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    assert np.linalg.norm(got - want) <= tol * max(np.linalg.norm(want), 1e-30)


def in_double(w):
    return np.asarray(w.todense(), np.float64)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES)
def test_product(case, implementation):
    x, w = case.make()
    y = sj.kernels.matmul(x, w, implementation=implementation)
    assert y.dtype == x.dtype
    assert_close(y, np.asarray(x, np.float64) @ in_double(w))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["2:4", "1:8, vector", "1:4, share 32", "uneven"])
def test_half_precision(name, dtype, implementation):
    x, w = BY_NAME[name].make(dtype)

    @jax.jit
    def both(x, w):
        y, pull = jax.vjp(partial(sj.kernels.matmul, implementation=implementation), x, w)
        return y, *pull(jnp.ones_like(y))

    y, dx, dw = both(x, w)
    assert y.dtype == dx.dtype == dw.dtype == dtype
    x, dense = np.asarray(x, np.float64), in_double(w)
    ones, outer = np.ones(y.shape), x.reshape(-1, x.shape[-1]).sum(0)[:, None] + 0 * dense
    assert_close(y, x @ dense, 1e-2)
    assert_close(dx, ones @ dense.T, 1e-2)
    assert_close(dw.values, w.take(jnp.asarray(outer, jnp.float32)), 1e-2)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_masked_product(case, implementation):
    x, w = case.make()

    def loss(x, w):
        return jnp.sin(sj.kernels.matmul(x, w, implementation=implementation)).sum()

    dx, dw = jax.jit(jax.grad(loss, argnums=(0, 1), allow_int=True))(x, w)
    # The gradient of sum(sin(x W)) by hand.
    wide, dense = np.asarray(x, np.float64), in_double(w)
    dy = np.cos(wide @ dense)
    want_x = dy @ dense.T
    flat = wide.reshape(-1, wide.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])
    want_w = jnp.asarray(flat, jnp.float32)
    assert_close(dx, want_x)
    assert_close(dw.values, w.take(want_w))
    assert jax.tree.structure(dw) == jax.tree.structure(w)
    others = jax.tree.leaves(replace(dw, values=None))
    assert others and all(leaf.dtype == jax.dtypes.float0 for leaf in others)


@pytest.mark.parametrize(
    "name", ["blocks 4x4", "empty row and column", "uneven", "blocks 2x8, batch axes"]
)
@pytest.mark.parametrize("form", ["decompressed", "batched", "scanned"])
def test_block_forms(name, form):
    x, w = BY_NAME[name].make()
    x = x.reshape(-1, x.shape[-1])
    y = getattr(_xla_block, form)(x, w, **DOT)
    assert_close(y, np.asarray(x, np.float64) @ in_double(w))


@pytest.mark.parametrize("form", ["decompressed", "batched", "scanned"])
def test_lists_out_of_range_give_nan_in_every_form(form, monkeypatch):
    w = BlockArray.fromdense(jnp.ones((96, 64)), (16, 32))
    x, dy = jnp.ones((3, 96)), jnp.ones((3, 64))
    monkeypatch.setattr(_xla_block, "_choose", lambda *shapes: form)
    broken = replace(w, index=w.index.at[1, 0].set(6), index_t=w.index_t.at[2, 1].set(-1))
    for product, columns in (
        (_xla_block.product, np.arange(64) >= 32),
        (_xla_block.transposed, np.arange(96) // 16 == 2),
    ):
        given = x if product is _xla_block.product else dy
        np.testing.assert_array_equal(np.isnan(product(given, broken, **DOT)), [columns] * 3)
        assert not np.isnan(product(given, w, **DOT)).any()


@pytest.mark.parametrize("name", ["2:4", "2:4, K not divisible", "1:4, share 4", "1:4, share 32"])
@pytest.mark.parametrize("form", ["decompressed", "selected", "gathered", "scanned"])
def test_nm_forms(name, form):
    x, w = BY_NAME[name].make()
    assert_close(getattr(_xla_nm, form)(x, w, **DOT), np.asarray(x, np.float64) @ in_double(w))


@pytest.mark.parametrize("limit", [0, 2**40], ids=["scanned", "batched"])
def test_backward_forms(monkeypatch, limit):
    x, w = BY_NAME["empty row and column"].make()
    dy = jnp.cos(jnp.arange(x.shape[0] * w.shape[1], dtype=jnp.float32)).reshape(x.shape[0], -1)
    monkeypatch.setattr(_xla_block, "BATCHED_BYTES", {1: limit})
    dense = in_double(w)
    assert_close(_xla_block.transposed(dy, w, **DOT), np.asarray(dy, np.float64) @ dense.T)
    sampled = np.asarray(x, np.float64).T @ np.asarray(dy, np.float64)
    assert_close(_xla_block.sampled(x, dy, w, **DOT), w.take(jnp.asarray(sampled, jnp.float32)))


@pytest.mark.parametrize("name", ["2:4, share 32, many rows", "1:4, share 32"])
def test_shared_patterns_sample_alike(monkeypatch, name):
    x, w = BY_NAME[name].make()
    dy = jnp.ones((x.shape[0], w.shape[1]))
    one = _xla_nm.sampled(x, dy, w, **DOT)
    monkeypatch.setattr(_xla_nm, "BATCHED_BYTES", 0)
    assert_close(_xla_nm.sampled(x, dy, w, **DOT), one)


SECOND = [
    ((4,), NMArray.fromdense, dict(n=2, m=4)),
    ((4,), BlockArray.fromdense, dict(block=2, slots=2)),
]


@pytest.mark.parametrize("rows, pack, arguments", SECOND)
def test_second_derivatives(rows, pack, arguments):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *rows)), jnp.float32)
    w = pack(
        jnp.asarray(rng.normal(size=(4, 2)) * [[1, 1], [1, 1], [0, 1], [0, 1]], jnp.float32),
        **arguments,
    )

    def loss(product, values, x):
        return jnp.sin(product(x, replace(w, values=values))).sum()

    dense = lambda x, w: x @ w.todense()  # noqa: E731
    sparse = partial(sj.kernels.matmul, implementation="xla")
    derivatives = (
        partial(jax.hessian, argnums=0),
        partial(jax.hessian, argnums=1),
        lambda f: jax.jacrev(jax.grad(f, 0), 1),  # reverse over reverse, across the arguments
    )
    for derivative in derivatives:
        got, want = (jax.jit(derivative(partial(loss, f)))(w.values, x) for f in (sparse, dense))
        assert_close(got, want, 1e-4)


def test_empty_columns_and_rows_are_exactly_zero():
    x, w = BY_NAME["empty row and column"].make()
    assert not w.count[0] and not w.count_t[0]
    y, pull = jax.vjp(sj.kernels.matmul, x, w)
    dx, dw = pull(jnp.ones_like(y))
    assert (y[:, :4] == 0).all() and (dx[:, :4] == 0).all()
    assert (dw.values[~np.asarray(w.used)] == 0).all()
    assert (y[:, 4:] != 0).all()


def test_padding_has_no_gradient_even_where_x_has():
    x, w = BY_NAME["more slots than blocks"].make()
    dw = jax.grad(lambda w: sj.kernels.matmul(x, w).sum(), allow_int=True)(w)
    assert (dw.values[~np.asarray(w.used)] == 0).all()
    assert (dw.values[np.asarray(w.used)] != 0).any()


def test_unused_slots_of_a_group_have_a_gradient():
    x = jnp.ones((3, 4))
    w = NMArray.fromdense(jnp.array([[0.0], [2.0], [0.0], [0.0]]), 2, 4)
    dw = jax.grad(lambda w: sj.kernels.matmul(x, w).sum(), allow_int=True)(w)
    assert dw.values.ravel().tolist() == [3.0, 3.0]


@pytest.mark.parametrize("name", ["2:4", "uneven"])
def test_a_new_pattern_of_the_same_shape_does_not_recompile(name):
    case = replace(BY_NAME[name], slots=8 if name == "uneven" else None)
    traces = []

    @jax.jit
    def f(x, w):
        traces.append(1)
        return sj.kernels.matmul(x, w)

    for seed in range(3):
        x, w = case.make(seed=seed)
        if isinstance(w, BlockArray):
            w = BlockArray.fromdense(w.todense(), w.block, slots=8, slots_t=6)
        assert_close(f(x, w), np.asarray(x, np.float64) @ in_double(w))
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["2:4", "blocks 4x4"])
def test_vmap_over_x_over_w_and_over_both(name):
    case = BY_NAME[name]
    x, w = case.make()
    other = replace(w, values=-2 * w.values)
    if isinstance(w, NMArray):
        other = case.make(seed=1)[1]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), w, other)
    xs, want = jnp.stack([x, 2 * x]), np.stack([x @ w.todense(), x @ other.todense()])
    assert_close(jax.vmap(sj.kernels.matmul, (0, None))(xs, w)[1], 2 * want[0])
    assert_close(jax.vmap(sj.kernels.matmul, (None, 0))(x, stack), want)
    assert_close(sj.kernels.matmul(jnp.stack([x, x]), stack), want)
    scanned = jax.lax.scan(lambda c, layer: (c, c @ layer), x, stack)[1]
    assert_close(scanned, want)

    def loss(w, x):
        return (x @ w).sum()

    grads = jax.vmap(jax.grad(loss, allow_int=True), (0, None))(stack, x)
    single = jax.grad(loss, allow_int=True)(other, x)
    assert_close(grads.values[1], single.values)


def test_operators():
    x, w = BY_NAME["2:4"].make()
    want = np.asarray(x) @ np.asarray(w.todense())
    assert_close(x @ w, want)
    assert_close(np.asarray(x) @ w, want)
    assert_close(jax.jit(lambda x, w: x @ w)(x, w), want)
    with pytest.raises(TypeError):
        w @ x  # noqa: B018


def test_dtypes_bias_and_activation():
    x, w = BY_NAME["2:4"].make(jnp.bfloat16)
    wide = sj.kernels.matmul(x, w, out_dtype=jnp.float32)
    assert wide.dtype == jnp.float32
    assert_close(wide, np.asarray(x, np.float64) @ in_double(w))  # accumulated in float32
    mixed = sj.kernels.matmul(x.astype(jnp.float32), w)
    assert mixed.dtype == jnp.float32
    bias = np.linspace(-5, 5, w.shape[1], dtype=np.float32)
    y = sj.kernels.matmul(x, w, bias=bias, activation=jax.nn.relu, out_dtype=jnp.float32)
    assert_close(y, np.maximum(np.asarray(wide) + bias, 0))


def test_dense_arrays():
    x, w = np.ones((2, 3, 4), np.float32), jnp.ones((4, 5), jnp.bfloat16)
    y = sj.kernels.matmul(x, w)
    assert y.shape == (2, 3, 5) and y.dtype == jnp.float32
    assert jax.grad(lambda w: sj.kernels.matmul(x, w).sum())(w).shape == w.shape


def test_explain():
    x, w = BY_NAME["blocks 4x4"].make()
    assert sj.kernels.explain(x, w) == "xla: batched"
    many = jax.ShapeDtypeStruct((2**20, 32), jnp.float32)
    assert sj.kernels.explain(many, w) == "xla: scanned"
    assert sj.kernels.explain(x, w, "dense") == "dense: decompressed"
    assert sj.kernels.explain(x, w.todense()) == "dense"
    assert sj.kernels.explain(x[:, :16], BY_NAME["no slots"].make()[1]) == "xla: zeros"


def replace_xla(monkeypatch, **functions):
    """XLA's products of N:M with other functions."""
    entries = _table._table["matmul"][NMArray]
    replaced = dataclasses.replace(entries["xla"].load(), **functions)
    monkeypatch.setitem(entries, "xla", entries["xla"]._replace(load=lambda: replaced))


def test_the_next_implementation_is_tried(monkeypatch):
    def cannot(*_):
        raise NotImplementedError("not today")

    x, w = BY_NAME["1:4, share 4"].make()
    replace_xla(monkeypatch, product=cannot)
    assert_close(sj.kernels.matmul(x[:3], w), np.asarray(x[:3]) @ in_double(w))
    with pytest.raises(NotImplementedError, match="xla: not today"):
        sj.kernels.matmul(x[:2], w, implementation="xla")


def test_mistakes():
    x, w = BY_NAME["2:4"].make()
    with pytest.raises(ValueError, match=r"contracts the last axis.*\(5, 12\)"):
        sj.kernels.matmul(x[:, :12], w)
    with pytest.raises(ValueError, match=r"must be among .*'xla'"):
        sj.kernels.matmul(x, w, implementation="cuda")
    with pytest.raises(TypeError, match="x.astype"):
        sj.kernels.matmul(x.astype(int), w)
    stack = jax.tree.map(lambda leaf: leaf[None], w)
    with pytest.raises(ValueError, match="stacked"):
        sj.kernels.matmul(x, stack)


STACKED = [
    pytest.param(NMArray.fromdense, dict(n=1, m=4, share=32), (3, 16, 64), id="gathered"),
    pytest.param(BlockArray.fromdense, dict(block=4), (3, 16, 16), id="blocks"),
]


@pytest.mark.parametrize("pack, arguments, shape", STACKED)
def test_stacked_matrices_are_explained_and_multiplied_as_dense_ones(pack, arguments, shape):
    rng = np.random.default_rng(0)
    w = pack(jnp.asarray(rng.normal(size=shape), jnp.float32), **arguments)
    one = jax.tree.map(lambda leaf: leaf[0], w)
    for rows in ((), (5,), (2, 5)):
        x = jnp.asarray(rng.normal(size=(3, *rows, 16)), jnp.float32)
        assert sj.kernels.explain(x, w) == sj.kernels.explain(x[0], one)
        want = np.einsum("l...k,lkn->l...n", np.asarray(x, np.float64), in_double(w))
        assert_close(sj.matmul(x, w), want)
        assert_close(sj.matmul(x, w.todense()), want)
    with pytest.raises(ValueError, match=r"stacked, so x must begin with \(3,\)"):
        sj.matmul(x[0], w.todense())


def test_explain_knows_the_dtype_of_x(monkeypatch):
    said = []
    replace_xla(monkeypatch, explain=lambda rows, w: said.append(w.dtype) or "")
    x, w = BY_NAME["2:4"].make(jnp.bfloat16)
    for dtype in (jnp.bfloat16, jnp.float32):
        sj.kernels.explain(x.astype(dtype), w)
    assert said == [jnp.bfloat16, jnp.float32]


def test_implementations_of_dense_products_are_checked():
    x, w = jnp.ones((2, 4)), jnp.ones((4, 5))
    for call in (sj.matmul, sj.kernels.explain):
        call(x, w, implementation="xla")
        with pytest.raises(ValueError, match="must be among"):
            call(x, w, implementation="cuda")


@pytest.mark.parametrize("shape", [(), (1,), (12,), (5, 1), (5, 12)])
@pytest.mark.parametrize("activation", [None, jnp.tanh])
def test_any_bias_that_broadcasts_has_a_gradient(shape, activation):
    x, w = BY_NAME["2:4"].make()
    bias = jnp.full(shape, 0.5)
    y, pull = jax.vjp(lambda b: sj.matmul(x, w, bias=b, activation=activation), bias)
    before = np.asarray(x, np.float64) @ in_double(w) + 0.5
    assert_close(y, before if activation is None else np.tanh(before))
    want = np.ones(before.shape) if activation is None else 1 - np.tanh(before) ** 2
    summed = jax.vjp(lambda b: jnp.broadcast_to(b, want.shape), bias)[1](jnp.asarray(want, "f"))
    assert_close(pull(jnp.ones_like(y))[0], summed[0])


def test_a_row_with_large_groups_is_decompressed():
    w = NMArray.fromdense(jnp.ones((4096, 2)), 1, 4096)
    assert sj.kernels.explain(jnp.ones(4096), w) == "xla: decompressed"
    assert (jnp.ones(4096) @ w).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["sparse_cores", "cusparselt"])
def test_explain_knows_that_there_are_no_rows(monkeypatch, name):
    module = __import__(f"sparsejax.kernels.matmul._{name}", fromlist=["require"])
    monkeypatch.setattr(module, "require", lambda dtype: None)
    w = NMArray.fromdense(jnp.ones((128, 64), jnp.bfloat16), 2, 4)
    none = jnp.ones((0, 128), jnp.bfloat16)
    explain = partial(sj.kernels.explain, implementation=(name, "dense"))
    with sj.kernels.lowering_for("gpu"):
        assert explain(none, w).startswith("dense: decompressed; not " + name)
        assert explain(jnp.ones((3, 128), jnp.bfloat16), w).startswith(name)


@pytest.mark.parametrize("activation", [None, jax.nn.relu])
def test_second_derivatives_of_padding_are_zero(activation):
    w = sj.formats.BlockArray.fromdense(jnp.array([[1.0, 1.0], [0.0, 1.0]]), 1)
    x = jnp.array([[0.5, 2.0]])

    def slope(values):
        product = partial(sj.matmul, w=replace(w, values=values), activation=activation)
        return (jax.grad(lambda x: jnp.sin(product(x)).sum())(x) ** 2).sum()

    found = np.asarray(jax.grad(slope)(w.values)).ravel()
    used = np.asarray(w.used).ravel()
    assert np.all(found[~used] == 0) and np.all(found[used] != 0)
