"""SR-STE, mask decay and stages against the papers' formulas written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj


def two_of_four(w):
    """The masks of the magnitudes, by sorting each group."""
    groups = np.abs(w).reshape(-1, 4, w.shape[1])
    ranks = np.argsort(np.argsort(-groups, axis=1, kind="stable"), axis=1, kind="stable")
    return (ranks < 2).reshape(w.shape)


@pytest.mark.parametrize("strength", [0.0, 2e-4, 0.05, -0.01])
@pytest.mark.parametrize("route", ["transformation", "view"])
def test_sr_ste_iterates_equal_the_paper(strength, route):
    rng = np.random.default_rng(0)
    w = rng.normal(size=(8, 3)).astype(np.float32)
    target = rng.normal(size=(8, 3)).astype(np.float32)
    params = {"kernel": jnp.asarray(w)}
    plan = sj.plan(params, sj.NM(2, 4))
    by_update = route == "transformation"
    sgd = optax.sgd(0.1, momentum=0.9)
    tx = optax.chain(sj.optim.sr_ste(plan, strength), sgd) if by_update else sgd
    decay = 0.0 if by_update else strength

    def loss(p):
        seen = sj.masks.straight_through(p, plan, decay=decay)
        return 0.5 * jnp.sum((seen["kernel"] - target) ** 2)

    state = tx.init(params)
    momentum = np.zeros_like(w)
    for _ in range(8):
        mask = two_of_four(w)
        gradient = np.where(mask, w, 0) - target + strength * np.where(mask, 0, w)
        momentum = 0.9 * momentum + gradient
        w = w - 0.1 * momentum
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["kernel"], w, rtol=2e-5, atol=1e-6)
        if by_update:
            np.testing.assert_array_equal(sj.get_masks(state)["kernel"], mask)


def test_decoupled_decay_is_not_divided_away_by_adam():
    params = {"kernel": jnp.array([[4.0], [1.0]])}
    plan = sj.plan(params, sj.NM(1, 2))
    zero = {"kernel": jnp.zeros((2, 1))}
    before = optax.chain(sj.optim.sr_ste(plan, 0.1), optax.adam(0.5))
    inside = optax.chain(
        optax.scale_by_adam(), sj.optim.sr_ste(plan, 0.1), optax.scale_by_learning_rate(0.5)
    )
    found = [tx.update(zero, tx.init(params), params)[0]["kernel"][1, 0] for tx in (before, inside)]
    np.testing.assert_allclose(found, [-0.5, -0.05], rtol=1e-5)


@pytest.mark.parametrize("begin, end", [(0, None), (3, 10)])
def test_mask_decay_schedules(begin, end):
    for kind, formula in {
        "linear": lambda t: max(1 - 0.125 * t, 0),
        "exponential": lambda t: np.exp(-0.125 * t),
    }.items():
        beta = jax.jit(sj.optim.mask_decay_schedule(kind, 0.125, begin=begin, end=end))
        for t in range(14):
            expected = formula(max(t - begin, 0)) if end is None or t < end else 0.0
            assert float(beta(t)) == pytest.approx(expected, abs=1e-7)
    assert float(beta(10)) == 0.0 or end is None


def test_stages_start_where_the_paper_says():
    stages = sj.patterns.nm_stages("stepwise", 1, 16).patterns
    assert len(stages) == 5
    total, dense, fine = 103, 10, 12
    fraction = sj.optim.stage_schedule(5, total, dense=dense, fine_tune=fine)
    frame = (total - dense - fine) / 5
    starts = [dense + int(np.floor(i * frame)) for i in range(5)]
    for t in range(total):
        stage = sum(t >= s for s in starts)
        assert float(fraction(t)) == pytest.approx(stage / 5)


@pytest.mark.slow
def test_sdgf_tightens_the_pattern_over_the_run():
    params = {"kernel": jax.random.normal(jax.random.key(0), (16, 4))}
    plan = sj.plan(params, sj.patterns.nm_stages("stepwise", 1, 8))
    fraction = sj.optim.stage_schedule(4, 8)
    tx = optax.chain(optax.sgd(0.01), sj.optim.track_masks(plan, fraction))
    state, kept = tx.init(params), []
    for _ in range(8):
        kept.append(int(sj.get_masks(state)["kernel"].sum()) // 8)
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
    assert kept == [7, 7, 4, 4, 2, 2, 1, 1]


def test_bad_input():
    for call, message in [
        (lambda: sj.optim.mask_decay_schedule("cubic", 0.1), "linear"),
        (lambda: sj.optim.mask_decay_schedule("linear", -0.1), "rate"),
        (lambda: sj.optim.mask_decay_schedule("linear", 0.1, begin=5, end=4), "not before"),
        (lambda: sj.optim.stage_schedule(3, 10, dense=6, fine_tune=4), "leaves 0 steps"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
