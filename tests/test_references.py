"""README, docs, notebooks and benchmarks use names and arguments that exist."""

import ast
import importlib
import inspect
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

import sparsejax as sj

pytestmark = pytest.mark.whole  # short, so all of it is in `make test`

ROOT = Path(__file__).parents[1]


def _code(path: Path) -> str:
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = (c for c in json.loads(text)["cells"] if c["cell_type"] == "code")
        return "\n".join(re.sub(r"^[%!].*", "", "".join(c["source"]), flags=re.M) for c in cells)
    if path.suffix == ".md":
        return "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
    return text


def _files() -> list[Path]:
    places = ("*.md", "docs/**/*.md", "notebooks/*.ipynb", "benchmarks/**/*.py")
    return sorted(path for place in places for path in ROOT.glob(place))


def _imported(tree: ast.AST) -> dict[str, object]:
    """The objects of sparsejax by the names under which a file imports them."""
    found: dict[str, object] = {"sj": sj}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sparsejax"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                found[alias.asname or alias.name] = _member(module, alias.name)
    return found


def _member(module: ModuleType, name: str) -> object:
    try:
        return importlib.import_module(f"{module.__name__}.{name}")
    except ModuleNotFoundError:
        return getattr(module, name)


def _resolved(node: ast.AST, names: dict[str, object]) -> object:
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := _resolved(node.value, names)) is not None:
        if inspect.ismodule(owner):
            return getattr(owner, node.attr)
        return inspect.getattr_static(owner, node.attr, None) if inspect.isclass(owner) else None
    return None


def _check_call(function: object, call: ast.Call) -> None:
    if not inspect.isfunction(function) or any(k.arg is None for k in call.keywords):
        return
    parameters = inspect.signature(function).parameters.values()
    keywords = {k.arg for k in call.keywords}
    if all(p.kind != p.VAR_KEYWORD for p in parameters):
        assert keywords <= {p.name for p in parameters}, (keywords, function)
    if any(isinstance(a, ast.Starred) for a in call.args):
        return
    if all(p.kind != p.VAR_POSITIONAL for p in parameters):
        places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        assert len(call.args) <= len(places), ast.unparse(call)


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_names_and_arguments_exist(path):
    tree = ast.parse(_code(path))
    names, mistakes = _imported(tree), []
    for node in ast.walk(tree):
        try:
            if isinstance(node, ast.Call):
                _check_call(_resolved(node.func, names), node)
            elif isinstance(node, ast.Attribute):
                _resolved(node, names)
        except (AttributeError, AssertionError) as error:
            mistakes.append(f"{node.lineno}: {error}")
    assert not mistakes, "\n".join(mistakes)


def _missing(name: str) -> bool:
    owner: object = sj
    for part in name.split(".")[1:]:
        if not inspect.ismodule(owner):
            return False
        try:
            owner = _member(owner, part)
        except AttributeError:
            return True
    return False


def test_names_in_docstrings_and_messages_exist():
    places = ("sparsejax/**/*.py", "*.md", "docs/*.md")
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for place in places
        for path in ROOT.glob(place)
        for name in set(re.findall(r"\bsj(?:\.[A-Za-z_]\w*)+", path.read_text()))
        if _missing(name)
    }
    assert not found, sorted(found)
