"""Compressed weights survive files, checkpoints and sharding bit for bit."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from flax import nnx

import sparsejax as sj
from sparsejax.formats import BlockArray, NMArray, _save


def tree(dtype=jnp.float32):
    w = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8)), dtype)
    stacked = jnp.stack([w, -w])
    return {
        "a": {"kernel": NMArray.fromdense(w[:14], 2, 4), "bias": jnp.arange(8.0)},
        "b": {"kernel": BlockArray.fromdense(jnp.where(w > 1, w, 0), 4)},
        "c": {
            "kernel": NMArray.fromdense(stacked, 9, 16),
            "shared": NMArray.fromdense(w, 1, 4, share=4),
        },
    }


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        assert a.dtype == b.dtype and (np.asarray(a) == np.asarray(b)).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_safetensors_round_trip(tmp_path, dtype):
    want = tree(dtype)
    sj.formats.save_safetensors(want, tmp_path / "w.safetensors")
    assert_same(sj.formats.load_safetensors(tmp_path / "w.safetensors"), want)


def test_orbax_round_trip(tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    want = tree()
    with checkpoint.StandardCheckpointer() as saver:
        saver.save(tmp_path / "w", want)
        saver.wait_until_finished()
        got = saver.restore(tmp_path / "w", jax.tree.map(jnp.zeros_like, want))
    assert_same(got, want)


def test_names_that_collide(tmp_path):
    w = tree()["a"]["kernel"]
    with pytest.raises(ValueError, match="two leaves are named"):
        sj.formats.save_safetensors({"a": w, "a.code": w.code}, tmp_path / "w.safetensors")


@pytest.mark.parametrize("block", [2, 8, (4, 8)])
def test_convert_block(block):
    w = tree()["b"]["kernel"]
    other = sj.formats.convert_block(w, block)
    assert other.block == ((block, block) if isinstance(block, int) else block)
    np.testing.assert_array_equal(other.todense(), w.todense())
    with pytest.raises(ValueError, match="does not divide"):
        sj.formats.convert_block(w, 3)


def test_columns_over_eight_devices():
    code = """
import jax, jax.numpy as jnp, numpy as np, sparsejax as sj
mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
w = jnp.asarray(np.random.default_rng(0).normal(size=(32, 64)), jnp.float32)
x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 32)), jnp.float32)
mask = np.kron(np.random.default_rng(2).random((8, 8)) < 0.5, np.ones((4, 8), bool))
blocks = sj.formats.BlockArray.fromdense(w, (4, 8), mask=mask)
for s in (sj.formats.NMArray.fromdense(w, 2, 4), blocks):
    placed = sj.formats.shard_columns(s, mesh, "model")
    assert len(placed.values.sharding.device_set) == 8
    loss = lambda x, s: jnp.sin(x @ s).sum()
    y, (dx, dw) = jax.jit(jax.value_and_grad(loss, (0, 1), allow_int=True))(x, placed)
    want, (wx, ww) = jax.value_and_grad(loss, (0, 1), allow_int=True)(x, s)
    np.testing.assert_allclose(y, want, rtol=1e-5)
    np.testing.assert_allclose(dx, wx, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dw.values, ww.values, rtol=1e-5, atol=1e-5)
try:
    sj.formats.shard_columns(sj.formats.BlockArray.fromdense(w, 16), mesh, "model")
except ValueError as error:
    assert "8 devices do not divide the 4" in str(error), error
else:
    raise SystemExit("no error")
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **flags})


def test_only_compressed_matrices_have_columns_to_shard():
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(TypeError, match="must be a compressed matrix, got .*device_put"):
        sj.formats.shard_columns(jnp.ones((4, 4)), mesh, "model")


def test_a_leaf_within_a_leaf(tmp_path):
    leaves = {"a": jnp.ones(2), "a/b": jnp.ones(3)}
    with pytest.raises(ValueError, match="a is a leaf, so a/b cannot be within it"):
        sj.formats.save_safetensors(leaves, tmp_path / "w")
    assert not (tmp_path / "w").exists()
    sj.formats.save_safetensors({"a": {"b": jnp.ones(2), "c/d": jnp.ones(3)}}, tmp_path / "w")
    assert sj.formats.load_safetensors(tmp_path / "w")["a"]["c"]["d"].shape == (3,)


def test_explicit_axes_are_refused_with_the_mesh_that_works():
    w = sj.formats.NMArray.fromdense(jnp.eye(8), 1, 4)
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Explicit,))
    with pytest.raises(ValueError, match=r"axis_types=\(jax.sharding.AxisType.Auto,\) \* 1"):
        sj.formats.shard_columns(w, mesh, "model")


def test_indices_without_values_are_refused(tmp_path):
    kernel = sj.nn.SparseKernel(sj.formats.NMArray.fromdense(jnp.eye(8), 1, 4))
    state = nnx.to_pure_dict(nnx.state(kernel))
    with pytest.raises(ValueError, match=r"index has no values.*save kernel\[...\]"):
        sj.formats.save_safetensors(state, tmp_path / "w.safetensors")


def small():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), jnp.float32)
    blocks = jnp.where(jnp.kron(jnp.eye(2), jnp.ones((4, 2))) > 0, w, 0)
    return {
        "nm": NMArray.fromdense(w[:7], 2, 4),
        "planes": NMArray.fromdense(jnp.concatenate([w, w]), 9, 16),
        "block": BlockArray.fromdense(blocks, (4, 2), slots=2),
        "entries": sj.formats.Entries.fromdense(jnp.diag(w[0]), slots=6),
        "sum": sj.formats.Sum(w, sj.formats.LowRank(w[:, :1], w[:1])),
        "turned": sj.formats.Transposed(NMArray.fromdense(w, 1, 4)),
    }


def resigned(path, change):
    """Changes the tensors and the formats of a file, and gives it the checksum that fits."""
    library = importlib.import_module("safetensors.flax")
    tensors = library.load_file(path)
    with safetensors.safe_open(path, "np") as file:
        kinds = json.loads(file.metadata()[_save._KINDS])
    change(tensors, kinds)
    metadata = {_save._KINDS: json.dumps(kinds), _save._DIGEST: _save._UNSIGNED}
    library.save_file(tensors, path, metadata=metadata)
    with path.open("r+b") as file:
        digest, place = _save._signature(file, _save._UNSIGNED)
        file.seek(place)
        file.write(digest.encode())


def fuzz_bytes(path, rng, count):
    """Cuts, flips and swaps bytes; each damaged file must raise ValueError."""
    sj.formats.save_safetensors(small(), path)
    whole = path.read_bytes()
    for _ in range(count):
        data, place = bytearray(whole), int(rng.integers(len(whole)))
        kind = rng.integers(3)
        if kind == 0:
            data = data[:place]
        elif kind == 1:
            data[place] ^= 1 << int(rng.integers(8))
        else:
            other = int(rng.integers(len(whole)))
            data[place], data[other] = data[other], data[place]
        path.write_bytes(data)
        if data == whole:
            continue
        with pytest.raises(ValueError, match="load_safetensors: .* cannot be loaded"):
            sj.formats.load_safetensors(path)


def test_damaged_bytes_are_refused(tmp_path):
    fuzz_bytes(tmp_path / "w", np.random.default_rng(0), 150)


@pytest.mark.slow
def test_many_damaged_bytes_are_refused(tmp_path):
    fuzz_bytes(tmp_path / "w", np.random.default_rng(1), 30_000)


def shifted(key, by):
    return lambda tensors, kinds: tensors.update({key: tensors[key] + jnp.asarray(by, jnp.int32)})


def put(key, value):
    return lambda tensors, kinds: tensors.update({key: jnp.asarray(value)})


def static(name, key, value):
    return lambda tensors, kinds: kinds[name]["static"].update({key: value})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (shifted("block.index", 10**8), "index holds .* out of"),
        (shifted("block.index", -1), "index holds .* out of"),
        (shifted("block.count", 9), "count holds .* out of"),
        (shifted("block.slot_t", 1000), "slot_t holds"),
        (put("block.index_t", np.int32([[1], [0]])), "lists by row and column differ"),
        (put("block.index", np.int32([[0], [1]])), "index must be int32 of shape"),
        (put("block.index", np.float32([[0, 0], [1, 0]])), "index must be int32"),
        (put("block.count", np.int32([2, 1])), "ascend without repetition"),
        (put("block.values", np.ones((2, 2, 4, 2), np.float32)), "values must be 0 from count"),
        (put("block.values", np.ones((2, 2, 4, 2), np.int32)), "array of floats, got int32"),
        (put("nm.code", np.full((2, 4), 255, np.uint8)), "ascend|beyond"),
        (put("nm.code", np.zeros((2, 4), np.int8)), "code must be uint8 of shape"),
        (put("nm.code", np.zeros((2, 3), np.uint8)), "code must divide columns"),
        (put("planes.code", np.full((9, 1, 4), 16, np.uint8)), r"out of \[0, 16\)"),
        (static("nm", "m", 0), "m must be an integer from 1"),
        (static("nm", "m", "4"), "m must be an integer|parameter .m."),
        (static("nm", "m", 10**9), "m must be an integer"),
        (static("nm", "padding", -8), "padding must be an integer from 0 to 3"),
        (static("nm", "other", 1), "other"),
        (shifted("entries.index", 100), "index holds"),
        (put("entries.index", np.int32([0, 0, 1, 2, 16, 16])), "ascend without repetition"),
        (static("entries", "matrix", [-4, -4]), "must be"),
        (static("entries", "matrix", [2**20, 2**20]), "fewer than 2\\^31"),
        (put("sum.trainable.b", np.ones((2, 4), np.float32)), "takes a"),
        (put("sum.frozen", np.ones((4, 4), np.float32)), "differ in shape"),
        (put("turned.matrix.code", np.uint8([[9] * 4] * 2)), "code|index"),
        (lambda tensors, kinds: tensors.pop("nm.code"), "it has no tensor nm.code"),
        (lambda tensors, kinds: kinds["nm"].pop("static"), "static"),
        (lambda tensors, kinds: kinds.update(nm=3), "subscriptable"),
        (lambda tensors, kinds: kinds["nm"].update(kind="os.system"), "not among"),
        (put("block", np.ones(2, np.float32)), "both a tensor and a matrix"),
        (put("nm/deeper", np.ones(2, np.float32)), "within another leaf"),
    ],
)  # fmt: skip
def test_crafted_files_are_refused(tmp_path, change, match):
    path = tmp_path / "w"
    sj.formats.save_safetensors(small(), path)
    resigned(path, lambda tensors, kinds: None)
    assert_same(sj.formats.load_safetensors(path), small())
    resigned(path, change)
    with pytest.raises(ValueError, match=f"(?s)cannot be loaded: .*({match})"):
        sj.formats.load_safetensors(path)


def test_a_file_without_its_checksum_is_refused_and_one_of_others_is_loaded(tmp_path):
    path, library = tmp_path / "w", importlib.import_module("safetensors.flax")
    library.save_file({"a/b": jnp.ones(2)}, path, metadata={"format": "pt"})
    assert sj.formats.load_safetensors(path)["a"]["b"].tolist() == [1.0, 1.0]
    library.save_file({"a": jnp.ones(2)}, path, metadata={"sparsejax": "{}"})
    with pytest.raises(ValueError, match="must have both"):
        sj.formats.load_safetensors(path)
    with pytest.raises(FileNotFoundError):
        sj.formats.load_safetensors(tmp_path / "missing")


def test_what_cannot_be_written_leaves_the_old_file(tmp_path, monkeypatch):
    path, library = tmp_path / "w", importlib.import_module("safetensors.flax")
    sj.formats.save_safetensors(tree(), path)

    def full(tensors, written, metadata):
        pathlib.Path(written).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(library, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        sj.formats.save_safetensors({"a": jnp.ones(3)}, path)
    assert_same(sj.formats.load_safetensors(path), tree())
    assert list(tmp_path.iterdir()) == [path]
