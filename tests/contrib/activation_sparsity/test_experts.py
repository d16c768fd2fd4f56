"""BlockFFN: router, network, losses, measures and factor against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax.contrib import activation_sparsity as sparse

RNG = np.random.default_rng(0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("norm", ["rms", "sum", "none"])
def test_router(norm):
    router = sparse.ReLURouter(6, 9, norm=norm, rngs=nnx.Rngs(0))
    router.gain[...] = jnp.asarray(RNG.normal(size=9), jnp.float32)
    x = RNG.normal(size=(2, 3, 6)).astype(np.float32)
    got = router(jnp.asarray(x))
    logits = x @ np.asarray(router.linear.kernel[...], np.float64)
    active = np.maximum(logits, 0)
    scale = {
        "rms": 1 / np.sqrt((active**2).mean(-1, keepdims=True) + 1e-5),
        "sum": 1 / (active.sum(-1, keepdims=True) + 1e-5),
        "none": 1,
    }[norm]
    want = (logits, active, active * scale, active * scale * np.asarray(router.gain[...]))
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("implementation", ["xla", "native"])
def test_the_union_is_the_dense_form_with_its_gradients(tokens, implementation):
    dense = sparse.BlockFFN(8, 16, 4, rngs=nnx.Rngs(0))
    # Few active experts, one with a negative gain, which counts; a token without any.
    dense.router.linear.kernel[...] -= 0.2
    dense.router.gain[...] = jnp.ones(16).at[3].set(-1.0)
    union = sparse.BlockFFN(8, 16, 4, union=True, implementation=implementation, rngs=nnx.Rngs(0))
    nnx.update(union, nnx.state(dense))
    x = jnp.asarray(np.abs(RNG.normal(size=(tokens, 8))), jnp.float32).at[0].set(0)
    weights = np.asarray(dense.router(x).weights, np.float64)
    h = np.einsum("td,egd->teg", x, np.asarray(dense.up[...], np.float64))
    want = np.einsum("teg,te,egd->td", h * sigmoid(h), weights, dense.down[...])
    np.testing.assert_allclose(dense(x), want, atol=1e-5)
    np.testing.assert_allclose(union(x), want, atol=1e-5)
    assert (np.asarray(union(x))[0] == 0).all()
    grads = [nnx.grad(lambda m: jnp.sin(m(x)).sum() + (m(x) ** 2).sum())(m) for m in (dense, union)]
    for a, b in zip(*(jax.tree.leaves(g) for g in grads)):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-5)  # up to 73, in float32


def test_locality_by_hand():
    logits = RNG.normal(size=(7, 5)) / 50
    segments = np.array([0, 0, 0, 1, 1, 2, 2])
    losses = []
    for t in range(1, 7):
        if segments[t] == segments[t - 1]:
            p, q = sigmoid(100 * logits[t]), sigmoid(100 * logits[t - 1])
            losses.append(-(p * np.log(q) + (1 - p) * np.log(1 - q)))
    got = sparse.activation_locality(jnp.asarray(logits), jnp.asarray(segments))
    np.testing.assert_allclose(got, np.mean(losses), rtol=1e-5)
    grad = jax.grad(sparse.activation_locality)(jnp.asarray(logits, jnp.float32))
    moved = logits.copy()
    moved[3, 2] += 1e-4  # a logit and a target
    both = [float(sparse.activation_locality(jnp.asarray(a))) for a in (moved, logits)]
    np.testing.assert_allclose(grad[3, 2], (both[0] - both[1]) / 1e-4, rtol=0.1, atol=0.1)
    assert float(sparse.activation_locality(jnp.ones((1, 3)))) == 0


def test_chunks_by_hand():
    normed = np.maximum(RNG.normal(size=(12, 5)), 0)
    normed[2] = [0, 0, 3, 0, 0]  # a single expert: the logarithm of eps
    normed[7] = 0
    valid = np.arange(12) < 10
    p = normed / (normed.sum(1, keepdims=True) + 1e-5) * valid[:, None]
    want = 1 - np.mean([np.prod(1 - c + 1e-5, axis=0) for c in np.split(p, 3)])
    got = sparse.chunk_sparsification(jnp.asarray(normed), jnp.asarray(valid), chunk=4)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    assert abs(float(sparse.chunk_sparsification(jnp.zeros((4, 3)), chunk=4))) < 1e-4
    with pytest.raises(ValueError, match="chunk must divide.*5 for 12"):
        sparse.chunk_sparsification(jnp.asarray(normed), chunk=5)

    kept = normed[valid]
    for length in (1, 2, 3, 4):
        chunks = len(kept) // length
        used = [kept[i * length : (i + 1) * length].any(0) for i in range(chunks)]
        got = sparse.chunk_sparsity(jnp.asarray(normed), length, jnp.asarray(valid))
        np.testing.assert_allclose(got, 1 - np.mean(used), rtol=1e-6)
    sets = [set(np.flatnonzero(row)) for row in normed]
    shares = [len(a & b) / len(a) for a, b in zip(sets, sets[1:]) if a]
    np.testing.assert_allclose(sparse.reuse_ratio(jnp.asarray(normed)), np.mean(shares), rtol=1e-6)
    assert np.isnan(sparse.reuse_ratio(jnp.zeros((3, 2))))
    with pytest.raises(ValueError, match="at most the 12 valid tokens"):
        sparse.chunk_sparsity(jnp.asarray(normed), 13)


@pytest.mark.parametrize("interpolate", [True, False])
@pytest.mark.parametrize("trend", [1.01, 0.98, 1.2])
def test_factor_by_hand(interpolate, trend):
    losses = 0.5 * trend ** np.arange(60) * (1 + 0.1 * RNG.random(60))
    start, warmup, every, base, ratio, want = 0.05, 15, 5, 0.05, 1.0, []
    for m in range(1, 61):
        i = (m - 1) % every + 1
        want.append(base * (1 + (ratio - 1) * i / every) if interpolate else base * ratio)
        if m % every == 0:
            base, ratio = want[-1], 1.0
            if m >= warmup and m >= 2 * every:
                ratio = losses[m - every : m].mean() / losses[m - 2 * every : m - every].mean()
                ratio = max(1.025, ratio) if ratio > 1 else ratio
                ratio = min(4 * start / base, ratio)
    factor = sparse.adaptive_factor(start, warmup=warmup, every=every, interpolate=interpolate)

    def step(state, loss):
        value, state = factor.update(state, loss)
        return state, value

    _, got = jax.jit(lambda x: jax.lax.scan(step, factor.init(), x))(jnp.asarray(losses))
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_the_router_can_be_recorded():
    layer = sparse.BlockFFN(4, 8, 2, rngs=nnx.Rngs(0))
    _, seen = sj.nn.record(layer, "router$", jnp.ones((3, 4)))
    assert seen["router"].normed.shape == (3, 8)
    with pytest.raises(ValueError, match="norm must be 'rms', 'sum' or 'none'"):
        sparse.ReLURouter(4, 8, norm="l2", rngs=nnx.Rngs(0))
