"""Feature maps, rotary positions and weights against NumPy in float64; the small experiment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.stats import entropy, spearmanr

from sparsejax.contrib import linear_attention as linear

RNG = np.random.default_rng(0)
MAPS = ["split", "cos"]


def by_hand(q, k, map, lam=3.0, tau=0.5, key_power=3.0, sharpness=20.0):
    """The weights as sums over coordinates, in float64 and without features."""
    q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
    norm = np.linalg.norm(q, axis=-1, keepdims=True)
    u = np.divide(q, norm, out=np.zeros_like(q), where=norm > 0)
    kn = np.linalg.norm(k, axis=-1, keepdims=True)
    w = np.divide(k, kn, out=np.zeros_like(k), where=kn > 0)
    size = (np.abs(u) ** (lam * (tau + np.tanh(norm))))[:, None] * np.abs(k[None]) ** key_power
    if map == "split":
        return (size * (np.sign(u)[:, None] == np.sign(w)[None])).sum(-1)
    t, s = (np.pi / 4 * np.tanh(sharpness * x) for x in (u, w))
    return (size * np.cos(t[:, None] - s[None])).sum(-1)


@pytest.mark.parametrize("map", MAPS)
def test_products_of_features(map):
    q, k = (RNG.normal(size=(n, 8)).astype(np.float32) * 0.5 for n in (6, 7))
    q[2], k[3], q[4, :3], k[1, 2] = 0, 0, 0, 0
    fq, fk = linear.norm_aware(q, k, map=map)
    assert fq.shape == (6, 16) and fk.shape == (7, 16)
    want = by_hand(q, k, map)
    np.testing.assert_allclose(np.asarray(fq @ fk.T), want, rtol=1e-4, atol=1e-7)
    assert (want >= 0).all() and (fq @ fk.T >= 0).all()
    assert not np.asarray(fq[2]).any() and not np.asarray(fk[3]).any()
    other = dict(lam=2.0, tau=0.7, key_power=2.0, sharpness=5.0)
    fq, fk = linear.norm_aware(q, k, map=map, **other)
    np.testing.assert_allclose(
        np.asarray(fq @ fk.T), by_hand(q, k, map, **other), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("map", MAPS)
def test_gradients_are_finite_and_right(map):
    q, k = (jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32) for _ in range(2))
    product = lambda q, k: jnp.sum(jnp.sin(sum(  # noqa: E731
        a @ b.T for a, b in [linear.norm_aware(q, k, map=map)]
    )))  # fmt: skip
    check_grads(product, (q, k), 1, modes=["rev"], rtol=2e-2, atol=2e-2)
    for zeros in (jnp.zeros((3, 4)), q.at[0].set(0).at[1, 2].set(0)):
        for x in jax.grad(product, (0, 1))(zeros, zeros):
            assert np.isfinite(x).all()


@pytest.mark.parametrize("map", MAPS)
def test_low_precision_and_extremes(map):
    q, k = (RNG.normal(size=(5, 32)).astype(np.float32) for _ in range(2))
    low = [jnp.asarray(x, jnp.bfloat16) for x in (q, k)]
    fq, fk = linear.norm_aware(low[0], low[1], map=map)
    assert fq.dtype == fk.dtype == jnp.float32
    # Of the rounded values: powers of bfloat16 would underflow.
    want = by_hand(low[0].astype(jnp.float32), low[1].astype(jnp.float32), map)
    np.testing.assert_allclose(np.asarray(fq @ fk.T), want, rtol=1e-4, atol=1e-7)
    tiny, huge = (linear.norm_aware(q * s, k, map=map)[0] for s in (1e-30, 1e30))
    np.testing.assert_allclose(tiny @ fk.T, by_hand(q * 1e-30, low[1], map), rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(
        huge @ fk.T, by_hand(q.astype(np.float64) * 1e30, low[1], map), rtol=1e-4, atol=1e-8
    )


def test_numbers_do_not_compile_again():
    q = jnp.ones((2, 4))
    linear.norm_aware(q, q, lam=3.0)
    with jax.no_tracing():
        linear.norm_aware(q, q, lam=2.5, tau=0.25, key_power=2.0, sharpness=3.0)


@pytest.mark.parametrize("axes", [1, 2])
def test_rotary(axes):
    size, shape = 8, (5,) if axes == 1 else (3, 4)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    angles = np.asarray(linear.rotary_angles(places, size), np.float64)
    half = size // 2 // axes
    for at in np.ndindex(shape):
        for i in range(size // 2):
            coordinate, j = at[i // half], i % half
            want = coordinate * 10_000 ** -(j / max(half - 1, 1))
            np.testing.assert_allclose(angles[at][i], want, rtol=1e-5)
    x = RNG.normal(size=(2, *shape, 3, 2 * size)).astype(np.float32)
    turned = np.asarray(linear.rotate(x, angles))
    for at in np.ndindex(2, *shape, 3):
        for part in (0, size):
            z = x[at][part : part + size : 2] + 1j * x[at][part + 1 : part + size : 2]
            z = z * np.exp(1j * angles[at[1:-1]])
            got = turned[at][part : part + size]
            np.testing.assert_allclose(got[0::2] + 1j * got[1::2], z, rtol=1e-5, atol=1e-5)


def test_weights_and_entropy():
    fq, fk = (np.abs(RNG.normal(size=(2, 5, h, 6))).astype(np.float32) for h in (4, 2))
    w = np.einsum("bihf,bjhf->bhij", fq, np.repeat(fk, 2, 2)).astype(np.float64)
    for causal in (False, True):
        shown = np.tril(w) if causal else w
        count = np.arange(1, 6)[:, None] if causal else 5
        want = shown / (shown.sum(-1, keepdims=True) + 1e-6 * count)
        found = np.asarray(linear.linear_attention_weights(fq, fk, causal=causal))
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-7)
        got = np.asarray(linear.attention_entropy(found))
        np.testing.assert_allclose(got, entropy(want, axis=-1), atol=1e-5)
    assert np.isnan(linear.attention_entropy(jnp.array([1.5, -0.5])))


def entropies(kind, norms, directions, keys):
    """The entropy of attention by norm (rows) and direction (columns)."""
    q = jnp.asarray(norms[:, None, None] * directions[None], jnp.float32)
    if kind == "softmax":
        logits = q @ keys.T / np.sqrt(keys.shape[1])
        return linear.attention_entropy(jax.nn.softmax(logits, -1))
    if kind == "relu":
        fq, fk = jax.nn.relu(q), jax.nn.relu(keys)
    else:
        fq, fk = linear.norm_aware(q, keys, map=kind)
    weights = linear.linear_attention_weights(
        fq.reshape(-1, 1, fq.shape[-1]), jnp.asarray(fk)[:, None], eps=0.0
    )[0]
    return linear.attention_entropy(weights).reshape(q.shape[:2])


def test_entropy_falls_with_the_norm_for_all_directions():
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(256, 32)).astype(np.float32)
    directions = rng.normal(size=(50, 32))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    norms = np.linspace(0.05, 2, 20)
    drops = {}
    for kind in ("softmax", "relu", *MAPS):
        found = np.asarray(entropies(kind, norms, directions, keys), np.float64)
        drops[kind] = (found[0] - found[-1]).mean()
        if kind == "relu":  # the norm cancels
            assert np.ptp(found, axis=0).max() < 1e-5
        else:
            assert (np.diff(found, axis=0) < 0).all()
            assert all(spearmanr(norms, e)[0] == pytest.approx(-1) for e in found.T)
    assert drops["softmax"] == pytest.approx(0.063, rel=0.2)
    assert drops["split"] == pytest.approx(0.456, rel=0.1)
    assert drops["cos"] == pytest.approx(0.459, rel=0.1)


def test_mistakes():
    x = jnp.ones((3, 4))
    with pytest.raises(ValueError, match="norm_aware: map must be one of"):
        linear.norm_aware(x, x, map="sin")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="rotary_angles: size must be a multiple of twice the 2"):
        linear.rotary_angles(jnp.ones((3, 2)), 6)
    with pytest.raises(ValueError, match="rotate: angles .* last axes of the tokens"):
        linear.rotate(jnp.ones((2, 3, 1, 8)), jnp.ones((5, 3, 4)))
    with pytest.raises(ValueError, match="rotate: features .* a multiple of 8 features"):
        linear.rotate(jnp.ones((3, 2, 12)), jnp.ones((3, 4)))


@pytest.mark.parametrize("map", ["split", "cos"])
@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_nan_is_not_hidden(map, lost):
    whole = np.ones((2, 4), np.float32)
    part = whole.copy()
    part[0, 1] = lost
    of_queries, _ = linear.norm_aware(part, whole, map=map)
    assert not np.isfinite(of_queries[0]).all() and np.isfinite(of_queries[1]).all()
    _, of_keys = linear.norm_aware(whole, part, map=map)
    assert not np.isfinite(of_keys[0]).all() and np.isfinite(of_keys[1]).all()
