"""Movement pruning, Top-KAST and AC/DC against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj

RATE = 0.1


def params_of(seed=0, shape=(6, 5)):
    keys = jax.random.split(jax.random.key(seed), 2)
    return {"kernel": jax.random.normal(keys[0], shape), "bias": jnp.ones(shape[1])}


def grads_of(step, shape=(6, 5)):
    keys = jax.random.split(jax.random.key(100 + step), 2)
    return {
        "kernel": jax.random.normal(keys[0], shape),
        "bias": jax.random.normal(keys[1], shape[1:]),
    }


def largest(scores, kept):
    order = np.argsort(-scores.ravel(), kind="stable")[:kept]
    mask = np.zeros(scores.size, bool)
    mask[order] = True
    return mask.reshape(scores.shape)


@pytest.mark.slow
def test_movement():
    params = params_of()
    plan = sj.plan(params, sj.Unstructured(0.6))
    ramp = optax.linear_schedule(0.0, 1.0, 4)
    tx = optax.chain(sj.optim.movement(plan, ramp, learning_rate=0.5), optax.sgd(RATE))
    state = tx.init(params)
    w, b, s = np.asarray(params["kernel"]), np.asarray(params["bias"]), np.zeros((6, 5))
    for step in range(8):
        mask = np.asarray(sj.get_masks(state)["kernel"])
        np.testing.assert_array_equal(mask, largest(s, 30 - round(18 * min(step / 4, 1))))
        grads = grads_of(step)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        g = np.asarray(grads["kernel"])
        s = s - 0.5 * g * w
        w = w - RATE * np.where(mask, g, 0)
        b = b - RATE * np.asarray(grads["bias"])
        np.testing.assert_allclose(params["kernel"], w, atol=1e-6)
        np.testing.assert_allclose(params["bias"], b, atol=1e-6)
    assert sj.get_masks(state)["bias"] is None


def test_soft_movement():
    params = params_of()
    plan = sj.plan(params, sj.Unstructured(0.6))
    rising = optax.linear_schedule(0.0, 0.4, 4)
    heavier = optax.linear_schedule(0.0, 0.2, 4)
    tx = sj.optim.soft_movement(plan, rising, strength=heavier, learning_rate=0.5)
    tx = optax.chain(tx, optax.sgd(RATE))
    state = tx.init(params)
    w, b, s = np.asarray(params["kernel"]), np.asarray(params["bias"]), np.zeros((6, 5))
    zeros = []
    for step in range(8):
        share = 1 / (1 + np.exp(-s))
        mask = np.asarray(sj.get_masks(state)["kernel"])
        np.testing.assert_array_equal(mask, share > 0.4 * min(step / 4, 1))
        zeros.append((~mask).sum())
        grads = grads_of(step)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        g = np.asarray(grads["kernel"])
        s = s - 0.5 * (g * w + 0.2 * min(step / 4, 1) * share * (1 - share))
        w = w - RATE * np.where(mask, g, 0)
        b = b - RATE * np.asarray(grads["bias"])
        np.testing.assert_allclose(params["kernel"], w, atol=1e-6)
        np.testing.assert_allclose(params["bias"], b, atol=1e-6)
    assert zeros[0] == 0 and 0 < zeros[-1] < 30
    assert sj.get_masks(state)["bias"] is None


def test_soft_movement_keeps_to_no_pattern_and_starts_dense():
    params = params_of()
    with pytest.raises(ValueError, match="cannot enforce a pattern"):
        sj.optim.soft_movement(sj.plan(params, sj.NM(1, 2)))
    with pytest.raises(ValueError, match="their sigmoid is 0.5"):
        sj.optim.soft_movement(sj.plan(params, sj.Unstructured(0.5)), 0.5)


@pytest.mark.slow
def test_top_kast():
    params = params_of()
    forward, backward = (sj.plan(params, sj.Unstructured(x)) for x in (0.8, 0.5))
    tx = sj.optim.top_kast(optax.sgd(RATE, 0.9), forward, backward, every=3, exploration=0.01)
    state = tx.init(params)
    w, m = np.asarray(params["kernel"], np.float64), np.zeros((6, 5))
    for step in range(8):
        if step % 3 == 0:
            a, b = largest(np.abs(w), 6), largest(np.abs(w), 15)
        grads = grads_of(step)
        updates, state = tx.update(grads, state, params)
        outside = np.asarray(params["kernel"])[~b]
        params = optax.apply_updates(params, updates)
        np.testing.assert_array_equal(sj.get_masks(state)["kernel"], a)
        np.testing.assert_array_equal(state.backward["kernel"], b)
        # Bit for bit.
        np.testing.assert_array_equal(np.asarray(params["kernel"])[~b], outside)
        g = np.asarray(grads["kernel"]) + 2 * 0.01 * w * np.where(a, 1, 1 / 0.2)
        m = 0.9 * m + np.where(b, g, 0)
        w = w - RATE * np.where(b, m, 0)
        np.testing.assert_allclose(params["kernel"], w, atol=1e-5)
    assert (a <= b).all()


def test_top_kast_needs_nested_sets():
    params = params_of()
    plans = [sj.plan(params, p) for p in (sj.Unstructured(0.5), sj.Unstructured(0.8), sj.NM(1, 2))]
    with pytest.raises(ValueError, match="must contain it"):
        sj.optim.top_kast(optax.sgd(RATE), plans[0], plans[1])
    with pytest.raises(ValueError, match="same kind"):
        sj.optim.top_kast(optax.sgd(RATE), plans[0], plans[2])


def test_acdc():
    params = params_of()
    plan = sj.plan(params, sj.Unstructured(0.6))
    tx = sj.optim.acdc(optax.sgd(RATE, 0.9), plan, [(2, 4), (6, 9)])
    state = tx.init(params)
    w, m = np.asarray(params["kernel"], np.float64), np.zeros((6, 5))
    mask = np.ones((6, 5), bool)
    for step in range(9):
        if step in (2, 6):
            mask = largest(np.abs(w), 12)
        if step == 4:
            mask, m = np.ones((6, 5), bool), np.zeros((6, 5))
        grads = grads_of(step)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        m = 0.9 * m + np.where(mask, grads["kernel"], 0)
        w = np.where(mask, w - RATE * m, 0)
        np.testing.assert_array_equal(sj.get_masks(state)["kernel"], mask)
        np.testing.assert_array_equal(np.asarray(params["kernel"]) == 0, ~mask)
        np.testing.assert_allclose(params["kernel"], w, atol=1e-5)


def test_acdc_phases():
    phases = sj.optim.acdc_phases(1000)
    assert phases[0] == (100, 150) and phases[-1] == (850, 1000)
    bounds = [x for phase in phases for x in phase]
    assert bounds == sorted(set(bounds))
    # The dense phase before the last is at least as long as the others.
    assert phases[-1][0] - phases[-2][1] >= 50
    with pytest.raises(ValueError, match="leaves no steps"):
        sj.optim.acdc_phases(10, warmup=0.9)
    with pytest.raises(ValueError, match="in order"):
        plan = sj.plan(params_of(), sj.Unstructured(0.5))
        sj.optim.acdc(optax.sgd(RATE), plan, [(3, 5), (5, 7)])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.95])
def test_iterative_shrinkage(alpha):
    params = params_of()
    plan = sj.plan(params, sj.Unstructured(0.6))
    tx = optax.chain(
        optax.sgd(RATE, 0.9), sj.optim.iterative_shrinkage(plan, alpha, prune_steps=5, every=2)
    )
    state = tx.init(params)
    w, m = np.asarray(params["kernel"], np.float64), np.zeros((6, 5))
    for step in range(9):
        grads = grads_of(step)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        m = 0.9 * m + np.asarray(grads["kernel"])
        w = w - RATE * m
        if step in (0, 2, 4):
            mask = largest(np.abs(w), 12)
            w = np.where(mask, w, alpha**2 * w)
        if step >= 4:
            w = np.where(mask, w, 0)
            np.testing.assert_array_equal(np.asarray(params["kernel"]) == 0, ~mask)
        np.testing.assert_allclose(params["kernel"], w, atol=1e-5)
        np.testing.assert_array_equal(sj.get_masks(state)["kernel"], mask)


@pytest.mark.parametrize(
    "sparsity, options, kept",
    [
        (1.0, {}, (2, 2)),
        (0.999, {}, (2, 2)),
        (1.0, {"cap": 0.9}, (40, 30)),
        (1.0, {"cap": 1.0}, (0, 0)),
    ],
)
def test_shrinkage_keeps_some_of_every_leaf(sparsity, options, kept):
    """q = min(ceil(p n), floor(.995 n)) of n = 400, and 300 in each of two slices."""
    params = {"a": jnp.ones((20, 20)), "b": jnp.ones((2, 30, 10))}
    rules = {"a": sj.Unstructured(sparsity), "b": sj.Unstructured(sparsity, stacked=1)}
    plan = sj.plan(params, rules, rounding="up", layout="in_out")
    tx = sj.optim.iterative_shrinkage(plan, prune_steps=1, **options)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    new = optax.apply_updates(params, updates)
    assert (int(new["a"].sum()), *new["b"].sum((1, 2)).tolist()) == (kept[0], *[kept[1]] * 2)


def test_shrinkage_acts_in_bfloat16():
    """0.99 w rounds back to w there, unless computed in float32 with what the step adds."""
    params = {"kernel": jnp.array([[4.0], [1.0]], jnp.bfloat16)}
    tx = sj.optim.iterative_shrinkage(sj.plan(params, sj.Unstructured(0.5)), 0.99)
    updates, _ = tx.update({"kernel": jnp.zeros((2, 1), jnp.bfloat16)}, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [[0.0], [-0.01]], rtol=1e-3)


@pytest.mark.parametrize("compact", [False, True])
def test_subset_leaves_the_rest_bit_identical(compact):
    params = params_of()
    masks = {"kernel": jax.random.bernoulli(jax.random.key(3), 0.3, (6, 5))}
    tx = sj.optim.subset(optax.adamw(RATE, weight_decay=0.1), masks, compact=compact)
    state, start = tx.init(params), params
    few = {"kernel": params["kernel"][masks["kernel"]]}
    plain = optax.adamw(RATE, weight_decay=0.1)
    plain_state = plain.init(few)
    for step in range(4):
        grads = grads_of(step)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        alone = {"kernel": grads["kernel"][masks["kernel"]]}
        updates, plain_state = plain.update(alone, plain_state, few)
        few = optax.apply_updates(few, updates)
    np.testing.assert_array_equal(params["bias"], start["bias"])
    outside = ~np.asarray(masks["kernel"])
    np.testing.assert_array_equal(
        np.asarray(params["kernel"])[outside], np.asarray(start["kernel"])[outside]
    )
    np.testing.assert_allclose(params["kernel"][masks["kernel"]], few["kernel"], rtol=1e-6)
    selected = int(masks["kernel"].sum())
    shape = optax.tree.get(state, "mu")["kernel"].shape
    assert shape == ((selected,) if compact else (6, 5))


def test_a_compact_subset_stores_indices():
    """Issue 14.9: 168 kB with boolean masks; two float32 moments and an index an entry, a count."""
    params = {"kernel": jnp.zeros((300, 400)), "bias": jnp.zeros(400)}
    chosen = np.random.default_rng(0).permutation(120_000) < 6_000
    masks = {"kernel": jnp.asarray(chosen).reshape(300, 400)}
    tx = sj.optim.subset(optax.adam(RATE), masks, compact=True)
    state = tx.init(params)
    assert sum(x.nbytes for x in jax.tree.leaves(state)) == 6_000 * 12 + 4
    found = sj.get_masks(jax.vmap(lambda _: state)(jnp.arange(2)))
    np.testing.assert_array_equal(found["kernel"], jnp.stack([masks["kernel"]] * 2))
    assert found["bias"] is None


def test_subset_of_nothing_and_of_other_parameters():
    params = params_of()
    with pytest.raises(ValueError, match="must select an entry, got none"):
        sj.optim.subset(optax.sgd(RATE), {"kernel": jnp.zeros((6, 5), bool)})
    with pytest.raises(TypeError, match="not boolean"):
        sj.optim.subset(optax.sgd(RATE), {"kernel": jnp.zeros((6, 5))})
    with pytest.raises(ValueError, match="its mask shape"):
        sj.optim.subset(optax.sgd(RATE), {"kernel": jnp.ones((5, 6), bool)}).init(params)


@pytest.mark.parametrize("name", ["subset", "compact", "top_kast"])
def test_what_is_frozen_keeps_every_bit_of_minus_zero(name):
    params = {"kernel": jnp.array([[3.0], [2.0], [-0.0], [0.0]])}
    masks = {"kernel": jnp.array([[True], [False], [False], [False]])}
    sparse, wider = (sj.plan(params, sj.Unstructured(s)) for s in (0.75, 0.5))
    tx = {
        "subset": lambda: sj.optim.subset(optax.adamw(RATE), masks),
        "compact": lambda: sj.optim.subset(optax.adamw(RATE), masks, compact=True),
        "top_kast": lambda: sj.optim.top_kast(optax.adamw(RATE), sparse, wider),
    }[name]()
    updates, _ = tx.update({"kernel": jnp.ones((4, 1))}, tx.init(params), params)
    new = np.asarray(optax.apply_updates(params, updates)["kernel"])
    assert np.signbit(new).ravel().tolist() == [False, False, True, False]


def test_a_switch_to_dense_resets_every_moment():
    params = params_of()
    plan = sj.plan(params, sj.Unstructured(0.6))
    tx = sj.optim.acdc(optax.sgd(RATE, 0.9), plan, [(1, 2)])
    state, grads = tx.init(params), jax.tree.map(jnp.ones_like, params)
    for _ in range(3):
        _, state = tx.update(grads, state, params)
    trace = optax.tree.get(state, "trace")
    assert all(bool(jnp.all(m == 1)) for m in jax.tree.leaves(trace))


@pytest.mark.slow
def test_keys_and_counters_beside_the_parameters():
    params = {"kernel": jnp.arange(12.0).reshape(4, 3), "key": jax.random.key(0), "n": jnp.array(3)}
    plan = sj.plan(params, {"kernel": sj.Unstructured(0.5)})
    wider = sj.plan(params, {"kernel": sj.Unstructured(0.25)})
    masks = plan.masks(sj.masks.magnitude(params))
    assert masks["key"] is None and masks["n"] is None
    grads = {"kernel": jnp.ones((4, 3)), "key": None, "n": None}
    for tx in (
        sj.optim.prune(plan),
        sj.optim.iterative_shrinkage(plan),
        sj.optim.movement(plan),
        sj.optim.sr_ste(plan),
        sj.optim.keep_masked(masks),
        sj.optim.rigl(optax.sgd(RATE), plan, key=jax.random.key(0), end=5),
        sj.optim.acdc(optax.sgd(RATE), plan, [(1, 2)]),
        sj.optim.top_kast(optax.sgd(RATE), plan, wider),
        sj.optim.subset(optax.sgd(RATE), masks),
    ):
        updates, _ = tx.update(grads, tx.init(params), params)
        assert updates["key"] is None and updates["kernel"].shape == (4, 3)


PLAN, WIDER = (sj.plan({"kernel": jnp.ones((6, 5))}, sj.Unstructured(s)) for s in (0.6, 0.4))
SGD, KEY = optax.sgd(RATE), jax.random.key(0)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: sj.optim.rigl(SGD, PLAN, key=KEY, end=9, every=0), "every=0 must"),
        (
            lambda: sj.optim.sparse_evolution(SGD, PLAN, key=KEY, end=9, every=0.5),
            "every=0.5 is a step",
        ),
        (lambda: sj.optim.top_kast(SGD, PLAN, WIDER, every=0), "every=0 must"),
        (lambda: sj.optim.iterative_shrinkage(PLAN, every=0), "every=0 must"),
        (lambda: sj.optim.iterative_shrinkage(PLAN, 2.0), "alpha=2.0 must"),
        (lambda: sj.optim.iterative_shrinkage(PLAN, cap=2.0), "cap.*2.0"),
        (lambda: sj.optim.iterative_shrinkage(PLAN, prune_steps=0), "prune_steps=0 must"),
        (lambda: sj.optim.track_masks(PLAN, 1.5), "schedule=1.5 must"),
        (lambda: sj.optim.movement(PLAN, -1.0), "schedule=-1.0 must"),
    ],
)
def test_numbers_that_would_do_nothing_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
