"""The tuning cache: measured, kept, used, explained; robust against what files can hold."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import pytest

import sparsejax as sj
from sparsejax import _files
from sparsejax.formats import BlockArray, Matrix, NMArray
from sparsejax.kernels import _table, _tuning
from sparsejax.kernels._table import get
from sparsejax.kernels.matmul._api import case_of
from sparsejax.kernels.matmul._cases import SMALL
from tests.kernels.test_matmul import assert_close, replace_xla

BY_NAME = {case.name: case for case in SMALL}


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "some" / "tuning.json"
    monkeypatch.setenv("SPARSEJAX_CACHE", str(path))
    for format in (NMArray, BlockArray):  # nothing to compile
        entries = _table._table["matmul"][format]
        monkeypatch.setitem(entries, "native", entries["native"]._replace(platforms=()))
    _tuning._loaded.cache_clear()
    yield path
    _tuning._loaded.cache_clear()


@pytest.mark.parametrize("name", ["2:4", "blocks 4x4", "1:4, batch axes"])
def test_tune_measures_keeps_and_is_used(file, name):
    x, w = BY_NAME[name].make()
    before = sj.kernels.explain(x, w)
    assert "measured" not in before
    seconds = sj.kernels.tune(x, w)
    assert sorted(seconds) == ["dense", "xla"] and min(seconds.values()) > 0
    assert list(seconds.values()) == sorted(seconds.values())
    assert json.loads(file.read_text()) == {_tuning.device(): {case_of(x, w): seconds}}
    best = next(iter(seconds))
    said = sj.kernels.explain(x, w)
    assert said.startswith(best) and said.endswith(", measured fastest")
    assert sj.kernels.explain(x, w, "xla").startswith("xla") and "measured" not in before
    # Of another number of rows nothing is known.
    assert "measured" not in sj.kernels.explain(jnp.concatenate([x, x]), w)


def other_than(name):
    return "dense" if name == "xla" else "xla"


def test_the_fastest_is_what_runs(file, monkeypatch):
    x, w = BY_NAME["2:4"].make()
    for name in ("dense", "xla"):
        _tuning.keep(case_of(x, w), {name: 1.0, other_than(name): 2.0})
        entries = _table._table["matmul"][NMArray if name == "xla" else Matrix]
        found, ran = entries[name].load(), []

        def spy(*arguments, found=found, ran=ran, name=name):
            ran.append(name)
            return found.product(*arguments)

        spied = dataclasses.replace(found, product=spy)
        with monkeypatch.context() as patch:
            patch.setitem(entries, name, entries[name]._replace(load=lambda spied=spied: spied))
            jax.clear_caches()
            y = sj.matmul(x, w)
        assert ran == [name]
        assert_close(y, x @ w.todense())


def test_another_process_reads_it(file):
    x, w = BY_NAME["2:4"].make()
    sj.kernels.tune(x, w)
    _tuning._loaded.cache_clear()  # as a new process begins
    assert sj.kernels.explain(x, w).endswith("measured fastest")
    # What others have written meanwhile is kept.
    table = json.loads(file.read_text())
    table["another device"] = {"case": {"xla": 1.0}}
    file.write_text(json.dumps(table))
    sj.kernels.tune(*BY_NAME["blocks 4x4"].make())
    kept = json.loads(file.read_text())
    assert "another device" in kept and len(kept[_tuning.device()]) == 2
    assert list(file.parent.iterdir()) == [file]


def test_writers_at_once_lose_nothing(file):
    cases = [f"case {i}" for i in range(12)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda case: _tuning.keep(case, {"xla": 1.0}), cases))
    assert sorted(json.loads(file.read_text())[_tuning.device()]) == sorted(cases)
    assert list(file.parent.iterdir()) == [file]


WRITER = """
import pathlib, sys
from sparsejax import _compile
from sparsejax.kernels import _tuning
for i in range(20):
    _tuning.keep(f"case {sys.argv[1]} {i}", {"xla": 1.0})
print(_compile.built(pathlib.Path(sys.argv[2]), ["-O1"]))
"""


@pytest.mark.slow
def test_processes_that_tune_and_compile_at_once(file, tmp_path):
    source = tmp_path / "small.cc"
    source.write_text('extern "C" int four() { return 4; }')
    environment = os.environ | {"SPARSEJAX_CACHE": str(file)}
    call = lambda i: [sys.executable, "-c", WRITER, str(i), str(source)]  # noqa: E731
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(call(i), env=environment, stdout=subprocess.PIPE, text=True)
            )
            for i in range(2)
        ]
        found = {child.communicate()[0] for child in running}
    (kept,) = json.loads(file.read_text()).values()
    assert sorted(kept) == sorted(f"case {i} {k}" for i in range(2) for k in range(20))
    assert len(found) == 1 and len(list(file.parent.glob("*.so"))) == 1


def test_lookups_read_the_file_once(file, monkeypatch):
    x, w = BY_NAME["2:4"].make()
    sj.kernels.tune(x, w)
    monkeypatch.setattr(json, "loads", lambda _: pytest.fail("read again"))
    sj.matmul(x, w)
    sj.kernels.explain(x, w)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"a": 1}', '{"a": {"b": {"xla": "soon"}}}'])
def test_a_corrupt_file_is_ignored_with_a_warning(file, text):
    file.parent.mkdir()
    file.write_text(text)
    x, w = BY_NAME["2:4"].make()
    with pytest.warns(UserWarning, match="not a table of measurements"):
        said = sj.kernels.explain(x, w)
    assert "measured" not in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sj.kernels.explain(x, w) == said  # said once
    with pytest.warns(UserWarning, match="not a table of measurements"):
        sj.kernels.tune(x, w)
    assert list(json.loads(file.read_text())) == [_tuning.device()]


def test_an_unknown_name_in_the_file_is_not_used(file):
    x, w = BY_NAME["2:4"].make()
    _tuning.keep(case_of(x, w), {"quantum": 1e-9})
    assert "measured" not in sj.kernels.explain(x, w)


def test_where_nothing_can_be_written_it_is_said(file):
    file.parent.write_text("a file where the folder should be")
    x, w = BY_NAME["2:4"].make()
    with pytest.warns(UserWarning, match="apply to this process only"):
        sj.kernels.tune(x, w)
    assert sj.kernels.explain(x, w).endswith("measured fastest")


def test_what_cannot_be_written_is_not_forgotten(file):
    file.parent.write_text("a file where the folder should be")
    cases = [BY_NAME[name].make() for name in ("2:4", "blocks 4x4")]
    for x, w in cases:
        with pytest.warns(UserWarning, match="apply to this process only"):
            sj.kernels.tune(x, w)
    assert all(sj.kernels.explain(x, w).endswith("measured fastest") for x, w in cases)


def test_a_folder_in_place_of_the_file(file):
    file.mkdir(parents=True)
    x, w = BY_NAME["2:4"].make()
    with pytest.warns(UserWarning, match="apply to this process only"):
        sj.kernels.tune(x, w)
    assert list(file.parent.iterdir()) == [file]  # nothing half done is left


def test_numbers_in_quotes_are_numbers(file):
    x, w = BY_NAME["2:4"].make()
    file.parent.mkdir()
    seconds = {_tuning.device(): {case_of(x, w): {"xla": "3e-1", "dense": 0.2}}}
    file.write_text(json.dumps(seconds))
    assert sj.kernels.explain(x, w).startswith("dense")


def test_a_file_that_may_not_be_looked_at_is_ignored_with_a_warning(monkeypatch, file):
    monkeypatch.setenv("SPARSEJAX_CACHE", "a" * 300)
    x, w = BY_NAME["2:4"].make()
    with pytest.warns(UserWarning, match="is ignored"):
        assert sj.kernels.explain(x, w) == "xla: decompressed"


def test_a_user_without_a_home(monkeypatch, file):
    def homeless(*_):
        raise RuntimeError("Could not determine home directory.")

    x, w = BY_NAME["2:4"].make()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(_files.pathlib.Path, "home", homeless)
    monkeypatch.setattr(_files.pathlib.Path, "expanduser", homeless)
    _files._cache_file.cache_clear()
    for name in ("~nobody/tuning.json", ""):
        monkeypatch.setenv("SPARSEJAX_CACHE", name)
        assert sj.kernels.explain(x, w) == "xla: decompressed"
    with pytest.warns(UserWarning, match="set SPARSEJAX_CACHE to another file"):
        sj.kernels.tune(x, w)
    _files._cache_file.cache_clear()


def test_a_wrong_implementation_is_left_out(file, monkeypatch):
    product = get("matmul", NMArray, "xla", "cpu").product
    x, w = BY_NAME["2:4"].make()
    jax.clear_caches()
    replace_xla(monkeypatch, product=lambda *arguments: product(*arguments) + 1)
    with pytest.warns(UserWarning, match="xla is wrong by"):
        assert list(sj.kernels.tune(x, w)) == ["dense"]
    replace_xla(monkeypatch, product=lambda *arguments: 1 / 0)
    jax.clear_caches()
    with pytest.warns(UserWarning, match="xla fails: division by zero"):
        assert list(sj.kernels.tune(x, w)) == ["dense"]
    jax.clear_caches()


def test_where_the_file_is(monkeypatch, tmp_path):
    monkeypatch.delenv("SPARSEJAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _files.cache_file() == tmp_path / "sparsejax" / "tuning.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    _files._cache_file.cache_clear()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _files.cache_file() == tmp_path / ".cache" / "sparsejax" / "tuning.json"
    _files._cache_file.cache_clear()


def test_mistakes(file):
    x, w = BY_NAME["2:4"].make()
    with pytest.raises(TypeError, match="NMArray or BlockArray, got"):
        sj.kernels.tune(x, w.todense())
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(sj.kernels.tune)(x, w)


def test_measure_of_zero_seconds_calls_once_per_round():
    count = []
    found = sj.kernels.measure({"one": lambda: count.append(1) or jnp.zeros(1)}, 3, 0.0)
    assert list(found) == ["one"] and len(count) == 2 + 3  # to compile, and to set the repeats
