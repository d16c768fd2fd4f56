"""Compressed weights survive files, checkpoints and sharding bit for bit."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax.formats import BlockArray, NMArray


def tree(dtype=jnp.float32):
    w = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8)), dtype)
    stacked = jnp.stack([w, -w])
    return {
        "a": {"kernel": NMArray.fromdense(w[:14], 2, 4), "bias": jnp.arange(8.0)},
        "b": {"kernel": BlockArray.fromdense(jnp.where(w > 1, w, 0), 4)},
        "c": {
            "kernel": NMArray.fromdense(stacked, 9, 16),
            "shared": NMArray.fromdense(w, 1, 4, share=4),
        },
    }


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        assert a.dtype == b.dtype and (np.asarray(a) == np.asarray(b)).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_safetensors_round_trip(tmp_path, dtype):
    want = tree(dtype)
    sj.formats.save_safetensors(want, tmp_path / "w.safetensors")
    assert_same(sj.formats.load_safetensors(tmp_path / "w.safetensors"), want)


def test_orbax_round_trip(tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    want = tree()
    with checkpoint.StandardCheckpointer() as saver:
        saver.save(tmp_path / "w", want)
        saver.wait_until_finished()
        got = saver.restore(tmp_path / "w", jax.tree.map(jnp.zeros_like, want))
    assert_same(got, want)


def test_names_that_collide(tmp_path):
    w = tree()["a"]["kernel"]
    with pytest.raises(ValueError, match="two leaves are named"):
        sj.formats.save_safetensors({"a": w, "a.code": w.code}, tmp_path / "w.safetensors")


@pytest.mark.parametrize("block", [2, 8, (4, 8)])
def test_convert_block(block):
    w = tree()["b"]["kernel"]
    other = sj.formats.convert_block(w, block)
    assert other.block == ((block, block) if isinstance(block, int) else block)
    np.testing.assert_array_equal(other.todense(), w.todense())
    with pytest.raises(ValueError, match="does not divide"):
        sj.formats.convert_block(w, 3)


def test_columns_over_eight_devices():
    code = """
import jax, jax.numpy as jnp, numpy as np, sparsejax as sj
mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
w = jnp.asarray(np.random.default_rng(0).normal(size=(32, 64)), jnp.float32)
x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 32)), jnp.float32)
mask = np.kron(np.random.default_rng(2).random((8, 8)) < 0.5, np.ones((4, 8), bool))
blocks = sj.formats.BlockArray.fromdense(w, (4, 8), mask=mask)
for s in (sj.formats.NMArray.fromdense(w, 2, 4), blocks):
    placed = sj.formats.shard_columns(s, mesh, "model")
    assert len(placed.values.sharding.device_set) == 8
    loss = lambda x, s: jnp.sin(x @ s).sum()
    y, (dx, dw) = jax.jit(jax.value_and_grad(loss, (0, 1), allow_int=True))(x, placed)
    want, (wx, ww) = jax.value_and_grad(loss, (0, 1), allow_int=True)(x, s)
    np.testing.assert_allclose(y, want, rtol=1e-5)
    np.testing.assert_allclose(dx, wx, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dw.values, ww.values, rtol=1e-5, atol=1e-5)
try:
    sj.formats.shard_columns(sj.formats.BlockArray.fromdense(w, 16), mesh, "model")
except ValueError as error:
    assert "8 devices do not divide the 4" in str(error), error
else:
    raise SystemExit("no error")
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **flags})


def test_only_compressed_matrices_have_columns_to_shard():
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(TypeError, match="must be a compressed matrix, got .*device_put"):
        sj.formats.shard_columns(jnp.ones((4, 4)), mesh, "model")


def test_a_leaf_within_a_leaf(tmp_path):
    leaves = {"a": jnp.ones(2), "a/b": jnp.ones(3)}
    with pytest.raises(ValueError, match="a is a leaf, so a/b cannot be within it"):
        sj.formats.save_safetensors(leaves, tmp_path / "w")
    assert not (tmp_path / "w").exists()
    sj.formats.save_safetensors({"a": {"b": jnp.ones(2), "c/d": jnp.ones(3)}}, tmp_path / "w")
    assert sj.formats.load_safetensors(tmp_path / "w")["a"]["c"]["d"].shape == (3,)


def test_explicit_axes_are_refused_with_the_mesh_that_works():
    w = sj.formats.NMArray.fromdense(jnp.eye(8), 1, 4)
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Explicit,))
    with pytest.raises(ValueError, match=r"axis_types=\(jax.sharding.AxisType.Auto,\) \* 1"):
        sj.formats.shard_columns(w, mesh, "model")


def test_indices_without_values_are_refused(tmp_path):
    kernel = sj.nn.SparseKernel(sj.formats.NMArray.fromdense(jnp.eye(8), 1, 4))
    state = nnx.to_pure_dict(nnx.state(kernel))
    with pytest.raises(ValueError, match=r"index has no values.*save kernel\[...\]"):
        sj.formats.save_safetensors(state, tmp_path / "w.safetensors")
