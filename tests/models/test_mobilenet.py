"""MobileNets: shapes as published, against plain convolutions, dense against compressed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import sparsejax as sj
from sparsejax._tree import named_leaves, pure

STAGES = ((1, 8, 1, 1), (4, 16, 2, 2))


def small_v2(**more):
    return sj.models.mobilenet_v2(
        1, 10, stem=(8, 1), stages=STAGES, head=32, rngs=nnx.Rngs(0), **more
    )


@nnx.jit
def run(model, x):
    return model(x)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (2, 1, 8, 8))


def count(make):
    """Numbers of parameters without making them."""
    leaves = named_leaves(pure(nnx.eval_shape(make)))
    return sum(int(np.prod(leaf.shape)) for leaf in leaves.values())


@pytest.mark.slow
def test_sizes_are_those_of_the_papers():
    # Keras: MobileNet 4,231,976 and MobileNetV2 3,504,872 trainable parameters, 1000 classes.
    v1 = count(lambda: sj.models.mobilenet_v1(3, 1000, rngs=nnx.Rngs(0)))
    v2 = count(lambda: sj.models.mobilenet_v2(3, 1000, rngs=nnx.Rngs(0)))
    assert (v1, v2) == (4_231_976, 3_504_872)


def reference(model, x):
    """The network channel last, block by block, in evaluation mode."""
    value = lambda v: v[...]  # noqa: E731

    def convolve(y, kernel, stride=1, groups=1):
        return lax.conv_general_dilated(
            y, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )  # fmt: skip

    def norm(layer, y):
        scaled = (y - value(layer.mean)) / jnp.sqrt(value(layer.var) + layer.epsilon)
        return scaled * value(layer.scale) + value(layer.bias)

    relu6 = lambda y: jnp.clip(y, 0, 6)  # noqa: E731
    y = relu6(norm(model.stem_norm, convolve(jnp.moveaxis(x, 1, -1), value(model.stem.kernel))))
    for block in model.blocks:
        h = y
        if block.expands:
            h = relu6(norm(block.expand_norm, h @ value(block.expand.kernel)))
        layer = block.depthwise
        h = convolve(h, value(layer.kernel), layer.stride, h.shape[-1])
        h = relu6(norm(block.depthwise_norm, h))
        h = norm(block.project_norm, h @ value(block.project.kernel))
        y = h + y if h.shape == y.shape else h
    y = relu6(norm(model.head_norm, y @ value(model.head.kernel)))
    return y.mean((1, 2)) @ value(model.classifier.kernel) + value(model.classifier.bias)


@pytest.mark.slow
def test_agrees_with_the_channel_last_network(images):
    model = small_v2()
    model.train()
    run(model, 3 * images)  # moves the statistics away from 0 and 1
    model.eval()
    assert any(block.residual for block in model.blocks)
    np.testing.assert_allclose(
        run(model, images), nnx.jit(reference)(model, images), rtol=2e-4, atol=2e-5
    )


@pytest.mark.slow
def test_compressed_network_computes_the_masked_one(images):
    model = small_v2()
    model.eval()
    plan = sj.plan(model, {r"(expand|project|head)/kernel$": sj.Block((1, 2), 0.75)})
    masks = plan.masks(sj.masks.magnitude(pure(model)))
    fast = sj.compress(model, plan, masks)
    held = [fast.head.kernel, *(block.project.kernel for block in fast.blocks)]
    assert all(isinstance(kernel, sj.nn.SparseKernel) for kernel in held)
    masked = nnx.clone(model)
    nnx.update(masked, sj.masks.apply_masks(pure(model), masks))
    np.testing.assert_allclose(run(fast, images), run(masked, images), rtol=1e-4, atol=1e-5)


def test_cache_aware_network_is_narrower_inside():
    plain, bounded = small_v2(), small_v2(widest=sj.models.cache_aware_width(2048, 16))
    hidden = lambda net: [b.project.kernel.shape[0] for b in net.blocks]  # noqa: E731
    assert hidden(plain) == [8, 32, 64] and hidden(bounded) == [8, 32, 32]
    with pytest.raises(ValueError, match="at least one channel"):
        sj.models.cache_aware_width(16, 16)


@pytest.mark.slow
def test_flops_of_the_compressed_network(images):
    """2 nnz per pixel of a 1x1 convolution."""
    model = small_v2()
    model.eval()
    plan = sj.plan(model, {r"(expand|project)/kernel$": sj.Block((1, 4), 0.75)})
    masks = plan.masks(sj.masks.magnitude(pure(model)))
    found = sj.reporting.flops(model, images, masks=masks).leaves["blocks/1/expand/kernel"]
    assert found.dense == 2 * 8 * 32 * 64 * 2 and found.sparse == found.dense // 4


def test_wider_images_get_the_dtype_of_the_kernels():
    """Under x64: float64 images were refused by float32 kernels."""
    with jax.enable_x64(True):
        images = jnp.ones((2, 1, 8, 8), jnp.float64)
        logits = nnx.eval_shape(lambda x: small_v2()(x), images)
    assert logits.dtype == jnp.float32
