"""Wide floats, extreme scales, empty batches, arguments that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsejax as sj

S = sj.sae
IDENTITY = {"W_enc": jnp.eye(3), "W_dec": jnp.eye(3), "b_dec": jnp.zeros(3)}
RELU = S.SAE(S.ReLU())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize(
    "sae",
    [S.SAE(S.TopK(2)), S.SAE(S.JumpReLU(), losses=(S.TargetL0(2.0),)),
     S.SAE(S.ReLU(), losses=(S.AnnealedP(0.1, steps=4),))],
    ids=["top-k", "jump", "annealed"],
)  # fmt: skip
def test_trains_with_x64(sae, dtype):
    with jax.enable_x64(True):
        params = sae.init(4, 8, key=jax.random.key(0), dtype=dtype)
        x = np.random.default_rng(0).normal(size=(64, 4)).astype(dtype)
        done = S.train(
            sae, params, x, optax.adam(1e-2), steps=3, key=jax.random.key(1), batch_size=8
        )
        assert done.params["W_dec"].dtype == dtype
        assert np.isfinite(done.state.loss) and not jnp.array_equal(
            done.params["W_dec"], params["W_dec"]
        )


def test_parameters_may_be_numpy_arrays():
    sae = S.SAE(S.TopK(1), sparse=True)
    params = sae.init(3, 8, key=jax.random.key(0))
    plain = {name: np.asarray(p) for name, p in params.items()}
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(sae.encode(plain, x), sae.encode(params, x))
    np.testing.assert_array_equal(sae(plain, x), sae(params, x))


def test_no_samples_give_no_features():
    x = jnp.zeros((0, 3))
    assert RELU.encode(IDENTITY, x).shape == RELU(IDENTITY, x).shape == (0, 3)
    given = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    alone, beside = (S.statistics(RELU, IDENTITY, b) for b in ([given], [given, np.zeros((0, 3))]))
    assert alone.explained_variance == beside.explained_variance and beside.tokens == 5
    with pytest.raises(ValueError, match="at least one sample"):
        S.statistics(RELU, IDENTITY, [np.zeros((0, 3))])
    with pytest.raises(ValueError, match=r"truth must have one row or more, got shape \(0, 3\)"):
        S.recovery(jnp.eye(3), jnp.zeros((0, 3)))


def test_consistency_counts_prompts_only():
    x = np.abs(np.random.default_rng(0).normal(size=(4, 16, 3))).astype(np.float32)
    alone = S.statistics(RELU, IDENTITY, [x]).consistency
    mixed = S.statistics(RELU, IDENTITY, [x, x.reshape(-1, 3)]).consistency
    np.testing.assert_array_equal(alone, [16, 16, 16])
    np.testing.assert_array_equal(mixed, alone)


@pytest.mark.parametrize("k, tokens", [(32, 131072), (1, 3_000_000), (3, 1), (7, 99_999)])
def test_batch_top_k_keeps_whole_numbers_exactly(k, tokens):
    assert int(S.BatchTopK(k)._count(tokens)) == k * tokens


@pytest.mark.parametrize(
    "k, tokens, count", [(0.7, 10, 7), (2.3, 100, 230), (0.5, 3, 1), (1.3, 1_000_002, 1_300_002)]
)
def test_batch_top_k_of_fractions(k, tokens, count):
    assert int(S.BatchTopK(k)._count(tokens)) == count


@pytest.mark.parametrize("scale", [1e30, 1.0, 1e-30])
def test_coherence_at_any_scale(scale):
    rows = scale * np.array([[1, 0], [1, 1], [0, 0]], np.float32)
    np.testing.assert_allclose(S.coherence(rows), 0.5**0.5, rtol=1e-6)
    np.testing.assert_allclose(S.recovery(rows, rows[:2]), [1, 1], rtol=1e-6)


def test_a_probe_needs_labels_and_features_that_fit():
    f, y = np.array([[0, 1], [0, 2], [3, 1], [2, 2]], np.float32), np.array([0, 0, 1, 1])
    assert S.sparse_probe(f, y, 1, held_out=(f, y))[1] == 1.0
    assert S.sparse_probe(f, y, 1, held_out=(f, 1 - y))[1] == 0.0
    for other in (
        (f, np.array([-1, -1, 1, 1])),
        (f, y[:1]),
        (f[:1], y),
        (f[:, :1], y),
        (f, y[:, None]),
    ):
        with pytest.raises(ValueError, match=r"held_out must be features \(n, 2\) and n labels"):
            S.sparse_probe(f, y, 1, held_out=other)
    with pytest.raises(ValueError, match="held_out must have at least one sample"):
        S.sparse_probe(f, y, 1, held_out=(f[:0], y[:0]))
    rng = np.random.default_rng(0)  # few samples, which a plane separates or almost does
    assert S.sparse_probe(rng.normal(size=(6, 3)), np.array([0, 1] * 3), 3)[1] >= 0.5


def test_what_does_not_fit_is_named():
    model = nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="latents must be distinct"):
        S.ablate(model, "layers/0$", RELU, IDENTITY, [1, 1])
    with pytest.raises(ValueError, match=r"f must have the 3 latents of W_dec, got shape \(2, 1\)"):
        S.zf(jnp.ones((2, 3)), jnp.ones((2, 1)), IDENTITY)
    page = [([["a", "b"]], jnp.full((1, 2, 3), jnp.nan))]
    with pytest.raises(ValueError, match="features of batch 0 are NaN"):
        S.dashboard(RELU, IDENTITY, page, [0])
    with pytest.raises(ValueError, match="for each of 0 sequences"):
        S.dashboard(RELU, IDENTITY, [([["a"]], jnp.zeros((0, 2, 3)))], [0])
    no_decoder = {"W_enc": jnp.eye(3)}
    for call in (
        lambda: S.weight_statistics(no_decoder), lambda: S.fold_scale(no_decoder, 2.0),
        lambda: S.fold_decoder_norm(RELU, no_decoder),
        lambda: S.zf(jnp.ones((2, 3)), jnp.ones((2, 3)), no_decoder),
        lambda: S.steer(model, "layers/0$", RELU, no_decoder, 0, 1.0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="W_dec.* missing among W_enc"):
            call()
    chunks = iter([np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)])
    buffer = S.ActivationBuffer(lambda at: chunks, capacity=8, batch_size=2, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"rows of the shapes \(3,\) and \(2,\)"):
        buffer.batch()


def test_resampling_with_gradients():
    sae, adam = sj.sae.SAE(sj.sae.GradientTopK(1)), optax.adam(1e-3)
    carry = sj.sae.begin(sae, sae.init(2, 4, key=jax.random.key(0)), adam)
    batch = {"x": jnp.eye(2), "grad": jnp.eye(2)}
    carry = sj.sae.train_step(sae, adam, carry, batch)
    dead = np.asarray(carry.state.silent) >= 1
    new = sj.sae.resample(sae, adam, carry, **batch, key=jax.random.key(1), dead_after=1)
    moved = (np.asarray(new.params["W_dec"]) != np.asarray(carry.params["W_dec"])).any(1)
    assert dead.any() and (moved == dead).all() and not np.asarray(new.state.silent)[dead].any()
