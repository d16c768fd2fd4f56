"""Layers with compressed kernels: forward, training, stacked."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsejax as sj

PATTERNS = {"nm": sj.NM(2, 4), "block": sj.Block((4, 4), 0.6)}


def layer_of(pattern, **options):
    return sj.nn.SparseLinear(16, 12, pattern, rngs=nnx.Rngs(0), **options)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_forward_is_that_of_the_dense_matrix(pattern):
    layer = layer_of(pattern)
    x = jax.random.normal(jax.random.key(1), (2, 3, 16))
    dense = layer.kernel[...].todense()
    np.testing.assert_allclose(layer(x), x @ dense + layer.bias[...], rtol=1e-5, atol=1e-6)
    layout = sj.patterns.layout((16, 12))
    units, zeros = pattern.units(layout), pattern.zeros(layout)
    assert (dense != 0).sum() == 16 * 12 * (units - zeros) // units


def test_only_values_and_bias_are_parameters():
    params = nnx.state(layer_of(PATTERNS["block"]), nnx.Param)
    paths = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(params)}
    assert paths == {"kernel/values", "bias"}
    assert "bias" not in nnx.state(layer_of(PATTERNS["nm"], use_bias=False), nnx.Param)


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_variance_is_kept(pattern):
    layer = sj.nn.SparseLinear(256, 256, replace(pattern), rngs=nnx.Rngs(0))
    y = layer(jax.random.normal(jax.random.key(1), (64, 256)))
    assert 0.9 < float(y.std()) < 1.1


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_training_moves_values_and_keeps_the_pattern(pattern):
    layer = layer_of(pattern)
    before = layer.kernel[...]
    optimizer = nnx.Optimizer(layer, optax.adam(1e-2), wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(1), (8, 16))

    @nnx.jit
    def step(layer, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: ((m(x) - 1) ** 2).mean())(layer)
        optimizer.update(layer, grads)
        return loss

    losses = [float(step(layer, optimizer)) for _ in range(20)]
    after = layer.kernel[...]
    assert losses[-1] < 0.5 * losses[0]
    same = jax.tree.map(np.array_equal, replace(before, values=None), replace(after, values=None))
    assert all(jax.tree.leaves(same))
    if isinstance(after, sj.formats.BlockArray):
        assert (after.values[~np.asarray(after.used)] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_stacked_layers_vmap_and_scan(pattern):
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return sj.nn.SparseLinear(16, 16, pattern, rngs=rngs)

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def run(layer, x):
        return layer(x)

    stack = make(nnx.Rngs(0).split(3))
    assert stack.kernel[...].shape == (3, 16, 16)
    x = want = jax.random.normal(jax.random.key(1), (2, 16))
    for i in range(3):
        want = want @ stack.kernel[...].todense()[i] + stack.bias[...][i]
    np.testing.assert_allclose(run(stack, x), want, rtol=1e-4, atol=1e-5)
    grads = nnx.grad(lambda m: run(m, x).sum())(stack)
    assert grads["kernel"]["values"][...].shape == stack.kernel[...].values.shape


def test_dtypes():
    layer = layer_of(PATTERNS["nm"], dtype=jnp.bfloat16, param_dtype=jnp.float32)
    assert layer(jnp.ones((2, 16))).dtype == jnp.bfloat16
    assert layer_of(PATTERNS["nm"])(jnp.ones((2, 16), int)).dtype == jnp.float32


def test_mistakes():
    with pytest.raises(TypeError, match="sj.optim.prune"):
        layer_of(sj.Unstructured(0.5))
    with pytest.raises(ValueError, match="at least one weight, got none"):
        layer_of(sj.NM(0, 4))
    with pytest.raises(ValueError, match="divisible by 5"):
        layer_of(sj.NM(2, 5))
    with pytest.raises(IndexError, match=r"read as a whole, kernel\[...\], got"):
        layer_of(PATTERNS["nm"]).kernel[0]


def test_nothing_kept():
    layer = layer_of(sj.Block((4, 4), 1.0))
    assert (layer(jnp.ones((2, 16))) == 0).all()
