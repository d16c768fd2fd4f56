"""Top-k networks, counts of active neurons and noise, against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import sparsejax as sj
from sparsejax.contrib import activation_sparsity as sparse


def kept_by_hand(a, k, by):
    scores = np.abs(a) if by == "magnitude" else a
    mask = np.zeros(a.shape, bool)
    for at in np.ndindex(a.shape[:-1]):
        order = sorted(range(a.shape[-1]), key=lambda i: (-scores[at][i], i))
        mask[at][order[:k]] = True
    return mask


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(12,), (1, 12), (2, 5, 12)])
@pytest.mark.parametrize("by", ["value", "magnitude"])
def test_the_gate(dtype, shape, by):
    # Few distinct values give ties.
    a = jnp.asarray(np.random.default_rng(0).integers(-3, 4, shape) / 4, dtype)
    for k in (0, 1, 5, 12, 40):
        mask = kept_by_hand(np.asarray(a, np.float64), k, by)
        gate = sparse.NeuronTopK(k, by)
        np.testing.assert_array_equal(gate.kept(a), mask)
        y = gate("down", lambda a: 2 * a, a)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, np.where(mask, 2 * a, 0))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3, name="down")(linen.relu(linen.Dense(8, name="up")(x)))


def test_the_gate_in_another_framework():
    x = jax.random.normal(jax.random.key(0), (4, 5))
    model = Linen()
    variables = model.init(jax.random.key(1), x)
    y = sj.nn.replace(model, {"down$": sparse.NeuronTopK(2)}).apply(variables, x)
    up, down = (variables["params"][name] for name in ("up", "down"))
    a = np.maximum(np.asarray(x, np.float64) @ up["kernel"] + up["bias"], 0)
    want = (a * kept_by_hand(a, 2, "value")) @ down["kernel"] + down["bias"]
    np.testing.assert_allclose(y, want, atol=1e-5)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("k", [1, 5, 16])
@pytest.mark.parametrize("implementation", ["xla", "native"])
def test_the_network_and_its_gradients(gated, k, implementation):
    by, act = ("magnitude", jax.nn.silu) if gated else ("value", jax.nn.relu)
    make = lambda **how: sparse.TopKMLP(  # noqa: E731
        6, 16, k, gated=gated, by=by, activation=act, rngs=nnx.Rngs(0), **how
    )
    masked, gathered = make(), make(gather=True, implementation=implementation)
    x = jax.random.normal(jax.random.key(0), (2, 3, 6)).at[0, 1].set(0)
    first, down = (np.asarray(m.kernel[...], np.float64) for m in (masked.first, masked.down))
    a = np.asarray(x, np.float64) @ first
    a = a / (1 + np.exp(-a)) if gated else np.maximum(a, 0)
    mask = kept_by_hand(a, k, by)
    h = a * (np.asarray(x, np.float64) @ masked.up.kernel[...]) if gated else a
    want = (h * mask) @ down
    for model in (masked, gathered):
        np.testing.assert_allclose(model(x), want, atol=1e-5)
        np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(model, x), want, atol=1e-5)
    grads = [nnx.grad(lambda m: (m(x) ** 2).sum())(m) for m in (masked, gathered)]
    for p, q in zip(*map(jax.tree.leaves, grads)):
        np.testing.assert_allclose(p, q, atol=1e-4)
    # Gradients pass through kept neurons only.
    np.testing.assert_allclose(
        grads[0]["down"]["kernel"][...],
        np.einsum("btf,btd->fd", h * mask, 2 * want), rtol=1e-3, atol=1e-4,
    )  # fmt: skip


def test_without_a_limit_it_is_the_ordinary_network():
    model = sparse.TopKMLP(6, 16, 16, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (3, 6))
    want = model.down(jax.nn.relu(model.first(x)))
    np.testing.assert_allclose(model(x), want, atol=1e-6)


def test_flops():
    assert sparse.mlp_flops(8, 32) == 4 * 8 * 32
    assert sparse.mlp_flops(8, 32, 5) == 2 * 8 * 32 + 2 * 8 * 5
    assert sparse.mlp_flops(8, 32, 5, gated=True) == 2 * 8 * 32 + 4 * 8 * 5
    assert sparse.mlp_flops(8, 32, 5, candidates=7) == 2 * 8 * 7 + 2 * 8 * 5


def test_activity_without_padding():
    model = nnx.Sequential(nnx.Linear(3, 6, rngs=nnx.Rngs(0)), nnx.relu)
    model.layers[0].kernel[...] = model.layers[0].kernel[...].at[:, 2].set(0)  # never above 0
    rng = np.random.default_rng(0)
    batches = [jnp.asarray(rng.normal(size=(2, n, 3)), jnp.float32) for n in (5, 7)]
    batches[0] = batches[0].at[1, 3:].set(0)
    valid = lambda x: jnp.any(x != 0, axis=-1)  # noqa: E731
    found = sparse.neuron_activity(model, batches, where=r"layers/0$", valid=valid)["layers/0"]
    rows = np.concatenate([np.asarray(b).reshape(-1, 3) for b in batches])
    rows = rows[(rows != 0).any(1)]
    layer = model.layers[0]
    active = rows @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...]) > 0
    assert found.tokens == len(rows) == 22
    np.testing.assert_allclose(found.frequency, active.mean(0))
    assert found.nonzero_fraction == pytest.approx(active.mean())
    assert found.count == pytest.approx(active.sum(1).mean())
    assert found.dead == (active.sum(0) == 0).sum() >= 1
    assert found.rarer(0.5) == (active.mean(0) < 0.5).mean()


def test_activity_of_linen_and_of_inputs():
    x = jax.random.normal(jax.random.key(0), (4, 5))
    model = Linen()
    variables = model.init(jax.random.key(1), x)
    up = sparse.neuron_activity(model, [(variables, x)], where="up$")["up"]
    down = sparse.neuron_activity(model, [(variables, x)], where="down$", inputs=True)["down"]
    np.testing.assert_array_equal(up.frequency, down.frequency)
    assert len(up.frequency) == 8 and up.tokens == 4


def test_mistakes():
    model = nnx.Sequential(nnx.Linear(3, 6, rngs=nnx.Rngs(0)))
    x = jnp.ones((2, 3))
    run = lambda batches, **how: sparse.neuron_activity(model, batches, where="0$", **how)  # noqa: E731
    with pytest.raises(ValueError, match="at least one batch"):
        run([])
    with pytest.raises(ValueError, match=r"mask of shape \(2, 3\)"):
        run([x], valid=lambda x: x > 0)
    with pytest.raises(ValueError, match="selects no token"):
        run([x], valid=lambda x: jnp.zeros(2, bool))
    with pytest.raises(ValueError, match="NaN at the layer layers/0"):
        run([x.at[0, 0].set(jnp.nan)])
    for k, by in ((-1, "value"), (1, "size")):
        with pytest.raises(ValueError, match="NeuronTopK"):
            sparse.NeuronTopK(k, by)
    with pytest.raises(ValueError, match="k must be at most hidden = 8, got 9"):
        sparse.TopKMLP(4, 8, 9, rngs=nnx.Rngs(0))


def test_label_noise():
    labels = jnp.arange(1003) % 10
    for fraction in (0.0, 0.4, 0.8, 1.0):
        noisy = sparse.label_noise(labels, fraction, 10, key=jax.random.key(1))
        drawn = int(fraction * 1003 + 0.5)
        wrong = int((noisy != labels).sum())
        # A drawn label is wrong with probability 0.9.
        assert abs(wrong - 0.9 * drawn) <= 4 * np.sqrt(0.09 * drawn) and wrong <= drawn
        assert noisy.dtype == labels.dtype and 0 <= noisy.min() and noisy.max() < 10
        again = sparse.label_noise(labels, fraction, 10, key=jax.random.key(1))
        np.testing.assert_array_equal(noisy, again)
    moved = sparse.label_noise(jnp.zeros(5000, jnp.int32), 1.0, 4, key=jax.random.key(0))
    np.testing.assert_allclose(np.bincount(moved) / 5000, 0.25, atol=0.03)
    with pytest.raises(ValueError, match="labels must be from 0 to 1"):
        sparse.label_noise(jnp.array([2]), 0.5, 2, key=jax.random.key(0))


@pytest.mark.parametrize("severity", range(1, 6))
def test_input_noise(severity):
    """Moments of the noise on grey images, and its range."""
    constants = {
        "gaussian": (0.08, 0.12, 0.18, 0.26, 0.38), "impulse": (0.03, 0.06, 0.09, 0.17, 0.27),
        "shot": (60, 25, 12, 5, 3),
    }  # fmt: skip
    n = 40_000
    for kind, by_severity in constants.items():
        c = by_severity[severity - 1]
        x = sparse.input_noise(jnp.full((200, 200), 0.5), kind, severity, key=jax.random.key(7))
        assert x.shape == (200, 200) and 0 <= x.min() and x.max() <= 1
        values = np.asarray(x, np.float64)
        if kind == "gaussian":
            draws = np.clip(0.5 + c * np.random.default_rng(0).normal(size=10**6), 0, 1)
            assert abs(values.mean() - 0.5) < 4 * c / np.sqrt(n)
            assert abs(values.std() - draws.std()) < 0.02 * draws.std()
        elif kind == "impulse":
            for value in (0, 1):
                share = (values == value).mean()
                assert abs(share - c / 2) < 5 * np.sqrt(c / 2 / n)
            assert set(np.unique(values)) == {0, 0.5, 1}
        else:
            draws = np.clip(np.random.default_rng(0).poisson(c / 2, 10**6) / c, 0, 1)
            assert abs(values.mean() - draws.mean()) < 5 * draws.std() / np.sqrt(n)
            np.testing.assert_allclose(values.std(), draws.std(), rtol=0.03)


def test_robustness_by_hand():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(size=(40, 3)), jnp.float32)
    labels = jnp.asarray(np.asarray(images).argmax(1))
    predict = lambda x: jax.nn.softmax(5 * jnp.asarray(x), axis=-1)  # noqa: E731
    found = sparse.robustness(predict, images, labels, key=jax.random.key(0))
    assert found.accuracy == 1.0
    want = sj.metrics.expected_calibration_error(predict(images), labels)
    assert found.calibration_error == pytest.approx(float(want))
    assert 0.3 < found.gaussian < 1 and 0.3 < found.impulse < 1 and 0.3 < found.shot < 1
    assert found == sparse.robustness(predict, images, labels, key=jax.random.key(0))
    for images, what in ((jnp.full((1, 3), 2.0), "intensities"), (jnp.zeros((0, 3)), "one image")):
        with pytest.raises(ValueError, match=what):
            sparse.robustness(predict, images, labels[: len(images)], key=jax.random.key(0))
    with pytest.raises(ValueError, match="kind must be"):
        sparse.input_noise(jnp.zeros(2), "blur", 1, key=jax.random.key(0))


def test_balanced_l1_and_its_factor():
    rng = np.random.default_rng(0)
    active = np.maximum(rng.normal(size=(7, 5)), 0)
    active[:, 2] = 0
    loads = [(active[:, e] > 0).sum() for e in range(5)]
    want = 5 / (2 * 7**2) * sum(active[:, e].sum() * loads[e] for e in range(5))
    np.testing.assert_allclose(sparse.balanced_l1(active, 2), want, rtol=1e-6)
    # For an equal load of k experts it is the mean l1 norm.
    even = np.kron(np.eye(3), np.ones((2, 2)))
    np.testing.assert_allclose(sparse.balanced_l1(even, 2), even.sum(1).mean(), rtol=1e-6)
    gradient = jax.grad(lambda a: sparse.balanced_l1(a, 2))(jnp.asarray(active, jnp.float32))
    np.testing.assert_allclose(gradient, np.tile(np.array(loads) * 5 / 98, (7, 1)), rtol=1e-5)
    with pytest.raises(ValueError, match="at least one token"):
        sparse.balanced_l1(np.zeros((0, 4)), 1)
    factor = sparse.target_factor(0.8, 1e-2, 1.2)
    state, want = factor.init(), 1e-2
    update = jax.jit(factor.update)
    for measured in (0.1, 0.5, 0.9, 0.95, 0.7):
        value, state = update(state, measured)
        np.testing.assert_allclose(value, want, rtol=1e-5)
        want = want * 1.2 if measured < 0.8 else want / 1.2
