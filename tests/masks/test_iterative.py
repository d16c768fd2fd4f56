"""Scores in many rounds, and SynFlow's conservation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj


def network(widths, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(widths))
    return {
        f"layer_{i}": {"kernel": jax.random.normal(keys[i], pair) / np.sqrt(pair[0])}
        for i, pair in enumerate(zip(widths, widths[1:]))
    }


def output(params):
    x = jnp.ones(params["layer_0"]["kernel"].shape[0])
    for i in range(len(params)):
        x = jax.nn.relu(x @ params[f"layer_{i}"]["kernel"])
    return x


def synflow_by_hand(params, rounds, density):
    """The paper's loop in NumPy: products of absolute values from both ends."""
    names = list(params)
    w = [np.abs(np.asarray(params[n]["kernel"], np.float64)) for n in names]
    masks = [np.ones(x.shape, bool) for x in w]
    total = sum(x.size for x in w)
    for r in range(1, rounds + 1):
        live = [x * m for x, m in zip(w, masks)]
        before, after = [np.ones(w[0].shape[0])], [np.ones(w[-1].shape[1])]
        for x in live:
            before.append(before[-1] @ x)
        for x in reversed(live):
            after.append(x @ after[-1])
        scores = [
            np.where(m, x * before[i][:, None] * after[len(w) - 1 - i][None, :], -1)
            for i, (x, m) in enumerate(zip(live, masks))
        ]
        flat = np.concatenate([s.ravel() for s in scores])
        zeros = (
            round((1 - density ** (r / rounds)) * total)
            if r < rounds
            else round((1 - density) * total)
        )
        keep = np.zeros(total, bool)
        keep[np.argsort(-flat, kind="stable")[: total - zeros]] = True
        masks = [
            part.reshape(x.shape)
            for part, x in zip(np.split(keep, np.cumsum([x.size for x in w])[:-1]), w)
        ]
    return masks


@pytest.mark.slow
def test_synflow_keeps_all_layers_alive_where_one_round_does_not():
    params = network([20, 30, 30, 5])
    plan = sj.plan(params, sj.Unstructured(0.98), allocate=sj.masks.joint)
    score = lambda p: sj.masks.synflow(p, output)  # noqa: E731
    one, many = (sj.masks.iterative(score, plan, params, rounds) for rounds in (1, 100))
    counts = lambda masks: [int(m["kernel"].sum()) for m in masks.values()]  # noqa: E731
    assert min(counts(one)) == 0 and min(counts(many)) > 0
    assert sum(counts(one)) == sum(counts(many)) == 33
    by_hand = synflow_by_hand(params, 100, 0.02)
    for found, expected in zip(many.values(), by_hand):
        np.testing.assert_array_equal(found["kernel"], expected)


def test_flow_is_conserved():
    """The scores into each hidden unit add up to those out of it."""
    params = network([6, 8, 4])
    scores = sj.masks.synflow(params, output)
    into, out = (np.asarray(scores[f"layer_{i}"]["kernel"]) for i in range(2))
    np.testing.assert_allclose(into.sum(0), out.sum(1), rtol=1e-5)


def test_rounds_only_remove():
    params = network([12, 12, 12])
    plan = sj.plan(params, sj.Unstructured(0.7), allocate=sj.masks.joint)
    seen = []

    def score(p):
        jax.debug.callback(lambda m: seen.append(np.asarray(m)), p["layer_0"]["kernel"] != 0)
        return sj.masks.magnitude(p)

    masks = sj.masks.iterative(score, plan, params, 5)
    jax.effects_barrier()
    assert len(seen) == 5 and all((b <= a).all() for a, b in zip(seen, seen[1:]))
    np.testing.assert_array_equal(
        masks["layer_0"]["kernel"], plan.masks(sj.masks.magnitude(params))["layer_0"]["kernel"]
    )
    with pytest.raises(ValueError, match="rounds must be a number in .1, inf., got 0"):
        sj.masks.iterative(score, plan, params, 0)


def test_fisher_takes_the_second_moments_of_adam():
    params = {"kernel": jnp.array([[1.0, -2.0]])}
    tx = optax.adam(0.1, b2=0.9)
    _, state = tx.update({"kernel": jnp.array([[2.0, 1.0]])}, tx.init(params), params)
    scores = sj.masks.fisher(params, optax.tree.get(state, "nu"))
    np.testing.assert_allclose(scores["kernel"], [[0.1 * 4.0, 4.0 * 0.1]], rtol=1e-6)


@pytest.mark.slow
def test_learned_threshold_has_the_gradients_of_its_paper():
    w = jax.random.normal(jax.random.key(0), (5, 4))
    s, g = jnp.array(-0.5), jax.random.normal(jax.random.key(1), (5, 4))

    def loss(w, s):
        seen = sj.nn.learned_threshold({"kernel": w, "bias": jnp.ones(4)}, {"kernel": s})
        np.testing.assert_array_equal(seen["bias"], 1.0)
        return jnp.sum(g * seen["kernel"])

    t = jax.nn.sigmoid(s)
    live = jnp.abs(w) > t
    dw, ds = jax.grad(loss, (0, 1))(w, s)
    np.testing.assert_allclose(dw, jnp.where(live, g, 0), rtol=1e-6)
    np.testing.assert_allclose(ds, -jnp.sum(g * jnp.sign(w) * live) * t * (1 - t), rtol=1e-5)
    with pytest.raises(ValueError, match="no such parameter"):
        sj.nn.learned_threshold({"kernel": w}, {"weight": s})
    with pytest.raises(ValueError, match="does not broadcast"):
        sj.nn.learned_threshold({"kernel": w}, {"kernel": jnp.ones(3)})
