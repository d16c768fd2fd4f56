"""What every penalty promises, for every penalty."""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import prox
from tests.conformance._penalties import CASES, IDS, draw

# Compilation is what these tests take: without the optimiser of the machine code it is faster.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
# What depends on the code and not on the numbers is tested once for each class.
_first = {
    (type(c.penalty), type(getattr(c.penalty, "penalty", None)), str(c.shape)): c
    for c in reversed(CASES)
}
once = pytest.mark.parametrize("case", _first.values(), ids=lambda c: c.name)
every = pytest.mark.parametrize("case", CASES, ids=IDS)
# What is no penalty, or takes other arguments than penalties do.
NOT_A_FACTORY = {
    "fenchel_young_gap", "firm_threshold", "group_labels", "hard_threshold", "soft_threshold",
}  # fmt: skip


def close(a, b, rtol, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def finite(tree):
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree))


def astype(tree, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def dtypes(tree):
    return {leaf.dtype for leaf in jax.tree.leaves(tree)}


def objective(penalty, u, v, step):
    gaps = jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2) / 2, u, v))
    return sum(gaps) + step * penalty.value(u)


def test_every_factory_is_in_the_table():
    factories = {name for name in prox.__all__ if inspect.isfunction(getattr(prox, name))}
    assert factories - NOT_A_FACTORY == {case.name for case in CASES}


def test_two_penalties_are_never_one_structure():
    """A jitted function would run what it has compiled for the other one."""
    trees = {type(case.penalty): jax.tree.structure(case.penalty) for case in CASES}
    for one, other in itertools.combinations(trees, 2):
        assert trees[one] != trees[other], (one, other)
    inner = prox.lp(0.5, 0.5), prox.cel0(0.5, 0.5), prox.scad(0.5, 2.5), prox.mcp(0.5, 2.5)
    inside = [jax.tree.structure(prox.on_norm(penalty, axis=0)) for penalty in inner]
    assert all(a != b for a, b in itertools.combinations(inside, 2))
    assert jax.tree.structure(prox.lp(1.0, 0.5)) == jax.tree.structure(prox.lp(2.0, 0.3))
    assert jax.tree.structure(prox.l1(jnp.ones(3))) != jax.tree.structure(prox.l0(jnp.ones(3)))


@every
def test_no_competitor_is_better(case):
    """Against the point, 0, blends, other steps and noise: no objective is lower."""
    rng = np.random.default_rng(1)
    noise = jnp.asarray([0.0, 0.0, 0.0, 0.0, 1e-2, 1e-2, 0.1, 0.1, 1.0, 1.0])
    shares = jnp.asarray([0.0, 1.0, 0.5, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])

    @compiled
    def compare(v, step, random):
        u = case.penalty.prox(v, step)
        other = case.penalty.prox(v, 0.5 * step)

        def at(share, sigma, random):
            mixed = jax.tree.map(
                lambda a, b, r: share * a + (1 - share) * b + sigma * r, u, v, random
            )
            # Something else in the domain, near the minimiser.
            inside = case.penalty.prox(mixed, 0.1 * step)
            return jnp.stack([objective(case.penalty, w, v, step) for w in (mixed, inside)])

        best = objective(case.penalty, u, v, step)
        rest = jax.vmap(at)(shares, noise, random)
        zero = objective(case.penalty, jax.tree.map(jnp.zeros_like, v), v, step)
        return best, jnp.minimum(jnp.nanmin(rest), zero), objective(case.penalty, other, v, step)

    with jax.enable_x64(True):
        for step, scale in [(1.0, 1.0), (0.1, 1.0), (3.0, 2.0), (30.0, 10.0)]:
            v = draw(case.shape, rng, np.float64, scale)
            random = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=(10, *leaf.shape))), v)
            best, others, less = compare(v, step, random)
            assert np.isfinite(best)
            assert best <= min(others, less) * (1 + 1e-9) + 1e-12


@once
def test_float32_agrees_with_float64_and_low_dtypes_round_it(case):
    def solve(v):
        return case.penalty.prox(v, 1.5), case.penalty.value(v)

    v = draw(case.shape, np.random.default_rng(2))
    v = astype(v, jnp.bfloat16)
    v = astype(v, jnp.float32)
    single, value = compiled(solve)(v)
    with jax.enable_x64(True):
        # float32 is not promoted, though numbers of the penalty could be float64 here.
        both = compiled(lambda v, w: (solve(v), solve(w)))
        (again, _), (double, exact) = both(v, astype(v, jnp.float64))
        assert dtypes(again) == {jnp.dtype(jnp.float32)}
        assert dtypes(double) == dtypes(exact) == {jnp.dtype(jnp.float64)}
    close(single, double, 2e-5, 2e-5)
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    assert value.dtype == jnp.float32 and value.shape == ()
    low = compiled(lambda v, w: (solve(v), solve(w)))
    for out in low(astype(v, jnp.bfloat16), astype(v, jnp.float16)):
        (dtype,) = dtypes(out[0])
        assert dtype in (jnp.bfloat16, jnp.float16) and out[1].dtype == jnp.float32
        # float32 inside and one rounding at the end: zeros stay exact.
        for a, b in zip(jax.tree.leaves(out[0]), jax.tree.leaves(single)):
            assert jnp.all((a == 0) == (b.astype(dtype) == 0))
            np.testing.assert_allclose(a, b, rtol=float(jnp.finfo(dtype).eps), atol=1e-6)


@once
def test_one_compilation_for_all_strengths_and_maps_over_them(case):
    compiles = []

    @compiled
    def solve(penalty, v):
        compiles.append(1)
        return penalty.prox(v, 0.9)

    rng = np.random.default_rng(3)
    v, w = draw(case.shape, rng), draw(case.shape, rng)
    number = lambda n: jnp.issubdtype(jnp.result_type(n), jnp.floating)  # noqa: E731
    less = jax.tree.map(lambda n: n * 0.9 if number(n) else n, case.penalty)
    alone = solve(case.penalty, v), solve(less, w)
    assert len(compiles) == 1
    stack = lambda m, n: jnp.stack([jnp.asarray(m), jnp.asarray(n)])  # noqa: E731
    mapped = compiled(jax.vmap(lambda p, v: p.prox(v, 0.9)))(
        jax.tree.map(stack, case.penalty, less), jax.tree.map(stack, v, w)
    )
    close(mapped, jax.tree.map(stack, *alone), 1e-5, 1e-5)


@every
def test_gradients_are_finite_everywhere(case):
    """At a point, at 0, at ties, with a step of 0; of the value and through the operator."""
    v = draw(case.shape, np.random.default_rng(4))
    numbers, treedef = jax.tree.flatten(case.penalty)
    floating = [
        i for i, n in enumerate(numbers) if jnp.issubdtype(jnp.result_type(n), jnp.floating)
    ]

    def through(v, step, floats):
        leaves = list(numbers)
        for i, number in zip(floating, floats):
            leaves[i] = number
        penalty = jax.tree.unflatten(treedef, leaves)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(penalty.prox(v, step)))

    floats = [jnp.asarray(numbers[i], jnp.float32) for i in floating]
    grad = compiled(jax.grad(through, (0, 1, 2)))
    value_grad = compiled(jax.grad(case.penalty.value))
    zero = jax.tree.map(jnp.zeros_like, v)
    ties = jax.tree.map(lambda leaf: jnp.sign(leaf) * 0.7, v)
    for point in (v, zero, ties):
        for step in (1.0, 0.0, 50.0):
            assert finite(grad(point, step, floats)), (step, point)
        if not case.indicator:
            assert finite(value_grad(point)), point


@every
def test_derivative_is_that_of_differences(case):
    """In the point and in the step together."""
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        v, direction = (draw(case.shape, rng, np.float64, 1.5) for _ in range(2))

        def along(h):
            return case.penalty.prox(jax.tree.map(lambda a, b: a + h * b, v, direction), 0.8 + h)

        both = compiled(lambda h: jax.jvp(along, (h,), (1.0,)))
        tangent, ahead, behind = both(0.0)[1], both(1e-6)[0], both(-1e-6)[0]
        slope = jax.tree.map(lambda a, b: (a - b) / 2e-6, ahead, behind)
        close(tangent, slope, 1e-4, 1e-5)


@once
def test_numbers_at_the_edges(case):
    both = compiled(lambda v, step: (case.penalty.prox(v, step), case.penalty.value(v)))
    solve = lambda v, step: both(v, step)[0]  # noqa: E731
    v = draw(case.shape, np.random.default_rng(6))
    flat, treedef = jax.tree.flatten(v)
    assert finite(solve(jax.tree.map(lambda leaf: leaf * 1e30, v), 1.0))
    assert finite(solve(jax.tree.map(lambda leaf: leaf * 1e-40, v), 1.0))
    negative_zero = solve(jax.tree.map(lambda leaf: leaf * 0 - 0.0, v), 1.0)
    zero = solve(jax.tree.map(jnp.zeros_like, v), 1.0)
    close(negative_zero, zero, 0, 0)
    if case.centred:
        assert not any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(zero))
    # NaN stays where it is, and in the value; a step of NaN spares no entry.
    flat[0] = flat[0].at[(0,) * flat[0].ndim].set(jnp.nan)
    out, value = both(jax.tree.unflatten(treedef, flat), 1.0)
    assert jnp.isnan(jax.tree.leaves(out)[0][(0,) * flat[0].ndim])
    assert jnp.isnan(value) or case.name == "masked"  # whose first entry is off the mask
    lost = jax.tree.leaves(solve(v, jnp.nan))
    assert case.indicator or all(jnp.isnan(leaf).any() for leaf in lost[:2])


@every
def test_weak_convexity(case):
    """`f + rho/2 ||x||^2` is convex along segments, and with less it is not."""
    rho = case.penalty.weak_convexity
    rho = float(np.max(np.asarray(rho)))
    assert (rho == 0) == case.convex
    if not np.isfinite(rho) or case.indicator:
        return
    rng = np.random.default_rng(8)

    @compiled
    def bend(a, b, rho):
        def f(x):
            return case.penalty.value(x) + rho / 2 * sum(jnp.sum(y**2) for y in jax.tree.leaves(x))

        middle = jax.tree.map(lambda a, b: (a + b) / 2, a, b)
        return f(a) + f(b) - 2 * f(middle)

    with jax.enable_x64(True):
        pairs = [
            [draw(case.shape, rng, np.float64, scale) for _ in range(2)]
            for scale in (0.03, 0.3, 3.0)
            for _ in range(20)
        ]
        if case.name == "nonneg":
            pairs = jax.tree.map(jnp.abs, pairs)
        assert min(float(bend(a, b, rho)) for a, b in pairs) >= -1e-12
        if rho > 0 and case.name != "moreau_envelope":
            unit = jnp.eye(int(np.prod(case.shape))).reshape(-1, *case.shape)
            near = [c * one for one in unit for c in (0.02, 0.2, 0.8)]
            assert min(float(bend(x, 1.01 * x, 0.8 * rho)) for x in near) < 0


@once
def test_complex_by_modulus_and_phase(case):
    v = draw(case.shape, np.random.default_rng(9))
    phase = np.complex64(np.exp(0.7j))
    turned = jax.tree.map(lambda leaf: leaf * phase, v)
    if not case.complex:
        if not case.penalty.takes_complex:
            with pytest.raises(TypeError, match="real numbers"):
                case.penalty.prox(turned)
        return

    @compiled
    def solve(v, turned):
        real = case.penalty.prox(v, 0.8), case.penalty.value(v)
        zero = jax.tree.map(jnp.zeros_like, turned)
        grad = zero if case.indicator else jax.grad(case.penalty.value)(zero)
        return real, (case.penalty.prox(turned, 0.8), case.penalty.value(turned)), grad

    (real, value), (out, turned_value), grad = solve(v, turned)
    assert dtypes(out) == {jnp.dtype(jnp.complex64)}
    close(out, jax.tree.map(lambda u: u * phase, real), 1e-4, 1e-5)
    np.testing.assert_allclose(turned_value, value, rtol=1e-5)
    assert turned_value.dtype == jnp.float32
    assert finite(grad)


@once
def test_one_step_or_a_step_per_entry(case):
    v = draw(case.shape, np.random.default_rng(10))
    if isinstance(v, dict):
        return
    steps = jnp.linspace(0.1, 2.0, v.size).reshape(v.shape)
    if not case.penalty.elementwise:
        with pytest.raises(ValueError, match="requires a scalar step"):
            case.penalty.prox(v, steps)
        return
    moved = case.penalty.prox(v, steps)
    for index in (0, v.size // 2, v.size - 1):
        alone = case.penalty.prox(v, steps.reshape(-1)[index])
        np.testing.assert_allclose(moved.reshape(-1)[index], alone.reshape(-1)[index], rtol=1e-6)


@pytest.mark.parametrize("case", [c for c in CASES if c.indicator], ids=lambda c: c.name)
def test_projections_land_in_their_set_and_stay_there(case):
    """Up to the rounding of each dtype, while other points are outside."""

    @compiled
    def solve(v):
        u = case.penalty.prox(v)
        return u, case.penalty.prox(u), case.penalty.value(u), case.penalty.value(v)

    for dtype in (np.float32, jnp.bfloat16):
        u, again, value, before = solve(draw(case.shape, np.random.default_rng(11), dtype, 3.0))
        assert value == 0 and before == jnp.inf
        if dtype == np.float32:
            close(again, u, 1e-5, 1e-6)


@once
def test_within_shard_map(case):
    # Devices hold different numbers: loops must not start with constants that all share.
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    v = draw(case.shape, np.random.default_rng(0))
    both = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), v)

    def own(rows):
        u = case.penalty.prox(jax.tree.map(lambda x: x[0], rows))
        return jax.tree.map(lambda x: x[None], u)

    spec = jax.sharding.PartitionSpec("rows")
    found = compiled(jax.shard_map(own, mesh=mesh, in_specs=spec, out_specs=spec))(both)
    expected = case.penalty.prox(jax.tree.map(lambda x: x[1], both))
    close(jax.tree.map(lambda x: x[1], found), expected, 1e-4, 1e-5)


@once
def test_on_explicit_meshes(case):
    if isinstance(case.shape, dict):
        pytest.skip("leaves are proximal operators of their own")
    mesh = jax.make_mesh((2,), ("a",), axis_types=(jax.sharding.AxisType.Explicit,))
    v = draw(case.shape, np.random.default_rng(0))
    for axis in (i for i in range(v.ndim) if v.shape[i] % 2 == 0):
        spec = jax.sharding.PartitionSpec(*["a" if i == axis else None for i in range(v.ndim)])
        x = jax.device_put(v, jax.sharding.NamedSharding(mesh, spec))
        with jax.set_mesh(mesh):
            u, value = compiled(lambda x: (case.penalty.prox(x), case.penalty.value(x)))(x)
        assert u.sharding.is_equivalent_to(x.sharding, u.ndim)
        close(jax.device_get((u, value)), (case.penalty.prox(v), case.penalty.value(v)), 1e-4, 1e-5)
