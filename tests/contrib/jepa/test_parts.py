"""Blocks, grouped outputs and multi-information against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

import sparsejax as sj
from sparsejax.contrib import jepa

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 300)


@pytest.mark.parametrize(
    "grid, target, targets, context",
    [((4, 4), (2, 2), 1, None), ((5, 7), (2, 3), 3, (4, 6)), ((3, 3), (1, 1), 8, None)],
)
def test_blocks_are_rectangles_and_the_context_avoids_them(grid, target, targets, context):
    draw = lambda k: jepa.block_masks(grid, target, key=k, targets=targets, context=context)  # noqa: E731
    found = jax.vmap(draw)(KEYS)
    size = np.prod(context or grid) - targets * np.prod(target)
    assert found.context.shape == (300, size)
    assert found.targets.shape == (300, targets, np.prod(target))
    places = set()
    for seen, blocks in zip(np.asarray(found.context), np.asarray(found.targets)):
        assert np.all(np.diff(seen) > 0) and not set(seen) & set(blocks.ravel())
        assert 0 <= seen.min() and seen.max() < np.prod(grid)
        rows, columns = np.divmod(seen, grid[1])
        for axis, wide in ((rows, (context or grid)[0]), (columns, (context or grid)[1])):
            assert np.ptp(axis) < wide
        for block in blocks:
            top, left = divmod(int(block[0]), grid[1])
            wanted = [(top + i) * grid[1] + left + j
                      for i in range(target[0]) for j in range(target[1])]  # fmt: skip
            assert block.tolist() == wanted
            assert top + target[0] <= grid[0] and left + target[1] <= grid[1]
            places.add((top, left))
    # Every place is drawn.
    assert len(places) == (grid[0] - target[0] + 1) * (grid[1] - target[1] + 1)


def test_blocks_that_do_not_fit_are_refused():
    for name, arguments in {"target": ((4, 4), (5, 1)), "leave nothing": ((2, 2), (2, 2))}.items():
        with pytest.raises(ValueError, match=name):
            jepa.block_masks(*arguments, key=KEY)


def test_a_grouped_layer_is_a_dense_layer_by_groups():
    layer = jepa.GroupedLinear(3, 4, 2, rngs=nnx.Rngs(0))
    layer.bias.set_value(jnp.arange(8.0))
    z = jax.random.normal(KEY, (5, 6, 3))
    kernel = np.asarray(layer.kernel[...], np.float64)
    wanted = np.concatenate([np.asarray(z) @ w for w in kernel], -1) + np.arange(8)
    np.testing.assert_allclose(layer(z), wanted, rtol=1e-5, atol=1e-6)
    norms = [[np.sqrt((row**2).sum()) for row in w] for w in kernel]
    np.testing.assert_allclose(layer.group_norms(), norms, rtol=1e-6)


def test_the_penalty_is_over_rows_and_its_zeros_are_counted():
    kernel = np.asarray(jax.random.normal(KEY, (4, 3, 2)), np.float64)
    kernel[0, 1] = 0  # 0 / 0 in the proximal operator
    penalty = sj.prox.group_lasso(0.9, axis=2, weights=1.0)
    wanted, total = np.zeros_like(kernel), 0.0
    for g in range(4):
        for k in range(3):
            norm = np.linalg.norm(kernel[g, k])
            total += 0.9 * norm
            wanted[g, k] = max(0.0, 1 - 0.9 / norm) * kernel[g, k] if norm else 0
    found = penalty.prox(jnp.asarray(kernel, jnp.float32))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert np.isclose(float(penalty.value(jnp.asarray(kernel, jnp.float32))), total, rtol=1e-5)
    zero = (wanted == 0).all(-1)
    assert np.isclose(float(jepa.row_sparsity(found)), zero.mean()) and zero.any()
    assert jepa.groups_per_latent(found).tolist() == (~zero).sum(0).tolist()


def gaussian(seed, k=6):
    a = np.random.default_rng(seed).normal(size=(k, k + 3))
    return a @ a.T


@pytest.mark.parametrize("seed", range(3))
def test_multi_information_is_a_difference_of_entropies(seed):
    c = gaussian(seed)
    groups = np.array([0, 1, 0, 2, 2, 2])

    def entropy(index):
        return stats.multivariate_normal(cov=c[np.ix_(index, index)]).entropy()

    whole = entropy(range(6))
    single = sum(entropy([i]) for i in range(6)) - whole
    grouped = sum(entropy(np.flatnonzero(groups == g)) for g in range(3)) - whole
    low = jnp.asarray(c, jnp.float32)
    np.testing.assert_allclose(jepa.multi_information(low), single, rtol=1e-4)
    np.testing.assert_allclose(jepa.multi_information(low, groups), grouped, rtol=1e-4)
    assert grouped <= single
    # Maps of each group leave it unchanged, scales of single variables too.
    maps = np.zeros((6, 6))
    for g in range(3):
        at = np.flatnonzero(groups == g)
        maps[np.ix_(at, at)] = np.random.default_rng(9 + g).normal(size=(at.size, at.size))
    mapped = jnp.asarray(maps @ c @ maps.T, jnp.float32)
    np.testing.assert_allclose(jepa.multi_information(mapped, groups), grouped, rtol=1e-3)
    np.testing.assert_allclose(jax.jit(jepa.multi_information)(1e6 * low), single, rtol=1e-4)


def test_edges_of_multi_information():
    assert abs(float(jepa.multi_information(jnp.diag(jnp.array([1.0, 4.0, 9.0]))))) < 1e-6
    assert (
        float(jepa.multi_information(jnp.asarray(gaussian(0), jnp.float32), np.zeros(6, int))) == 0
    )
    for c in (jnp.ones((2, 2)), jnp.array([[1.0, 0.5], [-0.5, 1.0]]), jnp.zeros((2, 2))):
        with pytest.raises(ValueError, match="covariance"):
            jepa.multi_information(c)


def test_patches_are_squares_in_row_major_order():
    images = jax.random.normal(KEY, (2, 4, 6, 3))
    found = jepa.patches_of(images, 2)
    for i, (r, c) in enumerate(np.ndindex(2, 3)):
        wanted = np.asarray(images)[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].reshape(2, -1)
        np.testing.assert_array_equal(found[:, i], wanted)
    with pytest.raises(ValueError, match="size=3"):
        jepa.patches_of(images, 3)


@pytest.mark.parametrize("name", ["context", "targets"])
@pytest.mark.parametrize("index", [-1, 16])
def test_patches_beyond_the_image_are_refused(name, index):
    """JAX would take the last patch for -1."""
    encoder = jepa.PatchEncoder(16, 4, 8, 1, 2, rngs=nnx.Rngs(0))
    predictor = jepa.Predictor(16, 8, 8, 4, 1, 2, rngs=nnx.Rngs(1))
    blocks = jepa.Blocks(jnp.arange(12)[None], jnp.arange(12, 16)[None, None])
    blocks = blocks._replace(**{name: getattr(blocks, name).at[..., 0].set(index)})
    with pytest.raises(ValueError, match=f"blocks.{name} must hold patches from 0 to 15"):
        jepa.jepa_loss(encoder, encoder, predictor, jnp.ones((1, 16, 4)), blocks)
