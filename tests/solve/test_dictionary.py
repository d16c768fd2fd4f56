"""Sparse coding against scikit-learn, enumeration and step-by-step NumPy; tuning of gratings."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Lasso

from sparsejax import prox, solve
from sparsejax.contrib import receptive_fields

PENALTIES = {
    "l1": prox.l1(0.3),
    "l_half": prox.l_half(0.3),
    "l0": prox.l0(0.3),
    "cel0": prox.cel0(0.3),
}


def problem(batch=6, pixels=8, atoms=14, seed=0):
    rng = np.random.default_rng(seed)
    dictionary = rng.normal(size=(pixels, atoms))
    dictionary /= np.linalg.norm(dictionary, axis=0)
    return jnp.asarray(rng.normal(size=(batch, pixels))), jnp.asarray(dictionary)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def test_l1_is_the_lasso_of_scikit_learn():
    signals, dictionary = problem()
    out = solve.sparse_code(signals, dictionary, prox.l1(0.3), max_steps=5000, tolerance=1e-12)
    assert out.converged and out.steps < 5000
    for signal, code in zip(signals, out.codes):
        lasso = Lasso(alpha=0.3 / 8, fit_intercept=False, tol=1e-12, max_iter=100_000)
        lasso.fit(np.asarray(dictionary), np.asarray(signal))
        np.testing.assert_allclose(code, lasso.coef_, atol=1e-6)


@pytest.mark.parametrize("name", PENALTIES)
def test_no_step_increases_the_objective(name):
    signals, dictionary = problem(seed=1)
    advance = jax.jit(
        lambda r: solve.sparse_code(signals, dictionary, PENALTIES[name], max_steps=1, start=r)
    )
    codes, path = jnp.zeros((6, 14)), []
    for _ in range(60):
        codes, objective, *_ = advance(codes)
        path.append(float(objective))
    assert all(b <= a + 1e-12 for a, b in zip(path, path[1:])) and path[-1] < path[0]


@pytest.mark.parametrize("name", ["l0", "cel0"])
def test_ends_near_the_best_support(name):
    """Every support enumerated: at rest the code is stationary, never better than the best."""
    signals, dictionary = problem(batch=3, pixels=5, atoms=7, seed=2)
    out = solve.sparse_code(signals, dictionary, PENALTIES[name], max_steps=4000, tolerance=1e-13)
    atoms = np.asarray(dictionary)
    for signal, code in zip(np.asarray(signals), np.asarray(out.codes)):
        best = np.inf
        for count in range(6):
            for support in map(list, itertools.combinations(range(7), count)):
                fit, *_ = np.linalg.lstsq(atoms[:, support], signal, rcond=None)
                error = ((signal - atoms[:, support] @ fit) ** 2).sum() / 2 if support else (
                    (signal**2).sum() / 2
                )  # fmt: skip
                best = min(best, error + 0.3 * count)
        reached = ((signal - atoms @ code) ** 2).sum() / 2 + 0.3 * (code != 0).sum()
        assert best - 1e-9 <= reached <= 2 * best
        used = code != 0
        if name == "l0":  # the gradient vanishes on the support
            np.testing.assert_allclose(atoms.T[used] @ (signal - atoms @ code), 0, atol=1e-8)


def test_learning_is_the_loop_written_out():
    rng = np.random.default_rng(3)
    batches, start = rng.normal(size=(4, 10, 6)), rng.normal(size=(6, 9))
    start /= np.linalg.norm(start, axis=0)
    fit = jax.jit(
        lambda p: solve.dictionary_learning(
            jax.random.key(0), jnp.asarray(batches), 9, p, max_steps=7, start=jnp.asarray(start)
        )
    )(prox.l0(0.2))
    d, errors, active = start, [], []
    for x in batches:
        step, r = 0.99 / np.linalg.norm(d, 2) ** 2, np.zeros((10, 9))
        for _ in range(7):
            v = r + step * (x - r @ d.T) @ d
            r = np.where(np.abs(v) > np.sqrt(2 * step * 0.2), v, 0)
        errors.append(((x - r @ d.T) ** 2).mean())
        active.append((r != 0).sum(1).mean())
        d = d + 0.5 * (x - r @ d.T).T @ r / 10
        d /= np.linalg.norm(d, axis=0)
    np.testing.assert_allclose(fit.dictionary, d, rtol=1e-9)
    np.testing.assert_allclose(fit.error, errors, rtol=1e-9)
    np.testing.assert_allclose(fit.active, active, rtol=1e-9)
    np.testing.assert_allclose(fit.usage, (r != 0).mean(0), rtol=1e-9)


def test_maps_over_strengths_and_leaves_unused_atoms():
    signals, dictionary = problem()
    both = jax.vmap(lambda lam: solve.sparse_code(signals, dictionary, prox.cel0(lam)))(
        jnp.array([0.1, 0.4])
    )
    alone = solve.sparse_code(signals, dictionary, prox.cel0(0.4))
    np.testing.assert_allclose(both.codes[1], alone.codes, atol=1e-12)
    nothing = jnp.zeros_like(alone.codes)
    moved = solve.dictionary_step(dictionary, signals, nothing, 1.0)
    np.testing.assert_allclose(moved, dictionary, rtol=1e-12)
    still = solve.sparse_code(0 * signals, dictionary, prox.l1(0.1))
    assert not still.codes.any() and still.converged and still.steps == 1
    with pytest.raises(ValueError, match="signals stand in rows"):
        solve.sparse_code(signals.T, dictionary.T @ dictionary, prox.l1(0.1))


def test_strengths_of_equal_activity():
    signals, dictionary = problem(batch=40)

    def active(penalty):
        run = jax.jit(lambda s: solve.sparse_code(signals, dictionary, penalty(s)).codes)
        return lambda strength: float(receptive_fields.active_units(run(strength)).mean())

    for penalty in (prox.l1, prox.cel0):
        strength = solve.match_strength(active(penalty), 1e-3, 10.0, 3.0, tolerance=0.02)
        assert abs(active(penalty)(strength) - 3.0) <= 0.06
    with pytest.raises(ValueError, match="does not enclose"):
        solve.match_strength(lambda s: 1 / s, 1.0, 2.0, 5.0)
    with pytest.raises(ValueError, match="low < high"):
        solve.match_strength(lambda s: 1 / s, 2.0, 1.0, 5.0)


def test_whitening_and_patches():
    rng = np.random.default_rng(4)
    image = jnp.asarray(rng.normal(size=(64, 48)).cumsum(0).cumsum(1))
    white = receptive_fields.whiten_image(image)
    rows, columns = np.fft.fftfreq(64)[:, None], np.fft.fftfreq(48)
    f = np.hypot(rows, columns)
    expected = np.fft.ifft2(np.fft.fft2(image) * f * np.exp(-((f / 0.4) ** 4))).real
    np.testing.assert_allclose(white, expected / expected.std(), atol=1e-10)
    assert not receptive_fields.whiten_image(jnp.ones((8, 8))).any()
    patches = receptive_fields.sample_patches(jax.random.key(0), white, 50, 5)
    np.testing.assert_allclose(patches.mean(1), 0, atol=1e-12)
    windows = np.lib.stride_tricks.sliding_window_view(white, (5, 5)).reshape(-1, 25)
    windows = windows - windows.mean(1, keepdims=True)
    for patch in np.asarray(patches[:5]):
        assert np.abs(windows - patch).max(1).min() < 1e-12
    with pytest.raises(ValueError, match="one grey image"):
        receptive_fields.whiten_image(jnp.ones((8, 8, 3)))
    with pytest.raises(ValueError, match="at least 9"):
        receptive_fields.sample_patches(jax.random.key(0), jnp.ones((8, 8)), 1, 9)


def test_tuning_of_gratings_and_blobs():
    size, angles = 12, jnp.arange(16) * jnp.pi / 16
    y, x = np.divmod(np.arange(size**2), size)
    envelope = np.exp(-((x - 5.5) ** 2 + (y - 5.5) ** 2) / 18)
    turned = [
        np.cos(2 * np.pi * 0.2 * (x * np.cos(a) + y * np.sin(a))) for a in (angles[0], angles[5])
    ]
    atoms = jnp.asarray(np.stack([*(envelope * t for t in turned), envelope], 1))
    tuning = receptive_fields.orientation_tuning(atoms, angles, jnp.array([0.1, 0.2, 0.3]))
    assert tuning[:, :2].argmax(0).tolist() == [0, 5]
    variance = receptive_fields.circular_variance(tuning, angles)
    assert variance[:2].max() < 0.5 < 0.95 < variance[2]
    # A cosine tuning curve 1 + cos 2(t - t0) has CV = 1/2.
    np.testing.assert_allclose(
        receptive_fields.circular_variance(1 + jnp.cos(2 * (angles - 0.3)), angles), 0.5, rtol=1e-12
    )
    assert receptive_fields.circular_variance(jnp.zeros(16), angles) == 1
    with pytest.raises(ValueError, match="square"):
        receptive_fields.orientation_tuning(jnp.ones((10, 1)), angles, angles)


@pytest.mark.slow
def test_penalties_at_equal_activity_on_natural_images():
    """CEL0 < l_1/2 < l0 < l1 in error at 8 active units, and l1 at least 1.8 times CEL0."""
    from skimage import data

    keys = jax.random.split(jax.random.key(0), 4)
    images = [data.camera(), *(f().mean(-1) for f in (data.astronaut, data.chelsea, data.coffee))]
    white = [receptive_fields.whiten_image(jnp.asarray(image, jnp.float32)) for image in images]
    pool = jnp.concatenate(
        [receptive_fields.sample_patches(k, w, 2000, 8) for k, w in zip(keys, white)]
    )
    batches = jax.random.permutation(jax.random.key(1), pool).reshape(80, 100, 64)
    strengths = {
        "l1": (0.6, 1.0, 1.4), "l_half": (0.2, 0.5, 1.0), "l0": (0.1, 0.3, 0.8),
        "cel0": (0.1, 0.3, 0.8),
    }  # fmt: skip
    errors = {}
    for name, grid in strengths.items():

        def learn(strength, name=name):
            penalty = getattr(prox, name)(strength)
            return solve.dictionary_learning(jax.random.key(2), batches, 128, penalty, max_steps=30)

        options = {"xla_backend_optimization_level": 3}
        learn_all = jax.jit(jax.vmap(learn), compiler_options=options)
        runs = learn_all(jnp.asarray(grid, jnp.float32))
        active, error = runs.active[:, -20:].mean(1), runs.error[:, -20:].mean(1)
        errors[name] = float(receptive_fields.error_at_activity(active, error, 8.0))
    print(errors)
    assert errors["cel0"] < errors["l_half"] < errors["l0"] < errors["l1"]
    assert errors["l1"] >= 1.8 * errors["cel0"]
