"""Unmixing against NumPy, SciPy and enumeration, its descent, and bad channels."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize, nnls

from sparsejax.contrib import unmixing
from sparsejax.contrib.unmixing._unmix import update_abundances, update_endmembers
from sparsejax.solve import Result
from tests.contrib.unmixing._scene import scene


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def factors(seed=0, channels=9, k=3, pixels=40):
    rng = np.random.default_rng(seed)
    m, a = rng.uniform(0.1, 1, (channels, k)), rng.dirichlet(np.ones(k), pixels).T
    y = m @ a + rng.uniform(0, 0.05, (channels, pixels))
    return map(jnp.asarray, (y, rng.uniform(0.1, 1, (channels, k)), a, rng.uniform(0, 0.8, pixels)))


@pytest.mark.parametrize("robust", [True, False])
def test_updates_do_not_increase_the_objective(double, robust):
    y, m, a, h = factors()
    strength, path = 0.05, []

    def objective(m, a):
        norms = np.linalg.norm(y - m @ a, axis=1)
        return (norms.sum() if robust else (norms**2).sum() / 2) + strength * (a ** (1 - h)).sum()

    for _ in range(40):
        u = unmixing.irls_weights(y - m @ a) if robust else jnp.ones(9)
        path.append(objective(m, a))
        a = update_abundances(y, m, a, u, h, strength)
        path.append(objective(m, a))
        m = update_endmembers(y, m, a)
    assert np.all(np.diff(path) <= 1e-6) and path[-1] < 0.9 * path[0]


def test_abundances_are_the_minimiser_of_the_surrogate(double):
    """The surrogate is a quadratic with diagonal curvature for each entry, minimised by SciPy."""
    y, m, a, h = factors(1, pixels=4)
    u = unmixing.irls_weights(y - m @ a)
    new = update_abundances(y, m, a, u, h * 0, 0.0, 0.0)
    y, m, a, u = map(np.asarray, (y, m, a, u))
    push = (m * u[:, None]).T @ m @ a
    gradient = push - (m * u[:, None]).T @ y
    for i, j in itertools.product(range(3), range(4)):
        curve = push[i, j] / a[i, j]
        surrogate = lambda x: gradient[i, j] * (x - a[i, j]) + curve * (x - a[i, j]) ** 2 / 2  # noqa: B023, E731
        best = minimize(surrogate, a[i, j], bounds=[(0, None)], tol=1e-14).x[0]
        np.testing.assert_allclose(new[i, j], best, atol=1e-6)


def test_channel_weights_would_cancel_in_the_endmembers(double):
    y, m, a, _ = factors(2)
    u = jnp.linspace(0.1, 9, 9)[:, None]
    weighted = m * ((u * y) @ a.T) / ((u * (m @ a)) @ a.T)
    np.testing.assert_allclose(update_endmembers(y, m, a), weighted, rtol=1e-12)


def test_copies_of_the_pixels_with_a_strength_of_one_over_root(double):
    y, m, a, h = factors(3)
    u = unmixing.irls_weights(y - m @ a)
    once = update_abundances(y, m, a, u, h, 0.08, 1.0)
    many = [jnp.tile(x, (1, 4)) for x in (y, a)]
    u4 = unmixing.irls_weights(many[0] - m @ many[1])
    four = update_abundances(many[0], m, many[1], u4, jnp.tile(h, 4), 0.04, 1.0)
    np.testing.assert_allclose(four[:, :40], once, rtol=1e-10)


def test_fcls_is_non_negative_least_squares_with_a_row_for_the_sum(double):
    y, m, _, _ = factors(4, pixels=5)
    shares = unmixing.fcls(y, m, weight=2.0, steps=30_000)
    system = np.vstack([m, np.full((1, 3), 2.0)])
    for pixel, share in zip(np.asarray(y).T, np.asarray(shares).T):
        expected, _ = nnls(system, np.append(pixel, 2.0))
        np.testing.assert_allclose(share, expected, atol=1e-3)
    np.testing.assert_allclose(unmixing.fcls(y, m).sum(0), 1, atol=0.02)


@pytest.mark.slow
def test_pure_pixels_are_found():
    rng = np.random.default_rng(5)
    spectra = rng.uniform(0, 1, (20, 4))
    shares = rng.dirichlet(np.ones(4), 200).T
    corners = [3, 50, 120, 199]
    shares[:, corners] = np.eye(4)
    y = jnp.asarray(spectra @ shares, jnp.float32)
    assert sorted(unmixing.spa(y, 4).tolist()) == corners
    assert sorted(unmixing.pure_pixels(y, 4).tolist()) == corners
    several = jax.vmap(lambda key: unmixing.vca(y, 4, key=key))(
        jax.random.split(jax.random.key(0), 5)
    )
    assert np.sort(several, 1).tolist() == [corners] * 5
    noisy = y + 0.05 * jax.random.normal(jax.random.key(1), y.shape)
    found = unmixing.vca(noisy, 4, key=jax.random.key(0))  # the other projection, around the mean
    assert (shares[:, np.asarray(found)].max(0) > 0.6).all()
    # Outlier channels mislead SPA on all channels.
    y = y.at[7].set(jax.random.uniform(jax.random.key(2), (200,), maxval=9.0))
    assert not unmixing.clean_channels(y)[7] and unmixing.clean_channels(y).sum() >= 17
    assert sorted(unmixing.spa(y, 4).tolist()) != corners


def test_noise_of_a_channel_is_the_error_of_its_regression(double):
    y, _, _, _ = factors(6, pixels=300)
    y = np.asarray(y)
    c = y @ y.T / 300 + 1e-3 * np.trace(y @ y.T / 300) / 9 * np.eye(9)
    for i, std in enumerate(unmixing.channel_noise(jnp.asarray(y))):
        rest = np.delete(np.arange(9), i)
        slope = np.linalg.solve(c[np.ix_(rest, rest)], c[rest, i])
        np.testing.assert_allclose(std**2, c[i, i] - c[i, rest] @ slope, rtol=1e-9)


def test_errors_do_not_depend_on_the_order():
    rng = np.random.default_rng(7)
    spectra, shares = rng.uniform(0, 1, (10, 4)), rng.dirichlet(np.ones(4), 30).T
    order = rng.permutation(4)
    noisy = spectra + 0.05 * rng.normal(size=spectra.shape)
    errors = unmixing.unmixing_errors(noisy[:, order], shares[order], spectra, shares)
    cosine = (noisy * spectra).sum(0) / np.linalg.norm(noisy, axis=0)
    expected = np.arccos(cosine / np.linalg.norm(spectra, axis=0))
    best = min(
        np.mean(
            [float(unmixing.spectral_angle(noisy[:, j], spectra[:, i])) for i, j in enumerate(p)]
        )
        for p in itertools.permutations(range(4))
    )
    np.testing.assert_allclose(errors.angles, expected, atol=1e-5)
    np.testing.assert_allclose(errors.angles.mean(), best, rtol=1e-5)
    np.testing.assert_allclose(errors.rmse, 0, atol=1e-7)
    assert order[errors.order].tolist() == [0, 1, 2, 3]
    tiny = unmixing.spectral_angle(jnp.array([1.0, 0.0]), jnp.array([1.0, 1e-6]))
    np.testing.assert_allclose(tiny, 1e-6, rtol=1e-4)


@pytest.mark.parametrize("wrong", [((4, 3), (3, 5)), ((4, 2), (3, 5)), ((3, 2), (2, 5))])
def test_errors_of_other_shapes_are_refused(wrong):
    unchecked = unmixing.unmixing_errors.__wrapped__  # without the tests' own check of shapes
    given = [np.ones(shape) for shape in wrong]
    with pytest.raises(ValueError, match="of the same k are needed"):
        unchecked(*given, np.ones((4, 2)), np.ones((2, 5)))


def test_sparsity_of_hoyer_and_guidance():
    x = jnp.array([[2.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [3, 4, 0, 0]])
    np.testing.assert_allclose(unmixing.hoyer_sparsity(x), [1, 0, 0, 2 - 1.4], atol=1e-6)
    assert unmixing.hoyer_sparsity(jnp.ones((3, 1))).tolist() == [0, 0, 0]
    image = jnp.zeros((6, 6, 2)).at[:, 3:].set(1.0)
    h = unmixing.spatial_guidance(image, 0.1).reshape(6, 6)
    np.testing.assert_allclose(h[:, [0, 1, 4, 5]], 0.8, atol=1e-6)
    np.testing.assert_allclose(h[2, 2], 5 / 8, atol=1e-6)


@pytest.mark.slow
def test_edge_cases_and_results():
    y, _, _, _ = factors(8)
    y = y.astype(jnp.float32)
    short = functools.partial(unmixing.unmix, max_steps=40, tol=1e-6, throw=False)
    one = short(y, 1).value
    assert (one.guidance == 0).all() and jnp.isfinite(one.endmembers).all()
    dark = short(y.at[:, 0].set(-1.0), 3).value
    assert jnp.isfinite(dark.abundances).all() and dark.abundances.min() >= 0
    fixed = short(y, 3, guidance=jnp.full(40, 0.5))
    assert (fixed.value.guidance == 0.5).all() and fixed.stats["n_iter"] == 40
    assert fixed.result == Result.MAX_STEPS
    with pytest.raises(RuntimeError, match="unmix: the tolerance was not reached"):
        short(y, 3, throw=True)
    done = unmixing.unmix(y, 3, 0.0, robust=False, tol=1e-2)
    steps, objective = done.stats["n_iter"], done.stats["objective"]
    assert done.result == Result.SUCCESSFUL and steps < 300
    assert (objective[int(steps) :] == objective[-1]).all()
    again = unmixing.unmix(y, 3, 0.0, robust=False, tol=1e-2, w0=done.value.endmembers)
    assert again.stats["objective"][-1] < objective[0]
    nan = jax.jit(lambda y: unmixing.unmix(y, 3, throw=False).result)(y.at[0, 0].set(jnp.nan))
    assert nan == Result.NONFINITE
    with pytest.raises(ValueError, match="channels, pixels"):
        unmixing.unmix(y, 41)
    with pytest.raises(ValueError, match="spa"):
        unmixing.spa(y, 10)


@pytest.mark.slow
def test_bad_channels_do_not_mislead():
    """Twelve scenes with 12 of 120 outlier channels, and twelve without."""
    compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    limits = {"tol": 1e-6, "max_steps": 300}
    runs = {
        "nmf": compiled(jax.vmap(lambda y: unmixing.unmix(y, 4, 0.0, robust=False, **limits))),
        "robust": compiled(jax.vmap(lambda y: unmixing.unmix(y, 4, **limits))),
    }
    mean = {}
    for outliers in (0.0, 1.5):
        scenes = [scene(seed, outliers) for seed in range(12)]
        pixels = jnp.stack([pixels for pixels, *_ in scenes])
        for name, run in runs.items():
            fits = run(pixels).value
            errors = [
                unmixing.unmixing_errors(m[good], a, spectra[good], shares)
                for m, a, (_, spectra, shares, good) in zip(
                    np.asarray(fits.endmembers), fits.abundances, scenes
                )
            ]
            angles, rmse = (np.mean([getattr(e, n) for e in errors]) for n in ("angles", "rmse"))
            mean[name, outliers] = np.array([angles, rmse])
    print(mean)
    assert (mean["robust", 1.5] <= 0.65 * mean["nmf", 1.5]).all()
    assert (mean["robust", 0.0] <= 1.1 * mean["nmf", 0.0]).all()
