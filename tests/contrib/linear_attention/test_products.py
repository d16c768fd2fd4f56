"""Linear attention: whole, by chunks and by steps against the explicit weights in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.contrib import linear_attention

RNG = np.random.default_rng(0)


def case(n=21, m=None, heads=(4, 2), b=(2,), dtype=np.float32):
    m = n if m is None else m
    fq = np.abs(RNG.normal(size=(*b, n, heads[0], 6)))
    fk = np.abs(RNG.normal(size=(*b, m, heads[1], 6)))
    v = RNG.normal(size=(*b, m, heads[1], 3))
    return [jnp.asarray(x, dtype) for x in (fq, fk, v)]


def dense(fq, fk, v, mask=None, causal=False, rotated=None, eps=1e-6):
    """All weights, with the mean over the visible keys."""
    repeat = lambda x: np.repeat(np.asarray(x, np.float64), fq.shape[-2] // fk.shape[-2], -2)  # noqa: E731
    of = lambda q, k: np.einsum("...ihf,...jhf->...hij", np.asarray(q, np.float64), repeat(k))  # noqa: E731
    n, m = fq.shape[-3], fk.shape[-3]
    seen = np.tri(n, dtype=bool) if causal else np.ones((n, m), bool)
    if mask is not None:
        seen = seen & np.asarray(mask)[..., None, None, :]
    weights, total = np.where(seen, of(*(rotated or (fq, fk))), 0), np.where(seen, of(fq, fk), 0)
    total = total.sum(-1) + eps * seen.sum(-1)
    weights = np.divide(
        weights, total[..., None], out=np.zeros_like(weights), where=total[..., None] > 0
    )
    return np.einsum("...hij,...jhe->...ihe", weights, repeat(v))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n", [1, 7, 8, 21])
@pytest.mark.parametrize("heads", [(1, 1), (4, 2)])
def test_against_all_weights(n, heads, causal):
    fq, fk, v = case(n, heads=heads)
    fq = fq.at[0, n // 2].set(0)  # weights of zero give zeros
    rotated = tuple(jnp.asarray(RNG.normal(size=x.shape), jnp.float32) for x in (fq, fk))
    mask = jnp.arange(n) < jnp.array([[n], [max(n - 3, 0)]])
    cases: Any = (dict(), dict(rotated=rotated), dict(mask=mask))
    for eps in (1e-6, 0.1):
        for more in cases:
            want = dense(fq, fk, v, causal=causal, eps=eps, **more)
            for chunk in (4, 8, 128):
                got = linear_attention.linear_attention(
                    fq, fk, v, causal=causal, chunk=chunk, eps=eps, **more
                )
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5)
    assert not np.asarray(got)[0, n // 2].any()


def test_shapes():
    fq, fk, v = case(5, m=9, b=())
    np.testing.assert_allclose(
        linear_attention.linear_attention(fq, fk, v), dense(fq, fk, v), rtol=1e-5, atol=1e-5
    )
    fq, fk, v = case(5, b=(2, 3))
    np.testing.assert_allclose(
        linear_attention.linear_attention(fq, fk, v, causal=True), dense(fq, fk, v, causal=True),
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip
    for causal in (False, True):
        assert linear_attention.linear_attention(*case(0), causal=causal).shape == (2, 0, 4, 3)
        no_texts = linear_attention.linear_attention(*case(5, b=(0,)), causal=causal)
        assert no_texts.shape == (0, 5, 4, 3)
    assert not np.asarray(linear_attention.linear_attention(*case(3, m=0))).any()


def test_padding_may_hold_anything():
    fq, fk, v = case(6)
    mask = jnp.arange(6) < jnp.array([[4], [0]])
    for causal in (False, True):
        want = linear_attention.linear_attention(fq, fk, v, mask=mask, causal=causal)
        odd = [jnp.where(mask[..., None, None], x, jnp.nan) for x in (fk, v)]
        got = linear_attention.linear_attention(fq, *odd, mask=mask, causal=causal)
        np.testing.assert_array_equal(got, want)
        assert not np.asarray(got)[1].any()


@pytest.mark.parametrize("b", [(), (2,), (2, 3)])
def test_steps_are_the_whole(b):
    fq, fk, v = case(12, b=b)
    whole, parts, state = linear_attention.linear_attention(fq, fk, v, causal=True), [], None
    step = jax.jit(lambda *args: linear_attention.linear_attention_step(*args, chunk=4))
    for first, last in [(0, 7), (7, 8), (8, 9), (9, 12)]:
        at = (..., slice(first, last), slice(None), slice(None))
        y, state = step(fq[at], fk[at], v[at], state)
        parts.append(y)
    np.testing.assert_allclose(jnp.concatenate(parts, -3), whole, rtol=1e-5, atol=1e-6)
    assert (np.asarray(state.count) == 12).all() and state.count.shape == b
    want = np.einsum("...jhf,...jhe->...hfe", fk, v)
    np.testing.assert_allclose(state.values, want, rtol=1e-5, atol=1e-5)


def test_low_precision():
    fq, fk, v = case(40, dtype=jnp.bfloat16)
    for causal in (False, True):
        got = linear_attention.linear_attention(fq, fk, v, causal=causal)
        assert got.dtype == jnp.bfloat16
        want = dense(*(np.asarray(x, np.float64) for x in (fq, fk, v)), causal=causal)
        np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=8e-3, atol=8e-3)


def test_gradients():
    args = case(10)
    plain = lambda fq, fk, v: jnp.einsum(  # noqa: E731
        "bhij,bjhe->bihe",
        (lambda w: w / (w.sum(-1, keepdims=True) + 1e-6 * jnp.arange(1, 11)[:, None]))(
            jnp.tril(jnp.einsum("bihf,bjhf->bhij", fq, jnp.repeat(fk, 2, 2)))
        ),
        jnp.repeat(v, 2, 2),
    )
    chunked = lambda *args: linear_attention.linear_attention(*args, causal=True, chunk=4)  # noqa: E731
    grads = [
        jax.grad(lambda *args, f=f: jnp.sum(jnp.sin(f(*args))), (0, 1, 2))(*args)
        for f in (plain, chunked)
    ]
    for a, b in zip(*grads):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_memory_is_linear():
    def peak(n):
        args = [jax.ShapeDtypeStruct((n, 1, f), jnp.float32) for f in (16, 16, 8)]
        run = jax.jit(lambda *args: linear_attention.linear_attention(*args, causal=True))
        found: Any = run.lower(*args).compile().memory_analysis()
        return found.temp_size_in_bytes

    assert peak(16_384) <= 9 * peak(2_048)


def test_mistakes():
    fq, fk, v = case(5)
    call = linear_attention.linear_attention
    with pytest.raises(ValueError, match="causal=True needs as many keys"):
        call(fq, fk[:, :3], v[:, :3], causal=True)
    with pytest.raises(ValueError, match="a multiple of the heads"):
        call(fq[:, :, :3], fk, v)
    with pytest.raises(ValueError, match="rotated must have the shapes"):
        call(fq, fk, v, rotated=(fq, fk[:1]))
    with pytest.raises(TypeError, match="fq must hold floats"):
        call(jnp.ones((5, 4, 6), int), fk[0], v[0])
    _, state = linear_attention.linear_attention_step(fq, fk, v)
    with pytest.raises(ValueError, match="linear_attention_step: state must hold the shapes"):
        linear_attention.linear_attention_step(fq[:1], fk[:1], v[:1], state)
