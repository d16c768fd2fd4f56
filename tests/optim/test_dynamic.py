"""RigL and SET against the papers' rules written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj

SHAPE = (12, 10)


def params_of(seed=0):
    return {"kernel": jax.random.normal(jax.random.key(seed), SHAPE), "bias": jnp.ones(10)}


def plan_of(sparsity=0.75):
    return sj.plan(params_of(), sj.Unstructured(sparsity))


def grads_at(step):
    return {"kernel": jax.random.normal(jax.random.key(100 + step), SHAPE), "bias": jnp.ones(10)}


def top(scores, k):
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:k]] = True
    return mask.reshape(scores.shape)


def rigl_by_hand(w, mask, steps, every, end, alpha, rate, momentum):
    """The algorithm of the paper, with momentum SGD."""
    m = np.zeros_like(w)
    w = np.where(mask, w, 0)
    for t in range(steps):
        g = np.asarray(grads_at(t)["kernel"])
        if t and t % every == 0 and t < end:
            fraction = alpha / 2 * (1 + np.cos(np.pi * t / end))
            k = int(np.floor(fraction * mask.sum()))
            kept = top(np.where(mask, np.abs(w), -np.inf), mask.sum() - k)
            new = kept | top(np.where(kept, -np.inf, np.abs(g)), k)
            w = np.where(new & mask, w, 0)
            m = np.where(new & ~mask, 0, m)
            mask = new
        else:
            m = momentum * m + np.where(mask, g, 0)
            w = np.where(mask, w - rate * m, 0)
        yield w, mask, m


@pytest.mark.slow
def test_rigl_equals_the_paper_step_by_step():
    params = params_of()
    tx = sj.optim.rigl(optax.sgd(0.1, 0.9), plan_of(), key=jax.random.key(0), end=13, every=3)
    state = tx.init(params)
    mask = np.asarray(sj.get_masks(state)["kernel"])
    params = sj.masks.apply_masks(params, sj.get_masks(state))
    by_hand = rigl_by_hand(np.asarray(params["kernel"]), mask, 18, 3, 13, 0.3, 0.1, 0.9)
    changed = 0
    step = jax.jit(tx.update)
    for t, (w, expected, m) in enumerate(by_hand):
        updates, state = step(grads_at(t), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["kernel"], w, atol=1e-5)
        found = np.asarray(sj.get_masks(state)["kernel"])
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(state.inner[0].trace["kernel"], m, atol=1e-5)
        changed += int((found != mask).any())
        mask = found
        assert found.sum() == 30
    assert changed == 3  # at 3, 6 and 9; at 12 the cosine leaves less than one entry


@pytest.mark.parametrize("make", [sj.optim.rigl, sj.optim.sparse_evolution])
@pytest.mark.parametrize(
    "optimizer", [optax.adamw(0.1), optax.sgd(0.1, 0.9), optax.adafactor(0.1), optax.rmsprop(0.1)]
)
def test_invariants_under_any_optimizer(make, optimizer):
    params = params_of()
    tx = make(optimizer, plan_of(), key=jax.random.key(1), end=20, every=2)
    state = tx.init(params)
    params = sj.masks.apply_masks(params, sj.get_masks(state))
    step = jax.jit(tx.update)
    for t in range(7):
        before, old = params, sj.get_masks(state)["kernel"]
        updates, state = step(grads_at(t), state, params)
        params = optax.apply_updates(params, updates)
        mask = sj.get_masks(state)["kernel"]
        assert int(mask.sum()) == 30
        np.testing.assert_array_equal(np.asarray(params["kernel"])[~np.asarray(mask)], 0)
        if t and t % 2 == 0:
            both, new = np.asarray(old & mask), np.asarray(mask & ~old)
            assert new.sum() > 0
            # The step changes the mask instead of the weights, biases included.
            np.testing.assert_array_equal(
                np.asarray(params["kernel"])[both], np.asarray(before["kernel"])[both]
            )
            np.testing.assert_array_equal(params["bias"], before["bias"])
            np.testing.assert_array_equal(np.asarray(params["kernel"])[new], 0)
            for moment in jax.tree.leaves(state.inner):
                if np.shape(moment) == SHAPE:
                    np.testing.assert_array_equal(np.asarray(moment)[new], 0)


@pytest.mark.slow
def test_set_grows_uniformly_among_the_inactive():
    params = params_of()
    grown = np.zeros(SHAPE)

    def one(key):
        tx = sj.optim.sparse_evolution(
            optax.sgd(0.1), plan_of(), key=key, end=9, every=1, drop_fraction=0.5
        )
        state = tx.init(params)
        start = sj.masks.apply_masks(params, sj.get_masks(state))
        _, state = tx.update(grads_at(0), state, start)
        old = sj.get_masks(state)["kernel"]
        _, state = tx.update(grads_at(1), state, start)
        return sj.get_masks(state)["kernel"] & ~old

    grown = np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(0), 2000)))
    # 15 of 30 dropped; 15 grown among 90 + 15 candidates, of which 90 were inactive before.
    per_run, per_place = grown.sum((1, 2)), grown.mean(0)
    assert per_run.mean() == pytest.approx(15 * 90 / 105, abs=0.2)
    assert per_place.std() < 4 * np.sqrt(per_place.mean() / 2000)


def test_a_zero_gradient_still_grows_by_index():
    params = params_of()
    tx = sj.optim.rigl(optax.sgd(0.1), plan_of(), key=jax.random.key(0), end=9, every=1)
    state = tx.init(params)
    zero = jax.tree.map(jnp.zeros_like, params)
    params = sj.masks.apply_masks(params, sj.get_masks(state))
    for _ in range(3):
        updates, state = tx.update(zero, state, params)
        params = optax.apply_updates(params, updates)
        assert int(sj.get_masks(state)["kernel"].sum()) == 30


@pytest.mark.slow
def test_blocks_and_stacked_layers_move_as_units():
    params = {"kernel": jax.random.normal(jax.random.key(0), (3, 8, 8))}
    plan = sj.plan(params, {"kernel": sj.Block((2, 2), 0.5, stacked=1)})
    tx = sj.optim.rigl(optax.sgd(0.1), plan, key=jax.random.key(0), end=9, every=1)
    state = tx.init(params)
    first = sj.get_masks(state)["kernel"]
    for t in range(4):
        grads = {"kernel": jax.random.normal(jax.random.key(t), (3, 8, 8))}
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    mask = np.asarray(sj.get_masks(state)["kernel"]).reshape(3, 4, 2, 4, 2)
    assert (mask.all((2, 4)) == mask.any((2, 4))).all() and (mask.sum((1, 2, 3, 4)) == 32).all()
    assert (np.asarray(first) != mask.reshape(3, 8, 8)).any()


def test_bad_input():
    with pytest.raises(ValueError, match="kernel: NM"):
        sj.optim.rigl(
            optax.sgd(0.1), sj.plan(params_of(), sj.NM(2, 4)), key=jax.random.key(0), end=9
        )
    together = sj.plan(params_of(), sj.Unstructured(0.5), allocate=sj.masks.joint)
    with pytest.raises(ValueError, match="allocate=sj.masks.erk"):
        sj.optim.sparse_evolution(optax.sgd(0.1), together, key=jax.random.key(0), end=9)


@pytest.mark.slow
def test_no_fraction_changes_the_sparsity():
    params = {"kernel": jax.random.normal(jax.random.key(0), (8, 8))}
    plan = sj.plan(params, sj.Unstructured(0.75))
    tx = sj.optim.rigl(
        optax.sgd(0.1), plan, key=jax.random.key(1), end=100, every=1, drop_fraction=lambda t: 1.5
    )
    state = tx.init(params)
    for _ in range(3):
        _, state = tx.update({"kernel": jnp.ones((8, 8))}, state, params)
        assert int(sj.get_masks(state)["kernel"].sum()) == 16
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        sj.optim.sparse_evolution(
            optax.sgd(0.1), plan, key=jax.random.key(1), end=9, drop_fraction=1.5
        )


@pytest.mark.slow
def test_half_way_the_cosine_drops_the_number_of_the_formula():
    """0.3 / 2 of 20 is 3, and in float32 a little less."""
    params = {"kernel": jax.random.normal(jax.random.key(0), (40, 1))}
    plan = sj.plan(params, sj.Unstructured(0.5))
    tx = sj.optim.rigl(optax.sgd(0.0), plan, key=jax.random.key(1), end=8, every=4)
    state = tx.init(params)
    params = sj.masks.apply_masks(params, state.masks.tree)
    before = state.masks.tree["kernel"]
    grads = {"kernel": jnp.where(before, 0.0, 1.0)}
    step = jax.jit(tx.update)
    for _ in range(5):
        _, state = step(grads, state, params)
    assert int((before & ~state.masks.tree["kernel"]).sum()) == 3
