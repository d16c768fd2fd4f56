"""Statistics and geometry against NumPy over all data at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import sae

from . import _oracle as oracle

KEY = jax.random.key(0)
D, H = 5, 40
X = np.random.default_rng(0).normal(size=(24, D)).astype(np.float32) + 3


@pytest.fixture(scope="module")
def params():
    found = sae.SAE(sae.TopK(2)).init(D, H, key=KEY)
    return found | {"b_dec": jnp.full(D, 3.0), "W_enc": found["W_enc"] * 0.8}


@pytest.mark.parametrize("sparse", [False, True])
def test_statistics(params, sparse):
    found = sae.SAE(sae.TopK(2), sparse=sparse)
    p = {k: np.asarray(v, np.float64) for k, v in params.items()}
    f = oracle.top_k((X - p["b_dec"]) @ p["W_enc"] + p["b_enc"], 2)
    guess = f @ p["W_dec"] + p["b_dec"]
    length = lambda x: np.linalg.norm(x, axis=1)  # noqa: E731
    prompts = (f > 0).reshape(6, 4, H).any(1).sum(0)
    wanted = {
        "l0": (f > 0).sum(1).mean(), "l1": f.sum(1).mean(),
        "mse": ((X - guess) ** 2).sum(1).mean(),
        "cosine": np.mean((X * guess).sum(1) / length(X) / length(guess)),
        "norm_ratio": np.mean(length(guess) / length(X)),
        "explained_variance": 1 - (X - guess).var(0).sum() / X.var(0).sum(),
        "relative_bias": (guess**2).sum() / (X * guess).sum(),
        "density": (f > 0).mean(0), "dead": ((f > 0).sum(0) == 0).mean(),
    }  # fmt: skip
    batches = [X.reshape(6, 4, D)[:1], X.reshape(6, 4, D)[1:]]  # of unequal sizes
    stats = sae.statistics(found, params, batches)
    for name, value in wanted.items():
        np.testing.assert_allclose(getattr(stats, name), value, rtol=1e-4, err_msg=name)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(stats.consistency, (f > 0).sum(0) / prompts, rtol=1e-6)
    counts, edges = stats.histogram(7)
    assert counts.sum() == (stats.density > 0).sum() and len(edges) == 8
    with pytest.raises(ValueError, match="batches"):
        sae.statistics(found, params, [])


def test_statistics_count_a_latent_once_that_pursuit_selects_twice():
    rows = jnp.array([[1.0, 0.0], [-0.6, 0.8]])
    found, params = (
        sae.SAE(sae.MatchingPursuit(6), sparse=True),
        {"W_dec": rows, "b_dec": jnp.zeros(2)},
    )
    x = jnp.array([[1.0, 1.0]])
    assert found.codes(params, x)[0][0, :3].tolist() == [0, 1, 0]
    stats = sae.statistics(found, params, [x])
    assert stats.l0 == 2 and stats.density.tolist() == [1, 1]


def test_statistics_of_a_large_mean():
    """Variances are about the mean, accumulated in float64: an offset of 1000 does not matter."""
    params = {"W_enc": jnp.eye(D), "W_dec": jnp.eye(D), "b_dec": jnp.full(D, 1000.0)}
    x = X + 997
    stats = sae.statistics(sae.SAE(sae.ReLU()), params, [x[:5], x[5:]])
    lost = np.minimum(np.asarray(x, np.float64) - 1000, 0)
    wanted = 1 - lost.var(0).sum() / np.asarray(x, np.float64).var(0).sum()
    np.testing.assert_allclose(stats.explained_variance, wanted, rtol=1e-4)


def test_statistics_with_100_000_latents_form_no_square_array():
    h = 100_000
    found = sae.SAE(sae.TopK(32))
    shapes = jax.eval_shape(lambda: found.init(16, h, key=KEY))
    run = lambda p, x: found.run(p, x).codes.counts()  # noqa: E731
    compiled = jax.jit(run).lower(shapes, jax.ShapeDtypeStruct((8, 16), jnp.float32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * 2**20  # h * h * 4 is 37 GiB
    from sparsejax.sae._geometry import _largest

    rows = jax.ShapeDtypeStruct((h, 16), jnp.float32)
    compiled = _largest.lower(rows, rows, 64, True).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 128 * 2**20


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_coherence_and_recovery(block):
    rng = np.random.default_rng(0)
    rows, truth = rng.normal(size=(20, 4)), rng.normal(size=(9, 4))
    rows[3] = 0
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    gram = np.abs(unit @ unit.T) - np.eye(20)
    np.testing.assert_allclose(sae.coherence(rows, block=block), gram.max(), rtol=1e-5)
    other = truth / np.linalg.norm(truth, axis=1, keepdims=True)
    np.testing.assert_allclose(
        sae.recovery(rows, truth, block=block), (other @ unit.T).max(1), rtol=1e-5
    )


def test_quasi_orthogonality(params):
    rng = np.random.default_rng(0)
    z, f = rng.normal(size=(6, D)), np.maximum(rng.normal(size=(6, H)), 0)
    f[2] = 0
    scaled = f * np.linalg.norm(params["W_dec"], axis=1)
    bias = np.linalg.norm(params["b_dec"])
    f_norm = np.sqrt((scaled**2).sum(1) + bias**2)
    found = sae.zf(z, f, params)
    np.testing.assert_allclose(found.f_norm, f_norm, rtol=1e-5)
    np.testing.assert_allclose(found.z_norm, np.linalg.norm(z, axis=1), rtol=1e-5)
    gap = np.abs((z**2).sum(1) - f_norm**2) / ((H - 1) * f_norm**2)
    np.testing.assert_allclose(sae.eps_lbo(z, f, params), gap, rtol=1e-5)
    silent = sae.eps_lbo(z, f, {"W_dec": params["W_dec"]})
    assert np.isinf(silent[2]) and np.isfinite(np.delete(np.asarray(silent), 2)).all()
    low, high = jax.vmap(lambda eps: sae.zf_bounds(eps, 51))(jnp.array([0.0, 0.01, 1.0]))
    np.testing.assert_allclose(low, 1 / np.sqrt(1 + np.array([0, 0.5, 50])), rtol=1e-6)
    assert high[0] == 1 and np.isinf(high[2])
    assert sae.description_length(32, 2**14) == 32 * 21


def test_weight_statistics(params):
    found = sae.weight_statistics(params)
    np.testing.assert_allclose(found["decoder_norm"], 1, rtol=1e-5)
    np.testing.assert_allclose(found["encoder_norm"], 0.8, rtol=1e-5)
    np.testing.assert_allclose(found["cosine"], 1, rtol=1e-5)
    assert set(found) == {"decoder_norm", "encoder_norm", "cosine", "b_enc"}


def test_geometric_median():
    """Against a fine grid, and in a case where the mean is far off."""
    x = np.random.default_rng(0).normal(size=(31, 2))
    x[:3] += 100
    found = sae.geometric_median(x, max_steps=1000, tol=1e-9)
    near = np.asarray(found, np.float64)
    objective = lambda m: np.linalg.norm(x - m, axis=1).sum()  # noqa: E731
    for shift in np.random.default_rng(1).normal(size=(50, 2)) * 0.05:
        assert objective(near) <= objective(near + shift) + 1e-5
    assert sae.geometric_median(np.ones((4, 3))).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="samples"):
        sae.geometric_median(np.full((2, 2), np.nan))


@pytest.mark.parametrize(
    "activation", [sae.ReLU(), sae.JumpReLU(), sae.Gated(), sae.TopAFA(), sae.TopK(3)]
)
def test_folding_of_decoder_norms(activation):
    found = sae.SAE(activation, rescale=activation == sae.TopK(3))
    params = found.init(D, H, key=KEY)
    params["W_dec"] = params["W_dec"] * jnp.linspace(0.3, 3, H)[:, None]
    params = {k: p.at[0].set(0) if k == "W_dec" else p + 0.1 for k, p in params.items()}
    folded = sae.fold_decoder_norm(found, params)
    norms = np.linalg.norm(folded["W_dec"], axis=1)
    np.testing.assert_allclose(norms[1:], 1, rtol=1e-5)
    np.testing.assert_allclose(found(folded, X), found(params, X), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="rescale=True"):
        sae.fold_decoder_norm(sae.SAE(sae.TopK(3)), params)


def test_folding_of_the_scale_of_inputs(params):
    scale = sae.expected_scale(X)
    np.testing.assert_allclose(np.linalg.norm(scale * X, axis=1).mean(), D**0.5, rtol=1e-5)
    found = sae.SAE(sae.TopK(2))
    folded = sae.fold_scale(params, scale)
    np.testing.assert_allclose(found.encode(folded, X), found.encode(params, scale * X), atol=1e-4)
    np.testing.assert_allclose(found(folded, X), found(params, scale * X) / scale, atol=1e-4)


@pytest.mark.parametrize("name", ["layer_norm", "constant_norm_rescale"])
def test_normalisations(params, name):
    x = X.copy()
    x[0] = 0
    found = sae.SAE(sae.TopK(2), normalize=name)
    if name == "layer_norm":
        mean, scale = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
        inside, back = (x - mean) / (scale + 1e-5), lambda y: y * scale + mean
    else:
        norm = np.linalg.norm(x, axis=1, keepdims=True)
        scale = np.where(norm > 0, norm / D**0.5, 1)
        inside, back = x / scale, lambda y: y * scale
    plain = sae.SAE(sae.TopK(2))(params, inside.astype(np.float32))
    np.testing.assert_allclose(found(params, x), back(np.asarray(plain)), rtol=1e-4, atol=1e-4)


def test_sparse_probe():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    f = np.maximum(rng.normal(size=(200, 30)), 0)
    f[:, 7] += 2 * y
    latents, accuracy = sae.sparse_probe(f[:150], y[:150], 2, held_out=(f[150:], y[150:]))
    assert latents[0] == 7 and accuracy > 0.85
    for labels, k in ((np.zeros(200), 1), (y, 31)):
        with pytest.raises(ValueError, match="labels|k must"):
            sae.sparse_probe(f, labels, k)
