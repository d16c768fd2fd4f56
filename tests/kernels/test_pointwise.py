"""Channel-first sparse convolutions against `lax.conv_general_dilated` with the masked kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy.signal import correlate2d

import sparsejax as sj

KEY = jax.random.key(0)


def convolution(x, kernel, strides=(1, 1), padding="SAME"):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NCHW", "HWIO", "NCHW")
    )


def masked(shape, pattern, seed=0):
    w = jax.random.normal(jax.random.key(seed), shape)
    return jnp.where(sj.masks.topk(jnp.abs(w), pattern), w, 0)


@pytest.mark.parametrize("b", [1, 2, 4, 16, 32])
@pytest.mark.parametrize("size", [(3, 5), (7, 11)])
def test_pointwise_is_the_convolution(b, size):
    outputs = {1: 13, 2: 14, 4: 12}.get(b, 32)
    w = masked((9, outputs), sj.Block((1, b), 0.7))
    x, bias = jax.random.normal(KEY, (2, 9, *size)), jnp.linspace(-1, 1, outputs)
    stored = sj.formats.BlockArray.fromdense(w, (1, b))
    y = sj.kernels.pointwise(x, stored, bias=bias, clamp=(0, 6))
    expected = jnp.clip(convolution(x, w[None, None]) + bias[:, None, None], 0, 6)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(sj.kernels.pointwise(x[0], w), convolution(x, w[None, None])[0],
                               atol=1e-5)  # fmt: skip


@pytest.mark.slow
def test_gradients_are_those_of_the_convolution():
    w, x = masked((6, 8), sj.Block((1, 4), 0.5)), jax.random.normal(KEY, (2, 6, 3, 5))
    stored = sj.formats.BlockArray.fromdense(w, (1, 4))
    bias = jnp.ones(8)
    loss = lambda x, w, bias: jnp.sum(sj.kernels.pointwise(x, w, bias=bias) ** 3)  # noqa: E731
    plain = lambda x, w, b: jnp.sum(  # noqa: E731
        (convolution(x, w[None, None]) + b[:, None, None]) ** 3
    )
    found = jax.grad(loss, (0, 1, 2), allow_int=True)(x, stored, bias)
    expected = jax.grad(plain, (0, 1, 2))(x, w, bias)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found[1].values, stored.take(expected[1]), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("window", "strides", "padding"), [((3, 3), (1, 1), "SAME"), ((3, 2), (2, 1), "VALID")]
)
def test_group_conv_is_the_convolution(window, strides, padding):
    taps = window[0] * window[1]
    pattern = sj.Block((taps, 4), 0.6, axis=(2, 0, 1))
    params = {"kernel": masked((*window, 5, 8), pattern)}
    stored = sj.compress(params, sj.plan(params, pattern))["kernel"]
    x = jax.random.normal(KEY, (2, 5, 6, 7))
    y = sj.kernels.group_conv(x, stored, window, strides=strides, padding=padding)
    np.testing.assert_allclose(y, convolution(x, params["kernel"], strides, padding), atol=1e-4)


@pytest.mark.slow
def test_group_conv_against_scipy():
    pattern = sj.Block((9, 2), 0.5, axis=(2, 0, 1))
    kernel = masked((3, 3, 3, 4), pattern)
    stored = sj.compress({"kernel": kernel}, sj.plan({"kernel": kernel}, pattern))["kernel"]
    x = np.asarray(jax.random.normal(KEY, (1, 3, 6, 6)))
    expected = [
        sum(correlate2d(x[0, c], kernel[:, :, c, o], "same") for c in range(3)) for o in range(4)
    ]
    np.testing.assert_allclose(
        sj.kernels.group_conv(x, stored, (3, 3))[0], expected, rtol=1e-4, atol=1e-4
    )


def test_mistakes_are_told():
    stored = sj.formats.BlockArray.fromdense(jnp.ones((4, 4)), (1, 2))
    with pytest.raises(ValueError, match="channels first"):
        sj.kernels.pointwise(jnp.ones((1, 5, 5, 4)), stored)
    with pytest.raises(ValueError, match=r"sj.Block\(\(9, n\)"):
        sj.kernels.group_conv(jnp.ones((1, 4, 5, 5)), stored, (3, 3))


def test_output_block_is_chosen_by_the_rule_of_nine_tenths():
    rng = np.random.default_rng(0)
    for _ in range(30):
        w = np.kron(rng.random((6, 4)) < 0.5, np.ones((1, 4))) * (rng.random((6, 16)) < 0.97)
        w = np.concatenate([w, rng.random((6, 3)) < 0.2], 1)
        blocks = {
            b: [w[i, j : j + b] for i in range(6) for j in range(0, 20 - b, b)] for b in (4, 2)
        }
        blocks[4] = [x for x in blocks[4] if len(x) == 4]
        n4 = sum(x.any() for x in blocks[4])
        e4 = sum((x != 0).sum() for x in blocks[4] if x.any())
        two = [x for x in blocks[2] if len(x) == 2]
        n2, e2 = sum(x.any() for x in two), sum((x != 0).sum() for x in two)
        expected = 4 if n4 and 5 * e4 >= 18 * n4 else 2 if n2 and 5 * e2 >= 9 * n2 else 1
        assert sj.formats.choose_output_block(w) == expected


def test_integers_and_unknown_implementations_are_refused_as_for_compressed_kernels():
    w, x = jnp.full((9, 4), 0.3), jnp.ones((9, 2, 3), jnp.uint8)
    for kernel in (w, sj.formats.BlockArray.fromdense(w, (1, 4))):
        with pytest.raises(TypeError, match="must hold floats, got uint8"):
            sj.kernels.pointwise(x, kernel)
        with pytest.raises(ValueError, match="must be among"):
            sj.kernels.pointwise(x.astype(jnp.float32), kernel, implementation="cuda")


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_group_conv_of_two_dtypes(dtypes):
    x, w = (jax.random.normal(KEY, s).astype(d) for s, d in zip(((1, 4, 5, 5), (36, 4)), dtypes))
    stored = sj.formats.BlockArray.fromdense(w, (9, 2))
    y = sj.kernels.group_conv(x, stored, (3, 3))
    wide = [a.astype(jnp.float32) for a in (x, w.reshape(4, 3, 3, 4).transpose(1, 2, 0, 3))]
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y.astype(jnp.float32), convolution(*wide), atol=3e-2, rtol=1e-2)
    with pytest.raises(TypeError, match="must hold floats"):
        sj.kernels.group_conv(x.astype(int), stored, (3, 3))


def test_the_gradient_of_padding_is_zero_in_group_conv():
    # The first block column has one block and room for two.
    dense = jnp.kron(jnp.array([[1.0, 1.0], [0.0, 1.0]]), jnp.ones((9, 2)))
    w = sj.formats.BlockArray.fromdense(dense, (9, 2))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 5, 5)), jnp.float32)
    found = jax.grad(lambda w: (sj.kernels.group_conv(x, w, (3, 3)) ** 2).sum(), allow_int=True)(w)
    used = np.asarray(w.used)[..., None, None]
    assert not used.all()
    assert np.all(np.where(used, 0, found.values) == 0)
    assert np.all(np.where(used, found.values, 1) != 0)
