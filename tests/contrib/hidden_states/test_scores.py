"""Scores of one text against NumPy in float64: padding, ties, equal tokens, ranges, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import sparsejax as sj
from sparsejax.contrib import hidden_states

SHAPES = [(2, 5), (5, 2), (9, 9), (12, 40), (40, 12)]
SCORES = [
    hidden_states.matrix_nuclear_norm,
    hidden_states.nuclear_norm,
    hidden_states.matrix_entropy,
]


def text(n, d, seed=0):
    """Hidden states with outlier dimensions and a large common part, as language models have."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) * np.exp(rng.normal(size=d)) + 5).astype(np.float32)


def rows_of(h):
    """The published steps, in float64."""
    h = np.asarray(h, np.float64)
    z = h - h.mean(axis=0)
    norms = np.linalg.norm(z, axis=1, keepdims=True)
    return np.divide(z, norms, out=np.zeros_like(z), where=norms > 0)


def oracle(h):
    """Matrix nuclear norm, nuclear norm and entropy, the last by the SVD of the covariance."""
    (n, d), r = np.shape(h), rows_of(h)
    columns = np.sort(np.linalg.norm(r, axis=0))[::-1][: min(n, d)]
    e = np.linalg.svd(r.T @ r / n, compute_uv=False)
    e = e[e > 1e-15]
    entropy = -np.sum(e * np.log(e)) / np.log(d)
    return columns.sum() / n, np.linalg.svd(r, compute_uv=False).sum() / n, entropy


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_equal_the_published_steps(shape):
    h = text(*shape)
    np.testing.assert_allclose(hidden_states.normalise(h), rows_of(h), atol=2e-6)
    for score, wanted in zip(SCORES, oracle(h)):
        np.testing.assert_allclose(score(h), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_changes_nothing(shape):
    """In front, between and behind; under jit and vmap; whatever the padding holds."""
    n, d = shape
    h, mask = np.full((n + 7, d), np.nan, np.float32), np.ones(n + 7, bool)
    mask[[0, 2, *range(n + 2, n + 7)]] = False
    h[mask] = text(n, d)
    other = np.where(mask[:, None], h, 1e30)[::-1]
    batch = jnp.stack([jnp.asarray(h), jnp.asarray(other)]), jnp.stack([mask, mask[::-1]])
    for score, wanted in zip(SCORES, oracle(text(n, d))):
        np.testing.assert_allclose(
            jax.jit(jax.vmap(score))(*batch), [wanted] * 2, rtol=1e-5, atol=1e-6
        )
    assert np.all(hidden_states.normalise(h, mask)[~mask] == 0)


def test_only_the_largest_columns_of_a_short_text_are_summed():
    """D counts tokens, not rows: 3 of 5 columns here, 4 without the mask."""
    h = text(4, 5)
    mask = np.array([True, True, False, True])
    columns = np.sort(np.linalg.norm(rows_of(h[mask]), axis=0))[::-1]
    for top in (None, 1, 2, 5, 9):
        wanted = columns[: 3 if top is None else top].sum()
        found = hidden_states.matrix_nuclear_norm(h, mask, top=top, per_token=False)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    tied = np.concatenate([h, h, h], axis=1)
    columns = np.linalg.norm(rows_of(tied), axis=0)
    np.testing.assert_allclose(
        hidden_states.matrix_nuclear_norm(tied, top=2), 2 * columns.max() / 4, rtol=1e-6
    )


def test_the_untruncated_sum_is_the_penalty_of_column_groups():
    h = text(40, 12)
    r = hidden_states.normalise(h)
    found = hidden_states.matrix_nuclear_norm(h, per_token=False)
    np.testing.assert_allclose(found, sj.prox.l2(1.0, axis=0).value(r), rtol=1e-6)
    norms = np.linalg.norm(rows_of(h), axis=0)
    shrunk = rows_of(h) * np.maximum(1 - 2.0 / norms, 0)
    np.testing.assert_allclose(sj.prox.l2(1.0, axis=0).prox(r, 2.0), shrunk, atol=2e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_ranges(shape):
    n, d = shape
    for seed in range(5):
        mnn, exact, entropy = (float(score(text(n, d, seed))) for score in SCORES)
        assert 0 <= mnn <= np.sqrt(min(n, d) / n) * (1 + 1e-6)
        assert d > n or mnn >= exact * (1 - 1e-6)
        assert exact <= np.sqrt(min(n - 1, d) / n) * (1 + 1e-6)
        assert 0 <= entropy <= np.log(min(n - 1, d)) / np.log(d) + 1e-5


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-30, 3e30])
@pytest.mark.parametrize("n", [1, 3, 7])
def test_equal_tokens_have_no_spectrum(n, value):
    """The mean of equal floats may differ from them in the last bit, of which no row is made."""
    h = jnp.full((n, 4), value) * jnp.array([1.0, -3.0, 7.0, 1e-3])
    assert not np.any(hidden_states.normalise(h))
    assert [float(score(h)) for score in SCORES] == [0, 0, 0]
    alone = jnp.concatenate([h, jnp.ones((2, 4))]), jnp.arange(n + 2) == 0
    assert [float(score(*alone)) for score in SCORES] == [0, 0, 0]


def test_a_token_at_the_mean_is_a_row_of_zeros():
    a, b = text(2, 6)
    h = np.stack([a, b, (a + b) / 2])
    r = hidden_states.normalise(h)
    assert not np.any(r[2]) and np.allclose(np.linalg.norm(r[:2], axis=1), 1)
    assert float(hidden_states.matrix_entropy(h)) == pytest.approx(0, abs=1e-6)  # trace 2 of 3
    # Two opposite rows: one singular value sqrt(2).
    assert float(hidden_states.nuclear_norm(h)) == pytest.approx(np.sqrt(2) / 3, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-35, 1e-18, 1.0, 1e18, 1e36, 1e37])
def test_scores_do_not_depend_on_the_unit(scale):
    h = text(9, 9)
    for score, wanted in zip(SCORES, oracle(h)):
        np.testing.assert_allclose(score(h * np.float32(scale)), wanted, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(dtype):
    h = jnp.asarray(text(600, 8), dtype)  # sums of 600 squares would stall in bfloat16
    for score, wanted in zip(SCORES, oracle(np.asarray(h, np.float64))):
        found = score(h)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("score", SCORES)
def test_derivatives_equal_differences(score):
    h, direction = text(6, 4), text(6, 4, 1)
    mask = np.array([True] * 5 + [False])
    grad = np.asarray(jax.grad(score)(jnp.asarray(h), mask), np.float64)
    assert not np.any(grad[5])
    at = dict(zip(SCORES, range(3)))[score]
    step = 1e-6 * np.asarray(direction[:5], np.float64)
    up, down = (oracle(h[:5].astype(np.float64) + sign * step)[at] for sign in (1, -1))
    np.testing.assert_allclose(np.sum(grad[:5] * direction[:5]), (up - down) / 2e-6, rtol=2e-4)


@pytest.mark.parametrize("score", SCORES)
def test_derivatives_are_finite_where_the_norms_have_none(score):
    """Equal tokens, constant dimensions, coinciding and vanishing singular values, padding."""
    cases = [
        jnp.zeros((4, 3)),
        jnp.ones((4, 3)),
        jnp.concatenate([jnp.eye(3), -jnp.eye(3)]),
        jnp.concatenate([jnp.eye(3), -jnp.eye(3)], 1),
        jnp.asarray(text(4, 3)).at[:, 1].set(2.0),
    ]
    for h in cases:
        assert np.all(np.isfinite(jax.grad(score)(h)))
    h = jnp.concatenate([cases[2], jnp.full((2, 3), jnp.nan)])
    assert np.all(np.isfinite(jax.grad(score)(h, jnp.arange(8) < 6)))


def test_minimising_compresses_and_maximising_spreads():
    h = jnp.asarray(text(10, 6))
    score = hidden_states.matrix_nuclear_norm

    @jax.jit
    def moved(h, rate):
        return jax.lax.fori_loop(0, 50, lambda _, h: h - rate * jax.grad(score)(h), h)

    low, middle, high = (float(score(x)) for x in (moved(h, 2.0), h, moved(h, -2.0)))
    assert low < middle - 0.05 and high > middle + 0.02
    for other in (hidden_states.nuclear_norm, hidden_states.matrix_entropy):
        assert float(other(moved(h, 2.0))) < float(other(h)) < float(other(moved(h, -2.0)))


def test_nan_is_not_hidden():
    h = text(4, 9)
    h[1, 3] = np.nan
    assert all(np.isnan(float(score(h))) for score in SCORES)


@pytest.mark.parametrize("score", SCORES)
def test_strict_ranks_and_dtypes(score):
    h, mask = jnp.asarray(text(5, 4), jnp.bfloat16), jnp.arange(5) < 4
    strict = jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict")
    with strict[0], strict[1], jax.debug_nans(True):
        assert np.all(np.isfinite(jax.grad(score)(h, mask).astype(jnp.float32)))


@pytest.mark.parametrize("score", [hidden_states.normalise, *SCORES])
def test_bad_shapes_are_named(score):
    with pytest.raises(ValueError, match=r"h must hold at least one token"):
        score(jnp.zeros((0, 3)))
    with pytest.raises(ValueError, match="agree in the axis 'n'"):
        score(jnp.zeros((4, 3)), jnp.ones(5, bool))
    with pytest.raises(ValueError, match="at least two dimensions"):
        hidden_states.matrix_entropy(jnp.zeros((4, 1)))


def test_rank_correlations():
    """Follows the nuclear norm if the spectrum is along the axes, and not if it is rotated."""
    spearman = pytest.importorskip("scipy.stats").spearmanr
    rng, scores = np.random.default_rng(0), [jax.jit(jax.vmap(s)) for s in SCORES]
    j, count, n, d = np.arange(128) / 128, 60, 96, 128

    def correlations(matrices):
        mnn, exact, entropy = (s(jnp.asarray(np.stack(matrices), jnp.float32)) for s in scores)
        return spearman(mnn, exact)[0], spearman(exact, entropy)[0]

    along = [rng.normal(size=(n, d)) * np.exp(-rng.uniform(0, 6) * j) for _ in range(count)]
    low_rank = [
        rng.normal(size=(n, k)) @ rng.normal(size=(k, d)) / np.sqrt(k)
        + 0.05 * rng.normal(size=(n, d))
        for k in rng.integers(1, 60, count)
    ]
    decayed = [x * np.exp(-rng.uniform(0, 3) * j) for x in low_rank]
    found = [correlations(matrices) for matrices in (along, low_rank, decayed)]
    assert found[0][0] >= 0.85 and found[1][0] <= -0.5 and found[2][0] <= 0.6
    assert min(exact for _, exact in found) >= 0.97


@pytest.mark.parametrize("spec", [P("d"), P(None, "d")], ids=["tokens", "dimensions"])
def test_sharded_states_on_a_mesh_with_explicit_axes(spec):
    h, mask = jnp.asarray(text(8, 4), jnp.float32), jnp.arange(8) < 7
    mesh = jax.make_mesh((2,), ("d",), (AxisType.Explicit,), devices=jax.devices()[:2])
    states = jax.device_put(h, NamedSharding(mesh, spec))
    tokens = jax.device_put(mask, NamedSharding(mesh, P(*spec[:1])))
    for f in (hidden_states.normalise, *SCORES):
        np.testing.assert_allclose(f(states, tokens), f(h, mask), atol=1e-6)


@pytest.mark.parametrize("name", ["matrix_entropy", "matrix_nuclear_norm", "nuclear_norm"])
def test_a_mask_without_tokens_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name}: mask \(4,\) must hold at least one token"):
        getattr(hidden_states, name)(np.ones((4, 3), np.float32), np.zeros(4, bool))
