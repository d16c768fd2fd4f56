"""Sphinx: pages by concept, the notebooks, and one page for each package from its docstrings."""

import importlib
import inspect
from pathlib import Path

import sparsejax as sj

project = "sparsejax"
release = version = sj.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "sphinx_book_theme"
nb_execution_mode = "off"  # stored with their outputs
autodoc_typehints = "none"
default_role = "code"
suppress_warnings = ["docutils", "myst.xref_missing"]  # links to tests and benchmarks
exclude_patterns = ["_build"]

HERE = Path(__file__).parent
ROOMS = ["prox", "patterns", "select", "masks", "optim", "formats", "kernels", "nn", "nn.surgery",
         "models", "solve", "recipes", "reporting", "metrics",
         *(f"contrib.{subject}" for subject in sj.contrib.__all__)]  # fmt: skip


def page(room: str) -> str:
    """The page of a package: its docstring, then every public name."""
    name = f"sparsejax.{room}"
    module = importlib.import_module(name)
    public = [n for n in module.__all__ if not inspect.ismodule(getattr(module, n))]
    lines = [f"# {room}", "", (module.__doc__ or "").strip(), ""]
    for n in public:
        kind = "class" if inspect.isclass(getattr(module, n)) else "function"
        kind = kind if callable(getattr(module, n)) else "data"
        lines += ["```{eval-rst}", f".. auto{kind}:: {name}.{n}", "```", ""]
    return "\n".join(lines)


(HERE / "api").mkdir(exist_ok=True)
(HERE / "gallery").mkdir(exist_ok=True)
for room in ROOMS:
    (HERE / "api" / f"{room}.md").write_text(page(room))
for notebook in (HERE.parent / "notebooks").glob("*.ipynb"):
    (HERE / "gallery" / notebook.name).write_text(notebook.read_text())
