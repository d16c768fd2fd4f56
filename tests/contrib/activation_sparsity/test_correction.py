"""Sirius: the rules by hand, the loop against one without a compiler, and the published costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax.contrib import activation_sparsity as sparse

CONFIG = sj.models.LlamaConfig(
    vocabulary=23, width=16, hidden=24, layers=2, heads=4, key_heads=2, head_size=4
)
PROMPT = [3, 5, 7, 11, 2]


@pytest.fixture(scope="module")
def model():
    """Random, with logits far enough apart that some tokens are likely."""
    model = sj.models.Llama(CONFIG, rngs=nnx.Rngs(0))
    model.head.kernel[...] = 3 * model.head.kernel[...]
    return model


@pytest.fixture(scope="module")
def drafts(model):
    return {
        "coarse": sparse.coarse_sparse(model, PROMPT, 0.4),
        "fine": sparse.fine_sparse(model, 0.3),
    }


def by_hand(full, draft, prompt, steps, period, threshold, stop=()):
    """The loop as the paper describes it, short chunks included; advances of whole chunks."""
    cache = full.empty_cache(1, len(prompt) + steps + 2 * period)
    logits, cache = full(jnp.array([prompt]), cache)
    tokens, advances = [int(logits[0, -1].argmax())], []
    while len(tokens) < steps and tokens[-1] not in stop:
        start, chunk = cache.counts, tokens[-1:]
        while len(chunk) < period:
            logits, cache = draft(jnp.array([chunk[-1:]]), cache)
            chunk.append(int(logits[0, 0].argmax()))
            if chunk[-1] in stop:
                break
        logits, cache = full(jnp.array([chunk]), cache._replace(counts=start))
        judged = np.exp(np.asarray(logits[0], np.float64) / 0.6)
        judged /= judged.sum(1, keepdims=True)
        kept = 0
        while kept < len(chunk) - 1 and judged[kept, chunk[kept + 1]] >= threshold:
            kept += 1
        advances.append(kept + 1)
        tokens += chunk[1 : kept + 1]
        if tokens[-1] in stop:
            break
        cache = cache._replace(counts=start + kept + 1)
        tokens.append(int(logits[0, kept].argmax()))
    return tokens[:steps], advances


@pytest.mark.parametrize("kind", ["coarse", "fine"])
@pytest.mark.parametrize("period, threshold", [(4, 0.05), (7, 0.1), (2, 0.2)])
def test_the_loop(model, drafts, kind, period, threshold):
    want, advances = by_hand(model, drafts[kind], PROMPT, 24, period, threshold)
    got = sparse.corrected_generate(
        model, drafts[kind], PROMPT, 24, period=period, threshold=threshold
    )
    assert got.tokens == want and got.advances == advances
    assert got.full_calls == len(advances) + 1
    assert got.sparse_calls == len(advances) * (period - 1)
    assert got.advance_length == np.mean(advances) and 1 <= got.advance_length <= period
    for stop in set(want[2:9]):
        want_stop, _ = by_hand(model, drafts[kind], PROMPT, 24, period, threshold, (stop,))
        found = sparse.corrected_generate(
            model, drafts[kind], PROMPT, 24, period=period, threshold=threshold, stop=(stop,)
        )
        assert found.tokens == want_stop


def test_where_it_is_the_full_model(model, drafts):
    greedy = sj.models.generate(model, [PROMPT], 24)[0]
    for draft in drafts.values():
        for more in ({"threshold": 0.51, "period": 8}, {"period": 1}):
            assert sparse.corrected_generate(model, draft, PROMPT, 24, **more).tokens == greedy
        anything = sparse.corrected_generate(model, draft, PROMPT, 24, threshold=0.0, period=6)
        assert set(anything.advances) == {6}
    alone = sparse.corrected_generate(model, model, PROMPT, 24, threshold=0.01)
    assert alone.tokens == greedy


def test_coarse_keeps_what_the_prompt_uses(model):
    small = sparse.coarse_sparse(model, PROMPT, 0.4)
    _, seen = sj.nn.record(
        model, r"mlp/down$", jnp.array([PROMPT]), reduce=lambda inputs, y: inputs[0][0]
    )
    for i, layer in enumerate(model.layers):
        z = np.asarray(seen[f"layers/{i}/mlp/down"], np.float64)
        score = np.sqrt(((z / np.linalg.norm(z, axis=1, keepdims=True)) ** 2).sum(0))
        kept = np.sort(np.argsort(-score, kind="stable")[:9])
        for name, axis in (("gate", 1), ("up", 1), ("down", 0)):
            whole = getattr(layer.mlp, name).kernel[...]
            part = getattr(small.layers[i].mlp, name).kernel[...]
            np.testing.assert_array_equal(part, np.take(np.asarray(whole), kept, axis))
    zero = sparse.griffin_scores(jnp.array([[0.0, 0.0], [0.0, 5.0]]))
    assert zero.tolist() == [0.0, 1.0]
    assert sparse.coarse_sparse(model, PROMPT, 1.0).layers[0].mlp.gate.kernel.shape == (16, 24)


def test_fine_drops_the_smallest(model):
    """Of 24 neurons int(24 * 0.7) = 16 are dropped, of equal ones those of higher index."""
    tap = sparse.fine_sparse(model, 0.3)
    x = jax.random.normal(jax.random.key(0), (1, 3, 16))
    mlp = model.layers[0].mlp
    g = np.asarray(mlp.gate(x), np.float64)
    u = np.abs(g / (1 + np.exp(-g)))
    got = np.asarray(tap.layers[0].mlp.gate(x)) != 0
    assert (got.sum(-1) == 8).all()
    assert (u[got].reshape(3, 8).min(-1) >= u[~got].reshape(3, 16).max(-1)).all()
    gate = sparse.ActivationGate(sj.select.TopK(2))
    assert gate.kept(jnp.array([2.0, 1.0, 1.0, 1.0])).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    "density, length, published",
    [
        (0.65, 15.22, 0.706), (0.76, 15.37, 0.807), (0.58, 14.76, 0.657),
        (0.72, 15.66, 0.753), (0.65, 14.67, 0.733), (0.76, 15.42, 0.804),
    ],
)  # fmt: skip
def test_published_effective_densities(density, length, published):
    assert abs(sparse.effective_density(density, 16, length) - published) < 1e-3


def test_acceptance_by_hand():
    logits = jnp.log(jnp.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.5, 0.5]])) * 0.6
    for tokens, want in (([1, 0, 1, 1], 3), ([0, 1, 0, 0], 0), ([0, 0, 0, 0], 2)):
        assert int(sparse.accept_length(logits, jnp.array(tokens), 0.3)) == want
    assert int(sparse.accept_length(logits[:1], jnp.array([0]), 0.3)) == 0


def test_mistakes(model):
    with pytest.raises(ValueError, match="prompt must hold ids from 0 to 22"):
        sparse.corrected_generate(model, model, [23], 4)
    with pytest.raises(ValueError, match="prompt must be a list"):
        sparse.corrected_generate(model, model, [], 4)
    with pytest.raises(ValueError, match="prompt must be a list"):
        sparse.coarse_sparse(model, [[1, 2]], 0.5)
    with pytest.raises(ValueError, match="must keep one of 24 neurons"):
        sparse.coarse_sparse(model, [1], 0.01)
    stack = sj.models.Llama(CONFIG, scan=True, rngs=nnx.Rngs(0))
    for refused in (
        lambda m: sparse.coarse_sparse(m, [1], 0.5),
        lambda m: sparse.fine_sparse(m, 1.0),
    ):
        with pytest.raises(ValueError, match="scan=False"):
            refused(stack)
