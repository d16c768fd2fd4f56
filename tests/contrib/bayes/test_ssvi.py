"""The support of Gaussian weights against a NumPy form of the published update."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsejax as sj
from benchmarks.papers.bayes import trained
from sparsejax.contrib import bayes

KEY = jax.random.key(0)
PLAN_OF = {r"mu$": sj.Unstructured(0.7)}


def pair(seed, shape=(7, 9)):
    rng = np.random.default_rng(seed)
    kernel = {"mu": rng.normal(size=shape), "rho": rng.normal(-3, 1, shape)}
    return {"fc": {"kernel": {k: jnp.asarray(v, jnp.float32) for k, v in kernel.items()},
                   "bias": jnp.zeros(shape[1])}}  # fmt: skip


def published(mu, rho, mask, grad, fraction, score):
    """Mask, mean and deviation after one update, entry by entry in float64."""
    sigma = np.log1p(np.exp(rho))
    flat = np.flatnonzero(mask)
    n_p = int(fraction * flat.size + 1e-9)
    order = sorted(flat, key=lambda i: (-score(mu.flat[i], sigma.flat[i]), i))
    kept = set(order[: flat.size - n_p])
    rest = sorted(set(range(mask.size)) - kept, key=lambda i: (-abs(grad.flat[i]), i))
    new = np.zeros(mask.size, bool)
    new[[*kept, *rest[:n_p]]] = True
    new = new.reshape(mask.shape)
    start = sigma[mask & new].mean() if np.any(mask & new) else sigma[mask].mean()
    fresh = new & ~mask
    return new, np.where(new & mask, mu, 0), np.where(fresh, start, np.where(new, sigma, 0))


SCORES = {
    "snr": (bayes.snr, lambda m, s: abs(m) / s),
    "mean": (lambda mu, sigma: jnp.abs(mu), lambda m, s: abs(m)),
    "ties": (lambda mu, sigma: 0 * mu, lambda m, s: 0.0),
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_an_update_of_the_support_equals_the_published_one(name, fraction):
    criterion, score = SCORES[name]
    for seed in range(3):
        params = pair(seed)
        tx = bayes.ssvi(optax.adam(0.1), sj.plan(params, PLAN_OF), key=jax.random.key(seed),
                        end=10, every=1, drop_fraction=lambda t: fraction,
                        criterion=criterion)  # fmt: skip
        state = tx.init(params)
        params = sj.masks.apply_masks(params, sj.get_masks(state))
        grads = jax.tree.map(
            lambda x: jnp.cos(17 * x + jnp.arange(x.size).reshape(x.shape)), params
        )
        updates, state = tx.update(grads, state, params)  # step 0 descends
        params = optax.apply_updates(params, updates)
        old = np.asarray(sj.get_masks(state)["fc"]["kernel"]["mu"])
        updates, state = tx.update(grads, state, params)
        new = optax.apply_updates(params, updates)
        before, after = (p["fc"]["kernel"] for p in (params, new))
        mask, mu, sigma = published(
            *(np.asarray(before[k], np.float64) for k in ("mu", "rho")), old,
            np.asarray(grads["fc"]["kernel"]["mu"]), fraction, score,
        )  # fmt: skip
        found = np.asarray(sj.get_masks(state)["fc"]["kernel"]["mu"])
        np.testing.assert_array_equal(found, mask)
        assert found.sum() == old.sum()
        np.testing.assert_array_equal(after["mu"], mu.astype(np.float32))
        sigma_now = np.where(found, np.log1p(np.exp(np.asarray(after["rho"], np.float64))), 0)
        np.testing.assert_allclose(sigma_now, sigma, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(new["fc"]["bias"], params["fc"]["bias"])
        grown = found & ~old
        for moments in (state.inner[0].mu, state.inner[0].nu):  # of Adam
            for leaf in ("mu", "rho"):
                values = np.asarray(moments["fc"]["kernel"][leaf])
                assert not np.any(values[grown]) and np.any(values[found & old]) == np.any(
                    found & old
                )


def test_added_weights_take_a_given_deviation():
    params = pair(0)
    tx = bayes.ssvi(optax.sgd(0.1), sj.plan(params, PLAN_OF), key=KEY, end=9, every=1,
                    drop_fraction=lambda t: 0.5, new_sigma=1e-6)  # fmt: skip
    state = tx.init(params)
    for _ in range(2):
        old = sj.get_masks(state)["fc"]["kernel"]["mu"]
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    fresh = np.asarray(sj.get_masks(state)["fc"]["kernel"]["mu"] & ~old)
    sigma = np.asarray(jax.nn.softplus(params["fc"]["kernel"]["rho"]))[fresh]
    assert fresh.any()
    np.testing.assert_allclose(sigma, 1e-6, rtol=1e-4)


def nll(model, batch, key):
    return jnp.mean((model(batch["x"], key) - batch["y"]) ** 2)


def run(sparsity=0.75, **more):
    x = jax.random.normal(KEY, (40, 12))
    y = x[:, :3] @ jnp.array([[2.0], [-1.0], [1.5]])
    model = bayes.BayesLinear(12, 1, rngs=nnx.Rngs(0))
    plan = sj.plan(model, {r"mu$": sj.Unstructured(sparsity)})
    return bayes.train_ssvi(model, plan, nll, optax.adam(0.05), {"x": x, "y": y}, steps=400,
                            key=jax.random.key(3), batch_size=20, **more)  # fmt: skip


def test_training_finds_the_support():
    found = run(0.5, every=20, drop_fraction=0.6)
    live, mean = np.flatnonzero(found.kernel.std()), np.asarray(found.kernel.mean())[:, 0]
    assert len(live) == 6 and {0, 1, 2} <= set(live.tolist())
    np.testing.assert_allclose(mean, [2, -1, 1.5] + 9 * [0], atol=0.1)


def test_a_fixed_support_and_a_dense_posterior():
    fixed = run(drop_fraction=0.0)
    tx = bayes.ssvi(optax.adam(0.05), sj.plan(fixed, {r"mu$": sj.Unstructured(0.75)}),
                    key=jax.random.split(jax.random.key(3), 3)[0], end=300)  # fmt: skip
    first = sj.get_masks(tx.init(nnx.state(fixed, nnx.Param)))["kernel"]["mu"]
    np.testing.assert_array_equal(fixed.kernel.std() > 0, first)
    assert np.all(np.asarray(run(sparsity=0.0).kernel.std()) > 0)


def test_wrong_plans_are_refused():
    model = bayes.BayesLinear(4, 4, rngs=nnx.Rngs(0))
    plan = sj.plan(model, {r"rho$": sj.Unstructured(0.5)})
    with pytest.raises(ValueError, match="plan holds kernel/rho"):
        bayes.ssvi(optax.sgd(0.1), plan, key=KEY, end=1)
    alone = {"mu": jnp.ones((4, 4))}
    tx = bayes.ssvi(optax.sgd(0.1), sj.plan(alone, PLAN_OF), key=KEY, end=1)
    with pytest.raises(ValueError, match="deviations rho"):
        tx.init(alone)


@pytest.mark.slow
def test_a_moving_support_beats_a_fixed_one():
    """The order of the small experiment, at a third of its steps."""
    moving, fixed = (trained(0, 0.05, 700, every=20, drop_fraction=f) for f in (0.3, 0.0))
    assert moving[0] > fixed[0] + 0.07 and moving[1] < 0.7 * fixed[1]
    assert moving[3] == fixed[3] == 870
