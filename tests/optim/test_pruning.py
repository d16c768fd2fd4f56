"""Timing of mask updates, the sparsity along a ramp, and what the transformations refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsejax as sj

W = jax.random.normal(jax.random.key(0), (20, 10))


def run(tx, steps, params=None, gradient=0.01):
    """Parameters and masks after each step."""
    params = {"kernel": W} if params is None else params
    state, seen = tx.init(params), []
    step = jax.jit(tx.update)
    for _ in range(steps):
        updates, state = step(
            jax.tree.map(lambda p: jnp.full_like(p, gradient), params), state, params
        )
        params = optax.apply_updates(params, updates)
        seen.append((params["kernel"], sj.get_masks(state)["kernel"]))
    return seen


def test_masks_follow_the_cubic_ramp_at_the_updates():
    plan = sj.plan({"kernel": W}, sj.Unstructured(0.9))
    ramp = optax.polynomial_schedule(0.0, 1.0, 3, transition_steps=8, transition_begin=2)
    seen = run(optax.chain(optax.sgd(0.1), sj.optim.prune(plan, ramp, every=3)), 14)
    expected = 0
    for step, (kernel, mask) in enumerate(seen):
        if step % 3 == 0:
            expected = round(float(ramp(step)) * 180)
        assert int((~mask).sum()) == expected, step
        np.testing.assert_array_equal(kernel == 0, ~mask)


def test_begin_end_and_the_forced_last_update():
    plan = sj.plan({"kernel": W}, sj.Unstructured(0.5))
    ramp = optax.linear_schedule(0.0, 1.0, 9)
    tx = optax.chain(optax.sgd(0.1), sj.optim.prune(plan, ramp, every=4, begin=2, end=9))
    zeros = [int((~mask).sum()) for _, mask in run(tx, 14)]
    # Updates at steps 2 and 6, and at 9, where `every` does not lead.
    at = {2: round(float(ramp(2)) * 100), 6: round(float(ramp(6)) * 100), 9: 100}
    assert zeros == [0, 0] + [at[2]] * 4 + [at[6]] * 3 + [at[9]] * 5


def test_scores_are_those_of_the_parameters_and_zeros_stay():
    plan = sj.plan({"kernel": W}, sj.Unstructured(0.5))
    seen = run(optax.chain(optax.sgd(0.1), sj.optim.prune(plan)), 5, gradient=5.0)
    magnitude = np.abs(np.asarray(W)).ravel()
    expected = magnitude >= np.sort(magnitude)[100]
    for _, mask in seen[:1]:
        np.testing.assert_array_equal(np.asarray(mask).ravel(), expected)
    # Magnitudes change, but what is zero scores lowest: a weight that is gone stays gone.
    np.testing.assert_array_equal(seen[-1][1], seen[0][1])


def test_another_score():
    plan = sj.plan({"kernel": W}, sj.Unstructured(0.5))
    smallest = lambda p: jax.tree.map(lambda x: -jnp.abs(x), p)  # noqa: E731
    seen = run(optax.chain(optax.sgd(0.1), sj.optim.prune(plan, end=0, score=smallest)), 3)
    magnitude = np.abs(np.asarray(W)).ravel()
    np.testing.assert_array_equal(
        np.asarray(seen[-1][1]).ravel(), magnitude < np.sort(magnitude)[100]
    )


def test_kept_updates_are_untouched_to_the_bit():
    plan = sj.plan({"kernel": W}, sj.NM(1, 2))
    adam = optax.adamw(1e-2)
    grads = {"kernel": jnp.cos(W)}
    plain, _ = adam.update(grads, adam.init({"kernel": W}), {"kernel": W})
    tx = optax.chain(adam, sj.optim.prune(plan))
    pruned, state = tx.update(grads, tx.init({"kernel": W}), {"kernel": W})
    mask = sj.get_masks(state)["kernel"]
    np.testing.assert_array_equal(pruned["kernel"][mask], plain["kernel"][mask])
    np.testing.assert_array_equal(pruned["kernel"][~mask], -W[~mask])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_zeros_are_exact_whatever_the_update(dtype):
    params = {"kernel": (W * 3e4).astype(dtype)}
    plan = sj.plan(params, sj.Unstructured(0.5))
    tx = sj.optim.prune(plan)
    updates = {"kernel": (jnp.cos(W) * 1e-3).astype(dtype)}
    updates, state = tx.update(updates, tx.init(params), params)
    new = optax.apply_updates(params, updates)["kernel"]
    np.testing.assert_array_equal(np.asarray(new == 0), ~np.asarray(sj.get_masks(state)["kernel"]))


def test_an_infinite_update_does_not_leak_through_the_mask():
    masks = {"kernel": jnp.arange(200).reshape(20, 10) % 2 == 0}
    tx = sj.optim.keep_masked(masks)
    updates = {"kernel": jnp.where(masks["kernel"], 1.0, jnp.nan)}
    updates, _ = tx.update(updates, tx.init({"kernel": W}), {"kernel": W})
    new = optax.apply_updates({"kernel": W}, updates)["kernel"]
    assert bool((new[~masks["kernel"]] == 0).all())


def test_a_new_strength_or_step_does_not_recompile():
    plan = sj.plan({"kernel": W}, sj.Unstructured(0.5))
    traces = []

    @jax.jit
    def step(rate, every, state, params):
        traces.append(1)
        tx = optax.chain(optax.sgd(rate), sj.optim.prune(plan, rate, every=every))
        return tx.update(params, state, params)

    state = optax.chain(optax.sgd(0.1), sj.optim.prune(plan)).init({"kernel": W})
    for rate, every in ((0.1, 1), (0.2, 3), (0.7, 5)):
        step(rate, every, state, {"kernel": W})
    assert len(traces) == 1


def test_later_masks_count_in_get_masks():
    a, b = ({"kernel": jnp.full((20, 10), value)} for value in (True, False))
    state = optax.chain(sj.optim.keep_masked(a), sj.optim.keep_masked(b)).init({"kernel": W})
    assert not sj.get_masks(state)["kernel"].any()


def test_masks_start_full_and_trees_without_leaves_are_allowed():
    plan = sj.plan({"kernel": W}, sj.Unstructured(0.5))
    tx = sj.optim.prune(plan)
    assert sj.get_masks(tx.init({"kernel": W}))["kernel"].all()
    assert tx.init({}).masks.tree == {}


def test_track_masks_are_those_of_the_new_parameters():
    plan = sj.plan({"kernel": W}, sj.NM(1, 2))
    beta = sj.optim.mask_decay_schedule("linear", 0.25)
    tx = optax.chain(optax.sgd(1.0), sj.optim.track_masks(plan, pruned_scale=beta))
    params, state = {"kernel": W}, tx.init({"kernel": W})
    assert float(state[-1].pruned_scale) == 1.0
    updates, state = tx.update({"kernel": jnp.sin(9 * W)}, state, params)
    new = optax.apply_updates(params, updates)
    expected = plan.masks(sj.masks.magnitude(new))["kernel"]
    np.testing.assert_array_equal(sj.get_masks(state)["kernel"], expected)
    assert float(state[-1].pruned_scale) == 0.75


def test_bad_input():
    plan = sj.plan({"kernel": W}, sj.Unstructured(0.5))
    with pytest.raises(ValueError, match=r"kernel was planned with shape \(20, 10\)"):
        sj.optim.prune(plan).init({"kernel": jnp.ones((4, 4))})
    with pytest.raises(ValueError, match=r"kernel has shape \(20, 10\) and its mask shape \(2,\)"):
        sj.optim.keep_masked({"kernel": jnp.ones(2, bool)}).init({"kernel": W})
    with pytest.raises(TypeError, match="mask of kernel holds float32, not booleans"):
        sj.optim.keep_masked({"kernel": jnp.ones((20, 10))})
    with pytest.raises(ValueError, match="chain sj.optim.prune"):
        sj.get_masks(optax.adam(1e-3).init({"kernel": W}))


def test_nan_weights_are_pruned_first():
    params = {"kernel": W.at[0, 0].set(jnp.nan)}
    tx = sj.optim.prune(sj.plan(params, sj.Unstructured(0.005)))
    _, state = tx.update(params, tx.init(params), params)
    mask = sj.get_masks(state)["kernel"]
    assert not mask[0, 0] and int(mask.sum()) == 199


class Network(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(8, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.dense(x))


def test_view_keeps_dense_weights_and_moves_batch_statistics():
    model = Network(nnx.Rngs(0))
    plan = sj.plan(model, {"kernel$": sj.NM(1, 2)})
    masks = plan.masks(sj.masks.magnitude(nnx.as_pure(nnx.state(model, nnx.Param))))
    x = jax.random.normal(jax.random.key(1), (5, 8))
    before = np.asarray(model.dense.kernel[...])
    mean = np.asarray(model.norm.mean[...])

    @nnx.jit
    def step(model, masks):
        return nnx.grad(lambda m: (sj.masks.straight_through(m, masks)(x) ** 3).sum())(model)

    grads = step(model, masks)
    np.testing.assert_array_equal(model.dense.kernel[...], before)
    assert (np.asarray(model.norm.mean[...]) != mean).any()
    assert (np.asarray(grads["dense"]["kernel"][...]) != 0).all()
    masked = nnx.clone(model)
    masked.dense.kernel[...] = jnp.where(masks["dense"]["kernel"], before, 0)
    masked.eval()
    model.eval()
    np.testing.assert_allclose(sj.masks.straight_through(model, masks)(x), masked(x), rtol=1e-6)
    np.testing.assert_allclose(sj.masks.straight_through(model, plan)(x), masked(x), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("wide, narrow", [(jnp.float32, jnp.bfloat16), (jnp.bfloat16, jnp.float32)])
def test_zeros_are_exact_whatever_the_dtype_of_the_updates(wide, narrow):
    params = {"kernel": jax.random.normal(jax.random.key(0), (8, 8), wide)}
    grads = {"kernel": jnp.full((8, 8), 0.1, narrow)}
    plan = sj.plan(params, sj.Unstructured(0.5))
    masks = plan.masks(params)
    members = {
        "prune": (sj.optim.prune(plan), 32),
        "keep_masked": (sj.optim.keep_masked(masks), 32),
        "rigl": (sj.optim.rigl(optax.sgd(0.1), plan, key=jax.random.key(1), end=9), 32),
        "proximal": (sj.optim.proximal(sj.prox.hard_k(16, axis=None), 1.0), 48),
    }
    for name, (tx, zeros) in members.items():
        updates, _ = tx.update(grads, tx.init(params), params)
        new = optax.apply_updates(params, updates)["kernel"]
        assert new.dtype == wide and int((new == 0).sum()) == zeros, name


def test_get_masks_by_path_whatever_the_tree_is():
    """Labels of a whole branch leave one gap in place of it; parameters may be called masks."""
    params = {"masks": {"kernel": jnp.ones((4, 4))}, "b": {"kernel": jnp.ones((8, 4))}}
    plan = sj.plan(params, sj.NM(2, 4))
    pruned = lambda tx: optax.chain(tx, sj.optim.prune(plan))  # noqa: E731
    transforms = {"x": pruned(optax.adam(1e-3)), "y": pruned(optax.sgd(0.1))}
    tx = optax.partition(transforms, {"masks": "x", "b": "y"})
    found = sj.get_masks(tx.init(params))
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, params)
    with pytest.raises(ValueError, match="has no masks"):
        sj.get_masks(optax.adam(1e-3).init(params))


def test_impossible_timing_and_masks_of_other_parameters():
    params = {"kernel": jnp.ones((4, 4))}
    plan = sj.plan(params, sj.Unstructured(0.5))
    with pytest.raises(ValueError, match="at least 1"):
        sj.optim.prune(plan, every=0)
    with pytest.raises(ValueError, match="before it begins"):
        sj.optim.prune(plan, begin=10, end=1)
    other = {"weight": jnp.ones((4, 4))}
    with pytest.raises(ValueError, match="but the parameters are weight"):
        sj.optim.prune(plan).init(other)
    with pytest.raises(ValueError, match="mask for kernel but no such .* parameters are weight"):
        sj.optim.keep_masked(plan.masks(params)).init(other)


def test_gradual_pruning_of_blocks_is_the_formula():
    """At the last update u before t, s_f (1 - (1 - (u - t0) / (t1 - t0))^3); at t1 just s_f."""
    begin, end, every, final = 3, 14, 4, 0.8
    plan = sj.plan({"kernel": W}, sj.Block((1, 2), final))
    ramp = optax.polynomial_schedule(
        0, 1, power=3, transition_begin=begin, transition_steps=end - begin
    )
    prune = sj.optim.prune(plan, ramp, every=every, begin=begin, end=end)
    for t, (p, _) in enumerate(run(optax.chain(optax.sgd(0.01), prune), 18)):
        u = begin + (t - begin) // every * every if t < end else end
        s = 0.0 if t < begin else final * (1 - (1 - (u - begin) / (end - begin)) ** 3)
        blocks = np.asarray(p).reshape(20, 5, 2).any(-1)
        assert abs((~blocks).sum() - 100 * s) <= 0.5 + 1e-4
