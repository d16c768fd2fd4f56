"""2:4 on sparse tensor cores without any: packing, what surrounds the instruction, the choice."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

import sparsejax as sj
from sparsejax.formats import NMArray, TensorCoreArray
from sparsejax.kernels import _mosaic, _sparse_wgmma
from sparsejax.kernels._finish import How
from sparsejax.kernels.matmul import _sparse_cores
from tests.kernels import _software_wgmma
from tests.kernels.test_matmul import assert_close, in_double


def case(rows, k, columns, dtype=jnp.bfloat16, **how):
    rng = np.random.default_rng(rows + k + columns)
    w = NMArray.fromdense(jnp.asarray(rng.normal(size=(k, columns)), dtype), 2, 4, **how)
    return jnp.asarray(rng.normal(size=(rows, k)), dtype), w


def words_of(metadata):
    """What each of the 128 lanes of a warpgroup gives to each of the four instructions."""
    lane = np.arange(128)
    words = np.asarray(metadata).reshape(-1, 64, 4)[:, lane // 4 * 2 + lane % 2]
    return words.transpose(0, 2, 1)


def emulated(packed, x):
    """`W^T x^T` by the model of the instruction, in the order in which the kernel issues it."""
    values, lanes = np.asarray(packed.values, np.float64), words_of(packed.metadata)
    columns, k = values.shape[0], 2 * values.shape[1]
    total = np.zeros((columns, x.shape[0]))
    for step in range(k // 128):
        for part in range(columns // 64):
            for s in range(4):
                rows, start = slice(64 * part, 64 * part + 64), 64 * step + 16 * s
                total[rows] = _software_wgmma.product(
                    values[rows, start : start + 16],
                    lanes[step * (columns // 64) + part, s],
                    x[:, 2 * start : 2 * start + 32].T,
                    total[rows],
                )
    return total


@pytest.mark.parametrize("shape", [(3, 128, 64), (2, 256, 192)])
def test_the_model_of_the_instruction_multiplies_what_was_packed(shape):
    x, w = case(*shape)
    x = np.asarray(x, np.float64)
    got = emulated(jax.jit(TensorCoreArray.fromnm)(w), x)
    np.testing.assert_allclose(got.T, x @ in_double(w), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_unused_slots_and_shared_patterns_are_packed_validly():
    # The model asserts that no pair of indices is one of the invalid.
    rng = np.random.default_rng(0)
    mask = rng.random((128, 64)) < 0.2
    mask &= np.cumsum(mask.reshape(32, 4, 64), 1).reshape(128, 64) <= 2
    for w in (case(1, 128, 64, mask=mask)[1], case(1, 128, 64, share=8)[1]):
        x = rng.normal(size=(2, 128))
        got = emulated(TensorCoreArray.fromnm(w), x)
        np.testing.assert_allclose(got.T, x @ in_double(w), rtol=1e-12, atol=1e-12)


def test_every_pair_of_indices_in_every_place():
    # All six pairs go through all rows and columns; the product with I is W itself.
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    rng = np.random.default_rng(1)
    chosen = rng.integers(6, size=(32, 64))
    mask = np.zeros((32, 4, 64), bool)
    for p, pair in enumerate(pairs):
        for i in pair:
            mask[:, i] |= chosen == p
    numbers = np.arange(128 * 64).reshape(128, 64) % 2039 + 1  # exact in float16
    dense = numbers * mask.reshape(128, 64)
    w = NMArray.fromdense(jnp.asarray(dense, jnp.float16), 2, 4, mask=mask.reshape(128, 64))
    got = emulated(TensorCoreArray.fromnm(w), np.eye(128))
    np.testing.assert_array_equal(got.T, dense)


def words_in_plain_jax(metadata, rows):
    """`(rows, 32)` codes of the groups of one step, from words in shared memory."""
    words = metadata.reshape(rows // 64, 4, 8, 2, 4)  # part, warp, g, lane, instruction
    halves = jnp.stack([words & 0xFFFF, words >> 16], axis=2)  # part, warp, half, g, lane, instr.
    halves = halves.transpose(0, 1, 2, 3, 5, 4).reshape(rows, 8)  # row, 16 rows of W each
    return jnp.stack([halves >> 4 * i & 15 for i in range(4)], axis=-1).reshape(rows, 32)


@pytest.fixture
def without_the_instruction(monkeypatch):
    """The kernel with a plain product where the instruction is, for the interpreter."""
    if not hasattr(plgpu, "InterpretGPUParams"):
        pytest.skip("this JAX has no interpreter for these GPU kernels")

    def multiply(total, values, x, metadata, tiling):
        values, x = values[...].astype(jnp.float32), x[...].astype(jnp.float32)
        code = words_in_plain_jax(metadata[...], values.shape[0])
        pairs = values.reshape(values.shape[0], 32, 2)
        place = jnp.arange(4, dtype=jnp.uint32)
        dense = jnp.where((code & 3)[..., None] == place, pairs[..., :1], 0)
        dense += jnp.where((code >> 2)[..., None] == place, pairs[..., 1:], 0)
        return total + dense.reshape(-1, 128) @ x.T

    monkeypatch.setattr(_sparse_wgmma, "wgmma", multiply)
    monkeypatch.setattr(_sparse_wgmma, "zeros", lambda shape: jnp.zeros(shape, jnp.float32))
    monkeypatch.setattr(_sparse_wgmma, "finished", lambda total: total)
    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams()):
        yield


SHAPES = [(5, 128, 64), (40, 256, 256), (150, 256, 512), (70, 128, 320)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_around_the_instruction(without_the_instruction, shape):
    x, w = case(*shape)
    bias = jnp.linspace(-3, 3, w.shape[1])
    y = _sparse_cores.multiply(
        x, TensorCoreArray.fromnm(w), bias, How(activation=jax.nn.relu, dtype=x.dtype)
    )
    assert y.dtype == x.dtype
    want = np.maximum(np.asarray(x, np.float64) @ in_double(w) + np.asarray(bias, np.float64), 0)
    assert_close(y, want, 1e-2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_lowering(shape, dtype):
    x, w = case(*shape, dtype)
    for out in (dtype, jnp.float32):
        how = How(activation=jax.nn.silu, dtype=out)
        product = jax.jit(
            lambda x, w, how=how: _sparse_cores.multiply(x, TensorCoreArray.fromnm(w), None, how)
        )
        with _mosaic.hopper():
            lowered = product.trace(x, w).lower(lowering_platforms=("cuda",))
        assert "mosaic_gpu" in lowered.as_text()


@pytest.mark.aot
@pytest.mark.parametrize("shape", [*SHAPES, (4096, 2048, 2048)])
def test_compiles_for_the_h200(shape):
    pytest.importorskip("jax_plugins.xla_cuda13", reason="needs the CUDA plugin, no GPU")
    x, w = case(*shape)
    how = How(activation=jax.nn.silu, dtype=x.dtype)
    assert _mosaic.compile_for_hopper(
        lambda x, w: _sparse_cores.multiply(x, TensorCoreArray.fromnm(w), None, how), x, w
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_probe_passes(dtype):
    if not _sparse_cores.on_hopper(jax.devices()[0]):
        pytest.skip("needs a Hopper GPU")
    assert _sparse_cores.probe(dtype) is None


@pytest.fixture
def as_if_on_hopper(monkeypatch):
    monkeypatch.setattr(_sparse_cores, "on_hopper", lambda _: True)
    monkeypatch.setattr(_sparse_cores, "PROBES", ((16, 128, 64),))
    _sparse_cores.probe.cache_clear()
    jax.clear_caches()  # products of this shape that were traced with another probe
    with sj.kernels.lowering_for("gpu"):
        yield
    _sparse_cores.probe.cache_clear()
    jax.clear_caches()


@pytest.mark.slow
def test_the_probe_runs_the_kernel_itself_while_something_is_traced(as_if_on_hopper):
    x, w = case(100, 128, 64)
    with pytest.raises(NotImplementedError, match="Only interpret mode is supported on CPU"):
        jax.jit(partial(sj.matmul, implementation="sparse_cores"))(x, w)


def plain(x, packed, bias, how):
    """The product of a packed matrix in plain XLA."""
    code = jax.vmap(lambda words: words_in_plain_jax(words, packed.values.shape[0]))(
        packed.metadata
    )
    code = code.transpose(1, 0, 2).reshape(packed.values.shape[0], -1)
    pairs = packed.values.reshape(*code.shape, 2)
    place = jnp.arange(4, dtype=jnp.uint32)
    dense = jnp.where((code & 3)[..., None] == place, pairs[..., :1], 0)
    dense += jnp.where((code >> 2)[..., None] == place, pairs[..., 1:], 0)
    y = x.astype(jnp.float32) @ dense.reshape(code.shape[0], -1).T.astype(jnp.float32)
    y = y if bias is None else y + bias
    return (y if how.activation is None else how.activation(y)).astype(how.dtype)


def test_chosen_when_the_probe_passes(as_if_on_hopper, monkeypatch):
    monkeypatch.setattr(_sparse_cores, "multiply", plain)
    x, w = case(100, 128, 64)
    # The probe computes although what asks for it is being traced.
    y = jax.jit(partial(sj.matmul, implementation="sparse_cores"))(x, w)
    assert_close(y, np.asarray(x, np.float64) @ in_double(w), 1e-2)
    assert _sparse_cores.probe.cache_info().currsize == 1
    said = sj.kernels.explain(x, w, "sparse_cores")
    assert said == "sparse_cores: 2:4 sparse tensor cores, tiles of 112x128x64"
    # N:M arrays would be packed in each call: not chosen unasked.
    assert sj.kernels.explain(x, w) == "dense: decompressed"
    dx = jax.grad(lambda x: sj.matmul(x, w, implementation="sparse_cores").sum())(x)
    assert_close(dx, np.ones((100, 64)) @ in_double(w).T, 1e-2)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda *arguments: plain(*arguments) + 1, "is wrong by"),
        (lambda *arguments: plain(*arguments) * jnp.nan, "is wrong by nan"),
        (lambda *arguments: 1 / 0, "the probe fails: ZeroDivisionError"),
    ],
)
def test_not_chosen_when_the_probe_fails(as_if_on_hopper, monkeypatch, wrong, said):
    monkeypatch.setattr(_sparse_cores, "multiply", lambda *a, how: wrong(*a, how))
    x, w = case(100, 128, 64)
    with pytest.raises(NotImplementedError, match=said):
        sj.matmul(x, w, implementation="sparse_cores")
    y = sj.matmul(x, w, implementation=("sparse_cores", "dense"))
    assert_close(y, np.asarray(x, np.float64) @ in_double(w), 1e-2)
    explained = sj.kernels.explain(x, w, ("sparse_cores", "dense"))
    assert explained.startswith("dense: decompressed; not sparse_cores: ") and said in explained


def test_what_cannot_be_done_is_said(monkeypatch):
    x, w = case(100, 128, 64)
    product = partial(sj.matmul, implementation="sparse_cores")
    with pytest.raises(NotImplementedError, match="runs on gpu, not on cpu"):
        product(x, w)
    one_of_four = NMArray.fromdense(jnp.ones((128, 64), jnp.bfloat16), 1, 4)
    with sj.kernels.lowering_for("gpu"):
        with pytest.raises(NotImplementedError, match="is not a Hopper GPU"):
            product(x, w)
        with pytest.raises(NotImplementedError, match="a multiple of 128 and N a multiple of 64"):
            product(x[:, :64], case(1, 64, 64)[1])
        with pytest.raises(NotImplementedError, match="float32"):
            product(*case(3, 128, 64, jnp.float32))
        with pytest.raises(NotImplementedError, match="2:4"):
            product(x, one_of_four)
    monkeypatch.setitem(sys.modules, "sparsejax.kernels._sparse_wgmma", None)
    with pytest.raises(NotImplementedError, match=f"not supported by JAX {jax.__version__}"):
        _sparse_cores.multiply(x, TensorCoreArray.fromnm(w), None, How())
