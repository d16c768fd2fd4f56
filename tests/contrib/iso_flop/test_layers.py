"""Sizes of the sparse iso-FLOP layers against the tables of the paper's code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax.contrib import iso_flop

# (inputs, outputs, sparsity): ranks factorized, with the second factor dense, doped; 9 taps.
TABLE = {
    (64, 64, 0.5): (116, 105, 28), (64, 64, 0.75): (231, 178, 43), (64, 64, 0.9): (576, 304, 51),
    (64, 128, 0.5): (210, 178, 52), (64, 128, 0.75): (419, 272, 78),
    (64, 128, 0.9): (1048, 398, 94), (256, 512, 0.5): (838, 709, 209),
    (256, 512, 0.75): (1676, 1085, 314), (256, 512, 0.9): (4190, 1589, 377),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_ranks(case):
    inputs, outputs, s = case
    found = (
        iso_flop.factorized_rank(inputs, outputs, s, 9),
        iso_flop.factorized_rank(inputs, outputs, s, 9, first_only=True),
        iso_flop.doped_rank(inputs, outputs, s, 9),
    )
    assert found == TABLE[case]


@pytest.mark.parametrize("s", [0.0, 0.5, 0.6, 0.75, 0.8, 0.9, 0.99])
def test_widths_and_branches_keep_the_flops(s):
    width = iso_flop.wide_width(1000, s)
    assert abs((1 - s) * width**2 / 1000**2 - 1) < 4e-3
    n = iso_flop.parallel_branches(s)
    assert abs(n - 1 / (1 - s)) <= 0.5 + 1e-9
    if round(1 / (1 - s), 6) == round(1 / (1 - s)):
        assert n == round(1 / (1 - s))


def test_half_a_branch_goes_to_the_even_number():
    assert [iso_flop.parallel_branches(s) for s in (0.6, 1 - 1 / 3.5, 1 - 1 / 4.5)] == [
        2,
        4,
        4,
    ]


def kernels_of(model, rule):
    plan = sj.plan(model, {rule: sj.Unstructured(0.75), r"": None})
    return sum(leaf.kept for leaf in plan.leaves), plan


@pytest.mark.slow
@pytest.mark.parametrize("conv", [False, True])
def test_layers_cost_what_the_dense_one_does(conv):
    rngs = nnx.Rngs(0)
    layer = (
        nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs) if conv else nnx.Linear(16, 32, rngs=rngs)
    )
    x = jnp.ones((2, 8, 8, 16)) if conv else jnp.ones((2, 16))
    size, shape = layer.kernel[...].size, layer(x).shape
    parallel = iso_flop.Parallel(layer, 0.75, rngs=rngs)
    assert parallel(x).shape == shape and kernels_of(parallel, r"kernel$")[0] == size
    deep = iso_flop.Factorized(layer, 0.75, norm=True, activation=jax.nn.relu, rngs=rngs)
    assert deep(x).shape == shape
    assert size <= kernels_of(deep, r"kernel$")[0] <= size * 1.02
    doped = iso_flop.Doped(layer, 0.75, rngs=rngs)
    kept, plan = kernels_of(doped, r"sparse/kernel$")
    dense = doped.first.kernel[...].size + doped.second.kernel[...].size
    assert doped(x).shape == shape and 0.95 * size <= kept + dense <= size
    assert len(plan) == 1


def test_no_sparsity_is_the_layer_itself():
    layer = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
    doped = iso_flop.Doped(layer, 0.0, rngs=nnx.Rngs(1))
    assert doped.first is None
    parallel = iso_flop.Parallel(layer, 0.0, norm=False, rngs=nnx.Rngs(1))
    x = jax.random.normal(jax.random.key(0), (3, 6))
    np.testing.assert_allclose(parallel(x), parallel.branches[0](x))
    for wrong in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            iso_flop.wide_width(8, wrong)
    with pytest.raises(TypeError, match="replaces nnx.Linear or nnx.Conv"):
        iso_flop.Doped(nnx.LayerNorm(4, rngs=nnx.Rngs(0)), 0.0, rngs=nnx.Rngs(0))


def test_masks_and_budgets():
    assert round(2 ** iso_flop.log2_masks(10, 3)) == 120
    with pytest.raises(ValueError, match="0 <= kept <= size"):
        iso_flop.log2_masks(3, 4)
    cost = lambda s: 500 + 2000 * (1 - s)  # noqa: E731
    found = iso_flop.match_flops(cost, 1500)
    assert abs(cost(found) / 1500 - 1) <= 1e-3
    assert iso_flop.match_flops(cost, 9999) == 0.0
    with pytest.raises(ValueError, match="make it narrower"):
        iso_flop.match_flops(cost, 400)


@pytest.mark.parametrize("make", [iso_flop.Parallel, iso_flop.Factorized])
def test_norms_store_no_wider_statistics(make):
    """Under x64 JAX warned that it will refuse to store float64 statistics in float32."""
    with jax.enable_x64(True):
        layer = make(nnx.Linear(8, 6, rngs=nnx.Rngs(0)), 0.75, rngs=nnx.Rngs(1))
        shapes = nnx.eval_shape(lambda layer, x: layer(x), layer, jnp.ones((4, 8)))
    assert shapes.shape == (4, 6) and shapes.dtype == jnp.float64
