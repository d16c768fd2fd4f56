"""Mean scores of texts in padded batches, by layer, with texts that are too short."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax.contrib import hidden_states

from .test_scores import oracle

TABLE = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
LENGTHS = [5, 1, 3, 0, 8, 2, 7]


def texts():
    rng = np.random.default_rng(1)
    return [rng.choice(np.arange(1, 20), n, replace=False) for n in LENGTHS]


def batches(sizes):
    """Padded with 0 to different lengths."""
    given, found = texts(), []
    for size in sizes:
        rows, given = given[:size], given[size:]
        ids = np.zeros((size, max(map(len, rows)) + 2), int)
        for row, tokens in zip(ids, rows):
            row[: len(tokens)] = tokens
        found.append(jnp.asarray(ids))
    return found


@pytest.mark.parametrize("sizes", [(7,), (3, 4), (1, 6)])
def test_means_do_not_depend_on_batches_and_padding(sizes):
    scores = [oracle(TABLE[tokens])[0] for tokens in texts() if len(tokens) > 1]
    found = hidden_states.score_dataset(
        lambda ids: jnp.asarray(TABLE)[ids], batches(sizes), valid=lambda ids: ids > 0
    )
    np.testing.assert_allclose(found.mean, np.mean(scores), rtol=1e-5)
    assert found[1:] == (5, 2)


def test_every_layer_of_a_recorded_model_is_scored_in_one_run():
    model = nnx.Sequential(nnx.Embed(20, 6, rngs=nnx.Rngs(0)), nnx.Linear(6, 4, rngs=nnx.Rngs(1)))
    layers = nnx.jit(lambda model, ids: sj.nn.record(model, r"layers/\d$", ids)[1])
    for at, score in enumerate((hidden_states.matrix_nuclear_norm, hidden_states.nuclear_norm)):
        found = hidden_states.score_dataset(
            lambda ids: layers(model, ids), batches((3, 4)), score, valid=lambda ids: ids > 0
        )
        wanted = {name: [] for name in ("layers/0", "layers/1")}
        for tokens in texts():
            for name, h in sj.nn.record(model, r"layers/\d$", jnp.asarray(tokens))[1].items():
                wanted[name] += [oracle(h)[at]] if len(tokens) > 1 else []
        assert found.mean.keys() == wanted.keys()
        for name, scores in wanted.items():
            np.testing.assert_allclose(found.mean[name], np.mean(scores), rtol=1e-4)


def test_tuples_are_arguments_and_no_mask_counts_all():
    ids = jnp.array([[1, 2, 3], [4, 5, 6]])
    apply = lambda ids, shift: jnp.asarray(TABLE)[ids] + shift  # noqa: E731
    found = hidden_states.score_dataset(apply, [(ids, 0.0), (ids, 3.0)])
    wanted = np.mean([oracle(TABLE[row])[0] for row in np.asarray(ids)])
    np.testing.assert_allclose(found.mean, wanted, rtol=1e-5)
    assert found[1:] == (4, 0)


def test_one_program_for_all_batches_of_one_shape():
    traced = []

    def score(h, mask):
        traced.append(h.shape)
        return hidden_states.matrix_nuclear_norm(h, mask)

    hidden_states.score_dataset(lambda ids: jnp.asarray(TABLE)[ids], [jnp.ones((2, 4), int)] * 5,
                                score)  # fmt: skip
    assert len(traced) == 1


def test_wrong_batches_are_named():
    apply = lambda ids: jnp.asarray(TABLE)[ids]  # noqa: E731
    ids = jnp.array([[1, 2, 3]])
    call = hidden_states.score_dataset
    with pytest.raises(ValueError, match="at least two tokens"):
        call(apply, [ids], valid=lambda ids: ids < 2)
    with pytest.raises(ValueError, match="at least two tokens"):
        call(apply, [])
    with pytest.raises(ValueError, match=r"apply must return hidden states \(b, n, d\)"):
        call(lambda ids: ids, [ids])
    with pytest.raises(ValueError, match="valid must return a mask"):
        call(apply, [ids], valid=lambda ids: ids[0] > 0)
    with pytest.raises(TypeError, match="batches must hold arrays"):
        call(apply, [[1, 2]])
    with pytest.raises(ValueError, match="NaN"):
        call(lambda ids: jnp.full((1, 3, 2), jnp.nan), [ids])
    with pytest.raises(ValueError, match=r"score must return a number, got the shape \(6,\)"):
        call(apply, [jnp.zeros((6, 3), int)], lambda h, mask: h.mean(0))


def test_nan_of_a_text_that_is_too_short_is_skipped():
    h = jnp.stack([jnp.asarray(TABLE[:3]), jnp.full((3, 6), jnp.nan)])
    mask = jnp.array([[True] * 3, [True, False, False]])
    found = hidden_states.score_dataset(lambda h: h, [h], valid=lambda h: mask)
    np.testing.assert_allclose(found.mean, oracle(TABLE[:3])[0], rtol=1e-5)
    assert found.skipped == 1


def test_it_works_with_a_jitted_apply():
    apply = jax.jit(lambda ids: jnp.asarray(TABLE)[ids])
    assert hidden_states.score_dataset(apply, [jnp.array([[1, 2, 3]])]).texts == 1
