"""Products behind gates, in XLA and C++, against plain NumPy in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj

RNG = np.random.default_rng(0)
TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-5, "int8": 2e-5}


def stored(shape, dtype):
    """A matrix in its format, and the values that it stands for."""
    w = RNG.normal(size=shape) / np.sqrt(shape[0])
    if dtype == "int8":
        made = sj.formats.Skipping.quantized(jnp.asarray(w, jnp.float32))
    else:
        made = sj.formats.Skipping(jnp.asarray(w, dtype))
    return made, np.asarray(made.todense(), np.float64)


def gate(n, tau, zeros=False):
    norms = np.exp(RNG.normal(size=n)).astype(np.float32)
    norms[0] = 0 if zeros else norms[0]
    return jnp.asarray(norms), jnp.float32(tau)


def masked(x, limit):
    norms, tau = (np.asarray(a, np.float32) for a in limit)
    kept = (tau < 0) | (np.abs(x.astype(np.float32)) * norms > tau)
    return np.where(kept, x, 0).astype(np.float64)


def silu(x):
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("implementation", ["native", "xla"])
@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_products(dtype, implementation, tokens):
    x = RNG.normal(size=(tokens, 70)).astype(np.float32)
    x[0, 3] = 0
    # Widths that no vector and no panel of columns divides, one, and a limit that keeps nothing.
    shapes, taus = (200, 1, 65, 16), (0.5, -1, np.inf, 0)
    made, dense = zip(*(stored((70, n), dtype) for n in shapes))
    limits = [gate(70, tau, zeros=True) for tau in taus]
    call = lambda x: sj.kernels.gated_products(  # noqa: E731
        x, made, limits, implementation=implementation
    )
    for run in (call, jax.jit(call)):
        for y, w, limit in zip(run(jnp.asarray(x)), dense, limits):
            np.testing.assert_allclose(y, masked(x, limit) @ w, atol=TOLERANCE[dtype])
    assert not np.any(call(jnp.asarray(x))[2])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("implementation", ["native", "xla"])
@pytest.mark.parametrize("tokens, hidden", [(1, 300), (2, 64), (5, 300), (8, 1)])
@pytest.mark.parametrize("by_neuron", [False, True])
def test_networks(dtype, implementation, tokens, hidden, by_neuron):
    if by_neuron and dtype == "int8":
        pytest.skip("int8 kernels (neurons, inputs) have a scale per input")
    x = RNG.normal(size=(tokens, 70)).astype(np.float32)
    gate_, wg = stored((70, hidden), dtype)
    up, wu = stored((hidden, 70) if by_neuron else (70, hidden), dtype)
    down, wd = stored((hidden, 70), dtype)
    for taus in ((-1, -1, -1), (0.4, 0.3, 0.1), (np.inf, 0.3, 0.1), (0, 0, np.inf)):
        inputs = 70, hidden if by_neuron else 70, hidden
        limits = [gate(n, tau) for n, tau in zip(inputs, taus)]
        a = silu(masked(x, limits[0]) @ wg)
        h = masked(a, limits[1]) * (x @ wu.T) if by_neuron else a * (masked(x, limits[1]) @ wu)
        # Only up to rounding at the limit, which no case meets.
        want = masked(h, limits[2]) @ wd
        got = sj.kernels.gated_mlp(
            jnp.asarray(x), (gate_, up, down), limits, by_neuron=by_neuron,
            implementation=implementation,
        )  # fmt: skip
        np.testing.assert_allclose(got, want, atol=TOLERANCE[dtype])


def test_bfloat16_inputs_and_more_tokens():
    made, w = stored((32, 20), "bfloat16")
    x = jnp.asarray(RNG.normal(size=(9, 32)), jnp.bfloat16)
    limit = gate(32, 0.5)
    (y,) = sj.kernels.gated_products(x, [made], [limit])
    assert y.dtype == jnp.bfloat16
    want = masked(np.asarray(x, np.float32), limit) @ w
    np.testing.assert_allclose(np.asarray(y, np.float32), want, atol=0.05)
    with pytest.raises(NotImplementedError, match="multiplies 1 to 8 rows"):
        sj.kernels.gated_products(x, [made], [limit], implementation="native")


def test_mistakes():
    w, x = sj.formats.Skipping(jnp.ones((4, 3))), jnp.ones((1, 4))
    none = (jnp.ones(4), jnp.float32(-1))
    stack = sj.formats.Skipping(jnp.ones((2, 4, 3)))
    for call, what in (
        (lambda: sj.kernels.gated_products(x, [w], []), "a gate .* for each of the 1 kernels"),
        (lambda: sj.kernels.gated_products(x, [], []), "at least one"),
        (lambda: sj.kernels.gated_products(x[:, :3], [w], [none]), r"must be \(3, outputs\)"),
        (lambda: sj.kernels.gated_products(x, [w], [(jnp.ones(3), 0.0)]), r"norms of shape \(4,\)"),
        (lambda: sj.kernels.gated_products(x, [w], [(jnp.ones(4), jnp.nan)]), "tau .* NaN"),
        (lambda: sj.kernels.gated_products(x, [w], [(jnp.full(4, jnp.nan), 0.0)]), "norms .* NaN"),
        (lambda: sj.kernels.gated_mlp(x, [w] * 2, [none] * 2), "gate, up and down"),
        (lambda: sj.kernels.gated_mlp(x, [w] * 3, [none] * 3), "must be"),
        (lambda: sj.kernels.gated_mlp(x, [stack] * 3, [none] * 3), r"must be \[\(4, 3\)"),
        (lambda: sj.kernels.gated_products(x, [w], [none], implementation="fast"), "among"),
    ):
        with pytest.raises(ValueError, match=what):
            call()
    with pytest.raises(TypeError, match="x must hold floats"):
        sj.kernels.gated_products(jnp.ones((1, 4), int), [w], [none])


def layer_in_double(x, keys, values, counts, angles, norms, kernels, limits, how):
    """A layer for one token of each row, head by head."""
    keys, values, x = keys.astype(np.float64), values.astype(np.float64), x.astype(np.float64)
    rms = lambda x, w: x / np.sqrt((x * x).mean(-1, keepdims=True) + how["epsilon"]) * w  # noqa: E731
    q, k, v = (masked(rms(x, norms[0]), limits[j]) @ kernels[j] for j in range(3))
    size, groups = keys.shape[3], keys.shape[2]
    seen = np.zeros_like(q)
    for t in range(len(x)):
        at = min(counts[t], keys.shape[1] - 1)
        turn = np.exp(1j * angles[t].astype(np.float64))

        def rotated(row):
            if how["interleaved"]:
                y = (row[0::2] + 1j * row[1::2]) * turn  # noqa: B023
                return np.stack([y.real, y.imag], -1).ravel()
            y = (row[: size // 2] + 1j * row[size // 2 :]) * turn  # noqa: B023
            return np.concatenate([y.real, y.imag])

        for g in range(groups):
            keys[t, at, g] = rotated(k[t, g * size : (g + 1) * size])
            values[t, at, g] = v[t, g * size : (g + 1) * size]
        for h in range(how["heads"]):
            row, g = rotated(q[t, h * size : (h + 1) * size]), h // (how["heads"] // groups)
            s = keys[t, : at + 1, g] @ row / np.sqrt(size)
            p = np.exp(s - s.max())
            seen[t, h * size : (h + 1) * size] = p @ values[t, : at + 1, g] / p.sum()
    z = x + masked(seen, limits[3]) @ kernels[3]
    h = rms(z, norms[1])
    a = silu(masked(h, limits[4]) @ kernels[4])
    if how["by_neuron"]:
        f = masked(a, limits[5]) * (h @ kernels[5].T)
    else:
        f = a * (masked(h, limits[5]) @ kernels[5])
    return z + masked(f, limits[6]) @ kernels[6], keys, values


def layer(rows=2, width=20, heads=4, groups=2, size=6, hidden=70, room=9, dtype="float32", **how):
    how = {"heads": heads, "epsilon": 1e-5, "interleaved": False, "by_neuron": False} | how
    q, kv = heads * size, groups * size
    up = (hidden, width) if how["by_neuron"] else (width, hidden)
    shapes = (width, q), (width, kv), (width, kv), (q, width), (width, hidden), up, (hidden, width)
    made, dense = zip(*(stored(shape, dtype) for shape in shapes))
    limits = [gate(n, tau) for (n, _), tau in zip(shapes, (0.4, -1, 0.2, 0.3, 0.5, 0.1, 0.01))]
    if how["by_neuron"]:
        limits[5] = gate(hidden, 0.1)
    x, angles = RNG.normal(size=(rows, width)), 9 * RNG.normal(size=(rows, size // 2))
    keys, values = (RNG.normal(size=(rows, room, groups, size)) for _ in range(2))
    norms = tuple(RNG.random(width) + 0.5 for _ in range(2))
    x, keys, values, angles, *norms = (
        np.asarray(y, np.float32) for y in (x, keys, values, angles, *norms)
    )
    return (x, keys, values, angles, tuple(norms)), made, dense, limits, how


@pytest.mark.parametrize(
    "case",
    [
        {}, {"interleaved": True}, {"by_neuron": True}, {"dtype": "bfloat16"}, {"dtype": "int8"},
        {"rows": 1, "groups": 1, "room": 1, "epsilon": 0.1}, {"rows": 8, "groups": 4, "size": 34},
        {"room": 700, "size": 64},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("implementation", ["native", "xla"])
def test_a_layer_of_a_decoder(case, implementation):
    (x, keys, values, angles, norms), made, dense, limits, how = layer(**case)
    # The first token, one in the middle, the last, and one beyond the room.
    counts = np.array([0, 4, keys.shape[1] - 1, keys.shape[1] + 3] * 2)[: len(x)]
    counts = np.minimum(counts, [keys.shape[1] + 3] * len(x))
    wanted = layer_in_double(x, keys, values, counts, angles, norms, dense, limits, how)
    call = lambda x, cache, counts: sj.kernels.gated_layer(  # noqa: E731
        x, cache, counts, angles, norms, made, limits, implementation=implementation, **how
    )
    given = jnp.asarray(keys), jnp.asarray(values)
    y, cache = jax.jit(call)(x, given, counts)
    for got, want in zip((y, *cache), wanted):
        np.testing.assert_allclose(got, want, atol=2e-5)
    inside = np.minimum(counts, keys.shape[1] - 1)  # beyond, the last place
    np.testing.assert_allclose(call(x, given, inside)[0], wanted[0], atol=2e-5)
    # The cache that was given is as it was, also where the call writes in place.
    np.testing.assert_array_equal(given[0], keys)


def test_a_layer_in_a_loop_writes_into_its_cache():
    (x, keys, values, angles, norms), made, dense, limits, how = layer(rows=1, room=5)

    def step(carry, at):
        x, cache = carry
        y, cache = sj.kernels.gated_layer(
            x, cache, at[None], angles, norms, made, limits, implementation="native", **how
        )
        return (y, cache), y

    start = jnp.asarray(x), (jnp.asarray(keys), jnp.asarray(values))
    (_, cache), ys = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(4)))(start)
    for at in range(4):
        x, keys, values = layer_in_double(
            x, keys, values, np.array([at]), angles, norms, dense, limits, how
        )
        np.testing.assert_allclose(ys[at], x, atol=1e-4)
    np.testing.assert_allclose(cache[0], keys, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_derivatives_are_those_of_the_form_in_xla(dtype):
    (x, keys, values, angles, norms), made, _, limits, how = layer(dtype=dtype)
    rest = np.array([0, 4]), angles, norms, made, limits
    calls = {
        "products": lambda x, i: sj.kernels.gated_products(
            x, made[:3], limits[:3], implementation=i)[1],
        "network": lambda x, i: sj.kernels.gated_mlp(x, made[4:], limits[4:], implementation=i),
        "layer": lambda x, i: sj.kernels.gated_layer(
            x, (keys, values), *rest, implementation=i, **how)[0],
    }  # fmt: skip
    for call in calls.values():
        total = lambda x, i, call=call: jnp.sum(jnp.sin(call(x, i)))  # noqa: E731
        wanted = jax.grad(total)(x, "xla")
        assert np.any(wanted)
        for i in ("native", None):
            found = jax.jit(jax.grad(total), static_argnums=1)(x, i)
            np.testing.assert_allclose(found, wanted, atol=1e-4)
        forward = jax.jvp(partial(total, i=None), (x,), (x,))[1]
        np.testing.assert_allclose(forward, np.sum(wanted * x), rtol=1e-3, atol=1e-4)


def test_the_derivative_of_a_kernel():
    x, limit = RNG.normal(size=(3, 7)).astype(np.float32), gate(7, 0.3)
    w = RNG.normal(size=(7, 5)).astype(np.float32)

    def total(w):
        (y,) = sj.kernels.gated_products(x, [sj.formats.Skipping(w)], [limit])
        return jnp.sum(y**2)

    wanted = 2 * masked(x, limit).T @ (masked(x, limit) @ w)
    np.testing.assert_allclose(jax.grad(total)(jnp.asarray(w)), wanted, rtol=1e-4, atol=1e-4)


def test_what_a_layer_refuses():
    (x, keys, values, angles, norms), made, _, limits, how = layer()
    good = dict(
        x=x, cache=(keys, values), counts=np.zeros(2, int), angles=angles, norms=norms,
        kernels=made, limits=limits, **how,
    )  # fmt: skip
    for change, what in (
        ({"cache": (keys, values[:1])}, "cache must be"),
        ({"cache": (keys[:, :0], values[:, :0])}, "cache must be"),
        ({"counts": np.array([0, 9])}, "counts must be .* below the 9"),
        ({"heads": 3}, "heads must be a multiple of the 2"),
        ({"angles": angles[:, :1]}, r"angles \(2, 3\)"),
        ({"norms": norms[:1]}, "norms must be"),
        ({"kernels": made[:6]}, "seven each"),
        ({"kernels": (made[1], *made[1:])}, "kernels must have the shapes"),
        ({"limits": [(jnp.ones(3), 0.1), *limits[1:]]}, "a gate must be norms"),
        ({"x": x.astype(int)}, "x must hold floats"),
    ):
        with pytest.raises((ValueError, TypeError), match=what):
            sj.kernels.gated_layer(**(good | change))
    half = tuple(part.astype(jnp.bfloat16) for part in (keys, values))
    with pytest.raises(NotImplementedError, match="bfloat16"):
        sj.kernels.gated_layer(**(good | {"cache": half}), implementation="native")
    y, cache = sj.kernels.gated_layer(**(good | {"cache": half}))
    assert y.shape == x.shape and cache[0].dtype == jnp.bfloat16
