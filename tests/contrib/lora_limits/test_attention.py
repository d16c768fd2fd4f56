"""Polynomial attention against explicit n x n matrices in float64, and the table of errors."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.papers.lora_limits import PROTOTYPE
from sparsejax.contrib import lora_limits as limits

RNG = np.random.default_rng(0)


def by_hand(q, k, v, c, degree=None, seen=None, center=True):
    """The output, and dS V etc. of one head with all pairs; softmax if degree is None."""
    q, k, v, c = (np.asarray(x, np.float64) for x in (q, k, v, c))
    seen = np.ones(len(k), bool) if seen is None else np.asarray(seen)
    scale = q.shape[1] ** -0.5
    kc = k - k[seen].mean(0) if center and seen.any() else k
    s = scale * q @ kc.T
    e = np.exp(s) if degree is None else sum(s**t / math.factorial(t) for t in range(degree + 1))
    e = e * seen
    f = e / np.maximum(e.sum(1, keepdims=True), 1e-300)
    out, pairs = f @ v, c @ v.T
    p = f * pairs - np.diag((f * pairs).sum(1)) @ f
    return out, scale * p @ kc, scale * p.T @ q, f.T @ c


def run(q, k, v, c, degree, **more):
    """Of one head."""
    mask = more.pop("seen", None)
    heads = [jnp.asarray(x)[:, None] for x in (q, k, v)]
    call = lambda q, k, v: limits.polynomial_attention(q, k, v, degree, mask=mask, **more)  # noqa: E731
    y, pull = jax.vjp(call, *heads)
    return [np.asarray(x[:, 0], np.float64) for x in (y, *pull(jnp.asarray(c)[:, None]))]


def case(n, m=None, d=3, e=2, dtype: Any = np.float64):
    m = n if m is None else m
    shapes = (n, d), (m, d), (m, e), (n, e)
    return [RNG.normal(size=s).astype(dtype) * 0.7 for s in shapes]


@pytest.mark.parametrize("d, degree", [(1, 0), (1, 6), (3, 0), (3, 1), (3, 4), (5, 3)])
def test_features(d, degree):
    x = RNG.normal(size=(2, 4, d)).astype(np.float32)
    phi = np.asarray(limits.polynomial_features(x, degree))
    assert phi.shape == (2, 4, math.comb(d + degree, degree))
    powers = [a for a in itertools.product(range(degree + 1), repeat=d) if sum(a) <= degree]
    want = [
        np.prod(x.astype(np.float64) ** a, -1) / math.sqrt(math.prod(map(math.factorial, a)))
        for a in powers
    ]
    order = lambda table: np.sort(table.reshape(8, -1), 1)  # noqa: E731 - of monomials, not of rows
    np.testing.assert_allclose(order(phi), order(np.stack(want, -1)), rtol=1e-4, atol=1e-5)
    s = x[0].astype(np.float64) @ x[0].T
    want = sum(s**t / math.factorial(t) for t in range(degree + 1))
    np.testing.assert_allclose(phi[0] @ phi[0].T, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n, m, chunk", [(1, 1, 4), (7, 7, 4), (8, 8, 4), (5, 9, 100), (33, 16, 8)])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("degree", [0, 2, 4])
def test_output_and_gradient_are_those_of_the_paper(n, m, chunk, center, degree):
    with jax.enable_x64(True):
        q, k, v, c = case(n, m)
        for seen in (None, np.arange(m) < max(m - 3, 1)):
            want = by_hand(q, k, v, c, degree, seen, center)
            got = run(q, k, v, c, degree, chunk=chunk, center=center, seen=seen)
            for a, b in zip(got, want):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("seen", [None, [True, False, True, True, False, False]])
def test_exact(seen):
    with jax.enable_x64(True):
        q, k, v, c = case(7, 6)
        got = run(
            q, k, v, c, 0, method="exact", chunk=3, seen=None if seen is None else np.array(seen)
        )
        for a, b in zip(got, by_hand(q, k, v, c, None, seen)):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_heads_and_batches():
    with jax.enable_x64(True):
        q, k, v, c = (RNG.normal(size=(2, 3, 6, 4, w)) for w in (3, 3, 2, 2))
        y, pull = jax.vjp(lambda q, k, v: limits.polynomial_attention(q, k, v, 2, chunk=4), q, k, v)
        grads = pull(jnp.asarray(c))
        for b in np.ndindex(2, 3):
            for h in range(4):
                at = (*b, slice(None), h)
                want = by_hand(q[at], k[at], v[at], c[at], 2)
                for a, w in zip((y, *grads), want):
                    np.testing.assert_allclose(a[at], w, rtol=1e-9, atol=1e-11)


def test_low_precision_and_no_keys():
    q, k, v, c = (jnp.asarray(x, jnp.bfloat16) for x in case(40, dtype=np.float32))
    got = run(q, k, v, c, 4)
    assert limits.polynomial_attention(q[:, None], k[:, None], v[:, None], 4).dtype == jnp.bfloat16
    for a, b in zip(got, by_hand(q, k, v, c, 4)):
        np.testing.assert_allclose(a, b, atol=1e-2 * np.abs(b).max())
    for method in ("polynomial", "exact"):
        got = run(q, k, v, c, 2, seen=np.zeros(40, bool), method=method)
        assert not any(x.any() for x in got)


def test_constant_keys_and_zero_degree_average():
    q, k, v, c = case(6)
    out, dq, dk, dv = run(q, 0 * k + 3, v, c, 2)
    np.testing.assert_allclose(out, np.tile(v.mean(0), (6, 1)), rtol=1e-5)
    np.testing.assert_allclose(dq, 0, atol=1e-6)
    np.testing.assert_allclose(dv, np.tile(c.mean(0), (6, 1)), atol=1e-6)


# The degrees of the specification, by bound: eps 1e-2 and 1e-4.
@pytest.mark.parametrize(
    "bound, degrees",
    [(0.5, (4, 6)), (1, (6, 8)), (2, (8, 12)), (4, (16, 20)), (6, (22, 26))],
)
def test_degrees(bound, degrees):
    x = np.linspace(-bound, bound, 10_001)
    for eps, want in zip((1e-2, 1e-4), degrees):
        found = limits.degree_for(float(bound), eps)

        def error(degree):
            taylor = sum(x**t / math.factorial(t) for t in range(degree + 1))
            return np.abs(taylor / np.exp(x) - 1).max()

        assert found == want and error(found) <= eps < error(found - 2)
    assert limits.degree_for(0.0) == 0
    assert limits.degree_for(100.0) > limits.degree_for(50.0) > 100


def test_norm():
    q, k = RNG.normal(size=(2, 9, 3, 4)), RNG.normal(size=(2, 7, 3, 4)) + 2
    mask = np.arange(7) < np.array([[7], [4]])
    k[~mask] = np.nan  # padding
    for center in (True, False):
        for b, h in np.ndindex(2, 3):
            keys = k[b, mask[b], h]
            keys = keys - keys.mean(0) if center else keys
            s = np.abs(q[b, :, h] @ keys.T) / 2
            bound = (
                np.linalg.norm(q[b, :, h], axis=1).max() * np.linalg.norm(keys, axis=1).max() / 2
            )
            for exact, want in ((True, s.max()), (False, bound)):
                got = limits.attention_norm(q, k, mask=mask, center=center, exact=exact, chunk=4)
                np.testing.assert_allclose(got[b, h], want, rtol=1e-5)


def head(n, gamma, seed=0):
    """The draw of the experiment: tokens, kernels, target and the scale with the norm gamma."""
    rng = np.random.default_rng(seed)
    x, *kernels = (rng.normal(size=s) / 4 for s in ((n, 16), (16, 4), (16, 4), (16, 4)))
    y = rng.normal(size=(n, 4))
    scale = gamma / np.abs((x @ kernels[0]) @ (x @ kernels[1]).T).max()
    return x, *kernels, y, scale


def errors(gamma):
    """Relative errors of the gradient of Wq by degree."""
    *args, y, scale = head(512, gamma)
    more = {"target": y, "scale": float(scale), "center": False}
    exact = limits.attention_gradients(*args, method="exact", **more)
    assert exact.degree is None
    found = [
        limits.attention_gradients(*args, method="polynomial", degree=g, **more).q
        for g in (2, 4, 6)
    ]
    return np.array([np.linalg.norm(x - exact.q) for x in found]) / np.linalg.norm(exact.q)


def test_errors_rise_sharply_with_the_norm():
    with jax.enable_x64(True):
        found = {gamma: errors(gamma) for gamma in PROTOTYPE}
    for gamma, expected in PROTOTYPE.items():
        ratios = found[gamma] / expected
        assert (ratios > 1 / 5).all() and (ratios < 5).all(), (gamma, found[gamma])
        assert (np.diff(found[gamma]) < 0).all()
    assert found[6][1] > 1000 * found[1][1]


def test_gradients_of_the_kernels():
    with jax.enable_x64(True):
        x, wq, wk, wv, y, scale = head(20, 2.0)

        def loss(wq, wk, wv):
            s = scale * (x @ wq) @ (x @ wk).T
            f = np.exp(s) / np.exp(s).sum(1, keepdims=True)
            return 0.5 * np.sum((f @ (x @ wv) - y) ** 2)

        found = limits.attention_gradients(
            x, wq, wk, wv, target=y, scale=float(scale), method="exact"
        )
        for i, got in enumerate(found[:3]):
            for at in ((0, 0), (5, 2), (15, 3)):
                kernels = [[w.copy() for w in (wq, wk, wv)] for _ in range(2)]
                for sign, ws in zip((1, -1), kernels):
                    ws[i][at] += sign * 1e-6
                slope = (loss(*kernels[0]) - loss(*kernels[1])) / 2e-6
                np.testing.assert_allclose(got[at], slope, rtol=1e-5, atol=1e-8)
        c = np.asarray(found.out) - y
        for cotangent in (c, lambda out: out - y):
            again = limits.attention_gradients(
                x, wq, wk, wv, cotangent=cotangent, scale=float(scale), method="exact"
            )
            np.testing.assert_allclose(again.q, found.q, rtol=1e-12)


def test_auto_takes_the_cheaper_and_the_accurate_one():
    x, *args, y, scale = head(512, 1.0)
    call = lambda **more: limits.attention_gradients(  # noqa: E731
        x, *args, **{"target": y, "scale": float(scale)} | more
    )
    # k d e = 70 * 16 is below n (d + e) = 4096, and above it for degree 8.
    assert call(degree=4, eps=0.5).degree == 4
    assert call(degree=8, eps=0.5).degree is None
    assert call(degree=4, eps=1e-6).degree is None  # the norm is above the bound of the degree
    assert call(scale=float(scale) * 30, degree=4).degree is None
    assert call(eps=1e-2).degree in (None, limits.degree_for(float(call().bound), 1e-2))

    grads = jax.jit(lambda x: limits.attention_gradients(
        x, *args, target=y, scale=float(scale), degree=4, eps=0.5
    ).q)  # fmt: skip
    cases: Any = ((1.0, "polynomial"), (20.0, "exact"))
    for s, method in cases:  # decided when it runs
        want = limits.attention_gradients(
            x * s, *args, target=y, scale=float(scale), degree=4, method=method
        )
        np.testing.assert_allclose(grads(x * s), want.q, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="degree must be given under jit"):
        jax.jit(lambda x: limits.attention_gradients(x, *args, target=y).q)(x)


def test_memory_is_linear():
    def peak(n):
        shapes = [jax.ShapeDtypeStruct((n, 1, 4), jnp.float32)] * 3
        loss = lambda q, k, v: jnp.sum(limits.polynomial_attention(q, k, v, 4, chunk=256) ** 2)  # noqa: E731
        run = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes).compile()
        found: Any = run.memory_analysis()
        return found.temp_size_in_bytes

    assert peak(16_384) <= 9 * peak(2_048)


def test_mistakes():
    x, wq, wk, wv, y, _ = head(8, 1.0)
    with pytest.raises(ValueError, match="exactly one of target"):
        limits.attention_gradients(x, wq, wk, wv)
    with pytest.raises(ValueError, match="cotangent must have the shape of the output"):
        limits.attention_gradients(x, wq, wk, wv, cotangent=lambda out: out[:3])
    with pytest.raises(ValueError, match="degree must be even"):
        limits.polynomial_attention(x[:, None], x[:, None], x[:, None], 3)
    with pytest.raises(ValueError, match="the logits of x must be at most 500"):
        limits.attention_gradients(x * 1e4, wq, wk, wv, target=y)
