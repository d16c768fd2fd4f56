"""Combinators by identities, and the errors of all constructors."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import prox

X = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32) * 2
# The function itself: the tests check annotations before it is called.
raw = inspect.unwrap
same = lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-6, atol=2e-6)  # noqa: E731


@pytest.mark.parametrize(
    "left, right",
    [
        (prox.scale(prox.mcp(0.3, 2.0), 1.5), prox.mcp(0.45, 2.0 / 1.5)),
        (prox.moreau_envelope(prox.l1(0.7), 0.4), prox.huber(0.7, 0.7 * 0.4)),
        (prox.conjugate(prox.l1(0.7)), prox.box(-0.7, 0.7)),
        (prox.conjugate(prox.box(-0.7, 0.7)), prox.l1(0.7)),
        (prox.conjugate(prox.l2_ball(0.7)), prox.l2(0.7)),
        (prox.conjugate(prox.l1_ball(0.7)), prox.linf(0.7)),
        (prox.conjugate(prox.linf(0.7)), prox.l1_ball(0.7)),
        (prox.conjugate(prox.ridge(0.5)), prox.ridge(2.0)),
        (prox.conjugate(prox.conjugate(prox.sef(3, 0.5))), prox.sef(3, 0.5)),
        (prox.cel0(0.7, 1.3), prox.mcp(np.sqrt(1.4) * 1.3, 1 / 1.69)),
        (prox.transformed_l1(0.7, 0.5), prox.geman(0.7 * 1.5, 0.5)),
        (prox.lp(0.7, 1.0), prox.l1(0.7)),
        (prox.lp(0.7, 2.0), prox.ridge(1.4)),
        (prox.lp(0.7, 0.5), prox.l_half(0.7)),
        (prox.lp(0.7, 2 / 3), prox.l_two_thirds(0.7)),
        (prox.mcp(0.7, np.inf), prox.l1(0.7)),
        (prox.elastic_net(0.7, 1.0), prox.l1(0.7)),
        (prox.slope(np.full(8, 0.7)), prox.l1(0.7)),
        (prox.slope(np.array([0.7] + [0.0] * 7)), prox.linf(0.7)),
        (prox.sef(1, 0.7), prox.exclusive_lasso(0.7, axis=-1)),
        (prox.sef(8, 0.7), prox.ridge(0.7)),
        (prox.l1_minus_l2(0.7, 0.0), prox.l1(0.7)),
        (prox.nonneg(prox.l1(0.0)), prox.box()),
        (prox.group_lasso(0.7, axis=1, weights=1.0), prox.l2(0.7)),
        (prox.concave(jnp.sqrt, lambda b: 0.5 / jnp.sqrt(b), 0.7), prox.l_half(0.7)),
        (prox.firm(0.7, 1.4), prox.mcp(0.7, 2.0)),
        (prox.l0(0.7), prox.cel0(0.7, 1e3)),
    ],
)
def test_two_names_of_one_penalty(left, right):
    for step in (0.3, 1.0):
        same(left.prox(X, step), right.prox(X, step))
    try:
        a, b = left.value(X * 0.1), right.value(X * 0.1)
    except NotImplementedError:
        return
    np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("penalty", [
    prox.l1(0.5), prox.l2(0.5), prox.linf(0.5), prox.ridge(0.5), prox.sef(3, 0.5),
    prox.k_support_norm(0.5, 3), prox.slope(np.linspace(1, 0.1, 8)), prox.nuclear(0.5),
    prox.group_lasso(0.5, axis=0), prox.gsef(2, 0.5, axis=0), prox.exclusive_lasso(0.5, axis=0),
    prox.l1_inf(0.5, axis=0), prox.scale(prox.l2(0.5), 2.0),
])  # fmt: skip
def test_conjugate_values_certify_the_operator(penalty):
    """Fenchel and Young: equality at the operator's result, and only there."""
    with jax.enable_x64(True):
        x = jnp.asarray(X, jnp.float64)
        for step in (0.5, 2.0):
            v = penalty.prox(x, step)
            assert abs(prox.fenchel_young_gap(penalty, v, x, step)) < 1e-11
            assert prox.fenchel_young_gap(penalty, 0.8 * v + 0.05 * x, x, step) > 1e-4


@pytest.mark.slow
def test_moreau_envelope_has_the_right_derivatives():
    """Of first and second order, in the point, the strength and the smoothing."""
    with jax.enable_x64(True):
        x = jnp.asarray(X[0], jnp.float64)

        def value(x, strength, smoothing):
            return prox.moreau_envelope(prox.log_sum(strength, 1.0), smoothing).value(x)

        u = prox.log_sum(0.4, 1.0).prox(x, 0.8)
        np.testing.assert_allclose(jax.grad(value)(x, 0.4, 0.8), (x - u) / 0.8, rtol=1e-12)
        for argument in (1, 2):
            h = 1e-6
            args = [x, 0.4, 0.8]
            up, down = list(args), list(args)
            up[argument] += h
            down[argument] -= h
            slope = (value(*up) - value(*down)) / (2 * h)
            np.testing.assert_allclose(jax.grad(value, argument)(*args), slope, rtol=1e-6)
        d = jnp.ones_like(x)
        _, bend = jax.jvp(lambda x: jax.grad(value)(x, 0.4, 0.8), (x,), (d,))
        ahead, behind = (jax.grad(value)(x + h * d, 0.4, 0.8) for h in (1e-6, -1e-6))
        np.testing.assert_allclose(bend, (ahead - behind) / 2e-6, atol=1e-6)


def test_masked_leaves_the_rest_alone():
    mask = np.arange(8) % 2 == 0
    u = prox.masked(prox.l2(1.0), mask).prox(X)
    same(u[:, ~mask], X[:, ~mask])
    same(u[:, mask], prox.l2(1.0).prox(X[:, mask]))
    np.testing.assert_allclose(
        prox.masked(prox.l1(1.0), mask).value(X), np.abs(X[:, mask]).sum(), rtol=1e-6
    )
    tree = {"kernel": X, "bias": X[0]}
    penalty = prox.masked(prox.separable_sum(prox.l1(1.0)), {"kernel": True, "bias": False})
    out = penalty.prox(tree)
    same(out["bias"], X[0])
    same(out["kernel"], prox.l1(1.0).prox(X))


@pytest.mark.slow
def test_separable_sum_and_nested():
    tree = {"a": {"kernel": X, "bias": X[0]}, "b": X[1]}
    every = prox.separable_sum(prox.l1(0.5))
    same(every.prox(tree)["a"]["kernel"], prox.l1(0.5).prox(X))
    np.testing.assert_allclose(
        every.value(tree), sum(prox.l1(0.5).value(x) for x in jax.tree.leaves(tree)), rtol=1e-6
    )
    parts = prox.separable_sum({"a": prox.l0(0.5), "b": None})
    assert parts.elementwise and parts.prox(tree)["b"] is not None
    same(parts.prox(tree)["b"], X[1])
    same(parts.prox(tree)["a"]["bias"], prox.l0(0.5).prox(X[0]))
    assert not prox.separable_sum({"a": prox.l0(0.5), "b": prox.l2(0.1)}).elementwise
    # A tree of groups, leaves first, has the minimiser: no competitor is better.
    inner = prox.group_lasso(0.3, groups=np.repeat(np.arange(4), 2), weights=1.0)
    penalty = prox.nested(prox.l1(0.1), inner, prox.l2(0.4))
    x = jnp.asarray(X[0])
    objective = lambda u: 0.5 * jnp.sum((u - x) ** 2) + penalty.value(u)  # noqa: E731
    u = penalty.prox(x)
    noise = np.random.default_rng(1).normal(size=(2000, 8)) * np.geomspace(1e-3, 1, 2000)[:, None]
    assert jnp.min(jax.vmap(objective)(u + noise)) >= objective(u) - 1e-5
    sparse = (u + noise) * (u != 0)
    assert jnp.min(jax.vmap(objective)(sparse)) >= objective(u) - 1e-5


@pytest.mark.slow
def test_bare_operators_at_their_thresholds():
    x = jnp.array([-2.0, -1.0, 0.0, 1.0, 2.0, 5.0])
    assert prox.soft_threshold(x, 1.0).tolist() == [-1, 0, 0, 0, 1, 4]
    assert prox.hard_threshold(x, 1.0).tolist() == [-2, 0, 0, 0, 2, 5]
    assert prox.firm_threshold(x, 1.0, 2.0).tolist() == [-2, 0, 0, 0, 2, 5]
    assert prox.firm_threshold(jnp.array([1.5]), 1.0, 2.0).tolist() == [1]
    assert prox.firm_threshold(x, 1.0, 1.0).tolist() == [-2, 0, 0, 0, 2, 5]
    assert prox.soft_threshold(1 + 1j, np.sqrt(2)).tolist() == 0
    assert prox.soft_threshold(jnp.bfloat16(3), 1.0).dtype == jnp.bfloat16
    assert prox.soft_threshold(jnp.arange(4), 1.0).dtype == jnp.float32


@pytest.mark.parametrize("penalty, threshold", [
    (prox.l0(0.5), 1.0), (prox.l0(2.0), 2.0), (prox.l1(1.0), 1.0), (prox.mcp(1.0, 2.0), 1.0),
    (prox.mcp(1.0, 0.25), 0.5), (prox.cel0(0.5, 2.0), 1.0), (prox.scad(1.0, 3.0), 1.0),
    (prox.l_half(1.0), 1.5), (prox.l_half(8.0), 6.0), (prox.l_two_thirds(1.5), 2.0),
    (prox.log_sum(1.0, 2.0), 0.5), (prox.exponential(0.5, 2.0), 0.25), (prox.geman(1.0, 4.0), 0.25),
    (prox.capped_l1(1.0, 2.0), 1.0), (prox.capped_l1(8.0, 1.0), 4.0), (prox.l2(1.0), 1.0),
    (prox.nuclear(1.0), 1.0),
])  # fmt: skip
def test_at_the_threshold_zero_wins(penalty, threshold):
    shape = (1, 1) if penalty.takes_tree or penalty.prox(jnp.ones((1, 1))).ndim else ()
    at = lambda b: float(penalty.prox(jnp.full(shape, b)).reshape(()))  # noqa: E731
    assert at(threshold) == 0 and at(-threshold) == 0
    assert at(threshold * (1 + 2e-6)) > 0


@pytest.mark.slow
def test_infinities():
    inf = jnp.array([jnp.inf, -jnp.inf, 1.0])
    for penalty in (
        prox.l1(0.5),
        prox.l0(0.5),
        prox.mcp(0.5),
        prox.scad(0.5),
        prox.log_sum(0.5),
        prox.l_half(0.5),
        prox.lp(0.5, 0.3),
        prox.exponential(0.5),
        prox.geman(0.5),
        prox.huber(0.5),
        prox.cel0(0.5),
        prox.capped_l1(0.5),
    ):
        assert penalty.prox(inf)[:2].tolist() == [np.inf, -np.inf], penalty
    forced = prox.l1(np.array([np.inf, np.inf, 1.0], np.float32))
    assert forced.prox(inf).tolist() == [0, 0, 0]
    assert forced.prox(inf, 0.0).tolist() == [0, 0, 1]
    assert forced.value(jnp.array([0.0, 0.0, 2.0])) == 2
    assert forced.value(inf) == np.inf
    assert prox.cel0(0.5, np.array([0.0, 1.0])).prox(jnp.array([0.3, 0.3])).tolist() == [
        pytest.approx(0.3), 0]  # fmt: skip


def test_traced_steps_change_branch():
    """One compilation on both sides of the weak convexity limit."""
    count = []

    @jax.jit
    def solve(step):
        count.append(1)
        return prox.mcp(1.0, 2.0).prox(jnp.array([1.5, 3.0]), step)

    assert solve(1.0).tolist() == [1.0, 3.0] and solve(4.0).tolist() == [0.0, 3.0]
    assert len(count) == 1
    steps = jnp.array([1.0, 4.0])
    assert jax.vmap(solve)(steps).shape == (2, 2)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: prox.l1(-1.0), ValueError, "strength must be >= 0, got -1.0"),
        (lambda: raw(prox.l1)("0.1"), TypeError, "strength must be a number"),
        (lambda: prox.l1(np.array([1.0, -1.0])), ValueError, "strength"),
        (lambda: prox.l1(float("nan")), ValueError, "strength"),
        (lambda: prox.mcp(1.0, 0.0), ValueError, r"gamma must be > 0.*prox.mcp\(0.1, gamma=3.0\)"),
        (lambda: prox.scad(1.0, 2.0), ValueError, "a - 2 must be > 0"),
        (lambda: prox.lp(1.0, 0.0), ValueError, "p must be > 0"),
        (lambda: prox.lp(1.0, 2.5), ValueError, "2 - p must be >= 0"),
        (lambda: prox.firm(1.0, 0.5), ValueError, "mu - strength"),
        (lambda: prox.elastic_net(1.0, 1.5), ValueError, "1 - ratio"),
        (lambda: prox.huber(1.0, 0.0), ValueError, "delta"),
        (lambda: prox.log_sum(1.0, -1.0), ValueError, "eps"),
        (lambda: prox.box(1.0, 0.0), ValueError, "upper - lower"),
        (lambda: prox.sef(2.5), TypeError, "k must be an integer, got 2.5"),
        (lambda: prox.hard_k(True), TypeError, "k must be an integer"),
        (lambda: prox.k_support_norm(1.0, 0), ValueError, "k must be at least 1"),
        (lambda: prox.wgsef(2, axis=0, weights=np.array([1.0, 0.0])), ValueError, "weights"),
        (lambda: prox.slope(np.array([1.0, 2.0])), ValueError, "must not increase"),
        (lambda: prox.slope(1.0), ValueError, "must be a vector"),
        (lambda: prox.l1_minus_l2(1.0, 2.0), ValueError, "1 - alpha"),
        (lambda: prox.nm(2, 0), ValueError, "m must be at least 1"),
        (lambda: raw(prox.nm)(2, 4.0), TypeError, "m must be an integer"),
        (lambda: prox.nm(2, 4).prox(jnp.ones((6, 2))), ValueError, "divide"),
        (lambda: prox.half_space(np.zeros(3), 1.0), ValueError, "normal"),
        (lambda: prox.affine(np.ones((2, 3)), np.ones(3)), ValueError, r"\(2, 3\).*\(3,\)"),
        (lambda: prox.scale(prox.l1(1.0), -1.0), ValueError, "factor"),
        (lambda: raw(prox.scale)(0.1, 1.0), TypeError, "penalty must be a penalty"),
        (lambda: prox.conjugate(prox.mcp(1.0)), ValueError, "MCP is not convex"),
        (
            lambda: prox.nonneg(prox.l1_minus_l2(1.0)),
            ValueError,
            "L1MinusL2 must be non-decreasing",
        ),
        (lambda: prox.masked(prox.simplex(), True), ValueError, "Simplex must be non-decreasing"),
        (lambda: prox.on_norm(prox.box()), TypeError, "be non-decreasing in the modulus"),
        (
            lambda: prox.on_singular_values(prox.box()),
            TypeError,
            "be non-decreasing in the modulus",
        ),
        (lambda: prox.moreau_envelope(prox.l1(1.0), 0.0), ValueError, "smoothing"),
        (lambda: prox.separable_sum({"a": 0.1}), TypeError, "tree of penalties"),
        (lambda: prox.nested(), TypeError, "penalties must be penalties"),
        (lambda: raw(prox.concave)(jnp.log1p, 1.0), TypeError, "derivative must be a function"),
        (lambda: prox.l1(1.0).prox(jnp.ones(3), -0.5), ValueError, "step must be >= 0"),
        (lambda: prox.l1(1.0).prox({"a": jnp.ones(3)}), TypeError, "separable_sum"),
        (lambda: prox.box().prox(jnp.ones(3) * 1j), TypeError, "real numbers"),
        (lambda: prox.nuclear(1.0).prox(jnp.ones(3)), ValueError, "must be applied to a matrix"),
        (lambda: prox.l0(1.0).conjugate_value(jnp.ones(3)), NotImplementedError, "conjugate of L0"),
    ],
)
def test_errors_name_what_is_wrong(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.slow
def test_traced_numbers_are_not_checked():
    """Where nothing is known nothing is refused."""
    out = jax.jit(lambda s: prox.scad(s, 3.7 + s).prox(jnp.ones(2)))(0.5)
    assert out.shape == (2,)
    grads = jax.grad(lambda p: jnp.sum(p.prox(jnp.array([3.0]))))(prox.l1(1.0))
    assert grads.strength == -1
