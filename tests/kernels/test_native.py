"""Products in C++ against float64: every pattern, ragged sizes, gradients, mapped and stacked."""

import concurrent.futures
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj
from sparsejax import _compile
from sparsejax.formats import BlockArray, NMArray
from sparsejax.kernels.matmul._cases import SMALL, TILED, Case
from tests.kernels.test_matmul import assert_close, in_double

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")

NM = [
    Case(f"{n}:{m} {k}x{columns}, share {share}", (3,), k, columns, nm=(n, m), share=share)
    for n, m, k, columns, share in (
        (2, 4, 64, 48, 1),
        (2, 4, 50, 33, 1),
        (1, 4, 602, 300, 1),
        (1, 8, 9, 16, 1),
        (2, 16, 130, 20, 1),
        (3, 32, 70, 17, 1),  # longer than a vector
        (9, 18, 36, 20, 1),  # positions in planes
        (40, 100, 210, 18, 1),
        (4, 4, 12, 8, 1),
        (1, 4, 130, 384, 128),
        (2, 4, 600, 600, 300),  # shared by more columns than are unpacked at once
        (2, 8, 65, 400, 200),
        (1, 2, 64, 60, 20),
        (1, 4, 64, 40, 4),
    )
]
BLOCKS = [
    Case(f"{a}x{b}, {fill}", (3,), 8 * a, 5 * b, None, 1, (a, b), 0.4, slots, fill)
    for (a, b), fill, slots in (
        ((16, 16), "random", None),
        ((48, 32), "even", None),
        ((64, 80), "holes", 7),
        ((3, 112), "random", None),
    )
]
BY_NAME = {case.name: case for case in (*SMALL, *TILED, *NM, *BLOCKS)}
product = partial(sj.matmul, implementation="native")


def ids(cases):
    return [pytest.param(case, id=case.name) for case in cases]


@pytest.mark.parametrize("case", ids([*NM, *BLOCKS, *TILED]))
def test_product(case):
    _, w = case.make()
    dense, rng = in_double(w), np.random.default_rng(1)
    run = jax.jit(product)
    assert sj.kernels.explain(jnp.ones(case.k), w, "native") == "native: C++"
    for rows in (1, 5, 16, 199):
        x = jnp.asarray(rng.normal(size=(rows, case.k)), jnp.float32)
        assert_close(run(x, w), np.asarray(x, np.float64) @ dense)


@pytest.mark.parametrize("rows", [0, 1, 5, 199])
@pytest.mark.parametrize("name", ["16x16, random", "64x80, holes"])
def test_gradients_of_blocks(name, rows):
    x, w = replace(BY_NAME[name], rows=(rows,)).make()
    dy = jnp.asarray(np.random.default_rng(2).normal(size=(rows, w.shape[1])), jnp.float32)
    y, pull = jax.vjp(product, x, w)
    dx, dw = pull(dy)
    wide, back = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    assert_close(y, wide @ in_double(w))
    assert_close(dx, back @ in_double(w).T)
    assert_close(dw.values, w.take(jnp.asarray(wide.T @ back, jnp.float32)))
    assert not dw.values[~np.asarray(w.used)].any()


def test_gradients_of_groups_are_dense():
    x, w = BY_NAME["2:4"].make()
    got = jax.grad(lambda x, w: jnp.sin(product(x, w)).sum(), argnums=(0, 1), allow_int=True)(x, w)
    want = jax.grad(lambda x: jnp.sin(x @ w.todense()).sum())(x)
    assert_close(got[0], want)
    assert got[1].values.shape == w.values.shape


def test_bias_activation_and_half_precision():
    x, w = BY_NAME["48x32, even"].make(jnp.bfloat16)
    bias = jnp.linspace(-1, 1, w.shape[1], dtype=jnp.bfloat16)
    y = product(x, w, bias=bias, activation=jax.nn.silu)
    assert y.dtype == jnp.bfloat16
    before = np.asarray(x, np.float64) @ in_double(w) + np.asarray(bias, np.float64)
    assert_close(y, before / (1 + np.exp(-before)), 1e-2)
    assert product(x, w, out_dtype=jnp.float32).dtype == jnp.float32


def test_mapped_and_stacked():
    x, w = BY_NAME["blocks 16"].make()
    batch = jnp.stack([x, 2 * x, -x])
    want = jnp.stack([x, 2 * x, -x]) @ w.todense()
    mapped = jax.vmap(product, in_axes=(0, None))
    assert_close(mapped(batch, w), want)
    # Rows that are mapped over are rows of one product.
    text = jax.jit(mapped).lower(batch, w).as_text()
    assert "while" not in text and "tensor<390x64xf32>" in text
    many = jax.tree.map(lambda a: jnp.stack([a, a]), w)
    assert_close(product(batch[:2], many), want[:2])
    twice = jax.vmap(lambda x, w: jax.vmap(product, in_axes=(0, None))(x, w))
    assert_close(twice(jnp.stack([batch, batch]), many)[1], want)
    gradient = jax.vmap(jax.grad(lambda x: product(x, w).sum()))(batch)
    assert_close(gradient, jnp.broadcast_to(w.todense().sum(1), batch.shape))


def test_what_nothing_stored_meets_is_not_read():
    stored = np.zeros((64, 16), np.float32)
    stored[:16] = 1.0
    x = jnp.asarray(np.where(np.arange(64) < 16, 1.0, np.nan)[None], jnp.float32)
    w = BlockArray.fromdense(jnp.asarray(stored), 16, slots=3)
    assert product(x, w).tolist() == [[16.0] * 16]


def test_many_calls_at_once():
    """Calls that wait for each other's threads end."""
    x, w = BY_NAME["blocks 16"].make()

    @jax.jit
    def many(x, w):
        return sum(product(x * i, w) for i in range(1, 9))

    assert_close(many(x, w), 36 * np.asarray(x, np.float64) @ in_double(w), 1e-5)


def test_what_cannot_be_done_is_said():
    x, w = BY_NAME["blocks 4x4"].make()
    with pytest.raises(NotImplementedError, match="multiples of 16"):
        product(x, w)
    assert_close(sj.matmul(x, w, implementation=("native", "xla")), x @ w.todense())
    with jax.enable_x64(True):
        with pytest.raises(NotImplementedError, match="sums are float32, not float64"):
            product(*BY_NAME["2:4"].make(jnp.float64))
    with pytest.raises(NotImplementedError, match="at most 128 entries"):
        product(jnp.ones((1, 200)), NMArray.fromdense(jnp.ones((200, 16)), 1, 200))


def test_nothing_stored_and_nothing_mapped():
    empty, x = BlockArray.fromdense(jnp.zeros((32, 48)), 16), jnp.ones((2, 32))
    y, pull = jax.vjp(lambda x, w: product(x, w, bias=jnp.ones(48)), x, empty)
    assert y.tolist() == [[1.0] * 48] * 2
    dx, dw = pull(y)
    assert not dx.any() and dw.values.shape == empty.values.shape
    w = BY_NAME["blocks 16"].make()[1]
    assert jax.vmap(product, in_axes=(0, None))(jnp.zeros((0, 3, w.shape[0])), w).shape == (
        0,
        3,
        64,
    )


@pytest.mark.parametrize("name", ["blocks 16", "1:4 64x40, share 4"])
def test_second_derivatives_and_forward_mode_are_those_of_dense(name):
    x, w = BY_NAME[name].make()
    x = x[:2]

    def second(multiply):
        def loss(x, values):
            return jnp.sin(multiply(x, replace(w, values=values))).sum()

        def slope(x, values):
            return sum(jnp.sum(d**2) for d in jax.grad(loss, argnums=(0, 1))(x, values))

        return jax.jit(jax.grad(slope, argnums=(0, 1)))(x, w.values)

    for got, want in zip(second(product), second(lambda x, w: x @ w.todense())):
        assert_close(got, want, 1e-4)
    hessian = jax.jvp(jax.grad(lambda x: jnp.sin(product(x, w)).sum()), (x,), (x,))[1]
    want = jax.jvp(jax.grad(lambda x: jnp.sin(x @ w.todense()).sum()), (x,), (x,))[1]
    assert_close(hessian, want, 1e-4)


def test_compiled_once_or_said_why_not(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSEJAX_CACHE", str(tmp_path / "tuning.json"))
    source = tmp_path / "small.cc"
    source.write_text('extern "C" int four() { return 4; }')
    file = _compile.built(source, ["-O1"])
    stamp = file.stat().st_mtime_ns
    assert _compile.built(source, ["-O1"]) == file and file.stat().st_mtime_ns == stamp
    assert _compile.built(source, ["-O1"], "another processor") != file
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        files = list(pool.map(lambda _: _compile.built(source, ["-O0"]), range(4)))
    assert len(set(files)) == 1 and len(list(tmp_path.glob("*.so"))) == 3
    source.write_text("no C++")
    with pytest.raises(NotImplementedError, match=r"g\+\+ fails: .*small.cc"):
        _compile.built(source, [])
    source.write_text('extern "C" int four() { return 4; }')
    with pytest.raises(NotImplementedError, match="cannot be loaded"):
        with monkeypatch.context() as patch:
            patch.setattr(_compile, "built", lambda *_: source)
            _compile.register(source, ["-O1"], "", {"four": "four"}, "cpu")
    for damaged in (b"", file.read_bytes()[:4096], b"not a library"):
        whole = file.read_bytes()
        file.write_bytes(damaged)
        assert _compile.built(source, ["-O1"]) == file and file.read_bytes() == whole
    monkeypatch.setenv("CXX", "env g++")
    assert _compile.built(source, []).is_absolute()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NotImplementedError, match="no-such-compiler.*variable CXX"):
        _compile.built(source, [])
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPARSEJAX_CACHE", str(tmp_path / "file" / "tuning.json"))
    with pytest.raises(NotImplementedError, match="set SPARSEJAX_CACHE"):
        _compile.built(source, [])
    assert len(_compile.processor()) > 3


def test_a_failure_is_remembered_until_another_compiler_is_named(monkeypatch):
    tried = []

    def register(*args, **more):
        tried.append(args)
        raise NotImplementedError("no compiler")

    monkeypatch.setattr(_compile, "register", register)
    x, w = BY_NAME["48x32, even"].make()
    for compiler, times in (("this one", 1), ("this one", 1), ("that one", 2)):
        monkeypatch.setenv("CXX", compiler)
        with pytest.raises(NotImplementedError, match="no compiler"):
            jax.jit(lambda x, w: product(x, w))(x, w)
        assert len(tried) == times


@pytest.mark.slow
def test_tune_knows_it(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSEJAX_CACHE", str(tmp_path / "tuning.json"))
    x, w = BY_NAME["blocks 64x128"].make()
    seconds = sj.kernels.tune(x, w)
    assert sorted(seconds) == ["dense", "native", "xla"]
    assert sj.kernels.explain(x, w).startswith(next(iter(seconds)))


REFUSED = jax.errors.JaxRuntimeError, ValueError
DAMAGES = [
    (name, by)
    for name in ("index", "count", "index_t", "slot_t", "count_t")
    for by in (1000, 10**8, -100, -(10**8))
]


@pytest.mark.parametrize("implementation", ["native", "xla"])
def test_damaged_lists_are_refused_or_nan(implementation):
    x, w = BY_NAME["48x32, even"].make()

    @jax.jit
    def run(x, w):
        multiply = partial(sj.matmul, implementation=implementation)
        y, pull = jax.vjp(lambda x, v: multiply(x, replace(w, values=v)), x, w.values)
        return y, pull(y)[0]

    want = run(x, w)
    for name, by in DAMAGES:
        broken = replace(w, **{name: getattr(w, name) + by})
        if implementation == "native":
            with pytest.raises(REFUSED, match=r"fromdense.*W.validate\(\)"):
                jax.block_until_ready(run(x, broken))
        elif name.startswith("index"):
            assert any(bool(jnp.isnan(y).any()) for y in run(x, broken)), (name, by)
        with pytest.raises(ValueError, match="BlockArray is damaged"):
            broken.validate()
    for got, kept in zip(run(x, w), want):
        assert_close(got, kept)


def test_damaged_groups_are_refused():
    x, w = BY_NAME["2:4"].make()
    for damaged in (
        replace(w, code=w.code[1:]),
        replace(w, code=w.code[:, :5]),
        replace(w, code=w.code.astype(jnp.int8)),
        replace(w, code=w.code.astype(jnp.float32)),
        replace(w, values=jnp.concatenate([w.values] * 3)),
    ):
        with pytest.raises((*REFUSED, TypeError)):
            jax.block_until_ready(product(x, damaged))
        with pytest.raises(ValueError, match="NMArray is damaged"):
            damaged.validate()


FUZZ = """
import dataclasses, sys, jax, jax.numpy as jnp, numpy as np, sparsejax as sj
rng = np.random.default_rng(0)
w = rng.normal(size=(96, 64)).astype(np.float32)
blocks = np.kron(rng.random((6, 4)) < .5, np.ones((16, 16)))
matrices = [sj.formats.BlockArray.fromdense(w * blocks, 16, slots=5)]
for n, m, t in ((2, 4, 1), (1, 4, 32), (9, 18, 1), (2, 16, 1)):
    matrices.append(sj.formats.NMArray.fromdense(w, n, m, share=t))
run = jax.jit(jax.value_and_grad(lambda x, w: sj.matmul(x, w, implementation="native").sum()))
for _ in range(int(sys.argv[1])):
    matrix = matrices[rng.integers(len(matrices))]
    leaves, tree = jax.tree.flatten(matrix)
    change = rng.integers(1, len(leaves))
    part = np.array(leaves[change])
    if rng.random() < .8 and part.size:
        info, near = np.iinfo(part.dtype), 40 if rng.random() < .5 else 2**40
        low, high = max(info.min, -near), min(near, info.max)
        part.flat[rng.integers(part.size)] = rng.integers(low, high, endpoint=True)
    else:
        part = np.resize(part, [max(0, s + int(rng.integers(-1, 2))) for s in part.shape])
    leaves[change] = jnp.asarray(part)
    try:
        jax.block_until_ready(run(jnp.ones((int(rng.integers(1, 4)), 96)), tree.unflatten(leaves)))
    except (ValueError, TypeError, ZeroDivisionError, jax.errors.JaxRuntimeError):
        pass
print("survived")
"""


@pytest.mark.slow
def test_damaged_matrices_under_the_address_sanitizer(tmp_path):
    named = [["g++", f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so")]
    found = [subprocess.run(x, capture_output=True, text=True).stdout.strip() for x in named]
    if not os.path.isabs(found[0]):
        pytest.skip("needs the address sanitizer")
    env = os.environ | {
        "CXX": "g++ -fsanitize=address -g",
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0",
        "SPARSEJAX_CACHE": str(tmp_path / "tuning.json"),
    }
    ran = subprocess.run(
        [sys.executable, "-c", FUZZ, "120"], env=env, capture_output=True, text=True
    )
    assert ran.stdout == "survived\n" and "AddressSanitizer" not in ran.stderr, ran.stderr[-3000:]


def test_a_killed_compilation_leaves_nothing_in_the_cache(tmp_path):
    compiler, cache = tmp_path / "slow", tmp_path / "cache"
    compiler.write_text("#!/bin/sh\necho started\ntouch $(dirname $0)/started\nsleep 60\n")
    compiler.chmod(0o755)
    (tmp_path / "small.cc").touch()
    code = "import pathlib, sys; from sparsejax import _compile; "
    code += "_compile.built(pathlib.Path(sys.argv[1]), [])"
    env = {"CXX": str(compiler), "SPARSEJAX_CACHE": str(cache / "tuning.json")}
    env |= {"TMPDIR": str(tmp_path)}
    call = [sys.executable, "-c", code, str(tmp_path / "small.cc")]
    with subprocess.Popen(call, env=os.environ | env, start_new_session=True) as child:
        while not (tmp_path / "started").exists() and child.poll() is None:
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL and list(cache.iterdir()) == []
