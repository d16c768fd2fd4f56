"""The programs on the pages of the documentation run from the top, on eight devices."""

import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).parent.parent / "docs"
PAGES = [
    "distributed", "extending", "frameworks", "language_models", "regression",
    "sparse_autoencoders",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_program_of_a_page_runs(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.S)
    assert blocks
    names = {"__name__": page}
    for block in blocks:
        exec(compile(block, f"docs/{page}.md", "exec"), names)
    assert "nan" not in capsys.readouterr().out
