"""Acyclic graphs against step-by-step NumPy, closed forms and other characterisations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.contrib import dag
from sparsejax.solve import Result
from tests.contrib.dag._reference import reference, remove_edges

PATH = {"path": (1.0, 0.1, 0.01), "shifts": (1.0, 0.9, 0.8), "max_steps": (600, 600, 1200)}
SHORT = PATH | {"throw": False}


def make(seed, d=6, edges=8, n=200, scale=1.0, **weights):
    graph, weight, sample = jax.random.split(jax.random.key(seed), 3)
    truth = dag.edge_weights(dag.erdos_renyi_dag(d, edges, key=graph), **weights, key=weight)
    return truth, dag.sample_sem(truth, n, scale, key=sample)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["equal", "unequal", "fixed"])
def test_iterates_are_those_of_the_reference(kind):
    _, samples = make(0)
    w, sigma, steps, rates, _ = reference(np.asarray(samples), 0.05, kind, *PATH.values())
    if kind == "fixed":
        found = dag.dagma(samples, 0.05, **SHORT)
    else:
        found = dag.colide(samples, 0.05, equal_variance=kind == "equal", **SHORT)
    fit = found.value
    np.testing.assert_allclose(fit.raw, w, atol=1e-9)
    np.testing.assert_allclose(np.broadcast_to(fit.scale, sigma.shape), sigma, rtol=1e-9)
    assert found.stats["n_iter"].tolist() == steps
    np.testing.assert_array_equal(found.stats["learning_rate"], rates)
    np.testing.assert_allclose(fit.weights, remove_edges(np.asarray(fit.raw), 0.3))


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_steps_that_leave_the_domain(rate):
    """Large steps and scores: halved while s > 0.9, below that restarted with a larger s."""
    _, samples = make(3)
    path, shifts, steps = (1000.0, 100.0, 10.0), (1.0, 0.95, 0.4), (20, 20, 20)
    args = (path, shifts, steps)
    w, sigma, taken, rates, restarts = reference(
        np.asarray(samples), 0.05, "equal", *args, rate=rate, every=7
    )
    assert rates[0] < rate and restarts > 0, "the case does not test what it should"
    found = dag.colide(
        samples, path=path, shifts=shifts, max_steps=steps, learning_rate=rate, check_every=7,
        throw=False,
    )  # fmt: skip
    fit = found.value
    np.testing.assert_allclose(fit.raw, w, atol=1e-8)
    np.testing.assert_allclose(fit.scale, sigma[0], rtol=1e-8)
    assert found.stats["n_iter"].tolist() == taken
    np.testing.assert_allclose(found.stats["learning_rate"], rates)


@pytest.mark.slow
def test_the_tolerance_ends_a_stage_at_a_check():
    _, samples = make(1)
    args = {**PATH, "max_steps": (5000, 5000, 5000)}
    _, _, steps, _, _ = reference(
        np.asarray(samples), 0.05, "equal", *args.values(), tol=1e-3, every=100
    )
    found = dag.colide(samples, tol=1e-3, check_every=100, **args)
    assert found.stats["n_iter"].tolist() == steps and max(steps) < 5000
    assert (found.stats["stage_result"] == Result.SUCCESSFUL).all()
    assert found.result == Result.SUCCESSFUL
    found = dag.colide(samples, tol=0.0, **SHORT)
    assert (found.stats["stage_result"] == Result.MAX_STEPS).all()
    assert found.result == Result.MAX_STEPS


@pytest.mark.slow
def test_failures_raise_outside_jit_and_are_returned_inside():
    _, samples = make(1)
    for solver in (dag.colide, dag.dagma):
        with pytest.raises(RuntimeError, match=f"{solver.__name__}: the tolerance was not reached"):
            solver(samples, tol=0.0, **PATH)
        assert jax.jit(lambda x: solver(x, tol=0.0, **PATH).result)(samples) == Result.MAX_STEPS  # noqa: B023
    nan = jax.jit(lambda x: dag.colide(x, **PATH).result)(samples.at[0, 0].set(jnp.nan))
    assert nan == Result.NONFINITE


@pytest.mark.parametrize("equal", [True, False])
def test_equivariance_to_the_last_bit(equal):
    """(X, strength, mu) -> (cX, c strength, mu / c): the same weights and c times the scale."""
    _, samples = make(2)
    c = 8.0
    fit = dag.colide(samples, 0.05, equal_variance=equal, **SHORT).value
    scaled = {**SHORT, "path": tuple(mu / c for mu in SHORT["path"])}
    again = dag.colide(c * samples, c * 0.05, equal_variance=equal, **scaled).value
    np.testing.assert_array_equal(again.raw, fit.raw)
    np.testing.assert_array_equal(again.scale, c * fit.scale)


@pytest.mark.slow
def test_jit_vmap_covariance_and_samples_are_unchanged():
    pairs = [make(seed) for seed in (4, 5)]
    samples = jnp.stack([x for _, x in pairs])
    kept = np.asarray(samples) + 0.0
    both = jax.jit(jax.vmap(lambda x: dag.colide(x, 0.05, **SHORT)))(samples).value
    np.testing.assert_array_equal(samples, kept)
    for i, x in enumerate(samples):
        alone = dag.colide(x, 0.05, **SHORT).value
        np.testing.assert_allclose(both.raw[i], alone.raw, atol=1e-10)
        centred = x - x.mean(0)
        given = dag.colide(centred.T @ centred / len(x), 0.05, precomputed=True, **SHORT)
        np.testing.assert_allclose(given.value.raw, alone.raw, atol=1e-10)
    fewer = dag.colide(samples[0, :4], **SHORT).value  # n < d
    assert jnp.isfinite(fewer.raw).all() and fewer.scale > 0
    one = dag.colide(samples[0, :, :1], **SHORT).value
    np.testing.assert_array_equal(one.weights, [[0.0]])


@pytest.mark.slow
def test_float32_finds_the_same_graph():
    _, samples = make(6, n=1000)
    steps = {**SHORT, "max_steps": (3000, 3000, 6000)}
    wide = dag.colide(samples, **steps).value
    narrow = dag.colide(samples.astype(jnp.float32), **steps).value
    assert narrow.raw.dtype == jnp.float32
    np.testing.assert_array_equal(narrow.weights != 0, wide.weights != 0)


@pytest.mark.slow
def test_logdet_and_its_derivatives():
    w = 0.3 * jax.random.normal(jax.random.key(0), (5, 5))
    matrix = 1.2 * np.eye(5) - np.asarray(w) ** 2
    expected = 5 * np.log(1.2) - np.linalg.slogdet(matrix)[1]
    np.testing.assert_allclose(dag.logdet_acyclicity(w, 1.2), expected, rtol=1e-12)
    grads = jax.grad(dag.logdet_acyclicity, (0, 1))(w, 1.2)
    np.testing.assert_allclose(grads[0], 2 * w * np.linalg.inv(matrix).T, rtol=1e-12)
    plain = lambda w, s: 5 * jnp.log(s) - jnp.linalg.slogdet(s * jnp.eye(5) - w * w)[1]  # noqa: E731
    np.testing.assert_allclose(grads[1], jax.grad(plain, 1)(w, 1.2), rtol=1e-10)
    hessian = jax.hessian(dag.logdet_acyclicity)(w, 1.2)
    np.testing.assert_allclose(hessian, jax.hessian(plain)(w, 1.2), atol=1e-9)


@pytest.mark.parametrize(
    "h", [dag.logdet_acyclicity, dag.expm_acyclicity, dag.polynomial_acyclicity]
)
def test_characterisations_vanish_for_acyclic_graphs_only(h):
    truth, _ = make(7)
    assert abs(h(0.1 * truth)) < 1e-12
    assert h((0.1 * truth).at[0, 0].set(0.2)) > 1e-4
    cycle = jnp.zeros((4, 4)).at[jnp.arange(4), (jnp.arange(4) + 1) % 4].set(0.9)
    assert h(cycle) > 1e-3


@pytest.mark.slow
def test_m_matrices_and_cycles_against_enumeration():
    rng = np.random.default_rng(0)
    for _ in range(30):
        w = rng.normal(size=(4, 4)) * (rng.random((4, 4)) < 0.4)
        matrix = 1.0 * np.eye(4) - w * w
        stable = np.all(np.linalg.eigvals(matrix).real > 0)  # another definition of M-matrices
        assert bool(dag.is_m_matrix(jnp.asarray(matrix), 1e-9)) == stable
        nilpotent = not np.linalg.matrix_power((w != 0).astype(float), 4).any()
        assert bool(dag.is_acyclic(jnp.asarray(w))) == nilpotent
        cut = dag.threshold_to_dag(jnp.asarray(w), 0.3)
        np.testing.assert_array_equal(cut, remove_edges(w, 0.3))


@pytest.mark.slow
def test_a_second_call_compiles_nothing(caplog):
    _, samples = make(0)
    short = SHORT | {"max_steps": (5, 5, 5)}
    calls = [
        lambda: dag.colide(samples, 0.05, **short),
        lambda: dag.dagma(samples, 0.05, **short),
        lambda: dag.threshold_to_dag(jnp.ones((6, 6))),
        lambda: dag.is_acyclic(jnp.ones((6, 6))),
        lambda: dag.scale_free_dag(6, 2, key=jax.random.key(0)),
        lambda: dag.concomitant_lasso(samples[:, 1:], samples[:, 0], 0.1),
    ]
    for call in calls:
        call()
        with jax.log_compiles():
            call()
    assert "Compiling" not in caplog.text


@pytest.mark.slow
def test_random_graphs():
    keys = jax.random.split(jax.random.key(0), 50)
    graphs = jax.vmap(lambda k: dag.erdos_renyi_dag(12, 24, key=k))(keys)
    assert jax.vmap(dag.is_acyclic)(graphs).all()
    assert abs(float(graphs.sum((1, 2)).mean()) - 24) < 2
    hubs = jax.vmap(lambda k: dag.scale_free_dag(30, 2, key=k))(keys)
    assert jax.vmap(dag.is_acyclic)(hubs).all()
    np.testing.assert_array_equal(hubs.sum((1, 2)), 2 * 28 + 1)
    assert sorted(np.unique(hubs.sum(2))) == [0, 1, 2]
    # The labels do not reveal the order of the nodes.
    assert (hubs & jnp.tril(jnp.ones((30, 30), bool))).any()
    assert hubs.sum(1).max() > 2 * graphs.sum(1).max()  # hubs
    weights = dag.edge_weights(graphs[0], key=keys[0])
    sizes = np.abs(np.asarray(weights))[np.asarray(graphs[0])]
    assert ((sizes >= 0.5) & (sizes <= 2)).all() and (weights[~graphs[0]] == 0).all()


def test_samples_have_the_covariance_of_the_model():
    truth, _ = make(8)
    scale = jnp.linspace(0.5, 2.0, 6)
    total = np.linalg.inv(np.eye(6) - np.asarray(truth))
    expected = total.T @ np.diag(np.asarray(scale) ** 2) @ total
    x = dag.sample_sem(truth, 200_000, scale, key=jax.random.key(9))
    np.testing.assert_allclose(np.cov(x.T), expected, atol=0.03 * np.abs(expected).max())
    z = x - x @ truth
    np.testing.assert_allclose(z.std(0), scale, rtol=0.02)


@pytest.mark.slow
def test_invalid_input_raises():
    with pytest.raises(ValueError, match="samples in rows"):
        dag.colide(jnp.ones(3))
    with pytest.raises(ValueError, match="one entry for each stage"):
        dag.colide(jnp.ones((3, 2)), path=(1.0,))
    with pytest.raises(ValueError, match="not finite"):
        dag.dagma(jnp.full((3, 2), jnp.nan))
    with pytest.raises(ValueError, match="pairs of 4 nodes"):
        dag.erdos_renyi_dag(4, 7, key=jax.random.key(0))
    with pytest.raises(ValueError, match="per_node"):
        dag.scale_free_dag(4, 4, key=jax.random.key(0))


@pytest.mark.slow
def test_the_small_experiment():
    """Mean SHD at most 3 at every noise level with one strength; noise within 5 % and 10 %."""
    steps = (5000, 5000, 5000, 15_000)
    for variance in (0.5, 1.0, 5.0, 10.0):
        pairs = [make(s, 20, 40, 1000, variance**0.5) for s in range(4)]
        samples = jnp.stack([x for _, x in pairs])
        fits = jax.vmap(lambda x: dag.colide(x, max_steps=steps))(samples).value
        distances = [dag.shd(w, t) for w, (t, _) in zip(fits.weights, pairs)]
        print(variance, distances, fits.scale / variance**0.5)
        assert np.mean(distances) <= 3
        np.testing.assert_allclose(fits.scale, variance**0.5, rtol=0.05)
