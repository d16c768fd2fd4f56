"""Wanda and SparseGPT against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj
from sparsejax.patterns import FanIn


def inputs_of(rows, tokens=200, seed=0):
    """Correlated inputs of unequal size."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(rows, rows)) / np.sqrt(rows) + np.eye(rows)
    return rng.normal(size=(tokens, rows)) @ mix * rng.uniform(0.2, 2, rows)


def reference(weights, gram, sparsity, block, n=None, m=None, damping=0.01):
    """SparseGPT as its paper writes it, on (out, in) and column by column."""
    w, h = weights.T.astype(np.float64).copy(), gram.astype(np.float64).copy()
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h += damping * np.mean(np.diag(h)) * np.eye(len(h))
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    mask = np.ones(w.shape, bool)
    for start in range(0, w.shape[1], block):
        columns = range(start, min(start + block, w.shape[1]))
        if n is None:
            scores = w[:, columns] ** 2 / np.diag(u)[columns] ** 2
            gone = int(np.floor(scores.size * sparsity + 1e-9))
            order = np.argsort(scores.ravel(), kind="stable")[:gone]
            part = np.ones(scores.size, bool)
            part[order] = False
            mask[:, columns] = part.reshape(scores.shape)
        for j in columns:
            if n is not None and j % m == 0:
                scores = w[:, j : j + m] ** 2 / np.diag(u)[j : j + m] ** 2
                order = np.argsort(-scores, axis=1, kind="stable")
                part = np.zeros_like(scores, bool)
                np.put_along_axis(part, order[:, :n], True, axis=1)
                mask[:, j : j + m] = part
            error = np.where(mask[:, j], 0, w[:, j]) / u[j, j]
            w[:, j + 1 :] -= error[:, None] * u[j, j + 1 :]
            w[~mask[:, j], j] = 0
    return np.where(mask, w, 0).T, mask.T


@pytest.mark.parametrize("rows, block", [(48, 128), (48, 16), (50, 16)])
def test_sparsegpt_unstructured(rows, block):
    x = inputs_of(rows)
    w = np.random.default_rng(1).normal(size=(rows, 20))
    with jax.enable_x64(True):
        plan = sj.plan({"kernel": jnp.asarray(w)}, sj.Unstructured(0.5))
        new, masks = sj.recipes.sparsegpt(
            {"kernel": jnp.asarray(w)}, {"kernel": jnp.asarray(x.T @ x)}, plan, block=block
        )
        expected, mask = reference(w, x.T @ x, 0.5, block)
        np.testing.assert_array_equal(masks["kernel"], mask)
        np.testing.assert_allclose(new["kernel"], expected, atol=1e-9)


@pytest.mark.parametrize("n, m, rows", [(2, 4, 48), (1, 4, 48), (4, 8, 48), (2, 4, 50), (2, 4, 6)])
def test_sparsegpt_groups(n, m, rows):
    x = inputs_of(rows)
    w = np.random.default_rng(2).normal(size=(rows, 20))
    with jax.enable_x64(True):
        plan = sj.plan({"kernel": jnp.asarray(w)}, sj.NM(n, m, pad=True))
        new, masks = sj.recipes.sparsegpt(
            {"kernel": jnp.asarray(w)}, {"kernel": jnp.asarray(x.T @ x)}, plan, block=16
        )
        expected, mask = reference(w, x.T @ x, None, 16, n, m)
        np.testing.assert_array_equal(masks["kernel"], mask)
        np.testing.assert_allclose(new["kernel"], expected, atol=1e-9)


def test_sparsegpt_is_optimal_for_a_mask_of_leading_inputs():
    """If all that is pruned comes first, the updates in turn are the least-squares solution."""
    x = inputs_of(12)
    w = np.random.default_rng(3).normal(size=(12, 5))
    w[:6] *= 1e-3
    with jax.enable_x64(True):
        params, gram = {"kernel": jnp.asarray(w)}, {"kernel": jnp.asarray(x.T @ x)}
        plan = sj.plan(params, sj.Channel(0.5, axis=0))
        new, masks = sj.recipes.sparsegpt(params, gram, plan, damping=0.0)
    assert not np.asarray(masks["kernel"])[:6].any() and np.asarray(masks["kernel"])[6:].all()
    best = np.linalg.lstsq(x[:, 6:], x @ w, rcond=None)[0]
    np.testing.assert_allclose(new["kernel"][6:], best, atol=1e-8)


def test_sparsegpt_with_inputs_that_are_always_zero():
    x = inputs_of(16)
    x[:, [3, 7]] = 0
    w = jax.random.normal(jax.random.key(0), (16, 8))
    gram = jnp.asarray(x.T @ x, jnp.float32)
    plan = sj.plan({"kernel": w}, sj.Unstructured(0.5))
    new, masks = sj.recipes.sparsegpt({"kernel": w}, {"kernel": gram}, plan)
    assert bool(jnp.all(jnp.isfinite(new["kernel"])))
    assert not np.asarray(new["kernel"])[[3, 7]].any()
    assert int(masks["kernel"].sum()) == 64
    np.testing.assert_array_equal(np.asarray(new["kernel"])[~np.asarray(masks["kernel"])], 0)


def test_wanda_prunes_the_same_number_of_inputs_of_each_output():
    x = inputs_of(10)
    w = np.random.default_rng(4).normal(size=(10, 6))
    params = {"kernel": jnp.asarray(w, jnp.float32), "bias": jnp.ones(6)}
    plan = sj.plan(params, FanIn(0.55, rounding="down"))
    gram = jnp.asarray(x.T @ x, jnp.float32)
    scores = sj.masks.wanda(params, {"kernel": gram}, plan)
    expected = np.abs(w) * np.linalg.norm(x, axis=0)[:, None]
    np.testing.assert_allclose(scores["kernel"], expected, rtol=1e-5)
    assert scores["bias"] is None
    mask = np.asarray(plan.masks(scores)["kernel"])
    lowest = np.argsort(expected, axis=0)[: int(np.floor(10 * 0.55))]
    built = np.ones_like(mask)
    np.put_along_axis(built, lowest, False, axis=0)
    np.testing.assert_array_equal(mask, built)
    norms = jnp.sqrt(jnp.diagonal(gram))
    again = sj.masks.wanda(params, {"kernel": norms}, plan)
    np.testing.assert_allclose(again["kernel"], scores["kernel"], rtol=1e-6)


@pytest.mark.slow
def test_kernels_with_heads_are_seen_as_matrices():
    w = jax.random.normal(jax.random.key(0), (4, 8, 6))  # (heads, head_dim, out)
    x = jnp.asarray(inputs_of(32), jnp.float32)
    plan = sj.plan({"kernel": w}, sj.NM(2, 4, axis=(0, 1)))
    flat = sj.plan({"kernel": w.reshape(32, 6)}, sj.NM(2, 4))
    gram = {"kernel": x.T @ x}
    a, _ = sj.recipes.sparsegpt({"kernel": w}, gram, plan)
    b, _ = sj.recipes.sparsegpt({"kernel": w.reshape(32, 6)}, gram, flat)
    np.testing.assert_allclose(a["kernel"].reshape(32, 6), b["kernel"], rtol=1e-6)


def test_padded_groups_of_a_window_are_refused():
    params, gram = {"kernel": jnp.ones((3, 3, 6, 2))}, {"kernel": jnp.eye(54)}
    with pytest.raises(ValueError, match="padded groups .* choose an m that divides 6"):
        sj.recipes.sparsegpt(params, gram, sj.plan(params, sj.NM(2, 4, pad=True)))


def test_mistakes():
    params = {"kernel": jnp.ones((8, 4))}
    plan = sj.plan(params, sj.NM(2, 4))
    with pytest.raises(ValueError, match="contracts 8 inputs, got nothing"):
        sj.masks.wanda(params, {}, plan)
    with pytest.raises(ValueError, match=r"got shape \(4, 4\)"):
        sj.recipes.sparsegpt(params, {"kernel": jnp.eye(4)}, plan)
    with pytest.raises(ValueError, match="needs a Gram matrix"):
        sj.recipes.sparsegpt(params, {"kernel": jnp.ones(8)}, plan)
    together = sj.plan(params, sj.Unstructured(0.5), allocate=sj.masks.joint)
    with pytest.raises(ValueError, match="layer by layer"):
        sj.recipes.sparsegpt(params, {"kernel": jnp.eye(8)}, together)
    with pytest.raises(ValueError, match="rounding"):
        FanIn(0.5, rounding="up")


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 1.0])
def test_constant_fan_in(sparsity):
    w = jax.random.normal(jax.random.key(5), (3, 3, 8, 4))
    pattern = FanIn(sparsity)
    mask = np.asarray(sj.masks.topk(jnp.abs(w), pattern)).reshape(72, 4)
    assert (mask.sum(0) == 72 - round(72 * sparsity)).all()
    plan = sj.plan({"kernel": w}, pattern)
    assert plan["kernel"].kept == mask.sum()
    stacked = sj.masks.topk(jnp.abs(w.reshape(9, 8, 4)), FanIn(sparsity, stacked=1))
    assert (np.asarray(stacked).sum(1) == 8 - round(8 * sparsity)).all()


def test_sparsegpt_rounds_down_in_each_block():
    """0.3 of 16 x 6 entries is 28.8: 28 go, where `sj.plan` alone would take 29."""
    x, w = inputs_of(16), np.random.default_rng(1).normal(size=(16, 6))
    for block in (128, 5):
        new, masks = sj.recipes.sparsegpt(
            {"kernel": jnp.asarray(w, jnp.float32)},
            {"kernel": jnp.asarray(x.T @ x, jnp.float32)},
            sj.plan({"kernel": jnp.asarray(w, jnp.float32)}, sj.Unstructured(0.3)),
            block=block,
        )
        expected, mask = reference(w, x.T @ x, 0.3, block)
        np.testing.assert_array_equal(masks["kernel"], mask)
        np.testing.assert_allclose(new["kernel"], expected, atol=1e-3)


def test_a_gram_matrix_that_is_not_positive_definite_is_refused():
    params = {"kernel": jnp.ones((4, 2))}
    plan = sj.plan(params, sj.NM(2, 4))
    for gram in (jnp.ones((4, 4)), jnp.full((4, 4), jnp.nan)):
        with pytest.raises(ValueError, match="kernel .* not positive definite"):
            sj.recipes.sparsegpt(params, {"kernel": gram}, plan, damping=0.0)
    with pytest.raises(ValueError, match="block=0"):
        sj.recipes.sparsegpt(params, {"kernel": jnp.eye(4)}, plan, block=0)


def test_arguments_in_another_order_are_told():
    params, grams = {"kernel": jnp.ones((4, 2))}, {"kernel": jnp.eye(4)}
    plan = sj.plan(params, sj.NM(2, 4))
    for method in (sj.masks.wanda, sj.recipes.sparsegpt):
        name = method.__name__
        method = method.__wrapped__  # as without the type checks of the tests
        with pytest.raises(TypeError, match=rf"got a dict; the order is .*{name}\(params, grams,"):
            method(params, plan, grams)


def test_inputs_that_are_not_finite_are_refused():
    params = {"kernel": jnp.ones((4, 2))}
    plan = sj.plan(params, FanIn(0.5))
    for bad in (jnp.full(4, jnp.nan), jnp.full((4, 4), jnp.nan), -jnp.eye(4)):
        with pytest.raises(ValueError, match="wanda: the inputs of kernel .* not finite"):
            sj.masks.wanda(params, {"kernel": bad}, plan)
