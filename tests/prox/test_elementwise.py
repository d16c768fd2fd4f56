"""Elementwise proximal operators against brute force: all scales, far past weak convexity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import prox
from tests.prox import _oracle as oracle

COUNT = 3000


def _draw(rng, low, high):
    return 10 ** rng.uniform(low, high, COUNT)


def _columns(f):
    """A formula of one row of parameters for arrays of points with a leading axis of rows."""

    def at(u, *rows):
        return f(u, *(np.reshape(row, (-1,) + (1,) * (u.ndim - 1)) for row in rows))

    return at


# name: factory of arrays, range of log10 of each parameter, the penalty, its kinks.
SCALAR = {
    "l1": (prox.l1, [(-3, 3)], lambda u, s: s * u, None),
    "l0": (prox.l0, [(-3, 3)], lambda u, s: s * (u > 0), None),
    "ridge": (prox.ridge, [(-3, 3)], lambda u, s: s / 2 * u**2, None),
    "elastic_net": (
        lambda s, r: prox.elastic_net(s, jnp.minimum(r, 1)),
        [(-3, 3), (-2, 0)],
        lambda u, s, r: s * (r * u + (1 - r) / 2 * u**2),
        None,
    ),
    "huber": (
        prox.huber,
        [(-3, 3), (-2, 2)],
        lambda u, s, d: s * np.where(u <= d, u**2 / (2 * d), u - d / 2),
        lambda s, d: [d],
    ),
    "l_half": (prox.l_half, [(-3, 3)], lambda u, s: s * np.sqrt(u), None),
    "l_two_thirds": (prox.l_two_thirds, [(-3, 3)], lambda u, s: s * u ** (2 / 3), None),
    "lp": (prox.lp, [(-3, 3), (-2, -0.0001)], lambda u, s, p: s * u**p, None),
    "lp above 1": (
        lambda s, p: prox.lp(s, p),
        [(-3, 3), (0.0001, 0.301)],
        lambda u, s, p: s * u**p,
        None,
    ),
    "mcp": (
        prox.mcp,
        [(-3, 3), (-2, 2)],
        lambda u, s, g: np.where(u <= g * s, s * u - u**2 / (2 * g), g * s**2 / 2),
        lambda s, g: [g * s],
    ),
    "cel0": (
        prox.cel0,
        [(-3, 3), (-1, 1)],
        # s - a^2/2 (u - knee)^2 multiplied out, which cancels even in float64.
        lambda u, s, a: np.where(
            u <= np.sqrt(2 * s) / a, np.sqrt(2 * s) * a * u - a**2 / 2 * u**2, s
        ),
        lambda s, a: [np.sqrt(2 * s) / a],
    ),
    "scad": (
        lambda s, a: prox.scad(s, 2 + a),
        [(-3, 3), (-2, 2)],
        lambda u, s, a: np.where(
            u <= s,
            s * u,
            np.where(
                u <= (2 + a) * s,
                (2 * (2 + a) * s * u - u**2 - s**2) / (2 * (1 + a)),
                s**2 * (3 + a) / 2,
            ),
        ),
        lambda s, a: [s, (2 + a) * s],
    ),
    "capped_l1": (
        prox.capped_l1,
        [(-3, 3), (-2, 2)],
        lambda u, s, c: s * np.minimum(u, c),
        lambda s, c: [c],
    ),
    "log_sum": (
        prox.log_sum,
        [(-3, 3), (-2, 2)],
        lambda u, s, e: s * np.log1p(u / e),
        None,
    ),
    "exponential": (
        prox.exponential,
        [(-3, 3), (-2, 2)],
        lambda u, s, e: -s * np.expm1(-u / e),
        None,
    ),
    "geman": (prox.geman, [(-3, 3), (-2, 2)], lambda u, s, e: s * u / (u + e), None),
    "transformed_l1": (
        prox.transformed_l1,
        [(-3, 3), (-2, 2)],
        lambda u, s, a: s * (a + 1) * u / (a + u),
        None,
    ),
    "concave": (
        lambda s: prox.concave(jnp.log1p, lambda b: 1 / (1 + b), s),
        [(-3, 3)],
        lambda u, s: s * np.log1p(u),
        None,
    ),
}


def _problems(name, dtype):
    """Points, steps and parameters, as the numbers of the dtype."""
    rng = np.random.default_rng(list(SCALAR).index(name))
    _, ranges, _, _ = SCALAR[name]
    parameters = [_draw(rng, low, high).astype(dtype) for low, high in ranges]
    b = _draw(rng, -3, 3).astype(dtype)
    step = _draw(rng, -2, 2).astype(dtype)
    return b, step, parameters


def _check(name, dtype, tol, b, step, parameters):
    make, _, formula, kinks = SCALAR[name]

    @jax.jit
    def solve(b, step, parameters):
        return make(*parameters).prox(b, step)

    u = solve(jnp.asarray(b), jnp.asarray(step), [jnp.asarray(p) for p in parameters])
    assert u.dtype == dtype
    rows = [np.asarray(p, np.float64) for p in parameters]
    f = _columns(formula)
    with np.errstate(all="ignore"):
        knots = kinks(*rows) if kinks else ()
        worst = oracle.excess(lambda v: f(v, *rows), u, b, step, knots)
    assert np.all(np.isfinite(u)) and np.all(np.asarray(u) >= 0)
    at = int(np.argmax(worst))
    detail = f"b={b[at]}, step={step[at]}, parameters={[p[at] for p in parameters]}, u={u[at]}"
    assert worst[at] <= tol, f"{name}: excess {worst[at]:.2g} at {detail}"
    return u


@pytest.mark.parametrize("name", SCALAR)
def test_global_minimiser_float32(name):
    u = _check(name, np.float32, 2e-6, *_problems(name, np.float32))
    if name not in ("ridge", "huber", "lp above 1"):
        assert 0.05 < np.mean(np.asarray(u) == 0) < 0.95


@pytest.mark.parametrize("name", SCALAR)
def test_global_minimiser_float64(name):
    with jax.enable_x64(True):
        _check(name, np.float64, 1e-12, *_problems(name, np.float64))


@pytest.mark.parametrize("name", [n for n in SCALAR if n not in ("ridge", "huber", "lp above 1")])
def test_both_sides_of_the_jump(name):
    """The last float that becomes 0 and the first that does not are both minimisers."""
    make = SCALAR[name][0]
    _, step, parameters = _problems(name, np.float32)

    @jax.jit
    def last_zero(step, parameters):
        penalty = make(*parameters)

        def halve(_, bounds):
            low, high = bounds
            middle = jnp.sqrt(low) * jnp.sqrt(high)
            zero = penalty.prox(middle, step) == 0
            return jnp.where(zero, middle, low), jnp.where(zero, high, middle)

        start = jnp.full(COUNT, 1e-12), jnp.full(COUNT, 1e8)
        return jax.lax.fori_loop(0, 50, halve, start)

    low, high = last_zero(jnp.asarray(step), [jnp.asarray(p) for p in parameters])
    within = (np.asarray(low) > 1e-12) & (np.asarray(high) < 1e8)
    assert np.mean(within) > 0.9
    for b in (low, high):
        _check(name, np.float32, 2e-6, np.where(within, b, 1).astype(np.float32), step, parameters)


@pytest.mark.parametrize("eps", [1e-8, 1e-25, 1e-30])
def test_ratios_beyond_float32(eps):
    """`|x| / eps` and `strength / eps^2` beyond 3e38, against float64."""
    points = np.array([1e-3, 0.9, 1.2, 5.0, 8.5, 20.0, 1e31], np.float32)
    for make in (prox.log_sum, prox.geman, prox.exponential, prox.transformed_l1):
        penalty = make(0.5, eps)
        with jax.enable_x64(True):
            exact = penalty.prox(points.astype(np.float64))
            value = penalty.value(points[-1:].astype(np.float64))
        many = penalty.prox(points)
        alone = jnp.concatenate([penalty.prox(points[i : i + 1]) for i in range(7)])
        np.testing.assert_allclose(many, exact, rtol=2e-6)
        np.testing.assert_allclose(alone, exact, rtol=2e-6)
        np.testing.assert_allclose(penalty.value(points[-1:]), value, rtol=1e-6)
    assert prox.log_sum(0.5, 1e-8).prox(jnp.array([1e31])).tolist() == jnp.array([1e31]).tolist()


def test_lp_compiles_once(caplog):
    x = jnp.linspace(-3, 3, 7)
    for p in (0.5, jnp.float32(0.95), 1.5):
        prox.lp(1.0, p).prox(x)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        for p in (0.4, jnp.float32(0.96), 1.6):
            prox.lp(1.0, p).prox(x)
    assert "Compiling" not in caplog.text


# Given by functions, and the same in closed form.
GIVEN = {
    "log_sum": (jnp.log1p, lambda b: 1 / (1 + b), prox.log_sum),
    "exponential": (lambda b: -jnp.expm1(-b), lambda b: jnp.exp(-b), prox.exponential),
    "geman": (lambda b: b / (1 + b), lambda b: 1 / (1 + b) ** 2, prox.geman),
    "l_half": (jnp.sqrt, lambda b: 0.5 / jnp.sqrt(b), prox.l_half),
}


@pytest.mark.parametrize("name", GIVEN)
def test_penalties_of_functions_on_long_arrays_are_those_in_closed_form(name):
    # Two, four and more steps of Newton's method, which of them follows from the strength.
    value, derivative, closed = GIVEN[name]
    x = jnp.concatenate([jnp.linspace(-6, 6, 1001), jnp.array([0.0, jnp.inf, 1e30, 1e-30])])
    apply = jax.jit(lambda strength: prox.concave(value, derivative, strength).prox(x))
    slopes = jax.jit(
        jax.grad(lambda s, v: prox.concave(value, derivative, s).prox(v).sum(), (0, 1))
    )
    exact = jax.jit(jax.grad(lambda s, v: closed(s).prox(v).sum(), (0, 1)))
    for strength in (0.0, 0.02, 0.3, 0.8, 1.2, 3.0, 40.0):
        u, expected = apply(strength), closed(strength).prox(x)
        np.testing.assert_allclose(u, expected, rtol=2e-5, atol=2e-6)
        if strength > 0:
            finite = x[:-4][jnp.abs(u[:-4]) != 0]
            got, wanted = slopes(strength, finite), exact(strength, finite)
            np.testing.assert_allclose(got[0], wanted[0], rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(got[1], wanted[1], rtol=1e-3, atol=1e-4)


SMOOTHED = (  # MCP of gamma 1, smoothed
    lambda b: (
        -((1 - b) * jnp.sqrt((1 - b) ** 2 + 1e-6) + 1e-6 * jnp.arcsinh((1 - b) * 1e3)) / 4
        - (1 - b) ** 2 / 4
    ),
    lambda b: (jnp.sqrt((1 - b) ** 2 + 1e-6) + (1 - b)) / 2,
)
KINKED = (lambda b: jnp.where(b < 1, b - b * b / 2, 0.5), lambda b: jnp.maximum(1 - b, 0))


@pytest.mark.parametrize("functions", (SMOOTHED, KINKED))
@pytest.mark.parametrize("strength", (0.99, 1.0, 1.00001, 1.0001, 1.01))
def test_penalties_whose_jump_begins(functions, strength):
    # The start of Newton's method is left of the minimum of the equation.
    penalty = prox.concave(*functions, strength)
    x = jnp.linspace(1.03, 3, 400)
    np.testing.assert_allclose(penalty.prox(x), x, rtol=2e-2)
    np.testing.assert_allclose(jax.vmap(penalty.prox)(x), penalty.prox(x), rtol=1e-5)
    np.testing.assert_allclose(penalty.prox(x[:9]), x[:9], rtol=2e-2)


@pytest.mark.parametrize("p", (0.5, 0.9))
def test_small_jumps_of_penalties_of_infinite_slope(p):
    penalty = prox.concave(lambda b: b**p, lambda b: p * b ** (p - 1), 1e-6)
    x = jnp.geomspace(1e-7, 1e-2, 300)
    expected = prox.lp(1e-6, p).prox(x)
    np.testing.assert_allclose(penalty.prox(x), expected, rtol=1e-4)
    np.testing.assert_allclose(penalty.prox(x[::30]), expected[::30], rtol=1e-4)


@pytest.mark.parametrize("name", ("log_sum", "geman", "exponential"))
@pytest.mark.parametrize("unit", (1e-24, 1e-20, 1e20, 1e30))
def test_units_whose_square_is_no_float(name, unit):
    # Divisions by the unit, which XLA joins to one by its square.
    x = jnp.array([0.1, 1.2, 3.0, 1e4])
    apply = jax.jit(lambda strength, eps, x: getattr(prox, name)(strength, eps).prox(x))
    for strength in (1e-3 * unit, 0.3 * unit):
        u = apply(strength, unit, x)
        np.testing.assert_array_equal(u, getattr(prox, name)(strength, unit).prox(x))
        wide = [oracle_prox(name, strength, unit, v) for v in np.asarray(x, np.float64)]
        np.testing.assert_allclose(u, wide, rtol=1e-5)


def oracle_prox(name, strength, unit, v):
    """The minimum of `(u - v)^2 / 2 + penalty` over 0 and what lies around its larger root."""
    phi = {
        "log_sum": lambda y: np.log1p(y),
        "geman": lambda y: y / (1 + y),
        "exponential": lambda y: -np.expm1(-y),
    }[name]
    slope = {
        "log_sum": lambda y: 1 / (1 + y),
        "geman": lambda y: 1 / (1 + y) ** 2,
        "exponential": lambda y: np.exp(-y),
    }[name]
    u = v
    for _ in range(10_000):
        u = max(v - strength / unit * slope(u / unit), 0)
    cost = lambda u: (u - v) ** 2 / 2 + strength * phi(u / unit)  # noqa: E731
    return u if cost(u) < cost(0.0) else 0.0
