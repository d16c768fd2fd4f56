"""Every notebook runs from the top, and is stored with its outputs."""

import importlib.util
import pathlib

import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))

spec = importlib.util.spec_from_file_location("run", FOLDER / "run.py")
assert spec is not None and spec.loader is not None
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    executed = run.run(path)
    stored = nbformat.read(path, as_version=4)
    code = [c for c in stored.cells if c.cell_type == "code"]
    assert len(code) > 3 and any(c.outputs for c in code), "stored without outputs: make notebooks"
    assert [c.source for c in executed.cells] == [c.source for c in stored.cells]


def test_there_are_notebooks():
    assert NOTEBOOKS
