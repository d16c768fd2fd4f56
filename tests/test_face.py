"""The public face: light to import, documented, every name where the design says."""

import importlib
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import sparsejax as sj

ROOMS = [
    "prox",
    "masks",
    "formats",
    "kernels",
    "metrics",
    "optim",
    "nn",
    "models",
    "solve",
    "recipes",
]


def in_fresh_interpreter(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True
    ).stdout


def test_import_initialises_no_backend_and_loads_no_extra():
    code = (
        "import sys, sparsejax; from jax._src import xla_bridge;"
        "print(bool(xla_bridge._backends), [m for m in ('scipy.sparse', 'sklearn', 'matplotlib',"
        "'orbax', 'pandas', 'torch') if m in sys.modules])"
    )
    baseline = "import sys, jax, flax.nnx, optax; print([m for m in sys.modules])"
    backends, loaded = in_fresh_interpreter(code).strip().split(" ", 1)
    assert backends == "False"
    already = in_fresh_interpreter(baseline)
    assert [m for m in eval(loaded) if f"'{m}'" not in already] == []


def public_names():
    for room in ROOMS:
        module = importlib.import_module(f"sparsejax.{room}")
        for name in module.__all__:
            yield room, name


@pytest.mark.parametrize("room", ROOMS)
def test_all_is_sorted_and_complete(room):
    module = importlib.import_module(f"sparsejax.{room}")
    assert len(set(module.__all__)) == len(module.__all__)
    found = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert found == set(module.__all__)


@pytest.mark.parametrize("room, name", list(public_names()))
def test_every_public_name_is_documented(room, name):
    value = getattr(importlib.import_module(f"sparsejax.{room}"), name)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return
    text = inspect.getdoc(value)
    assert text, f"sj.{room}.{name} has no docstring"
    is_function = inspect.isfunction(value)
    if is_function and inspect.signature(value).parameters:
        assert "Example:" in text, f"sj.{room}.{name} has no example"


def test_the_face_has_the_names_of_every_program():
    for name in ("plan", "get_masks", "report", "advise", "matmul", "compress", "NM", "Block",
                 "Unstructured", "Channel", "Groups", "prox", "masks", "optim", "nn", "formats",
                 "kernels", "metrics", "solve"):  # fmt: skip
        assert hasattr(sj, name), name
    assert sj.__version__
    assert set(sj.__all__) <= set(dir(sj))


def test_links_of_the_readme_lead_somewhere():
    root = pathlib.Path(__file__).parent.parent
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", (root / "README.md").read_text())
    assert len(links) > 10
    assert [link for link in links if not (root / link).exists()] == []
