"""Bitmask matrices against NumPy and dense products."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax.formats import BitmaskArray


def sparse(shape, density=0.3, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=shape) * (rng.random(shape) < density)
    return jnp.asarray(w, dtype)


@pytest.mark.parametrize("shape", [(5, 3), (8, 16), (4, 9), (0, 4), (4, 0)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layout_is_that_of_numpy(shape, dtype):
    dense = sparse(shape, dtype=dtype)
    w = BitmaskArray.fromdense(dense)
    host = np.asarray(dense)
    np.testing.assert_array_equal(w.bits, np.packbits(host != 0, axis=-1, bitorder="little"))
    np.testing.assert_array_equal(w.values, host[host != 0])
    np.testing.assert_array_equal(w.mask, host != 0)
    assert w.shape == shape and w.dtype == dtype
    np.testing.assert_array_equal(w.todense(), host)
    np.testing.assert_array_equal(w.take(w.todense()), w.values)
    w.validate()


def test_ninety_percent_takes_an_eighth():
    rng = np.random.default_rng(0)
    dense = np.zeros(1024 * 1024, np.float32)
    dense[rng.permutation(dense.size)[: dense.size // 10]] = 1.5
    w = BitmaskArray.fromdense(dense.reshape(1024, 1024))
    assert w.nbytes / dense.nbytes <= 0.1313
    np.testing.assert_array_equal(w.todense(), dense.reshape(1024, 1024))


def test_zeros_nan_and_infinity():
    dense = jnp.array([[jnp.nan, 0.0, -0.0, jnp.inf]])
    w = BitmaskArray.fromdense(dense)
    assert w.values.shape == (2,) and np.isnan(w.values[0]) and np.isinf(w.values[1])
    assert not np.signbit(w.todense()[0, 2])
    kept = BitmaskArray.fromdense(dense, mask=jnp.ones((1, 4), bool))
    assert np.signbit(kept.todense()[0, 2])


@pytest.mark.parametrize("implementation", [None, "xla", "dense"])
def test_products_and_gradients(implementation):
    dense, rng = sparse((7, 11)), np.random.default_rng(1)
    w = BitmaskArray.fromdense(dense, slots=40)
    x, dy = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 7), (3, 11)))
    y, pull = jax.vjp(lambda x, w: sj.matmul(x, w, implementation=implementation), x, w)
    dx, dw = pull(dy)
    np.testing.assert_allclose(y, x @ dense, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, dy @ dense.T, rtol=1e-5, atol=1e-6)
    count = int((dense != 0).sum())
    np.testing.assert_allclose(dw.values[:count], (x.T @ dy)[dense != 0], rtol=1e-5, atol=1e-6)
    assert not dw.values[count:].any() and int(w.real.sum()) == count


def test_stacked_vmapped_and_traced():
    dense, x = sparse((3, 6, 10)), jnp.ones((3, 2, 6))
    w = BitmaskArray.fromdense(dense)
    w.validate()
    want = jnp.einsum("lmk,lkn->lmn", x, dense)
    np.testing.assert_allclose(jax.jit(sj.matmul)(x, w), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(sj.matmul)(x, w), want, rtol=1e-5, atol=1e-6)
    made = jax.jit(lambda w: BitmaskArray.fromdense(w, slots=4))(dense[0])
    host = np.array(dense[0]).ravel()
    host[np.flatnonzero(host)[4:]] = 0
    np.testing.assert_array_equal(made.todense().ravel(), host)
    made.validate()
    with pytest.raises(ValueError, match="do not fit slots=2"):
        BitmaskArray.fromdense(dense, slots=2)


@pytest.mark.parametrize("framework", ["nnx", "tree"])
def test_compress_on_request(framework):
    model = nnx.Linear(8, 6, rngs=nnx.Rngs(0))
    params = model if framework == "nnx" else {"kernel": model.kernel[...]}
    plan = sj.plan(params, sj.Unstructured(0.75))
    masks = plan.masks(sj.masks.magnitude({"kernel": model.kernel[...]}))
    small = sj.compress(params, plan, bitmask=True)
    w = small.kernel[...] if framework == "nnx" else small["kernel"]
    assert isinstance(w, BitmaskArray) and w.values.shape == (12,)
    want = jnp.where(masks["kernel"], model.kernel[...], 0)
    np.testing.assert_array_equal(w.todense(), want)
    if framework == "nnx":
        x = jnp.ones((2, 8))
        np.testing.assert_allclose(nnx.jit(small)(x), x @ want, rtol=1e-5, atol=1e-6)
        assert sj.report(small)["kernel"].bytes["stored"] == w.nbytes == 12 * 4 + 8


def test_other_libraries():
    dense = sparse((6, 10))
    w = BitmaskArray.fromdense(dense, slots=30)
    np.testing.assert_array_equal(sj.formats.to_bcoo(w).todense(), dense)
    np.testing.assert_array_equal(sj.formats.to_scipy(w).todense(), dense)


def test_sharded_bits():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    dense = sparse((16, 24))
    w = BitmaskArray.fromdense(dense)
    placed = jax.device_put(w, jax.tree.map(lambda _: jax.NamedSharding(mesh, jax.P()), w))
    rows = jax.device_put(w.bits, jax.NamedSharding(mesh, jax.P("x")))
    placed = BitmaskArray(rows, placed.values, placed.columns)
    np.testing.assert_array_equal(placed.todense(), dense)
    np.testing.assert_allclose(jnp.ones((2, 16)) @ placed, jnp.ones((2, 16)) @ dense, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"columns": -1}, "columns must not be negative"),
        ({"columns": 17}, "bits must be uint8 of shape"),
        ({"bits": jnp.full((2, 1), 255, jnp.uint8)}, "bits beyond the columns"),
        ({"bits": jnp.full((2, 1), 7, jnp.uint8)}, "6 bits are set, but there are 3 values"),
        ({"bits": jnp.zeros((2, 1), jnp.uint8)}, "values must be 0 behind"),
        ({"bits": jnp.zeros((2, 1), jnp.int8)}, "bits must be uint8"),
        ({"values": jnp.zeros(3, jnp.int32)}, "array of floats"),
    ],
)
@pytest.mark.whole
def test_damaged_parts(change, match):
    w = BitmaskArray.fromdense(jnp.array([[0.0, 5.0, 0.0], [7.0, 0.0, 8.0]]))
    with pytest.raises(ValueError, match=match):
        replace(w, **change).validate()
