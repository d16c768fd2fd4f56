"""The programs on the pages of the documentation run from the top, on eight devices."""

import os
import pathlib
import re
import socket
import subprocess
import sys

import pytest

import sparsejax as sj

DOCS = pathlib.Path(__file__).parent.parent / "docs"
PAGES = [
    "distributed", "extending", "frameworks", "language_models", "regression",
    "sparse_autoencoders",
]  # fmt: skip
SCRIPT = "# train.py\n"  # first line of what is started as a file, in two processes


def programs(page: str) -> list[str]:
    """The blocks of Python on a page."""
    return re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.S)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_program_of_a_page_runs(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = [block for block in programs(page) if not block.startswith(SCRIPT)]
    assert blocks
    names = {"__name__": page}
    for block in blocks:
        exec(compile(block, f"docs/{page}.md", "exec"), names)
    assert "nan" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_program_of_two_processes_runs(tmp_path):
    (script,) = (block for block in programs("distributed") if block.startswith(SCRIPT))
    (tmp_path / "train.py").write_text(script)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    env = dict(os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=1")
    first, second = (
        subprocess.Popen(
            [sys.executable, "train.py", address, str(process)],
            cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for process in range(2)
    )  # fmt: skip
    try:
        out, errors = first.communicate(timeout=300)
        _, others = second.communicate(timeout=300)
    finally:
        first.kill()
        second.kill()
    assert first.returncode == second.returncode == 0, errors + others
    assert "loss" in out and "0.5000" in out and "nan" not in out
    kernel = sj.load(tmp_path / "pruned.safetensors")["kernel"]
    assert kernel.shape == (64, 32)
    assert ((kernel.reshape(16, 4, 32) != 0).sum(1) == 2).all()
