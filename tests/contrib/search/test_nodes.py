"""Random nodes: counts, distribution, and what they leave of a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj
from sparsejax.contrib import search
from tests._problem import mlp

PARAMS = mlp(jax.random.key(0), (8, 12, 5, 4))
GRAPH = sj.nn.surgery.channel_graph(PARAMS)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_so_many_nodes_stay(sparsity):
    nodes = search.random_nodes(GRAPH, sparsity, key=jax.random.key(0))
    kept = [int(mask.sum()) for mask in nodes.values()]
    assert kept == [max(1, n - round(n * sparsity)) for n in (12, 5)]


def test_nodes_are_uniform():
    params = {"a": {"kernel": jnp.ones((2, 6))}, "b": {"kernel": jnp.ones((6, 1))}}
    graph = sj.nn.surgery.channel_graph(params)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda k: search.random_nodes(graph, 0.5, key=k)["a"])(keys)
    np.testing.assert_allclose(drawn.mean(0), 0.5, atol=0.04)
    pairs = np.einsum("ti,tj->ij", *[np.asarray(drawn, float)] * 2) / 4000
    np.testing.assert_allclose(pairs[np.triu_indices(6, 1)], 0.2, atol=0.04)  # 1/2 * 2/5


def test_edges_join_nodes_that_stay():
    nodes = search.random_nodes(GRAPH, 0.5, key=jax.random.key(1))
    masks = sj.nn.surgery.mask_channels(PARAMS, GRAPH, nodes)
    first, second = map(np.asarray, nodes.values())
    middle = np.asarray(masks["layer_1"]["kernel"])
    np.testing.assert_array_equal(middle, np.outer(first, second))
    np.testing.assert_array_equal(masks["layer_0"]["bias"], first)
    assert bool(masks["layer_2"]["bias"].all())
    # 6 of 12 and 2 of 5 nodes: round(5 / 2) = 2 go to even, so 3 stay.
    assert [int(masks[f"layer_{i}"]["kernel"].sum()) for i in range(3)] == [48, 18, 12]


def test_mistakes():
    with pytest.raises(ValueError, match="random_nodes: sparsity must be a number in"):
        search.random_nodes(GRAPH, 1.5, key=jax.random.key(0))
