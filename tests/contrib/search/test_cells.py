"""Mixed operations and cells against sums written out; a layer with a learned mask."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax.contrib import search

IMAGES = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))


def test_a_cell_is_its_sum():
    ops = [jnp.zeros_like, lambda x: x, jnp.sin]
    cell = search.DartsCell(lambda stride: ops, nodes=2)
    alpha = jax.random.normal(jax.random.key(1), (5, 3))
    a, b = jnp.array([0.5, -1.0]), jnp.array([2.0, 3.0])
    p = np.asarray(jax.nn.softmax(alpha, -1))
    mix = lambda e, x: p[e, 1] * x + p[e, 2] * np.sin(x)  # noqa: E731
    first = mix(0, a) + mix(1, b)
    second = mix(2, a) + mix(3, b) + mix(4, first)
    np.testing.assert_allclose(cell(a, b, alpha), [*first, *second], rtol=1e-5)
    with pytest.raises(ValueError, match="has 5 edges"):
        cell(a, b, alpha[:4])


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 2])
def test_operations_halve_and_see_what_they_should(stride):
    ops = search.darts_ops(4, stride, rngs=nnx.Rngs(0))
    side = 6 // stride
    for op in ops.values():
        assert op(IMAGES).shape == (2, side, side, 4)
    if stride == 1:
        np.testing.assert_array_equal(ops["skip_connect"](IMAGES), IMAGES)
        assert not np.any(ops["none"](IMAGES))
        # Which input pixels does the middle output pixel depend on, before normalisation?
        for name, reach in (("dil_conv_3x3", 5), ("dil_conv_5x5", 9)):
            inner = ops[name]
            wide = jax.random.normal(jax.random.key(2), (1, 15, 15, 4))
            seen = jax.jacrev(lambda x, f=inner: f.across(f.each(x))[0, 7, 7].sum())(wide)
            rows = np.flatnonzero(np.abs(np.asarray(seen[0])).sum((1, 2)))
            assert rows[-1] - rows[0] + 1 == reach and set(np.diff(rows)) == {2}


def test_average_leaves_padding_out():
    pooled = search.darts_ops(4, rngs=nnx.Rngs(0))["avg_pool_3x3"]
    ones = jnp.ones((1, 4, 4, 4))
    np.testing.assert_allclose(pooled(ones), 0, atol=1e-6)  # constant before normalisation


def test_genotype_takes_two_inputs_a_node():
    names = ["none", "a", "b"]
    alpha = jnp.zeros((9, 3)).at[:, 0].set(0.1)
    # Ties: lower edge, earlier operation.
    assert search.genotype(alpha, names, nodes=3) == ((("a", 0), ("a", 1)),) * 3
    alpha = alpha.at[8, 2].set(2.0).at[6, 1].set(1.0)  # node 2 from states 3 and 1
    assert search.genotype(alpha, names, nodes=3)[2] == (("a", 1), ("b", 3))
    with pytest.raises(ValueError, match="3 nodes have 9 edges"):
        search.genotype(alpha[1:], names, nodes=3)


@pytest.mark.slow
@pytest.mark.parametrize("make", [
    lambda rngs: nnx.Linear(4, 6, rngs=rngs), lambda rngs: nnx.Conv(4, 6, (3, 3), rngs=rngs),
])  # fmt: skip
def test_scored_layer(make):
    layer = search.Scored(make(nnx.Rngs(0)), sj.Unstructured(0.75))
    dense = make(nnx.Rngs(0))
    mask = np.asarray(layer.masked_kernel() != 0)
    kept = np.sort(np.abs(np.asarray(dense.kernel[...])).ravel())[-mask.sum() :]
    np.testing.assert_allclose(
        np.sort(np.abs(np.asarray(layer.masked_kernel())[mask])), kept, rtol=1e-6
    )
    assert mask.sum() == mask.size - round(0.75 * mask.size)
    by_hand = make(nnx.Rngs(0))
    by_hand.kernel.set_value(dense.kernel[...] * mask)
    np.testing.assert_allclose(layer(IMAGES), by_hand(IMAGES), rtol=1e-5, atol=1e-6)

    def loss(m):
        return (m(IMAGES) ** 2).sum()

    by_w = nnx.grad(loss)(layer)["layer"]["kernel"][...]
    by_s = nnx.grad(loss, argnums=nnx.DiffState(0, search.Score))(layer)["scores"][...]
    exact = nnx.grad(loss)(by_hand)["kernel"][...]
    np.testing.assert_allclose(by_w, exact * mask, rtol=1e-4, atol=1e-4)
    sign = np.sign(layer.scores[...])
    np.testing.assert_allclose(by_s, exact * dense.kernel[...] * sign, rtol=1e-4, atol=1e-4)
    layer.pattern = None
    np.testing.assert_allclose(layer(IMAGES), dense(IMAGES), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="set layer.pattern first"):
        layer.rescale()


def test_training_of_scores_alone_leaves_weights_alone():
    layer = search.Scored(nnx.Linear(4, 6, rngs=nnx.Rngs(0)), sj.Unstructured(0.75))
    before = layer.layer.kernel[...]
    optimizer = nnx.Optimizer(layer, optax.sgd(0.1), wrt=search.Score)
    scores = layer.scores[...]
    wrt = nnx.DiffState(0, search.Score)
    grads = nnx.grad(lambda m: ((m(IMAGES) - 1) ** 2).mean(), argnums=wrt)(layer)
    optimizer.update(layer, grads)
    np.testing.assert_array_equal(layer.layer.kernel[...], before)
    assert np.all(np.asarray(layer.scores[...] != scores))


@pytest.mark.slow
def test_operations_with_learned_masks():
    def conv(*args, **options):
        return search.Scored(nnx.Conv(*args, **options), sj.Unstructured(0.9))

    def tiny(*args, **options):
        return search.Scored(nnx.Conv(*args, **options), sj.Unstructured(0.99))

    modules = (m for _, m in nnx.iter_modules(search.MixedOp(list(
        search.darts_ops(4, conv=tiny, rngs=nnx.Rngs(0)).values()))))  # fmt: skip
    kept = [int((m.masked_kernel() != 0).sum()) for m in modules if isinstance(m, search.Scored)]
    assert len(kept) == 12 and min(kept) == 1
    ops = search.darts_ops(4, 2, conv=conv, rngs=nnx.Rngs(0))
    cell = search.DartsCell(lambda stride: ops.values(), nodes=1)
    assert len(jax.tree.leaves(nnx.state(cell, search.Score))) == 2 + 4 + 4 + 2 + 2
    shape = nnx.eval_shape(lambda m, x: m(x, x, jnp.zeros((2, 8))), cell, IMAGES).shape
    assert shape == (2, 3, 3, 4)
    with pytest.raises(ValueError, match="the stride must be 1 or 2"):
        search.darts_ops(4, 3, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="has no kernel"):
        search.Scored(nnx.BatchNorm(4, rngs=nnx.Rngs(0)), sj.Unstructured(0.9))
