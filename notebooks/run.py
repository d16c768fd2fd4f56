"""Runs every notebook from the top and keeps the outputs: `python notebooks/run.py [name ...]`."""

import pathlib
import sys

import nbformat
from nbclient import NotebookClient

HERE = pathlib.Path(__file__).parent


def run(path: pathlib.Path) -> nbformat.NotebookNode:
    """The executed notebook; raises at the first cell that fails."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, kernel_name="python3").execute(cwd=str(HERE))
    return notebook


if __name__ == "__main__":
    names = sys.argv[1:] or sorted(p.name for p in HERE.glob("[0-9]*.ipynb"))
    for name in names:
        executed = run(HERE / name)
        for cell in executed.cells:  # when and how long is noise in the history
            cell.metadata.pop("execution", None)
        nbformat.write(executed, HERE / name)
        print(f"{name}: {sum(c.cell_type == 'code' for c in executed.cells)} cells")
