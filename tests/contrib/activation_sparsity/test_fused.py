"""Fused decoders against the same gates as taps."""

import dataclasses
import importlib
import types

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax.contrib import activation_sparsity as sparse

CONFIG = sj.models.LlamaConfig(
    vocabulary=29, width=16, hidden=24, layers=2, heads=4, key_heads=2, head_size=4
)
IDS = jnp.array([[3, 5, 7, 11, 2, 8], [1, 0, 28, 4, 4, 9]])
# Other tokens: a threshold may be one of their scores, at which rounding decides.
OTHERS = jnp.array([[9, 27, 16, 4, 22, 13, 0]])
PROMPTS = [[3, 5, 7], [1, 2, 3, 4, 5]]


@pytest.fixture(scope="module")
def model():
    model = sj.models.Llama(CONFIG, rngs=nnx.Rngs(0))
    model.head.kernel[...] *= 3
    return model


def gates_of(model):
    wina = sparse.input_gates(model, 0.5, sparse.input_counts(model, [OTHERS]))
    down = {p: g for p, g in wina.items() if "down" in p}
    cats = sparse.activation_gates(model, 0.4, sparse.activation_counts(model, [OTHERS]))
    return {
        "none": {},
        "WINA": wina,
        "CATS": cats,
        "CATS and WINA": cats | down,
        "top-k": sparse.input_gates(model, 0.5),
        "some": {p: g for p, g in wina.items() if "layers/1" in p and "up" not in p},
    }


@pytest.mark.parametrize("kind", ["none", "WINA", "CATS", "CATS and WINA", "top-k", "some"])
@pytest.mark.parametrize("rotated", [False, True])
def test_the_outputs_are_those_of_the_taps(model, kind, rotated):
    model = sparse.orthogonalize(model) if rotated else model
    gates = gates_of(model)[kind]
    taps = sj.nn.replace(model, gates) if gates else model
    fast = sparse.fast_decoder(model, gates)
    # A prompt, then single tokens of two rows, with their cache.
    caches, logits = [m.empty_cache(2, 10) for m in (taps, fast)], None
    for ids in (IDS[:, :4], IDS[:, 4:5], IDS[:, 5:]):
        logits, caches = zip(*(m(ids, c) for m, c in zip((taps, fast), caches)))
        np.testing.assert_allclose(logits[0], logits[1], atol=2e-4)
    for a, b in zip(*(c.keys for c in caches)):
        np.testing.assert_allclose(a, b, atol=2e-4)
    assert sj.models.generate(fast, PROMPTS, 8) == sj.models.generate(taps, PROMPTS, 8)


def doubled(path, call, *args, **kwargs):
    y = call(*args, **kwargs)
    return (2 * y[0], *y[1:]) if isinstance(y, tuple) else 2 * y


LIMIT = sparse.InputGate(sj.select.Threshold(0.5))
TAPS = {
    "by suffix": {"mlp/(up|down)$": LIMIT},
    "the first match": {"layers/1/mlp/down": sparse.InputGate(sj.select.Threshold(-1.0)),
                        "down$": LIMIT},
    "per unit": {"mlp/up$": sparse.InputGate(sj.select.Threshold(jnp.linspace(0, 1, 16)))},
    **{where: {where: doubled} for where in (
        "layers/0$", "attention$", "mlp$", "attention_norm$", "1/norm$", "key$", "^head$", "out$",
    )},
}  # fmt: skip


@pytest.mark.parametrize("taps", TAPS.values(), ids=TAPS)
def test_any_tap_of_replace_is_kept(model, taps):
    slow, fast = sj.nn.replace(model, taps), sparse.fast_decoder(model, taps)
    caches, logits = [m.empty_cache(2, 10) for m in (slow, fast)], None
    for ids in (IDS[:, :4], IDS[:, 4:5], IDS[:, 5:]):
        logits, caches = zip(*(m(ids, c) for m, c in zip((slow, fast), caches)))
        np.testing.assert_allclose(logits[0], logits[1], atol=2e-4)


def test_a_coarse_model(model):
    small = sparse.coarse_sparse(model, PROMPTS[0], 0.5)
    fast = sparse.fast_decoder(small)
    assert sj.models.generate(fast, PROMPTS, 8) == sj.models.generate(small, PROMPTS, 8)


def test_int8(model):
    gates = gates_of(model)["WINA"]
    fast = sparse.fast_decoder(model, gates, int8=True)
    slow = sj.nn.replace(sparse.skip_inputs(model, int8=True), gates)
    assert sj.models.generate(fast, PROMPTS, 8) == sj.models.generate(slow, PROMPTS, 8)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8, "int8"])
def test_heads(tied, dtype):
    config = dataclasses.replace(CONFIG, tied=tied)
    model = sj.models.Llama(config, rngs=nnx.Rngs(0))
    fast, dtype = sparse.fast_decoder(model, head=dtype), jnp.dtype(dtype)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 16)), jnp.float32)
    kernel = model.embed.embedding[...].T if tied else model.head.kernel[...]
    if dtype == jnp.int8:
        kernel = sj.formats.Skipping.quantized(kernel).todense()
    kernel = np.asarray(jnp.asarray(kernel, jnp.float32 if dtype == jnp.int8 else dtype), float)
    normed = np.asarray(model.norm(x), np.float64)
    for rows in (slice(None), slice(1)):
        want = normed[:, rows] @ kernel
        np.testing.assert_allclose(
            fast.logits(x[:, rows]), want, atol=2e-2 if rows.stop is None else 1e-4
        )


def test_the_choice(model):
    fast = sparse.fast_decoder(model)
    choice = sparse.choose_decoder(model, {"fused": fast}, [1, 2, 3], steps=4, rounds=1)
    assert choice.speeds[choice.name] == max(choice.speeds.values())
    assert choice.model is {"dense": model, "fused": fast}[choice.name]
    assert choice.speeds[choice.name] >= choice.speeds["dense"]
    assert choice.text.startswith(choice.name)

    with pytest.raises(ValueError, match="none named 'dense'"):
        sparse.choose_decoder(model, {"dense": model}, [1])
    with pytest.raises(ValueError, match="at least one"):
        sparse.choose_decoder(model, {}, [1])


def test_noise_does_not_make_a_decoder_fast(model, monkeypatch):
    # The first takes 1.0 with 4 tokens and, by noise, 1.1 to read; the second 0.5 and 0.1.
    clock = iter(np.cumsum([0, 1.0, 0, 1.1, 0, 0.5, 0, 0.1]))
    fused = importlib.import_module("sparsejax.contrib.activation_sparsity._fused")
    monkeypatch.setattr(fused, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    choice = sparse.choose_decoder(model, {"other": model}, [1, 2, 3], steps=4, rounds=1)
    assert choice.name == "other"
    np.testing.assert_allclose([choice.speeds["dense"], choice.speeds["other"]], [4, 10])


def test_mistakes(model):
    stack = sj.models.Llama(CONFIG, scan=True, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="scan=False"):
        sparse.fast_decoder(stack)
    with pytest.raises(ValueError, match="head must be float32, bfloat16 or int8"):
        sparse.fast_decoder(model, head=jnp.float16)
    with pytest.raises(ValueError, match="leave the head"):
        sparse.fast_decoder(model, {"head$": LIMIT}, head=jnp.bfloat16)
    with pytest.raises(ValueError, match="matches no module"):
        sparse.fast_decoder(model, {"^nothing$": sparse.InputGate(sj.select.TopK(1))})
