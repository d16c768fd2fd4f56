"""Sparse coding against scikit-learn, enumeration and step-by-step NumPy."""

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


@pytest.mark.slow
def test_l1_is_the_lasso_of_scikit_learn():
    signals, dictionary = problem()
    out = solve.sparse_code(signals, dictionary, prox.l1(0.3), max_steps=5000, tol=1e-12)
    assert out.converged and out.stats["n_iter"] < 5000
    for signal, code in zip(signals, out.value):
        lasso = Lasso(alpha=0.3 / 8, fit_intercept=False, tol=1e-12, max_iter=100_000)
        lasso.fit(np.asarray(dictionary), np.asarray(signal))
        np.testing.assert_allclose(code, lasso.coef_, atol=1e-6)


@pytest.mark.parametrize("name", PENALTIES)
def test_no_step_increases_the_objective(name):
    signals, dictionary = problem(seed=1)
    advance = jax.jit(
        lambda r: solve.sparse_code(signals, dictionary, PENALTIES[name], max_steps=1, w0=r)
    )
    codes, path = jnp.zeros((6, 14)), []
    for _ in range(60):
        found = advance(codes)
        codes, objective = found.value, found.stats["objective"]
        path.append(float(objective))
    assert all(b <= a + 1e-12 for a, b in zip(path, path[1:])) and path[-1] < path[0]


@pytest.mark.parametrize("name", ["l0", "cel0"])
def test_ends_near_the_best_support(name):
    """Every support enumerated: at rest the code is stationary, never better than the best."""
    signals, dictionary = problem(batch=3, pixels=5, atoms=7, seed=2)
    out = solve.sparse_code(signals, dictionary, PENALTIES[name], max_steps=4000, tol=1e-13)
    atoms = np.asarray(dictionary)
    for signal, code in zip(np.asarray(signals), np.asarray(out.value)):
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
            jnp.asarray(batches), 9, p, key=jax.random.key(0), max_steps=7, w0=jnp.asarray(start)
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
    np.testing.assert_allclose(fit.value, d, rtol=1e-9)
    np.testing.assert_allclose(fit.stats["error"], errors, rtol=1e-9)
    np.testing.assert_allclose(fit.stats["active"], active, rtol=1e-9)
    np.testing.assert_allclose(fit.stats["usage"], (r != 0).mean(0), rtol=1e-9)


@pytest.mark.slow
def test_maps_over_strengths_and_leaves_unused_atoms():
    signals, dictionary = problem()
    both = jax.vmap(lambda strength: solve.sparse_code(signals, dictionary, prox.cel0(strength)))(
        jnp.array([0.1, 0.4])
    )
    alone = solve.sparse_code(signals, dictionary, prox.cel0(0.4))
    np.testing.assert_allclose(both.value[1], alone.value, atol=1e-12)
    nothing = jnp.zeros_like(alone.value)
    moved = solve.dictionary_step(dictionary, signals, nothing, 1.0)
    np.testing.assert_allclose(moved, dictionary, rtol=1e-12)
    still = solve.sparse_code(0 * signals, dictionary, prox.l1(0.1))
    assert not still.value.any() and still.converged and still.stats["n_iter"] == 1
    with pytest.raises(ValueError, match="signals are rows"):
        solve.sparse_code(signals.T, dictionary.T @ dictionary, prox.l1(0.1))


@pytest.mark.slow
def test_strengths_of_equal_activity():
    signals, dictionary = problem(batch=40)

    def active(penalty):
        run = jax.jit(lambda s: solve.sparse_code(signals, dictionary, penalty(s)).value)
        return lambda strength: float(receptive_fields.active_units(run(strength)).mean())

    for penalty in (prox.l1, prox.cel0):
        strength = solve.match_strength(active(penalty), 1e-3, 10.0, 3.0, tol=0.02)
        assert abs(active(penalty)(strength) - 3.0) <= 0.06
    with pytest.raises(ValueError, match="does not enclose"):
        solve.match_strength(lambda s: 1 / s, 1.0, 2.0, 5.0)
    with pytest.raises(ValueError, match="low < high"):
        solve.match_strength(lambda s: 1 / s, 2.0, 1.0, 5.0)


@pytest.mark.slow
def test_penalties_at_equal_activity_on_natural_images():
    """CEL0 < l_1/2 < l0 < l1 in error at 8 active units, and l1 at least 1.8 times CEL0."""
    from skimage import data

    keys = jax.random.split(jax.random.key(0), 4)
    images = [data.camera(), *(f().mean(-1) for f in (data.astronaut, data.chelsea, data.coffee))]
    white = [receptive_fields.whiten_image(jnp.asarray(image, jnp.float32)) for image in images]
    pool = jnp.concatenate(
        [receptive_fields.sample_patches(w, 2000, 8, key=k) for k, w in zip(keys, white)]
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
            return solve.dictionary_learning(
                batches, 128, penalty, key=jax.random.key(2), max_steps=30
            )

        options = {"xla_backend_optimization_level": 3}
        learn_all = jax.jit(jax.vmap(learn), compiler_options=options)
        runs = learn_all(jnp.asarray(grid, jnp.float32))
        active, error = runs.stats["active"][:, -20:].mean(1), runs.stats["error"][:, -20:].mean(1)
        errors[name] = float(receptive_fields.error_at_activity(active, error, 8.0))
    print(errors)
    assert errors["cel0"] < errors["l_half"] < errors["l0"] < errors["l1"]
    assert errors["l1"] >= 1.8 * errors["cel0"]
