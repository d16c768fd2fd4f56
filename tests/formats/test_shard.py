"""Compressed weights over the devices of a mesh, and in blocks of other sizes."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj
from sparsejax.formats import BlockArray


@pytest.mark.parametrize("block", [2, 8, (4, 8)])
def test_convert_block(block):
    dense = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8)), jnp.float32)
    w = BlockArray.fromdense(jnp.where(dense > 1, dense, 0), 4)
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


def test_explicit_axes_are_refused_with_the_mesh_that_works():
    w = sj.formats.NMArray.fromdense(jnp.eye(8), 1, 4)
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Explicit,))
    with pytest.raises(ValueError, match=r"axis_types=\(jax.sharding.AxisType.Auto,\) \* 1"):
        sj.formats.shard_columns(w, mesh, "model")
