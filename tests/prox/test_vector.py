"""Vector, group and matrix rows against textbook algorithms, certificates and enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import prox
from sparsejax.prox import _ordered
from tests.prox import _oracle as oracle

SCALES = (1e-3, 1.0, 1e3)


def rows(rng, scale, shape=(12, 9)):
    """Random vectors, some with ties and zeros."""
    x = rng.normal(size=shape) * scale
    x[1], x[2, :4], x[3] = np.round(x[1] / scale) * scale, x[2, 4], 0
    return x.astype(np.float32)


def objectives(value, u, x, step):
    u, x = np.asarray(u, np.float64), np.asarray(x, np.float64)
    return np.array([0.5 * np.sum((a - b) ** 2) + step * value(a) for a, b in zip(u, x)])


def excess(value, u, best, x, step):
    """Of rows of u over rows of the best, relative to the objective."""
    least = objectives(value, best, x, step)
    reached = objectives(value, u, x, step)
    return np.max((reached - least) / np.maximum(least, 1e-30), initial=0.0)


def exact(number):
    """A number that is the same in float32 and float64."""
    return float(np.float32(number))


@jax.jit
def solve(penalty, x, step):
    """One compilation for all strengths, k, weights and labels."""
    return penalty.prox(x, step)


def both_dtypes(penalty, x, step):
    """The operator in float32 and float64, each with the excess that is allowed."""
    single = np.asarray(solve(penalty, jnp.asarray(x), step))
    with jax.enable_x64(True):
        double = np.asarray(solve(penalty, jnp.asarray(x, jnp.float64), step))
    return (single, 2e-6), (double, 1e-12)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("step", [0.25, 1.0, 8.0])
def test_convex_rows(scale, step):
    """Against sorting, the min-max formula of isotonic regression, and Moreau's decomposition."""
    x = rows(np.random.default_rng(0), scale)
    strengths = np.linspace(1.0, 0.125, 9).astype(np.float32) * np.float32(scale)
    ranks = np.argsort(np.argsort(-np.abs(x), axis=1, kind="stable"), axis=1)
    falling = -np.sort(-np.abs(x.astype(np.float64)), axis=1)
    slopes = np.array([np.maximum(oracle.isotonic(s - step * strengths), 0) for s in falling])
    m = np.float64(np.float32(0.5 * scale)) * step
    table = {
        "linf": (
            prox.linf(0.5 * scale),
            lambda u: m / step * np.max(np.abs(u)),
            np.array([r - oracle.l1_ball(r, m) for r in x.astype(np.float64)]),
        ),
        "exclusive": (
            prox.exclusive_lasso(0.5, axis=1),
            lambda u: 0.25 * np.sum(np.abs(u)) ** 2,
            np.array([oracle.exclusive(r, 0.5 * step) for r in x.astype(np.float64)]),
        ),
        "slope": (
            prox.slope(strengths),
            lambda u: np.sum(np.sort(np.abs(u))[::-1] * strengths.astype(np.float64)),
            np.sign(x) * np.take_along_axis(slopes, ranks, 1),
        ),
    }
    for name, (penalty, value, best) in table.items():
        for u, tol in both_dtypes(penalty, x, step):
            assert excess(value, u, best, x, step) <= tol, name


@pytest.mark.parametrize("scale", SCALES)
def test_projections_on_balls(scale):
    x = rows(np.random.default_rng(1), scale)
    for radius in (0.0, 1e-3, 1.0, 100.0):
        for penalty, project in [
            (prox.l1_ball(radius), oracle.l1_ball),
            (prox.simplex(radius), oracle.simplex),
        ]:
            best = np.array([project(r, radius) for r in x.astype(np.float64)])
            for (u, _), eps in zip(both_dtypes(penalty, x, 1.0), (6e-8, 1.2e-16)):
                np.testing.assert_allclose(u, best, atol=8 * eps * (scale * 4 + radius))
            if penalty.value(jnp.asarray(u)) != 0:
                raise AssertionError((penalty, radius))


def test_the_simplex_is_exact_for_long_vectors():
    x = np.random.default_rng(2).normal(size=400_000).astype(np.float32) * 1e-3
    for radius in (1.0, 300.0):
        u = np.asarray(jax.jit(prox.simplex(radius).prox)(x), np.float64)
        np.testing.assert_allclose(u.sum(), radius, rtol=2e-6)


@pytest.mark.parametrize("k", [0, 1, 2, 4, 8, 9, 30])
@pytest.mark.parametrize("scale", SCALES)
def test_sparse_envelope(k, scale):
    """Value against the textbook's split, operator by a certificate in float64 NumPy."""
    x = rows(np.random.default_rng(3), scale)
    strength = exact(0.7)
    penalty = prox.sef(k, strength)
    value = lambda u: strength * oracle.envelope(u, k)  # noqa: E731
    for step in (0.125, 1.0, 30.0):
        (single, tol), (u, _) = both_dtypes(penalty, x, step)
        if k == 0:
            assert not np.any(u) and not np.any(single)
            assert penalty.value(x) == jnp.inf and penalty.value(x * 0) == 0
            continue
        w = x.astype(np.float64)
        y = (w - u) / step
        conjugate = np.array([oracle.envelope_conjugate(r, k) / strength for r in y])
        gap = np.array([value(r) for r in u]) + conjugate - np.sum(u * y, axis=1)
        assert np.max(step * gap / np.maximum(objectives(value, u, w, step), 1e-30)) <= 1e-12
        assert excess(value, single, u, x, step) <= tol
        assert np.all(np.sum(u != 0, 1) >= np.minimum(k, np.sum(w != 0, 1)))
        np.testing.assert_array_equal(single != 0, u != 0)
    if k == 0:
        return
    expected = sum(value(r) for r in x.astype(np.float64))
    np.testing.assert_allclose(penalty.value(x), expected, rtol=1e-6)


@jax.jit
def certificate(penalty, v, x, step):
    gap = prox.fenchel_young_gap(penalty, v, x, step)
    return gap, penalty.value(x), penalty.usage(x, step)


@pytest.mark.parametrize("scale", SCALES)
def test_weighted_group_envelope_certificate(scale):
    """Its own certificate in float64, and the condition under which it is exactly k-sparse."""
    rng = np.random.default_rng(4)
    labels = rng.permutation(np.arange(60) % 12)
    weights = 10 ** rng.uniform(-1, 1, 12)
    with jax.enable_x64(True):
        for k, step in itertools.product((1, 3, 7, 12), (1e-2, 1.0, 1e2)):
            x = rng.normal(size=60) * scale * (1 + 20 * (labels < 5))
            penalty = prox.wgsef(k, 0.3, groups=labels, weights=weights)
            v = solve(penalty, x, step)
            gap, value, u = certificate(penalty, v, x, step)
            assert abs(gap) <= 1e-12 * value
            np.testing.assert_allclose(jnp.sum(u), k, rtol=1e-12)
            factor = u / (0.3 * step * weights + u)
            np.testing.assert_allclose(v, x * np.asarray(factor)[labels], rtol=1e-11, atol=1e-300)
            small = prox.gsef(k, groups=labels)
            p = np.sort(np.asarray(jax.ops.segment_sum(x**2, labels, 12)) ** 0.5)[::-1]
            alive = np.unique(labels[np.asarray(solve(small, x, step)) != 0]).size
            if k < 12:
                assert (alive == k) == (p[k] * (1 + step) <= step * p[k - 1])


def test_envelope_on_wide_ranges():
    """Norms over six orders of magnitude: a certificate in float64, its objective in float32."""
    x = (10 ** np.random.default_rng(5).uniform(-3, 3, (10, 500))).astype(np.float32)
    for k, step in itertools.product((1, 20, 300), (2.0**-7, 1.0, 128.0)):
        (single, tol), (u, _) = both_dtypes(prox.sef(k), x, step)
        value = lambda v: oracle.envelope(v, k)  # noqa: B023, E731
        y = (x.astype(np.float64) - u) / step
        least = objectives(value, u, x, step)
        for v, w, bound in zip(u, y, least):
            gap = value(v) + oracle.envelope_conjugate(w, k) - v @ w
            assert step * gap <= 1e-12 * bound
        assert excess(value, single, u, x, step) <= tol


@pytest.mark.parametrize("k", [1, 2, 5, 9])
@pytest.mark.parametrize("scale", SCALES)
def test_k_support_norm(k, scale):
    x = rows(np.random.default_rng(6), scale)
    strength = exact(0.7 * scale)
    penalty = prox.k_support_norm(strength, k)
    value = lambda u: strength * np.sqrt(2 * oracle.envelope(u, k))  # noqa: E731
    for step in (0.125, 1.0, 5.0):
        (single, tol), (u, _) = both_dtypes(penalty, x, step)
        w = x.astype(np.float64)
        y = (w - u) / step
        dual = np.array([np.sqrt(2 * oracle.envelope_conjugate(r, k)) for r in y])
        assert np.all(dual <= strength * (1 + 1e-12))
        gap = np.array([value(r) for r in u]) - np.sum(u * y, axis=1)
        least = objectives(value, u, w, step)
        assert np.max(np.abs(step * gap) / np.maximum(least, 1e-30)) <= 1e-12
        assert excess(value, single, u, x, step) <= tol
    one, every = prox.k_support_norm(strength, 1), prox.k_support_norm(strength, 9)
    np.testing.assert_allclose(one.prox(x), prox.l1(strength).prox(x), atol=1e-6 * scale)
    np.testing.assert_allclose(every.prox(x), prox.l2(strength).prox(x), atol=2e-6 * scale)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_l1_minus_l2_against_a_dense_grid(alpha):
    rng = np.random.default_rng(7)
    x = rng.normal(size=(30, 3)) * np.array([0.5, 1.0, 3.0] * 10)[:, None]
    x[0] = x[1, 0]
    value = lambda u: np.sum(np.abs(u)) - alpha * np.linalg.norm(u)  # noqa: E731
    with jax.enable_x64(True):
        u = np.asarray(prox.l1_minus_l2(1.0, alpha).prox(jnp.asarray(x)))
    for v, w in zip(u, x):
        b = np.abs(w)
        # The operator may leave the box of b: by no more than alpha.
        centre, width = b / 2 + alpha / 2, (b.max() + alpha) * np.ones(3)
        for _ in range(14):
            axes = [
                np.append(np.clip(np.linspace(c - s, c + s, 17), 0, None), 0.0)
                for c, s in zip(centre, width)
            ]
            grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
            values = (
                0.5 * np.sum((grid - b) ** 2, 1)
                + grid.sum(1)
                - alpha * np.linalg.norm(grid, axis=1)
            )
            centre, width = grid[np.argmin(values)], width * 0.4
        assert 0.5 * np.sum((v - w) ** 2) + value(v) <= values.min() + 1e-9


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("m", [1e-3, 0.3, 10.0])
def test_total_variation_by_its_dual(scale, m):
    """The running sum of x - u is within m, 0 at the end, and at m with the sign of each step."""
    rng = np.random.default_rng(8)
    x = rng.normal(size=(5, 60)) * scale + np.repeat(rng.normal(size=(5, 6)), 10, 1) * 3 * scale
    x[0] = np.round(x[0] / scale) * scale
    limit = exact(m * scale)
    x = x.astype(np.float32)
    (single, tol), (u, _) = both_dtypes(prox.total_variation(limit), x, 1.0)
    w = x.astype(np.float64)
    z, steps = np.cumsum(w - u, axis=1), np.diff(u, axis=1)
    value = lambda r: limit * np.sum(np.abs(np.diff(r)))  # noqa: E731
    slack = 1e-13 * (limit + np.abs(w).max())
    assert np.abs(z).max() <= limit + slack and np.abs(z[:, -1]).max() <= slack
    gap = limit * np.sum(np.abs(steps), 1) + np.sum(z[:, :-1] * steps, 1)
    assert np.max(np.abs(gap) / objectives(value, u, w, 1.0)) <= 1e-12
    assert excess(value, single, u, x, 1.0) <= tol
    np.testing.assert_allclose(single.mean(1), w.mean(1), atol=1e-5 * scale)


@pytest.mark.slow
def test_total_variation_of_short_and_long_sequences():
    penalty = prox.total_variation(1.0)
    assert penalty.prox(jnp.zeros((2, 0))).shape == (2, 0)
    assert penalty.prox(jnp.array([3.0])).tolist() == [3.0]
    assert penalty.prox(jnp.array([3.0, -1.0])).tolist() == [2.0, 0.0]
    # The worst case of other direct algorithms: a ramp.
    x = jnp.linspace(0, 50, 3000)
    u = np.asarray(jax.jit(penalty.prox)(x))
    assert np.all(np.diff(u) >= 0) and abs(u.mean() - 25) < 1e-3
    np.testing.assert_allclose(np.cumsum(x - u).min(), -1.0, atol=0.02)


def subsets(n, k):
    return [list(s) for r in range(k + 1) for s in itertools.combinations(range(n), r)]


@pytest.mark.slow
def test_hard_counts_by_enumeration():
    """Best over all supports of at most k; of ties the one of lowest indices."""
    rng = np.random.default_rng(9)
    x = np.round(rng.normal(size=(20, 6)) * 2).astype(np.float32)
    for k in (-1, 0, 1, 3, 6, 9):
        u = np.asarray(solve(prox.hard_k(k), x, 1.0))
        for v, w in zip(u, x):
            options = subsets(6, min(max(k, 0), 6))
            kept = max(np.sum(w[s] ** 2) for s in options)
            assert np.sum(v**2) == kept and np.sum(v != 0) <= max(k, 0)
            assert np.all((v == w) | (v == 0))
            order = np.argsort(-np.abs(w), kind="stable")[: max(k, 0)]
            assert set(np.nonzero(v)[0]) <= set(order)
    flat = np.asarray(prox.hard_k(5, axis=None).prox(x))
    best = np.argsort(-np.abs(x).ravel(), kind="stable")[:5]
    assert set(np.nonzero(flat.ravel())[0]) == set(best)
    columns = np.asarray(prox.hard_k(2, axis=0).prox(x))
    np.testing.assert_array_equal(columns, np.asarray(prox.hard_k(2).prox(x.T)).T)


def test_nm_keeps_n_of_each_m_along_the_contraction():
    x = np.random.default_rng(10).normal(size=(8, 5)).astype(np.float32)
    u = np.asarray(prox.nm(2, 4).prox(x))
    groups, kept = x.reshape(2, 4, 5), u.reshape(2, 4, 5)
    assert np.all(np.sum(kept != 0, 1) == 2)
    best = np.sum(np.sort(groups**2, 1)[:, 2:], 1)
    np.testing.assert_allclose(np.sum(kept**2, 1), best, rtol=1e-6)
    with pytest.raises(ValueError, match="divide"):
        prox.nm(2, 3).prox(x)
    with pytest.raises(ValueError, match="ambiguous.*axis=0"):
        prox.nm(2, 4).prox(jnp.ones((4, 2, 2)))


def test_group_hard_k_by_enumeration():
    rng = np.random.default_rng(11)
    labels, weights = np.array([0, 0, 1, 1, 1, 2, 3, 3]), np.array([1.0, 4.0, 0.25, 1.0])
    for k in (0, 1, 2, 4):
        x = rng.normal(size=8).astype(np.float32)
        u = np.asarray(prox.group_hard_k(k, groups=labels, weights=weights).prox(x))
        power = np.array([weights[g] * np.sum(x[labels == g] ** 2) for g in range(4)])
        kept = sum(power[g] for g in set(labels[u != 0]))
        np.testing.assert_allclose(kept, max(sum(power[s]) for s in subsets(4, k)), rtol=1e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_group_norms_by_the_scalar_operator(scale):
    """Parallel to the point, and the length is the scalar minimiser, for every inner penalty."""
    rng = np.random.default_rng(12)
    x, labels = rng.normal(size=30) * scale, np.arange(30) % 7
    weights = np.linspace(0, 2, 7)
    with jax.enable_x64(True):
        for inner in (
            prox.mcp(0.3 * scale, 2.0),
            prox.lp(0.3, 0.5),
            prox.l0(0.1 * scale**2),
            prox.scad(0.3 * scale, 3.0),
            prox.cel0(0.2 * scale**2),
        ):
            for step in (0.5, 4.0):
                penalty = prox.on_norm(inner, groups=labels, weights=weights)
                u = np.asarray(solve(penalty, x, step))
                for g in range(7):
                    norm = np.linalg.norm(x[labels == g])
                    length = float(inner.prox(jnp.asarray(norm), step * weights[g]))
                    expected = x[labels == g] * length / norm
                    np.testing.assert_allclose(u[labels == g], expected, rtol=1e-12, atol=1e-300)


def test_sparse_group_lasso_by_its_optimality_conditions():
    rng = np.random.default_rng(13)
    labels, a, b = np.arange(40) % 8, 0.3, 0.8
    x = rng.normal(size=40)
    with jax.enable_x64(True):
        penalty = prox.sparse_group_lasso(a, b, groups=labels, weights=1.0)
        u = np.asarray(penalty.prox(x, 1.0))
    y = x - u
    assert 0 < np.sum(u != 0) < 40
    for g in range(8):
        v, w = u[labels == g], y[labels == g]
        if not np.any(v):
            assert np.linalg.norm(np.maximum(np.abs(w) - a, 0)) <= b + 1e-12
            continue
        pull = b * v / np.linalg.norm(v)
        np.testing.assert_allclose(w[v != 0], (a * np.sign(v) + pull)[v != 0], atol=1e-12)
        assert np.all(np.abs(w[v == 0]) <= a + 1e-12)


@pytest.mark.slow
def test_planes_by_the_variational_inequality():
    """`<x - p, z - p> <= 0` for every z in the set."""
    rng = np.random.default_rng(14)
    normal, matrix = rng.normal(size=6), rng.normal(size=(2, 6))
    with jax.enable_x64(True):
        for penalty in (
            prox.half_space(normal, 0.3),
            prox.hyperplane(normal, 0.3),
            prox.affine(matrix, np.array([1.0, 2.0])),
            prox.l2_ball(0.8),
            prox.box(-0.3, 0.4),
        ):
            others = jax.jit(jax.vmap(penalty.prox))(rng.normal(size=(200, 6)) * 3)
            for x in rng.normal(size=(10, 6)) * 3:
                p = solve(penalty, x, 1.0)
                assert penalty.value(p) == 0
                assert jnp.max((others - p) @ (x - p)) <= 1e-12
    twice = np.vstack([matrix, matrix])
    dependent = prox.affine(twice, np.array([1.0, 2.0, 1.0, 2.0]))
    simple = prox.affine(matrix, np.array([1.0, 2.0]))
    x = np.float32(rng.normal(size=6))
    np.testing.assert_allclose(dependent.prox(x), simple.prox(x), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (2, 4, 4)])
def test_singular_values(shape):
    x = np.random.default_rng(15).normal(size=shape)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    with jax.enable_x64(True):
        for penalty, moved in [
            (prox.nuclear(0.5), np.maximum(s - 0.5, 0)),
            (prox.rank(0.5), np.where(s > 1, s, 0)),
            (prox.max_rank(2), s * (np.arange(s.shape[-1]) < 2)),
        ]:
            np.testing.assert_allclose(penalty.prox(x), (u * moved[..., None, :]) @ vt, atol=1e-12)
        np.testing.assert_allclose(prox.nuclear(0.5).value(x), 0.5 * s.sum(), rtol=1e-12)
        polar = jax.grad(prox.nuclear(0.5).value)(jnp.asarray(x))
        np.testing.assert_allclose(polar, 0.5 * u @ vt, atol=1e-12)


@pytest.mark.parametrize("diagonal", [[3.0, 3.0, 3.0], [3.0, 3.0, 0.1], [2.0, 0.0, 0.0]])
def test_derivative_where_singular_values_meet(diagonal):
    """Singular vectors have no derivative there, the soft threshold has."""
    rng = np.random.default_rng(16)
    with jax.enable_x64(True):
        q, _ = np.linalg.qr(rng.normal(size=(5, 3)))
        r, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        x, d = jnp.asarray(q @ np.diag(diagonal) @ r.T), jnp.asarray(rng.normal(size=(5, 3)))
        solve = jax.jit(prox.nuclear(1.0).prox)
        _, tangent = jax.jvp(solve, (x,), (d,))
        slope = (solve(x + 1e-6 * d) - solve(x - 1e-6 * d)) / 2e-6
        np.testing.assert_allclose(tangent, slope, atol=1e-6)
        back = jax.vjp(solve, x)[1](tangent)[0]
        np.testing.assert_allclose(jnp.vdot(back, d), jnp.vdot(tangent, tangent), rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_order_is_that_of_a_stable_sort(dtype):
    rng = np.random.default_rng(0)
    with jax.enable_x64(dtype == np.float64):
        for shape in ((1,), (2, 50), (3, 2, 7)):
            b = np.abs(rng.standard_cauchy(shape).astype(dtype) ** 3).round(1)
            b[..., 0], b[..., -1] = np.inf, np.finfo(dtype).tiny
            b[b == 0] = -0.0
            found = jax.jit(_ordered.descending)(jnp.asarray(b))
            np.testing.assert_array_equal(found, np.argsort(-b, -1, kind="stable"))


@pytest.mark.parametrize("kind", ["noise", "rising", "steps", "heavy", "ties"])
def test_isotonic_against_pooling_one_by_one(kind):
    rng, n = np.random.default_rng(1), 150
    z = {
        "noise": rng.normal(size=n),
        "rising": np.arange(n) ** 2.0,
        "steps": np.repeat(rng.normal(size=n // 50), 50),
        "heavy": rng.standard_cauchy(n) ** 3,
        "ties": rng.integers(0, 3, n).astype(float),
    }[kind]
    with jax.enable_x64(True):
        found = jax.jit(_ordered.isotonic)(jnp.asarray(np.stack([z, -z, z[::-1]])))
    for one, row in zip(found, (z, -z, z[::-1])):
        np.testing.assert_allclose(one, oracle.isotonic(row), atol=1e-12 * np.abs(z).max())
