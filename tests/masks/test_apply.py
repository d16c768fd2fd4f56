"""Masked forward and backward, and masked forward with dense backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj

W = jnp.array([[1.0, -2.0], [3.0, 4.0]])
M = jnp.array([[True, False], [False, True]])
G = jnp.array([[10.0, 20.0], [30.0, 40.0]])


def gradient(f):
    return jax.grad(lambda w: jnp.sum(f(w) * G))(W)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_apply_masks_zeroes_exactly_both_ways(dtype):
    w = W.astype(dtype).at[0, 1].set(jnp.inf).at[1, 0].set(jnp.nan)
    masked = sj.masks.apply_masks(w, M)
    assert masked.dtype == dtype and masked.tolist() == [[1.0, 0.0], [0.0, 4.0]]
    np.testing.assert_array_equal(
        gradient(lambda w: sj.masks.apply_masks(w, M)), jnp.where(M, G, 0)
    )


def test_straight_through_is_dense_backward():
    np.testing.assert_array_equal(sj.masks.straight_through(W, M), jnp.where(M, W, 0))
    np.testing.assert_array_equal(gradient(lambda w: sj.masks.straight_through(w, M)), G)


def test_decay_pulls_the_pruned_weights_only():
    found = gradient(lambda w: sj.masks.straight_through(w, M, decay=0.5))
    np.testing.assert_array_equal(found, G + 0.5 * jnp.where(M, 0, W))


@pytest.mark.parametrize("how", ["full", "scaled"])
def test_mask_decay(how):
    view = lambda w: sj.masks.straight_through(w, M, pruned_scale=0.25, pruned_gradient=how)  # noqa: E731
    np.testing.assert_array_equal(view(W), jnp.where(M, W, 0.25 * W))
    expected = G if how == "full" else jnp.where(M, G, 0.25 * G)
    np.testing.assert_array_equal(gradient(view), expected)
    if how == "scaled":  # the derivative of the forward pass, which autodiff knows by itself
        np.testing.assert_allclose(gradient(lambda w: jnp.where(M, w, 0.25 * w)), gradient(view))


def test_a_plan_masks_by_current_magnitude():
    plan = sj.plan({"kernel": W}, sj.NM(1, 2))
    found = sj.masks.straight_through({"kernel": W}, plan)["kernel"]
    np.testing.assert_array_equal(found, [[0.0, 0.0], [3.0, 4.0]])
    gradients = jax.grad(lambda p: jnp.sum(sj.masks.straight_through(p, plan)["kernel"] * G))(
        {"kernel": W}
    )
    np.testing.assert_array_equal(gradients["kernel"], G)


def test_jit_vmap_scan_and_traced_scale():
    f = jax.jit(lambda w, b: sj.masks.straight_through(
        w, M, pruned_scale=b, pruned_gradient="scaled", decay=b))  # fmt: skip
    np.testing.assert_array_equal(f(W, 0.5), jnp.where(M, W, 0.5 * W))
    stacked = jax.vmap(lambda w: sj.masks.straight_through(w, M))(jnp.stack([W, 2 * W]))
    np.testing.assert_array_equal(stacked[1], jnp.where(M, 2 * W, 0))
    _, scanned = jax.lax.scan(
        lambda c, w: (c, sj.masks.straight_through(w, M)), 0, jnp.stack([W, W])
    )
    np.testing.assert_array_equal(scanned[0], jnp.where(M, W, 0))


def test_leaves_without_a_mask_pass_and_mistakes_are_named():
    params = {"a": {"kernel": W, "bias": jnp.ones(2)}}
    masked = sj.masks.apply_masks(params, {"a": {"kernel": M, "bias": None}})
    np.testing.assert_array_equal(masked["a"]["bias"], 1.0)
    np.testing.assert_array_equal(sj.masks.apply_masks(params, {})["a"]["kernel"], W)
    with pytest.raises(ValueError, match=r"a/kernel has shape \(2, 2\) and its mask shape \(2,\)"):
        sj.masks.apply_masks(params, {"a": {"kernel": jnp.ones(2, bool)}})
    with pytest.raises(ValueError, match="no such parameter; the parameters are a/bias, a/kernel"):
        sj.masks.apply_masks(params, {"b": {"kernel": M}})
    with pytest.raises(ValueError, match="pruned_gradient must be one of 'full', 'scaled'"):
        sj.masks.straight_through(W, M, pruned_gradient="half")
    for scale in (0.25, jnp.float32(0)):
        with pytest.raises(ValueError, match='pruned_gradient must be "full" or "scaled"'):
            sj.masks.straight_through(W, M, pruned_scale=scale)


@pytest.mark.slow
def test_straight_through_has_all_derivatives():
    w, m = jnp.array([1.0, 2.0]), jnp.array([True, False])

    def loss(w, scale=0.0, gradient="scaled"):
        seen = sj.masks.straight_through(w, m, pruned_scale=scale, pruned_gradient=gradient)
        return (seen**4).sum()

    np.testing.assert_allclose(jax.grad(loss)(w, 0.5), [4.0, 0.5 * 4 * 1.0])
    np.testing.assert_allclose(jax.grad(loss)(w, 0.5, "full"), [4.0, 4.0])
    np.testing.assert_allclose(jax.grad(loss, 1)(w, 0.5), 4 * 1.0 * 2.0)
    np.testing.assert_allclose(jax.grad(loss, 1)(w, jnp.float32(0)), 0.0)
    tangent = jax.jvp(loss, (w,), (jnp.array([0.0, 1.0]),))[1]
    np.testing.assert_allclose(tangent, jax.grad(loss)(w)[1])
    np.testing.assert_allclose(sj.masks.grasp(w, loss), [48.0, 0.0])


def test_pruned_infinities_do_not_leak():
    w, m = jnp.array([1.0, jnp.inf, jnp.nan]), jnp.array([True, False, False])
    np.testing.assert_array_equal(sj.masks.straight_through(w, m), [1.0, 0.0, 0.0])
    grad = jax.grad(lambda w: sj.masks.straight_through(w, m).sum())(w)
    assert bool(jnp.all(jnp.isfinite(grad)))


def test_masks_must_be_boolean():
    for apply in (sj.masks.apply_masks, sj.masks.straight_through):
        with pytest.raises(TypeError, match="not booleans"):
            apply(jnp.ones(3), jnp.array([1, 0, 2]))
