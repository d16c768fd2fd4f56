"""Updates between checkpoints against NumPy and known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj
from sparsejax.contrib import update_sparsity


def tree_of(seed, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "layers_0": {
            "kernel": jax.random.normal(keys[0], (8, 6), dtype),
            "bias": jnp.ones(6, dtype),
        },
        "layers_1": {"kernel": jax.random.normal(keys[1], (3, 2, 4), dtype)},
        "norm": jax.random.normal(keys[2], (5,), dtype),
    }


@pytest.mark.slow
def test_sparsity_is_pooled_and_by_layer():
    before = tree_of(0)
    after = jax.tree.map(lambda x: x, before)
    after["layers_0"]["kernel"] = before["layers_0"]["kernel"].at[:2].add(1.0)
    after["norm"] = before["norm"] + 1
    found = update_sparsity.update_sparsity(before, after)
    assert found.total == 1 - (12 + 5) / (48 + 6 + 24 + 5)
    assert found.per_leaf["layers_0/kernel"] == 0.75 and found.per_leaf["norm"] == 0.0
    assert found.per_layer == {0: (0.75 + 1) / 2, 1: 1.0}


def test_tolerance_counts_in_float32_whatever_is_stored():
    before = {"w": jnp.array([1.0, 1.0, 256.0], jnp.bfloat16)}
    after = {"w": jnp.array([1.0078125, 1.0, 258.0], jnp.bfloat16)}
    assert sj.masks.update_mask(before, after)["w"].tolist() == [True, False, True]
    assert sj.masks.update_mask(before, after, 0.01)["w"].tolist() == [False, False, True]
    nan = sj.masks.update_mask(jnp.array([jnp.nan, 1.0]), jnp.array([jnp.nan, 1.0]))
    assert nan.tolist() == [True, False]
    same = jnp.array([jnp.inf, 0.0])
    assert not sj.masks.update_mask(same, same).any()


def test_ranks_against_numpy():
    before, after = tree_of(0), tree_of(0)
    u, v = np.random.default_rng(0).normal(size=(2, 8, 2))
    after["layers_0"]["kernel"] = before["layers_0"]["kernel"] + jnp.asarray(
        (u @ v.T)[:, :6], jnp.float32
    )
    ranks = update_sparsity.update_rank(before, after)
    assert ranks == {"layers_0/kernel": 2 / 6, "layers_1/kernel": 0.0}


def test_overlap_against_sets():
    base = tree_of(0)
    rng = np.random.default_rng(1)
    runs = [
        jax.tree.map(lambda x, d=d: x + jnp.asarray(rng.random(x.shape) < d, x.dtype), base)
        for d in (0.3, 0.6)
    ]
    moved = [jax.tree.map(lambda x, z: np.ravel(x != z), run, base) for run in runs]
    a, b = (np.concatenate(jax.tree.leaves(m)) for m in moved)
    found = update_sparsity.update_overlap(base, *runs)
    np.testing.assert_allclose(found.first, (a & b).sum() / a.sum())
    np.testing.assert_allclose(found.second, (a & b).sum() / b.sum())
    np.testing.assert_allclose(found.jaccard, (a & b).sum() / (a | b).sum())
    by_leaf = [
        (np.sum(x != z) * np.sum(y != z) / z.size)
        for x, y, z in zip(*(jax.tree.leaves(t) for t in (*runs, base)))
    ]
    np.testing.assert_allclose(found.chance_first, sum(by_leaf) / a.sum())
    assert np.isnan(update_sparsity.update_overlap(base, base, runs[0])).all()


def test_partition_streams():
    steps = [jnp.array(x) for x in ([0.0, 0, 0, 0, 0], [1.0, 0, 0, 1, 0], [0.0, 0, 2, 3, 0])]
    found = update_sparsity.update_partition(iter(steps))
    assert found == (0.4, 0.2, 0.4)
    with pytest.raises(ValueError, match="two checkpoints"):
        update_sparsity.update_partition(steps[:1])


def test_trees_must_match():
    before = tree_of(0)
    other = {k: v for k, v in before.items() if k != "norm"}
    with pytest.raises(ValueError, match="only one tree has norm"):
        update_sparsity.update_sparsity(before, other)
    with pytest.raises(ValueError, match=r"shape \(5,\) before and \(4,\)"):
        update_sparsity.update_rank(before, {**before, "norm": before["norm"][:4]})
    with pytest.raises(ValueError, match="no entries"):
        update_sparsity.update_sparsity({}, {})


def test_integers_and_keys_are_compared_as_they_are():
    before = {"n": jnp.array([2**24, 3]), "key": jax.random.key(0), "w": jnp.ones(1)}
    after = {"n": jnp.array([2**24 + 1, 3]), "key": jax.random.key(1), "w": jnp.ones(1)}
    assert update_sparsity.update_sparsity(before, after).per_leaf == {
        "key": 0.0,
        "n": 0.5,
        "w": 1.0,
    }


def test_trees_without_entries_are_refused():
    with pytest.raises(ValueError, match="no entries"):
        update_sparsity.update_partition([{"w": jnp.zeros(0)}] * 2)
