"""Divergence, exploration and live units against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import metrics


def masks_of(seed):
    """Masks with half of each leaf, n = 2 of each group of 4 along the contraction."""
    rng = np.random.default_rng(seed)

    def draw(rows, columns):
        ranks = rng.random((rows // 4, 4, columns)).argsort(1).argsort(1)
        return jnp.asarray((ranks < 2).reshape(rows, columns))

    return {"a": {"kernel": draw(16, 8), "bias": None}, "b": {"kernel": draw(8, 4)}}


def flat(masks):
    return np.concatenate([np.asarray(m).ravel() for m in jax.tree.leaves(masks)])


def test_sad_counts_the_flips():
    a, b = masks_of(0), masks_of(1)
    found = metrics.sad(a, b)
    assert found.total == (flat(a) != flat(b)).sum() and isinstance(found.total, int)
    assert found.leaves["b/kernel"] == int((a["b"]["kernel"] != b["b"]["kernel"]).sum())
    assert set(found.leaves) == {"a/kernel", "b/kernel"}
    share = metrics.sad(a, b, normalize="weights")
    assert share.total == found.total / 160
    assert share.leaves["a/kernel"] == found.leaves["a/kernel"] / 128
    assert metrics.sad(a, a).total == 0


def test_sad_of_nm_masks_is_even():
    a, b = masks_of(0), masks_of(1)
    assert all(n % 2 == 0 for n in metrics.sad(a, b).leaves.values())


def test_sad_and_mask_change_inside_jit_and_scan():
    a, b = masks_of(0), masks_of(1)
    assert int(jax.jit(metrics.sad)(a, b).total) == metrics.sad(a, b).total
    np.testing.assert_allclose(jax.jit(metrics.mask_change)(a, b), metrics.mask_change(a, b))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), a, b, a)
    _, flips = jax.lax.scan(lambda old, new: (new, metrics.sad(old, new).total), a, stacked)
    assert flips.tolist() == [0, metrics.sad(a, b).total, metrics.sad(a, b).total]


def test_mask_change():
    a, b = masks_of(0), masks_of(1)
    differing = (flat(a) != flat(b)).sum()
    assert metrics.mask_change(a, b) == differing / (2 * flat(a).sum())
    inverted = jax.tree.map(jnp.logical_not, a)
    assert metrics.mask_change(a, inverted) == 1.0 and metrics.mask_change(a, a) == 0.0


def test_flip_and_exploration_rates():
    history = [masks_of(seed) for seed in range(4)]
    expected = [(flat(a) != flat(b)).mean() for a, b in zip(history, history[1:])]
    np.testing.assert_allclose(metrics.flip_rate(history), expected)
    by_step = {100 * i: masks for i, masks in reversed(list(enumerate(history)))}
    np.testing.assert_allclose(metrics.flip_rate(by_step), expected)
    union = np.any([flat(m) for m in history], axis=0).mean()
    assert metrics.exploration_rate(history) == union
    assert metrics.exploration_rate(history[:1]) == 0.5


def test_masks_that_do_not_belong_together():
    a = masks_of(0)
    with pytest.raises(ValueError, match="b/kernel"):
        metrics.sad(a, {"a": a["a"]})
    with pytest.raises(ValueError, match=r"a/kernel has a mask of shape \(16, 8\)"):
        metrics.sad(a, {**a, "a": {"kernel": jnp.ones((8, 16), bool)}})
    with pytest.raises(ValueError, match="weights"):
        metrics.sad.__wrapped__(a, a, normalize="entries")
    with pytest.raises(TypeError, match="map steps to trees"):
        metrics.flip_rate(a)
    with pytest.raises(ValueError, match="no masks"):
        metrics.exploration_rate([{"kernel": None}])


def test_live_units():
    kernel = jnp.zeros((5, 4)).at[2, 1].set(1).at[0, 3].set(-2)
    assert metrics.live_units(kernel).tolist() == [False, True, False, True]
    bias = jnp.array([0.5, 0.0, 0.0, 0.0])
    assert metrics.live_units(kernel, bias).tolist() == [True, True, False, True]
    following = jnp.ones((4, 3)).at[3].set(0)
    assert jax.jit(metrics.live_units)(kernel, bias, outgoing=following).tolist() == [
        True,
        True,
        False,
        False,
    ]
    masks = kernel != 0
    assert int(metrics.live_units(masks).sum()) == 2
    convolution = jnp.zeros((3, 3, 4, 6)).at[1, 1, 0, 2].set(1)
    assert metrics.live_units(convolution).tolist() == [False] * 2 + [True] + [False] * 3
    assert metrics.live_units(convolution, axis=2).tolist() == [True, False, False, False]
    with pytest.raises(ValueError, match="4 units but the outgoing kernel has 5"):
        metrics.live_units(kernel, outgoing=jnp.ones((5, 2)))
