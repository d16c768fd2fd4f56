"""Compressed weights survive files, checkpoints and sharding bit for bit."""

import importlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from flax import nnx

import sparsejax as sj
from sparsejax.formats import BlockArray, NMArray
from sparsejax.nn import _file


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
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    got, want = (
        jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, t) for t in (got, want)
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        assert a.dtype == b.dtype and (np.asarray(a) == np.asarray(b)).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_safetensors_round_trip(tmp_path, dtype):
    want = tree(dtype)
    sj.save(tmp_path / "w.safetensors", want)
    assert_same(sj.load(tmp_path / "w.safetensors"), want)


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
        sj.save(tmp_path / "w.safetensors", {"a": w, "a.code": w.code})


def test_a_leaf_within_a_leaf(tmp_path):
    leaves = {"a": jnp.ones(2), "a/b": jnp.ones(3)}
    with pytest.raises(ValueError, match="a is a leaf, so a/b cannot be within it"):
        sj.save(tmp_path / "w", leaves)
    assert not (tmp_path / "w").exists()
    sj.save(tmp_path / "w", {"a": {"b": jnp.ones(2), "c/d": jnp.ones(3)}})
    assert sj.load(tmp_path / "w")["a"]["c"]["d"].shape == (3,)


def test_indices_without_values_are_refused(tmp_path):
    kernel = sj.nn.SparseKernel(sj.formats.NMArray.fromdense(jnp.eye(8), 1, 4))
    with pytest.raises(ValueError, match=r"index has no values.*save .* kernel\[...\]"):
        sj.save(tmp_path / "w.safetensors", {"index": kernel.index.get_value()})


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
        kinds = json.loads(file.metadata()[_file.KINDS])
    change(tensors, kinds)
    metadata = {_file.KINDS: json.dumps(kinds), _file.DIGEST: _file.UNSIGNED}
    library.save_file(tensors, path, metadata=metadata)
    _file.sign(path)


def fuzz_bytes(path, rng, count):
    """Cuts, flips and swaps bytes; each damaged file must raise ValueError."""
    sj.save(path, small())
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
        with pytest.raises(ValueError, match="load: .* cannot be loaded"):
            sj.load(path)


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
        (put("block.index", np.int32([[0], [1]])), "index must be int32 or uint16 or"),
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
        (lambda tensors, kinds: kinds.update(nm=3), "iterable"),
        (lambda tensors, kinds: kinds["nm"].update(kind="os.system"), "not among"),
        (put("block", np.ones(2, np.float32)), "both a tensor and described"),
        (put("nm/deeper", np.ones(2, np.float32)), "within another leaf"),
    ],
)  # fmt: skip
def test_crafted_files_are_refused(tmp_path, change, match):
    path = tmp_path / "w"
    sj.save(path, small())
    resigned(path, lambda tensors, kinds: None)
    assert_same(sj.load(path), small())
    resigned(path, change)
    with pytest.raises(ValueError, match=f"(?s)cannot be loaded: .*({match})"):
        sj.load(path)


def test_a_file_without_its_checksum_is_refused_and_one_of_others_is_loaded(tmp_path):
    path, library = tmp_path / "w", importlib.import_module("safetensors.flax")
    library.save_file({"a/b": jnp.ones(2)}, path, metadata={"format": "pt"})
    assert sj.load(path)["a"]["b"].tolist() == [1.0, 1.0]
    library.save_file({"a": jnp.ones(2)}, path, metadata={"sparsejax": "{}"})
    with pytest.raises(ValueError, match="must have both"):
        sj.load(path)
    with pytest.raises(FileNotFoundError):
        sj.load(tmp_path / "missing")


def test_what_cannot_be_written_leaves_the_old_file(tmp_path, monkeypatch):
    path, library = tmp_path / "w", importlib.import_module("safetensors.numpy")
    sj.save(path, tree())

    def full(tensors, written, metadata):
        pathlib.Path(written).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(library, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        sj.save(path, {"a": jnp.ones(3)})
    assert_same(sj.load(path), tree())
    assert list(tmp_path.iterdir()) == [path]


def save_and_load(path, model, into):
    sj.save(path, model)
    back = sj.load(path, into)
    assert_same(nnx.state(back), nnx.state(model))
    return back


def llama(tied=False, scan=False, dtype=jnp.float32):
    config = sj.models.LlamaConfig(
        vocabulary=24, width=16, hidden=16, layers=2, heads=2, key_heads=1, head_size=8, tied=tied
    )
    return sj.models.Llama(config, scan=scan, dtype=dtype, rngs=nnx.Rngs(0))


IDS = jnp.arange(6).reshape(1, 6)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("abstract", [True, False])
def test_a_compressed_language_model(tmp_path, tied, scan, abstract):
    make = lambda: llama(tied, scan, jnp.bfloat16)  # noqa: E731
    nm = sj.NM(2, 4, axis=1, stacked=1) if scan else sj.NM(2, 4)
    block = {"axis": 1, "stacked": 1} if scan else {}
    rules = {r"mlp/up/kernel$": sj.Block((4, 4), 0.5, **block), r"layers/.*kernel$": nm}
    model = make()
    small = sj.compress(model, sj.plan(model, rules))
    into = nnx.eval_shape(make) if abstract else make()
    back = save_and_load(tmp_path / "m", small, into)
    np.testing.assert_array_equal(back(IDS), small(IDS))
    assert (back.head is None) == tied
    # Again into a compressed model.
    save_and_load(tmp_path / "m", back, small)


def test_a_pruned_model_takes_the_bytes_of_its_bitmask(tmp_path):
    rng = np.random.default_rng(0)
    w = np.zeros(1024 * 1024, np.float32)
    w[rng.permutation(w.size)[: w.size // 10]] = rng.normal(size=w.size // 10)
    w[:3] = [-0.0, np.nan, np.inf]
    w = w.reshape(1024, 1024)
    sj.save(tmp_path / "w", {"kernel": w})
    assert (tmp_path / "w").stat().st_size / w.nbytes <= 0.15
    for back in (sj.load(tmp_path / "w"), sj.load(tmp_path / "w", {"kernel": jnp.asarray(w)})):
        np.testing.assert_array_equal(np.asarray(back["kernel"]).view("u4"), w.view("u4"))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, np.float64])
def test_bitmasks_of_every_dtype(tmp_path, dtype):
    w = np.random.default_rng(0).normal(size=(3, 5, 4)) * (np.arange(4) == 1)
    w = w.astype(dtype)
    sj.save(tmp_path / "w", w)
    np.testing.assert_array_equal(sj.load(tmp_path / "w"), jnp.asarray(w))


class Tied(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.list = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(11)])
        self.list[10].kernel = self.list[2].kernel
        self.drop, self.norm = nnx.Dropout(0.5, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)

    def __call__(self, x):
        for layer in self.list:
            x = layer(x)
        return self.norm(self.drop(x))


@pytest.mark.parametrize("abstract", [True, False])
@pytest.mark.whole
def test_tied_kernels_lists_and_random_keys(tmp_path, abstract):
    model, x = Tied(), jnp.ones((4, 8))
    model(x)
    small = sj.compress(model, sj.plan(model, {r"list/(1|2)/kernel": sj.NM(2, 4)}))
    back = save_and_load(tmp_path / "m", small, nnx.eval_shape(Tied) if abstract else Tied())
    assert back.list[10].kernel is back.list[2].kernel
    assert back.list[2].kernel[...].shape == (8, 8)
    np.testing.assert_array_equal(back(x), small(x))
    with pytest.raises(ValueError, match="abstract"):
        sj.save(tmp_path / "m", nnx.eval_shape(Tied))


def test_a_state_and_a_dense_model(tmp_path):
    model = Tied()
    state = nnx.state(sj.compress(model, sj.plan(model, {r"list/1/kernel": sj.NM(2, 4)})))
    sj.save(tmp_path / "m", state)
    back = sj.load(tmp_path / "m", jax.eval_shape(lambda: state))
    assert_same(back, state)
    save_and_load(tmp_path / "m", model, nnx.eval_shape(Tied))


def test_equinox(tmp_path):
    eqx = pytest.importorskip("equinox")
    make = lambda: eqx.nn.MLP(8, 4, 8, 2, key=jax.random.key(0))  # noqa: E731
    model = make()
    small = sj.compress(model, sj.plan(model, {r"layers/[01]/weight": sj.NM(2, 4)}))
    for into in (model, eqx.filter_eval_shape(make), small):
        sj.save(tmp_path / "m", small)
        back = sj.load(tmp_path / "m", into)
        assert_same(eqx.filter(back, eqx.is_array), eqx.filter(small, eqx.is_array))
        np.testing.assert_array_equal(back(jnp.ones(8)), small(jnp.ones(8)))
    # A dense file for a compressed model.
    sj.save(tmp_path / "m", model)
    np.testing.assert_array_equal(sj.load(tmp_path / "m", small)(jnp.ones(8)), model(jnp.ones(8)))


def test_linen(tmp_path):
    from flax import linen

    model, x = linen.Dense(4), jnp.ones((2, 8))
    variables = model.init(jax.random.key(0), x)
    small = sj.compress(variables, sj.plan(variables, sj.NM(2, 4)))
    sj.save(tmp_path / "m", small)
    back = sj.load(tmp_path / "m", jax.eval_shape(model.init, jax.random.key(0), x))
    with linen.intercept_methods(sj.nn.linen_compressed):
        np.testing.assert_array_equal(model.apply(back, x), model.apply(small, x))


def test_trees_with_numbers_gaps_and_shared_arrays(tmp_path):
    w = jnp.ones((4, 4))
    tree = {"a": [w, (w, None)], "n": 3, "x": 0.1, "flag": True, "key": jax.random.key(3), "s": 1}
    sj.save(tmp_path / "t", tree)
    with safetensors.safe_open(tmp_path / "t", "np") as file:
        assert sorted(file.keys()) == ["a/0", "key"]
    back = sj.load(tmp_path / "t", tree)
    assert back["a"][0] is back["a"][1][0] and back["a"][1][1] is None
    assert (back["n"], back["x"], back["flag"]) == (3, 0.1, True)
    assert jax.random.uniform(back["key"]) == jax.random.uniform(tree["key"])


def test_what_safetensors_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="save: .* cannot be written: .*int4"):
        sj.save(tmp_path / "w", {"w": jnp.ones(4, jnp.int4)})
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="save: w is traced; call save outside of jit"):
        jax.jit(lambda w: sj.save(tmp_path / "w", {"w": w}))(jnp.ones(4))
    w = NMArray.fromdense(jnp.ones((4, 4)), 2, 4)
    with pytest.raises(ValueError, match="save: w.values is abstract"):
        sj.save(tmp_path / "w", {"w": jax.eval_shape(lambda: w)})
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        sj.save(tmp_path / "missing" / "w", {"w": w})


def test_sharded_as_the_model(tmp_path):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.NamedSharding(mesh, jax.P("x"))
    w = jax.device_put(jnp.arange(16.0).reshape(8, 2), place)
    sj.save(tmp_path / "w", {"w": w})
    for into in (w, jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=place)):
        back = sj.load(tmp_path / "w", {"w": into})["w"]
        assert back.sharding.is_equivalent_to(place, 2)
        np.testing.assert_array_equal(back, w)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("b"), "the model has no b"),
        (lambda t: t.update(z=jnp.ones(2)), "it has no z"),
        (lambda t: t.update(b=jnp.ones(3)), r"b has shape \(2,\) in the file and \(3,\)"),
        (lambda t: t.update(b=jnp.arange(2)), "b is floats in the file and integers"),
        (lambda t: t.update(w=jnp.ones((4, 8))), r"w has shape \(8, 4\) in the file"),
        (lambda t: t.update(b=3), "b is floats in the file and a int"),
    ],
)
@pytest.mark.whole
def test_another_tree(tmp_path, change, match):
    tree = {"b": jnp.ones(2), "w": NMArray.fromdense(jnp.ones((8, 4)), 2, 4)}
    sj.save(tmp_path / "t", tree)
    change(tree)
    with pytest.raises(ValueError, match=rf"load: .* does not fit the model: .*{match}"):
        sj.load(tmp_path / "t", tree)


def test_another_model(tmp_path):
    make = lambda size: nnx.Linear(8, size, use_bias=False, rngs=nnx.Rngs(0))  # noqa: E731
    small = sj.compress(make(4), sj.plan(make(4), sj.NM(2, 4)))
    sj.save(tmp_path / "m", small)
    with pytest.raises(ValueError, match=r"kernel has shape \(8, 4\) in the file and \(8, 6\)"):
        sj.load(tmp_path / "m", make(6))
    sj.save(tmp_path / "m", {"embedding": small.kernel[...]})
    embed = nnx.Embed(8, 4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="embedding is NMArray.*not the kernel of a linear layer"):
        sj.load(tmp_path / "m", embed)
    sj.save(tmp_path / "m", make(4))
    with pytest.raises(ValueError, match="does not fit the model: kernel is dense"):
        sj.load(tmp_path / "m", small)
    with pytest.raises(ValueError, match="save: model must have arrays"):
        sj.save(tmp_path / "m", {})


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_eight_bits(tmp_path, dtype):
    dense = jnp.eye(16).astype(dtype)
    before = {"full": (dense.T + 1).astype(dtype), "sparse": dense}
    sj.save(tmp_path / "t", before)
    for name, leaf in sj.load(tmp_path / "t").items():
        assert leaf.dtype == dtype
        assert np.asarray(leaf).tobytes() == np.asarray(before[name]).tobytes()


def test_integers_are_loaded_whole_or_not_at_all(tmp_path):
    sj.save(tmp_path / "t", {"small": np.arange(3), "large": np.array([2**40])})
    with pytest.raises(ValueError, match="large holds integers beyond int32; set jax_enable_x64"):
        sj.load(tmp_path / "t")
    with jax.enable_x64(True):
        assert sj.load(tmp_path / "t")["large"].tolist() == [2**40]


def test_names_and_paths_that_cannot_be_files(tmp_path):
    with pytest.raises(ValueError, match="keep the name __metadata__"):
        sj.save(tmp_path / "t", {"__metadata__": jnp.ones(2)})
    for call in (lambda: sj.save(tmp_path, {"a": jnp.ones(2)}), lambda: sj.load(tmp_path)):
        with pytest.raises(IsADirectoryError, match="is a folder"):
            call()
