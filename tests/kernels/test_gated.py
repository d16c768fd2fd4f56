"""Products behind gates, in XLA and C++, against plain NumPy in float64."""

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
        limits = [gate(n, tau) for n, tau in zip((70, 70, hidden), taus)]
        if by_neuron:
            limits[1] = jnp.ones(hidden), limits[1][1]
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
    for call, what in (
        (lambda: sj.kernels.gated_products(x, [w], []), "a gate .* for each of the 1 kernels"),
        (lambda: sj.kernels.gated_products(x, [], []), "at least one"),
        (lambda: sj.kernels.gated_products(x[:, :3], [w], [none]), r"must be \(3, outputs\)"),
        (lambda: sj.kernels.gated_products(x, [w], [(jnp.ones(3), 0.0)]), r"norms of shape \(4,\)"),
        (lambda: sj.kernels.gated_mlp(x, [w] * 2, [none] * 2), "gate, up and down"),
        (lambda: sj.kernels.gated_mlp(x, [w] * 3, [none] * 3), "must be"),
        (lambda: sj.kernels.gated_products(x, [w], [none], implementation="fast"), "among"),
    ):
        with pytest.raises(ValueError, match=what):
            call()
    with pytest.raises(TypeError, match="x must hold floats"):
        sj.kernels.gated_products(jnp.ones((1, 4), int), [w], [none])
