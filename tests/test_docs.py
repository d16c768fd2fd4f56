"""The programs on the pages of the documentation run from the top, on eight devices."""

import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).parent.parent / "docs"
PAGES = ["distributed", "extending", "frameworks", "regression", "sparse_autoencoders"]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_program_of_a_page_runs(page, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.S)
    assert blocks
    names = {"__name__": page}
    for block in blocks:
        exec(compile(block, f"docs/{page}.md", "exec"), names)
    assert "nan" not in capsys.readouterr().out
