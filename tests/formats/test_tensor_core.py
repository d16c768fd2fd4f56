"""2:4 matrices in the order of the sparse tensor cores: the same matrix, in every respect."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType

import sparsejax as sj
from sparsejax.formats import NMArray, TensorCoreArray


def made(*shape, dtype=jnp.float32, **how):
    w = np.random.default_rng(sum(shape)).normal(size=shape)
    return NMArray.fromdense(jnp.asarray(w, dtype), 2, 4, **how)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("shape", [(128, 64), (254, 192), (2, 3, 128, 128)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_there_and_back(shape, dtype):
    w = made(*shape, dtype=dtype)
    packed = jax.jit(TensorCoreArray.fromnm)(w)
    assert packed.shape == w.shape == shape and packed.dtype == w.dtype
    assert packed.density == w.density == pytest.approx(0.5, abs=0.01)
    same(packed.tonm(), w)
    np.testing.assert_array_equal(packed.todense(), w.todense())
    dense = jnp.arange(float(np.prod(shape))).reshape(shape)
    same(TensorCoreArray.fromnm(NMArray(w.take(dense), w.code, 4, w.padding)).values,
         packed.take(dense))  # fmt: skip


def test_a_shared_pattern_becomes_one_of_each_column():
    w = made(128, 64, share=16)
    packed = TensorCoreArray.fromnm(w)
    assert packed.tonm().share == 1
    np.testing.assert_array_equal(packed.todense(), w.todense())


@pytest.mark.parametrize("lead", [(), (3,)])
def test_products_and_gradients_are_those_of_the_matrix(lead):
    w = made(*lead, 128, 64)
    packed = TensorCoreArray.fromnm(w)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(*lead, 5, 128)), jnp.float32)

    def loss(x, w):
        return jnp.sum(jnp.sin(sj.matmul(x, w)))

    np.testing.assert_array_equal(x @ packed, sj.matmul(x, w, implementation="dense"))
    dx, dw = jax.grad(loss, (0, 1), allow_int=True)(x, packed)
    want_x, want_w = jax.grad(loss, (0, 1), allow_int=True)(x, w)
    np.testing.assert_allclose(dx, want_x, rtol=1e-4, atol=1e-4)
    want = TensorCoreArray.fromnm(NMArray(want_w.values, w.code, 4)).values
    np.testing.assert_allclose(dw.values, want, rtol=1e-4, atol=1e-4)
    assert dw.metadata.dtype == jax.dtypes.float0
    assert sj.kernels.explain(x, packed) == "dense: decompressed"
    mapped = jax.vmap(sj.matmul, in_axes=(0, None))(jnp.stack([x, 2 * x]), packed)
    np.testing.assert_allclose(mapped[1], 2 * (x @ packed), rtol=1e-4, atol=1e-4)


def test_trains_in_a_layer():
    kernel = sj.nn.SparseKernel(TensorCoreArray.fromnm(made(128, 64)))
    optimizer = nnx.Optimizer(kernel, optax.sgd(0.1), wrt=nnx.Param)
    x = jnp.ones((2, 128))
    zeros = kernel[...].todense() == 0
    before = float(jnp.sum((x @ kernel[...]) ** 2))
    grads = nnx.grad(lambda kernel: jnp.mean((x @ kernel[...]) ** 2))(kernel)
    optimizer.update(kernel, grads)
    assert float(jnp.sum((x @ kernel[...]) ** 2)) < before
    assert jnp.all(jnp.where(zeros, kernel[...].todense() == 0, True))


def test_saved_placed_and_converted(tmp_path):
    w = TensorCoreArray.fromnm(made(126, 128, dtype=jnp.bfloat16))
    sj.save(tmp_path / "w.safetensors", {"layer": {"kernel": w}})
    same(sj.load(tmp_path / "w.safetensors")["layer"]["kernel"], w)
    mesh = jax.make_mesh((1,), ("model",), axis_types=(AxisType.Auto,))
    placed = sj.formats.shard_columns(w, mesh, "model")
    same(placed, w)
    assert tuple(placed.metadata.sharding.spec) == (None, "model", None)
    np.testing.assert_array_equal(sj.formats.to_bcoo(w).todense(), w.todense())
    np.testing.assert_array_equal(
        sj.formats.to_scipy(w).toarray(), np.asarray(w.todense(), np.float32)
    )


def test_measured_apart_from_the_other_formats(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEJAX_CACHE", str(tmp_path / "tuning.json"))
    w, x = TensorCoreArray.fromnm(made(128, 64)), jnp.ones((2, 128))
    assert list(sj.kernels.tune(x, w)) == ["dense"]
    assert sj.kernels.explain(x, w) == "dense: decompressed, measured fastest"
    assert sj.kernels.explain(x, w.tonm()) == "xla: decompressed"


def test_what_does_not_fit_is_said():
    with pytest.raises(TypeError, match=r"must be an NMArray.*NMArray.fromdense\(w, 2, 4\)"):
        TensorCoreArray.fromnm(jnp.ones((128, 64)))
    for w in (
        made(64, 64),
        made(128, 32),
        NMArray.fromdense(jnp.ones((128, 64)), 1, 4),
        NMArray.fromdense(jnp.ones((0, 64)), 2, 4),
    ):
        with pytest.raises(
            ValueError, match="must be 2:4 with K a multiple of 128 and N a multiple of 64"
        ):
            TensorCoreArray.fromnm(w)
    w = TensorCoreArray.fromnm(made(128, 64))
    with pytest.raises(NotImplementedError, match="xla: no implementation for TensorCoreArray"):
        sj.matmul(jnp.ones((2, 128)), w, implementation="xla")
    assert repr(w) == "TensorCoreArray(2:4, shape=(128, 64), dtype=float32)"
