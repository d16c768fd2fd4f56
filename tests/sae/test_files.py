"""Files: round trips, layouts of SAELens and Gemma Scope, refusals."""

import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sparsejax import sae

D, H = 6, 16
KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (5, D))
ROUND = {
    "relu": sae.SAE(sae.ReLU()),
    "not centred": sae.SAE(sae.ReLU(), center=False),
    "layer norm": sae.SAE(sae.ReLU(), normalize="layer_norm"),
    "constant norm": sae.SAE(sae.ReLU(), normalize="constant_norm_rescale"),
    "top-k": sae.SAE(sae.TopK(3)),
    "top-k, rescaled": sae.SAE(sae.TopK(3), rescale=True),
    "abs top-k": sae.SAE(sae.AbsTopK(3)),
    "jump relu": sae.SAE(sae.JumpReLU()),
    "gated": sae.SAE(sae.Gated()),
    "matching pursuit": sae.SAE(sae.MatchingPursuit(3, 0.1, True)),
    "transcoder": sae.SAE(sae.ReLU(), transcoder=True),
    "square transcoder": sae.SAE(sae.ReLU(), transcoder=True),
    "skip transcoder": sae.SAE(sae.ReLU(), transcoder=True),
    "jump relu skip transcoder": sae.SAE(sae.JumpReLU(), transcoder=True),
}


def params_of(name, dtype=jnp.float32):
    more = {"output": 4} if "transcoder" in name and "square" not in name else {}
    more |= {"skip": True} if "skip" in name else {}
    params = ROUND[name].init(D, H, key=KEY, dtype=dtype, **more)
    keys = iter(jax.random.split(KEY, len(params)))
    noise = {k: 0.2 * jnp.abs(jax.random.normal(next(keys), p.shape)) for k, p in params.items()}
    return {k: (p + noise[k]).astype(p.dtype) for k, p in params.items()}


@pytest.mark.whole
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ROUND)
def test_round_trips(name, dtype, tmp_path):
    found, params = ROUND[name], params_of(name, dtype)
    sae.save(tmp_path, found, params, metadata={"hook_name": "blocks.1"})
    again, weights, metadata = sae.load(tmp_path)
    assert metadata["hook_name"] == "blocks.1"
    assert weights.keys() == params.keys()
    for k in params:
        assert weights[k].dtype == params[k].dtype
        np.testing.assert_array_equal(weights[k], params[k])
    np.testing.assert_array_equal(again(weights, X), found(params, X))
    assert again.transcoder == found.transcoder == ("transcoder" in name)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert ("transcoder" in cfg["architecture"]) == found.transcoder
    assert cfg["metadata"]["sae_lens_version"].startswith("6.")
    assert (cfg["d_in"], cfg["d_sae"]) == (D, H)


def test_batch_top_k_is_saved_with_its_threshold(tmp_path):
    found = sae.SAE(sae.BatchTopK(2))
    params = found.init(D, H, key=KEY)
    with pytest.raises(ValueError, match=r"BatchTopK.*inference"):
        sae.save(tmp_path, found, params)
    state = found.state(params)._replace(threshold=jnp.asarray(0.3))
    sae.save(tmp_path, *found.inference(params, state))
    again, weights, _ = sae.load(tmp_path)
    f = again.encode(weights, X)
    assert float(f[f > 0].min()) > 0.3


@pytest.mark.parametrize(
    "found, reason",
    [
        (sae.SAE(sae.TopAFA()), "TopAFA"),
        (sae.SAE(sae.GradientTopK(2)), "GradientTopK"),
        (sae.SAE(sae.ReLU(), rescale=True), "rescale"),
        (sae.SAE(sae.TopK(2), transcoder=True), "transcoder"),
        (sae.SAE(sae.TopK(jnp.array([1, 2]), most=2)), "one integer k"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused(found, reason, tmp_path):
    more = {"output": 3} if found.transcoder else {}
    with pytest.raises(ValueError, match=reason):
        sae.save(tmp_path, found, found.init(D, H, key=KEY, **more))


def tensors_of(name="relu", **more):
    return {k: np.asarray(p) for k, p in params_of(name).items()} | more


def written(path, cfg, tensors):
    (path / "cfg.json").write_text(cfg if isinstance(cfg, str) else json.dumps(cfg))
    save_file(tensors, path / "sae_weights.safetensors")
    return path


SIX = {"d_in": D, "d_sae": H, "architecture": "standard", "metadata": {"sae_lens_version": "6.1.0"}}
OLD = {"d_in": D, "d_sae": H, "hook_point": "blocks.0.hook_resid_pre", "dtype": "float32"}


def test_missing_keys_take_the_defaults_and_b_dec_is_squeezed(tmp_path):
    tensors = tensors_of()
    tensors["b_dec"] = tensors["b_dec"][None]
    found, weights, _ = sae.load(written(tmp_path, SIX, tensors))
    assert found.center and found.normalize == "none" and weights["b_dec"].shape == (D,)
    np.testing.assert_allclose(found(weights, X), ROUND["relu"](params_of("relu"), X), atol=1e-6)


def test_layout_before_6(tmp_path):
    topk = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}
    found, weights, metadata = sae.load(written(tmp_path, OLD | topk, tensors_of()))
    assert found.activation == sae.TopK(3) and metadata["hook_name"] == OLD["hook_point"]
    np.testing.assert_allclose(found(weights, X), ROUND["top-k"](params_of("top-k"), X), atol=1e-6)
    for given, wanted in ((True, "expected_average_only_in"), (False, "none"), (None, "none")):
        cfg = OLD | {"normalize_activations": given, "scaling": 1}
        assert sae.load(written(tmp_path, cfg, tensors_of()))[0].normalize == wanted
    ones = tensors_of(scaling_factor=np.ones(H, np.float32))
    sae.load(written(tmp_path, OLD, ones))
    cfg = OLD | {"sae_lens_version": "5.9.1"}
    assert sae.load(written(tmp_path, cfg, tensors_of()))[0].activation == sae.ReLU()


BAD = {
    "temporal": (SIX | {"architecture": "temporal"}, {}, "architecture 'temporal'"),
    "list": (SIX | {"architecture": ["standard"]}, {}, "architecture"),
    "hook_z": (SIX | {"reshape_activations": "hook_z"}, {}, "reshape_activations 'hook_z'"),
    "old hook_z": (OLD | {"hook_point": "blocks.0.attn.hook_z"}, {}, "hook_z"),
    "whitening": (SIX | {"normalize_activations": "covariance_whitening"}, {}, "whitening"),
    "activation": (OLD | {"activation_fn": "tanh-relu"}, {}, "tanh-relu"),
    "no k": (SIX | {"architecture": "topk"}, {}, "integer k"),
    "k": (SIX | {"architecture": "topk", "k": -1}, {}, "integer k"),
    "true": (SIX | {"architecture": "topk", "k": True}, {}, "integer k"),
    "old k": (OLD | {"activation_fn": "topk", "activation_fn_kwargs": 3}, {}, "integer k"),
    "version": (SIX | {"metadata": {"sae_lens_version": "new"}}, {}, "sae_lens_version"),
    "metadata": (SIX | {"metadata": [1]}, {}, "metadata"),
    "size": (SIX | {"d_sae": 99}, {}, "d_sae = 99"),
    "scaled": (OLD, {"scaling_factor": np.full(H, 2.0, np.float32)}, "scaling_factor"),
    "extra": (SIX, {"W_more": np.ones(2, np.float32)}, "W_more"),
    "ints": (SIX, {"b_enc": np.ones(H, np.int32)}, "b_enc must be an array of floats"),
    "rank": (SIX, {"W_dec": np.ones(2, np.float32)}, "W_dec must be a matrix"),
    "shape": (SIX, {"b_enc": np.ones(H - 1, np.float32)}, "b_enc must have shape"),
    "bias": (SIX, {"b_dec": np.ones((2, D), np.float32)}, "b_dec must have shape"),
    "centre": (SIX | {"architecture": "transcoder", "apply_b_dec_to_input": True}, {}, "apply_b"),
    "threshold": (SIX | {"architecture": "jumprelu"}, {}, "no tensor threshold"),
    "text": ("{", {}, "cannot be loaded"),
    "number": ("3", {}, "must hold an object"),
    "nested": ("[" * 100_000, {}, "cannot be loaded"),
}  # fmt: skip


@pytest.mark.whole
@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name(name, tmp_path):
    cfg, tensors, reason = BAD[name]
    with pytest.raises(ValueError, match=reason):
        sae.load(written(tmp_path, cfg, tensors_of() | tensors))


def test_damaged_and_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="path"):
        sae.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"cfg\.json"):
        sae.load(tmp_path)
    written(tmp_path, SIX, tensors_of())
    file = tmp_path / "sae_weights.safetensors"
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(20):
        cut = whole[: rng.integers(len(whole))]
        file.write_bytes(cut)
        with pytest.raises(ValueError, match="cannot be loaded"):
            sae.load(tmp_path)
    file.unlink()
    with pytest.raises((FileNotFoundError, ValueError)):
        sae.load(tmp_path)


def header(descr, shape):
    """The start of an npy file, whatever follows."""
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "member",
    [header("<f4", (10**9, 10**9)), header("<f4", (-1, 2)), header("|O", (2, 2)),
     header("<f4", (2, 2)), header([("a", "<f4")], (0,)), b"\x93NUMPY\x09\x00", b""],
)  # fmt: skip
def test_hostile_arrays_in_an_npz_file(tmp_path, member):
    path = tmp_path / "params.npz"
    np.savez(path, W_dec=np.eye(2), b_enc=np.zeros(2), b_dec=np.zeros(2), threshold=np.ones(2))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("W_enc.npy", member)
    with pytest.raises(ValueError, match="cannot be loaded"):
        sae.load(path)
    path.rename(tmp_path / "chunk-0.npz")
    with pytest.raises(ValueError, match="chunk-0.npz cannot be read"):
        list(sae.cache_activations(tmp_path, lambda start: [])(0))


@pytest.mark.parametrize("change", [(8, 1), (10, 97)])  # encrypted; an unknown compression
def test_archives_that_python_does_not_read(tmp_path, change):
    path, (at, value) = tmp_path / "params.npz", change
    np.savez(path, threshold=np.ones(2))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x03\x04") + at - 2] = value
    data[data.index(b"PK\x01\x02") + at] = value
    path.write_bytes(data)
    with pytest.raises(ValueError, match="cannot be loaded"):
        sae.load(path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"chunks": "x"}', '{"chunks": -1}'])
def test_a_damaged_count_of_chunks(tmp_path, text):
    (tmp_path / "complete.json").write_text(text)
    with pytest.raises(ValueError, match=r"complete\.json cannot be read"):
        list(sae.cache_activations(tmp_path, lambda start: [])(0))


def test_gemma_scope(tmp_path):
    found, params = ROUND["jump relu"], params_of("jump relu")
    path = tmp_path / "params.npz"
    arrays = {k: np.asarray(p) for k, p in params.items()}
    for names in ({}, {"W_enc": "w_enc", "W_dec": "w_dec"}):
        np.savez(path, **{names.get(k, k): x for k, x in arrays.items()})
        again, weights, _ = sae.load(path)
        assert not again.center
        wanted = sae.SAE(sae.JumpReLU(), center=False)(params, X)
        np.testing.assert_allclose(again(weights, X), wanted, atol=1e-6)
    np.savez(path, **{k: x for k, x in arrays.items() if k != "threshold"})
    with pytest.raises(ValueError, match="no threshold"):
        sae.load(path)
    np.savez(path, threshold=np.array([object()]))
    with pytest.raises(ValueError, match="cannot be loaded"):
        sae.load(path)
    for content in (b"", b"PK", path.read_bytes()[:40]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be loaded"):
            sae.load(path)
    del found
