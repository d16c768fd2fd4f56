"""Sphinx: pages by concept, the notebooks, results, and one page for each package."""

import re
import sys
from pathlib import Path

import sparsejax as sj

sys.path.insert(0, str(Path(__file__).parent))
from _generate import generate, within_site  # noqa: E402

project = "sparsejax"
release = version = sj.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "sphinx_book_theme"
html_title = f"sparsejax {version}"
html_theme_options = {"navbar_persistent": [], "show_toc_level": 2}
html_static_path, html_css_files = ["_static"], ["pages.css"]
nb_execution_mode = "off"  # stored with their outputs
autodoc_typehints = "none"
autodoc_preserve_defaults = True  # as written, not the objects
napoleon_attr_annotations = False  # shapes such as "*b n" are no emphasis
default_role = "code"
exclude_patterns = ["_build", "jupyter_execute", "generated/front.md"]

generate()


def setup(app):
    """Links of the pages lead to pages; in docstrings `|x|` is no substitution."""
    app.connect(
        "source-read", lambda app, name, source: source.__setitem__(0, within_site(source[0]))
    )
    app.connect("autodoc-process-docstring", _plain_bars)


def _plain_bars(app, what, name, obj, options, lines: list[str]) -> None:
    code = re.compile(r"(`+[^`]*`+)")
    lines[:] = [
        "".join(x if x.startswith("`") else x.replace("|", "\\|") for x in code.split(line))
        for line in lines
    ]
