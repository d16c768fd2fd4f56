"""2:4 by cuSPARSELt without a GPU: the calls run on the host over a model of the library."""

import ctypes
import pathlib
import shutil
import subprocess
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj
from sparsejax import _compile
from sparsejax.formats import NMArray, TensorCoreArray
from sparsejax.kernels import _mosaic
from sparsejax.kernels._finish import How
from sparsejax.kernels.matmul import _cusparselt
from tests.kernels.test_matmul import assert_close, in_double

FAKE = pathlib.Path(__file__).with_name("fake_cuda")


def case(rows, k, columns, dtype=jnp.bfloat16):
    rng = np.random.default_rng(rows + k + columns)
    w = NMArray.fromdense(jnp.asarray(rng.normal(size=(k, columns)), dtype), 2, 4)
    return jnp.asarray(rng.normal(size=(rows, k)), dtype), w


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    file = tmp_path_factory.mktemp("cusparselt") / "host.so"
    folders = jax.ffi.include_dir(), FAKE, _cusparselt.SOURCE.parent
    options = ["-O1", "-std=c++17", "-shared", "-fPIC", "-w", *(f"-I{f}" for f in folders)]
    subprocess.run(["g++", *options, str(FAKE / "host.cc"), "-o", str(file)], check=True)
    calls = ctypes.CDLL(str(file))
    for name, symbol in _cusparselt.NAMES.items():
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(calls, symbol)), platform="cpu")


@pytest.fixture
def on_the_host(compiled, monkeypatch):
    monkeypatch.setattr(_cusparselt, "on_gpu", lambda device: True)
    monkeypatch.setattr(_cusparselt, "register", lambda: None)
    _cusparselt.probe.cache_clear()
    jax.clear_caches()  # products of this shape that were traced without it
    with sj.kernels.lowering_for("gpu"):
        yield
    _cusparselt.probe.cache_clear()
    jax.clear_caches()


product = partial(sj.matmul, implementation="cusparselt")


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(5, 16, 32), (16, 64, 16), (40, 48, 80)])
def test_the_product(on_the_host, shape):
    x, w = case(*shape)
    want = np.asarray(x, np.float64) @ in_double(w)
    for _ in range(2):  # the second finds everything prepared
        assert_close(product(x, w), want, 1e-2)
    bias = jnp.linspace(-3, 3, w.shape[1])
    y = product(x, w, bias=bias, activation=jax.nn.relu, out_dtype=jnp.float32)
    assert y.dtype == jnp.float32
    assert_close(y, np.maximum(want + np.asarray(bias), 0), 1e-2)
    assert sj.kernels.explain(x, w, "cusparselt") == "cusparselt: cuSPARSELt"


@pytest.mark.slow
def test_gradients_stacks_and_the_other_format(on_the_host):
    x, w = case(3, 128, 64)
    packed = TensorCoreArray.fromnm(w)
    assert_close(product(x, packed), np.asarray(product(x, w), np.float64), 1e-6)
    dx = jax.grad(lambda x: product(x, w).sum())(x)
    assert_close(dx, np.ones((3, 64)) @ in_double(w).T, 1e-2)
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), w)
    y = product(jnp.stack([x, 2 * x]), stacked)
    assert_close(y[1], 2 * np.asarray(x, np.float64) @ in_double(w), 1e-2)


def test_what_fails_in_the_library_is_raised(compiled):
    dense = jnp.ones((16, 16), jnp.bfloat16)  # not 2:4
    call = _cusparselt._call("sparsejax_compress", (2**17,), jnp.uint8)
    with pytest.raises(Exception, match="cusparseLtSpMMACompress2.*status 3"):
        jax.block_until_ready(call(dense))
    call = _cusparselt._call("sparsejax_compress", (8,), jnp.uint8)
    with pytest.raises(Exception, match="needs 288 bytes"):
        jax.block_until_ready(call(dense))


@pytest.mark.slow
def test_not_chosen_when_the_probe_fails(on_the_host, monkeypatch):
    monkeypatch.setattr(_cusparselt, "multiplied", lambda x, packed, columns: x[:, :1] * packed[0])
    x, w = case(5, 16, 16)
    with pytest.raises(NotImplementedError, match="cuSPARSELt: the probe"):
        product(x, w)
    y = sj.matmul(x, w, implementation=("cusparselt", "dense"))
    assert_close(y, np.asarray(x, np.float64) @ in_double(w), 1e-2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_lowering(dtype):
    x, w = case(40, 128, 64, dtype)
    multiply = jax.jit(lambda x, w: _cusparselt.multiply(x, w, None, How(dtype=dtype)))
    with _mosaic.hopper():
        text = multiply.trace(x, w).lower(lowering_platforms=("cuda",)).as_text()
    assert all(f"@{name}" in text for name in _cusparselt.NAMES)
    assert "tensor<48x64x" in text  # rows in sixteens


def test_what_cannot_be_done_is_said(monkeypatch, tmp_path):
    x, w = case(5, 128, 64)
    with pytest.raises(NotImplementedError, match="runs on gpu, not on cpu"):
        product(x, w)
    with sj.kernels.lowering_for("gpu"):
        with pytest.raises(NotImplementedError, match="cpu is not a GPU"):
            product(x, w)
        with pytest.raises(NotImplementedError, match="requires multiples of 16"):
            product(*case(5, 24, 16))
        with pytest.raises(NotImplementedError, match="float32"):
            product(*case(5, 16, 16, jnp.float32))
        with pytest.raises(NotImplementedError, match="multiplies 2:4"):
            product(x, NMArray.fromdense(jnp.ones((128, 64), jnp.bfloat16), 1, 4))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(_cusparselt, "TOOLKIT", str(tmp_path))
    with pytest.raises(NotImplementedError, match=r"no-such-file.*sparsejax\[cusparselt\]"):
        _cusparselt.find("no-such-file")
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "only-here.h").touch()
    assert _cusparselt.find("only-here.h").parent.name == "include"


def built(headers):
    return _compile.built(_cusparselt.SOURCE, _cusparselt.options((headers,), ()))


def test_compiled_once_or_said_why_not(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSEJAX_CACHE", str(tmp_path / "tuning.json"))
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    with pytest.raises(NotImplementedError, match="g.. fails: .*cuda_runtime_api.h"):
        built(tmp_path)
    file = built(FAKE)
    stamp = file.stat().st_mtime_ns
    assert file.parent == tmp_path and built(FAKE) == file
    assert file.stat().st_mtime_ns == stamp and [*tmp_path.glob("*.so")] == [file]
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NotImplementedError, match="cannot be compiled"):
        built(FAKE)


@pytest.mark.aot
def test_compiles_against_the_library(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSEJAX_CACHE", str(tmp_path / "tuning.json"))
    try:
        libraries = _cusparselt.find("libcusparseLt.so*"), _cusparselt.find("libcudart.so*")
    except NotImplementedError:
        pytest.skip("needs the extra cusparselt, no GPU")
    options = _cusparselt.options(_cusparselt.headers(), libraries)
    calls = ctypes.CDLL(str(_compile.built(_cusparselt.SOURCE, options)))
    assert all(hasattr(calls, symbol) for symbol in _cusparselt.NAMES.values())
