"""Sub-networks of nodes: counts, edges, and the smaller network that is the same function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj
from tests._problem import logits, mlp

WIDTHS = (8, 12, 5, 4)
PARAMS = mlp(jax.random.key(0), WIDTHS)
NODES = sj.nn.surgery.node_masks(jax.random.key(1), WIDTHS[1:-1], 0.5)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_so_many_nodes_stay(sparsity):
    nodes = sj.nn.surgery.node_masks(jax.random.key(0), WIDTHS, sparsity)
    assert [int(m.sum()) for m in nodes] == [max(1, n - round(n * sparsity)) for n in WIDTHS]


def test_nodes_are_uniform():
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda k: sj.nn.surgery.node_masks(k, [6], 0.5)[0])(keys)
    np.testing.assert_allclose(drawn.mean(0), 0.5, atol=0.04)
    pairs = np.einsum("ti,tj->ij", *[np.asarray(drawn, float)] * 2) / 4000
    np.testing.assert_allclose(pairs[np.triu_indices(6, 1)], 0.2, atol=0.04)  # 1/2 * 2/5


def test_edges_join_nodes_that_stay():
    params = {**PARAMS, "norm": {"scale": jnp.ones(12), "bias": jnp.ones(12)}}
    masks = sj.nn.surgery.edges_from_nodes(params, NODES)
    first, second = map(np.asarray, NODES)
    middle = np.asarray(masks["layer_1"]["kernel"])
    for i in range(12):
        for j in range(5):
            assert middle[i, j] == (first[i] and second[j])
    np.testing.assert_array_equal(masks["layer_0"]["bias"], first)
    assert bool(masks["layer_2"]["bias"].all()) and masks["norm"]["bias"] is None
    # 6 of 12 and 2 of 5 nodes: round(5 / 2) = 2 go to even, so 3 stay.
    assert [int(masks[f"layer_{i}"]["kernel"].sum()) for i in range(3)] == [48, 18, 12]


def test_the_compact_network_is_the_masked_one():
    x = jax.random.normal(jax.random.key(2), (20, 8))
    masked = sj.masks.apply_masks(PARAMS, sj.nn.surgery.edges_from_nodes(PARAMS, NODES))
    small = sj.nn.surgery.compact(PARAMS, NODES)
    assert [small[f"layer_{i}"]["kernel"].shape for i in range(3)] == [(8, 6), (6, 3), (3, 4)]
    np.testing.assert_allclose(logits(small, x), logits(masked, x), rtol=1e-5, atol=1e-6)


def test_convolutions_lose_channels():
    params = {
        "0": {"kernel": jnp.ones((3, 3, 1, 4))},
        "1": {"kernel": jnp.ones((3, 3, 4, 2)), "bias": jnp.ones(2)},
    }
    keep = [jnp.array([True, False, False, True])]
    masks = sj.nn.surgery.edges_from_nodes(params, keep)
    assert masks["0"]["kernel"].sum((0, 1, 2)).tolist() == [9, 0, 0, 9]
    assert masks["1"]["kernel"].sum((0, 1, 3)).tolist() == [18, 0, 0, 18]
    assert sj.nn.surgery.compact(params, keep)["1"]["kernel"].shape == (3, 3, 2, 2)


def test_mistakes():
    with pytest.raises(ValueError, match="fraction of nodes"):
        sj.nn.surgery.node_masks(jax.random.key(0), [4], 1.5)
    with pytest.raises(ValueError, match="lie between 2 kernels, and the parameters have 3"):
        sj.nn.surgery.edges_from_nodes(PARAMS, NODES[:1])
    with pytest.raises(ValueError, match=r"layer_0/kernel has shape \(8, 12\)"):
        sj.nn.surgery.edges_from_nodes(PARAMS, NODES[::-1])


@pytest.mark.parametrize("f", [sj.nn.surgery.edges_from_nodes, sj.nn.surgery.compact])
def test_numbers_are_no_masks_of_nodes(f):
    params = {"a": {"kernel": jnp.ones((2, 3))}, "b": {"kernel": jnp.ones((3, 1))}}
    with pytest.raises(TypeError):  # as indices they would pick nodes 0 and 1
        f(params, [jnp.array([1, 0, 1])])
