"""Proximal transformations against closed forms, brute force and convex optima."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj


def lasso_by_coordinate_descent(x, y, strength, sweeps=400):
    w = np.zeros(x.shape[1])
    for _ in range(sweeps):
        for j in range(w.size):
            residual = y - x @ w + x[:, j] * w[j]
            rho, norm = x[:, j] @ residual, x[:, j] @ x[:, j]
            w[j] = np.sign(rho) * max(abs(rho) - strength, 0) / norm
    return w


def problem(seed=0, n=40, p=12):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p)) * np.logspace(0, 1, p)
    w = np.where(np.arange(p) % 3 == 0, rng.normal(size=p) * 3, 0.0)
    return x, x @ w + 0.1 * rng.normal(size=n)


def minimise(tx, loss, params, steps):
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda c: jax.lax.scan(step, c, length=steps)[0])((params, tx.init(params)))[0]


def test_proximal_sgd_solves_the_lasso_with_exact_zeros():
    x, y = problem()
    strength = 60.0
    expected = lasso_by_coordinate_descent(x, y, strength)
    rate = 1 / np.linalg.norm(x, 2) ** 2
    loss = lambda p: 0.5 * jnp.sum((x @ p["kernel"][:, 0] - y) ** 2)  # noqa: E731
    tx = sj.optim.proximal_sgd(rate, sj.prox.l1(strength))
    with jax.enable_x64(True):
        start = {"kernel": jnp.zeros((12, 1), jnp.float64)}
        found = minimise(tx, loss, start, 20_000)["kernel"][:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(found) == 0, expected == 0)


def test_proximal_adam_solves_the_lasso_where_one_step_length_does_not():
    x, y = problem()
    strength = 60.0
    expected = lasso_by_coordinate_descent(x, y, strength)
    loss = lambda p: 0.5 * jnp.sum((x @ p["kernel"][:, 0] - y) ** 2)  # noqa: E731
    objective = lambda w: float(0.5 * np.sum((x @ w - y) ** 2) + strength * np.abs(w).sum())  # noqa: E731
    rate = optax.cosine_decay_schedule(0.05, 4000)
    start = {"kernel": jnp.zeros((12, 1))}
    penalty = sj.prox.l1(strength)
    found = minimise(sj.optim.proximal_adam(rate, penalty), loss, start, 4000)["kernel"][:, 0]
    excess = objective(np.asarray(found, np.float64)) / objective(expected) - 1
    assert 0 <= excess < 1e-3
    assert (np.asarray(found) == 0).any()
    one_length = optax.chain(optax.adam(rate), sj.optim.proximal(penalty, rate))
    other = minimise(one_length, loss, start, 4000)["kernel"][:, 0]
    assert objective(np.asarray(other, np.float64)) / objective(expected) - 1 > 10 * excess


def test_proximal_adam_is_the_elementwise_prox_in_adams_metric():
    rng = np.random.default_rng(1)
    p, g = rng.normal(size=(2, 6, 5)).astype(np.float32)
    penalty = sj.prox.l0(0.01)
    tx = sj.optim.proximal_adam(0.1, penalty, b1=0.0)
    params = {"kernel": jnp.asarray(p)}
    updates, _ = tx.update({"kernel": jnp.asarray(g)}, tx.init(params), params)
    new = np.asarray(optax.apply_updates(params, updates)["kernel"])
    length = 0.1 / (np.abs(g) + 1e-8)
    point = p - length * g
    candidates = np.stack([np.zeros_like(point), point])
    cost = 0.5 * (candidates - point) ** 2 / length + 0.01 * (candidates != 0)
    best = np.take_along_axis(candidates, cost.argmin(0)[None], 0)[0]
    np.testing.assert_allclose(new, best, atol=1e-6)
    assert (new == 0).any() and (new != 0).any()


def test_the_step_follows_the_schedule_and_rules_choose():
    params = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "b": {"w": jnp.ones(3)}}
    rate = optax.piecewise_constant_schedule(0.5, {1: 0.5})
    tx = sj.optim.proximal({"^b/": sj.prox.l1(0.2), "bias": sj.prox.ridge(1.0)}, rate)
    state = tx.init(params)
    zero = jax.tree.map(jnp.zeros_like, params)
    for expected_w, expected_bias in ((0.9, 1 / 1.5), (0.85, 1 / 1.5 / 1.25)):
        updates, state = tx.update(zero, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["b"]["w"], expected_w, rtol=1e-6)
        np.testing.assert_allclose(params["a"]["bias"], expected_bias, rtol=1e-6)
        np.testing.assert_array_equal(params["a"]["kernel"], 1.0)


@pytest.mark.parametrize("form", ["by path", "tree", "with count"])
def test_a_neuron_is_one_group_over_kernel_and_bias(form):
    rng = np.random.default_rng(2)
    kernel, bias = rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=6).astype(np.float32)
    params = {
        "hidden": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)},
        "out": {"kernel": jnp.ones((6, 2))},
    }
    neurons = jnp.arange(6)
    labels = {"hidden/kernel": jnp.broadcast_to(neurons, (4, 6)), "hidden/bias": neurons}
    counted = sj.prox.group_labels({"hidden": params["hidden"]})
    groups = {"by path": labels, "tree": counted.labels, "with count": counted}[form]
    penalty = sj.prox.group_lasso(1.0, groups=groups, weights=jnp.full(6, 1.5))
    tx = sj.optim.proximal(penalty, 1.0)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    new = optax.apply_updates(params, updates)
    norms = np.sqrt((kernel**2).sum(0) + bias**2)
    factor = np.maximum(1 - 1.5 / norms, 0)
    np.testing.assert_allclose(new["hidden"]["kernel"], kernel * factor, atol=1e-6)
    np.testing.assert_allclose(new["hidden"]["bias"], bias * factor, atol=1e-6)
    np.testing.assert_array_equal(new["out"]["kernel"], 1.0)
    assert (factor == 0).any() and (factor > 0).any()


def test_a_strength_can_be_injected_and_mapped_over():
    params = {"kernel": jnp.array([[1.0, 0.2]])}

    def after(strength):
        tx = sj.optim.proximal_sgd(0.5, sj.prox.l1(strength))
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        return optax.apply_updates(params, updates)["kernel"][0]

    found = jax.vmap(after)(jnp.array([0.0, 0.4, 1.0]))
    np.testing.assert_allclose(found, [[1.0, 0.2], [0.8, 0.0], [0.5, 0.0]], atol=1e-7)


def test_bad_input():
    params = {"bias": jnp.ones(3)}
    with pytest.raises(ValueError, match="match no parameter; the parameters are bias"):
        sj.optim.proximal(sj.prox.l1(1.0), 0.1).init(params)
    with pytest.raises(ValueError, match="match no parameter"):
        sj.optim.proximal({"kernel$": sj.prox.l1(1.0)}, 0.1).init(params)
    with pytest.raises(ValueError, match="elementwise penalties"):
        sj.optim.proximal_adam(0.1, sj.prox.group_lasso(1.0, axis=0))
    tx = sj.optim.proximal({"bias": sj.prox.l1(1.0)}, 0.1)
    with pytest.raises(ValueError, match="requires the current value of parameters"):
        tx.update(params, tx.init(params))


@pytest.mark.slow
def test_add_penalty_is_the_gradient_of_loss_plus_penalty():
    params = {"a": {"scale": jnp.array([1.0, -0.5, 0.0])}, "b": {"scale": jnp.array([2.0])}}
    grads = jax.tree.map(jnp.ones_like, params)
    tx = sj.optim.add_penalty({"b/": None, "scale$": sj.prox.l1(0.25)})
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["a"]["scale"], [1.25, 0.75, 1.0])
    np.testing.assert_allclose(updates["b"]["scale"], [1.0])
    groups = {"a/scale": np.array([0, 0, 1]), "b/scale": np.array([1])}
    joint = sj.prox.group_lasso(0.5, groups=groups)
    updates, _ = sj.optim.add_penalty(joint).update(grads, (), params)
    value = lambda tree: joint.value({"a/scale": tree["a"]["scale"], "b/scale": tree["b"]["scale"]})  # noqa: E731
    expected = jax.grad(value)(params)
    jax.tree.map(lambda u, e: np.testing.assert_allclose(u, 1 + e, rtol=1e-6), updates, expected)


def test_a_smooth_l1_is_that_of_mask_sparsity():
    """Spec 22: lambda gamma where |gamma| < rate lambda, else lambda sign(gamma), if pruned."""
    scale = np.array([0.0, 0.04, -0.04, 0.05, -0.06, 3.0, 0.01], np.float32)
    keep = np.arange(7) == 6
    expected = 1 + np.where(np.abs(scale) < 0.1 * 0.5, 0.5 * scale, 0.5 * np.sign(scale)) * ~keep
    tx = sj.optim.add_penalty({"scale$": sj.prox.l1(0.5)}, {"scale": jnp.asarray(keep)}, smooth=0.1)
    params = {"scale": jnp.asarray(scale)}
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["scale"], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="smooth"):
        sj.optim.add_penalty({"scale$": sj.prox.l1(0.5)}, smooth=-0.1)


def test_a_rule_of_none_leaves_its_leaves_alone():
    params = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.ones((2, 2))}}
    tx = sj.optim.proximal({"a/": None, "kernel$": sj.prox.l1(0.5)}, 1.0)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert not updates["a"]["kernel"].any() and (updates["b"]["kernel"] == -0.5).all()
    with pytest.raises(ValueError, match="add_penalty: .* match no parameter"):
        sj.optim.add_penalty({"typo": sj.prox.l1(0.5)}).init(params)
