"""The layer and the block against NumPy in float64; whole, in steps, padded, in images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparsejax.contrib import linear_attention as linear

RNG = np.random.default_rng(1)


def f64(x):
    return np.asarray(x, np.float64)


def convolved(x, conv, causal=False):
    """A depthwise convolution of (*space, D) by its definition."""
    kernel, space = f64(conv.kernel[...])[..., 0, :], x.shape[:-1]
    size = kernel.shape[0]
    before = size - 1 if causal else size // 2
    y = np.zeros(x.shape) + f64(conv.bias[...])
    for at in np.ndindex(*space):
        for offset in np.ndindex(*kernel.shape[:-1]):
            source = tuple(a + o - before for a, o in zip(at, offset))
            if all(0 <= s < n for s, n in zip(source, space)):
                y[at] += x[source] * kernel[offset]
    return y


def layer_by_hand(layer, x):
    """One sequence or image in float64, with explicit weights of all pairs."""
    x, space, width = f64(x), x.shape[:-1], x.shape[-1]
    parts = np.split(x @ f64(layer.inputs.kernel[...]), 4 if layer.norm else 3, -1)
    q, k, v = (p.reshape(-1, layer.heads, width // layer.heads) for p in parts[:3])
    size = q.shape[-1]
    q = q / np.sqrt(size)
    norm = np.linalg.norm(q, axis=-1, keepdims=True)
    power = 3 * (0.5 + np.tanh(norm))
    fq = np.concatenate([np.maximum(s * q / norm, 0) ** power for s in (1, -1)], -1)
    fk = np.concatenate([np.maximum(s * k, 0) ** 3 for s in (1, -1)], -1)
    rq, rk = fq, fk
    if layer.rotary:
        places = np.stack(np.meshgrid(*map(np.arange, space), indexing="ij"), -1)
        half = size // 2 // len(space)
        speed = 10_000.0 ** -np.linspace(0, 1, half)
        angles = (places[..., None] * speed).reshape(-1, 1, size // 2)
        turn = np.exp(1j * np.concatenate([angles, angles], -1))
        rq, rk = ((f[..., ::2] + 1j * f[..., 1::2]) * turn for f in (fq, fk))
    weights = np.einsum("ihf,jhf->hij", rq, rk.conj()).real
    total = np.einsum("ihf,jhf->hij", fq, fk)
    n = len(q)
    count = np.full((n, 1), n)
    if layer.causal:
        weights, total, count = np.tril(weights), np.tril(total), np.arange(1, n + 1)[:, None]
    weights = weights / (total.sum(-1, keepdims=True) + 1e-6 * count)
    y = np.einsum("hij,jhe->ihe", weights, v).reshape(x.shape)
    if layer.lepe is not None:
        y = y + convolved(parts[2], layer.lepe, layer.causal)
    if layer.norm:
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
        y = y * f64(layer.norm.scale[...]) + f64(layer.norm.bias[...])
        y = y * parts[3] / (1 + np.exp(-parts[3]))
    return y @ f64(layer.outputs.kernel[...]) + f64(layer.outputs.bias[...])


CASES = [
    dict(), dict(rotary=True), dict(causal=True), dict(causal=True, rotary=True, chunk=4),
    dict(axes=2), dict(axes=2, rotary=True), dict(gated=False), dict(lepe=False, causal=True),
]  # fmt: skip


def input_of(layer, batch=2):
    shape = (9,) if layer.axes == 1 else (3, 4)
    return jnp.asarray(RNG.normal(size=(batch, *shape, 16)), jnp.float32)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case):
    layer = linear.NormAwareAttention(16, 2, rngs=nnx.Rngs(0), **case)
    x = input_of(layer)
    want = np.stack([layer_by_hand(layer, row) for row in x])
    np.testing.assert_allclose(layer(x), want, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(layer, x[0]), want[0], atol=2e-4)


@pytest.mark.parametrize("map", ["split", "cos"])
@pytest.mark.parametrize("kind", [linear.NormAwareAttention, linear.NormAwareBlock])
def test_steps_are_the_whole(kind, map):
    model: Any = kind(16, 2, causal=True, rotary=True, map=map, chunk=4, rngs=nnx.Rngs(0))
    x = jnp.asarray(RNG.normal(size=(2, 13, 16)), jnp.float32)
    whole, parts, state = model(x), [], None
    for first, last in [(0, 6), *((i, i + 1) for i in range(6, 13))]:
        y, state = model.step(x[:, first:last], state)
        parts.append(y)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, rtol=1e-4, atol=1e-5)
    changed = model(x.at[:, 7:].add(1.0))
    np.testing.assert_array_equal(changed[:, :7], whole[:, :7])


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("kind", [linear.NormAwareAttention, linear.NormAwareBlock])
def test_padding_is_not_read(kind, axes):
    model: Any = kind(16, 2, axes=axes, rotary=True, rngs=nnx.Rngs(0))
    shape, inside = ((9,), (6,)) if axes == 1 else ((4, 5), (3, 2))
    x = jnp.asarray(RNG.normal(size=(1, *shape, 16)), jnp.float32)
    at = (slice(None), *(slice(n) for n in inside))
    mask = jnp.zeros((1, *shape), bool).at[at].set(True)
    np.testing.assert_allclose(model(x, mask)[at], model(x[at]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [linear.NormAwareAttention, linear.NormAwareBlock])
def test_nothing_and_no_further_token(kind):
    model: Any = kind(8, 2, causal=True, rotary=True, rngs=nnx.Rngs(0))
    for shape in ((0, 5, 8), (2, 0, 8)):
        assert model(jnp.ones(shape)).shape == shape
        y, state = model.step(jnp.ones(shape))
        assert y.shape == shape
    x = jnp.asarray(RNG.normal(size=(2, 3, 8)), jnp.float32)
    np.testing.assert_allclose(model.step(x, state)[0], model(x), rtol=1e-4, atol=1e-5)


def test_block():
    block: Any = linear.NormAwareBlock(8, 2, axes=2, ratio=2, rngs=nnx.Rngs(0))
    x = jnp.asarray(RNG.normal(size=(3, 4, 8)), jnp.float32)

    def normed(y, norm):
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
        return y * f64(norm.scale[...]) + f64(norm.bias[...])

    y = f64(x)
    y = y + convolved(y, block.first)
    y = y + layer_by_hand(block.attention, normed(y, block.norms[0]))
    y = y + convolved(y, block.second)
    h = normed(y, block.norms[1]) @ f64(block.up.kernel[...]) + f64(block.up.bias[...])
    h = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    h = h + convolved(h, block.hidden)
    y = y + h @ f64(block.down.kernel[...]) + f64(block.down.bias[...])
    np.testing.assert_allclose(block(x[None])[0], y, rtol=5e-4, atol=5e-4)


def test_low_precision_trains():
    model = linear.NormAwareBlock(16, 2, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = jnp.asarray(RNG.normal(size=(2, 7, 16)), jnp.bfloat16).at[0, 0].set(0)
    assert model(x).dtype == jnp.bfloat16
    grads = nnx.grad(lambda m: jnp.sum(m(x).astype(jnp.float32) ** 2))(model)
    leaves = jax.tree.leaves(grads)
    assert all(np.isfinite(f64(g)).all() for g in leaves) and any(f64(g).any() for g in leaves)


def test_mistakes():
    for case, what in [
        (dict(heads=3), "heads must divide the width"), (dict(axes=3), "axes must be 1"),
        (dict(axes=2, causal=True), "causal must be False for images"),
        (dict(heads=8, axes=2, rotary=True), "a multiple of 4 with rotary"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=what):
            more: Any = {"heads": 2, "rngs": nnx.Rngs(0)} | case
            linear.NormAwareAttention(16, **more)
    with pytest.raises(ValueError, match="step: causal must be True"):
        linear.NormAwareAttention(16, 2, rngs=nnx.Rngs(0)).step(jnp.ones((1, 2, 16)))
