"""The public face: light to import, documented, every name where the design says."""

import ast
import functools
import importlib
import inspect
import pathlib
import pydoc
import re
import subprocess
import sys

import pytest

import sparsejax as sj

pytestmark = pytest.mark.whole  # short, so all of it is in `make test`

ROOMS = [
    "prox",
    "patterns",
    "select",
    "masks",
    "formats",
    "kernels",
    "metrics",
    "optim",
    "nn",
    "nn.surgery",
    "models",
    "solve",
    "recipes",
    "reporting",
    "sae",
    *(f"contrib.{name}" for name in sj.contrib.__all__),
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
        if not name.startswith("_") and (not inspect.ismodule(value) or name in module.__all__)
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


ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_names_of_the_pages_exist(page):
    text = page.read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    for name in set(re.findall(r"\bsj((?:\.\w+)+)", text)):
        functools.reduce(getattr, name[1:].split("."), sj)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_completion_and_help_show_public_names_only():
    tree = ast.parse(inspect.getsource(sj))
    (listed,) = [n.value for n in ast.walk(tree) if isinstance(n, ast.Assign)
                 and ast.unparse(n.targets[0]) == "__all__"]  # fmt: skip
    assert set(dir(sj)) - {"jaxtyping"} == {  # of the import hook of the tests
        *ast.literal_eval(listed),
        "__version__",
    }
    assert len(pydoc.render_doc(sj).splitlines()) < 200
