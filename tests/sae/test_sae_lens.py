"""Autoencoders that SAELens reads and writes: the same features and reconstructions both ways.

Skipped without the wheel `sae-lens`; passed with its version 6.54.12.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import sae

from .test_files import ROUND, D, H, X, params_of

lens = pytest.importorskip("sae_lens")
torch = pytest.importorskip("torch")
registry = pytest.importorskip("sae_lens.registry")

pytestmark = pytest.mark.slow
INPUTS = torch.tensor(np.asarray(3 * X))
# Each architecture that SAELens saves, with its options; those it trains are saved for inference.
SAVED = {
    "standard": {},
    "standard, not centred": {"apply_b_dec_to_input": False},
    "standard, layer norm": {"normalize_activations": "layer_norm"},
    "standard, constant norm": {"normalize_activations": "constant_norm_rescale"},
    "standard, average norm": {"normalize_activations": "expected_average_only_in"},
    "topk": {"k": 3},
    "topk, rescaled": {"k": 3, "rescale_acts_by_decoder_norm": True},
    "abstopk": {"k": 3},
    "abstopk, rescaled": {"k": 3, "rescale_acts_by_decoder_norm": True},
    "jumprelu": {},
    "jumprelu, layer norm": {"normalize_activations": "layer_norm"},
    "gated": {},
    "gated, not centred": {"apply_b_dec_to_input": False},
    "matching_pursuit": {"max_iterations": 4, "residual_threshold": 0.1},
    "matching_pursuit, all": {},
    "matching_pursuit, repeated": {"stop_on_duplicate_support": False, "residual_threshold": 0.0},
    "matching_pursuit, not centred": {"apply_b_dec_to_input": False, "max_iterations": 3},
    "transcoder": {"d_out": 4, "apply_b_dec_to_input": False},
    "transcoder, layer norm": {
        "d_out": 4,
        "apply_b_dec_to_input": False,
        "normalize_activations": "layer_norm",
    },
    "skip_transcoder": {"d_out": 4, "apply_b_dec_to_input": False},
    "skip_transcoder, constant norm": {
        "d_out": 4,
        "apply_b_dec_to_input": False,
        "normalize_activations": "constant_norm_rescale",
    },
    "jumprelu_transcoder": {"d_out": 4, "apply_b_dec_to_input": False},
    "jumprelu_skip_transcoder": {"d_out": 4, "apply_b_dec_to_input": False},
}
TRAINED = {
    "standard": {},
    "topk": {"k": 3},
    "abstopk": {"k": 3},
    "jumprelu": {"jumprelu_init_threshold": 0.2},
    "gated": {},
    "batchtopk": {"k": 3},
    "matryoshka_batchtopk": {"k": 3, "matryoshka_widths": [8, H]},
    "matching_pursuit": {"decoder_init_norm": 1.0, "max_iterations": 4},
}


def filled(theirs):
    """Random parameters of a common size, positive where they are thresholds."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.copy_(0.3 * torch.randn(p.shape))
            if "threshold" in name and "log" not in name:
                p.abs_()
            if name == "W_dec" and "pursuit" in theirs.cfg.architecture():
                p.div_(p.norm(dim=1, keepdim=True))  # without it pursuit diverges
    return theirs


def check(found, theirs, tol=1e-5):
    """Equal features and reconstructions; some features are active, and some are not."""
    ours, params, _ = found
    x = jnp.asarray(INPUTS.numpy())
    with torch.no_grad():
        features, output = theirs.encode(INPUTS), theirs(INPUTS)
    np.testing.assert_allclose(ours.encode(params, x), features, atol=tol, rtol=tol)
    np.testing.assert_allclose(ours(params, x), output, atol=tol, rtol=tol)
    assert 0 < int((features != 0).sum()) < features.numel()


@pytest.mark.parametrize("name", ROUND)
def test_sae_lens_loads_files_of_sparsejax_and_saves_them_again(name, tmp_path):
    found, params = ROUND[name], params_of(name)
    sae.save(tmp_path / "ours", found, params, metadata={"hook_name": "blocks.1"})
    theirs = lens.SAE.load_from_disk(str(tmp_path / "ours"), device="cpu")
    assert theirs.cfg.metadata.hook_name == "blocks.1"
    check((found, params, None), theirs)
    theirs.save_model(str(tmp_path / "theirs"))
    again, weights, metadata = sae.load(tmp_path / "theirs")
    assert metadata["hook_name"] == "blocks.1" and again.activation == found.activation
    check((again, weights, metadata), theirs)
    assert jax.tree.map(jnp.shape, weights) == jax.tree.map(jnp.shape, params)


def test_half_precision(tmp_path):
    found, params = ROUND["relu"], params_of("relu", jnp.bfloat16)
    sae.save(tmp_path, found, params)
    theirs = lens.SAE.load_from_disk(str(tmp_path), device="cpu")
    assert theirs.W_dec.dtype == torch.bfloat16
    for name, p in theirs.named_parameters():
        np.testing.assert_array_equal(p.detach().float(), params[name].astype(jnp.float32))


def test_batch_top_k_is_a_jump_relu_there(tmp_path):
    found = sae.SAE(sae.BatchTopK(2))
    params = found.init(D, H, key=jax.random.key(0))
    state = found.state(params)._replace(threshold=jnp.asarray(0.3))
    fixed, weights = found.inference(params, state)
    sae.save(tmp_path, fixed, weights)
    theirs = lens.SAE.load_from_disk(str(tmp_path), device="cpu")
    assert theirs.cfg.architecture() == "jumprelu"
    check((fixed, weights, None), theirs)


@pytest.mark.parametrize("name", SAVED)
def test_sparsejax_loads_what_sae_lens_saves(name, tmp_path):
    of, config = registry.get_sae_class(name.partition(",")[0])
    theirs = filled(of(config(d_in=D, d_sae=H, device="cpu", **SAVED[name])))
    theirs.save_model(str(tmp_path))
    check(sae.load(tmp_path), lens.SAE.load_from_disk(str(tmp_path), device="cpu"))


@pytest.mark.parametrize("name", TRAINED)
def test_sparsejax_loads_what_sae_lens_trained(name, tmp_path):
    of, config = registry.get_sae_training_class(name)
    theirs = filled(of(config(d_in=D, d_sae=H, device="cpu", **TRAINED[name])))
    if name.endswith("batchtopk"):
        theirs.topk_threshold.fill_(0.4)
    theirs.save_inference_model(str(tmp_path))
    check(sae.load(tmp_path), lens.SAE.load_from_disk(str(tmp_path), device="cpu"))


def test_every_architecture_is_loaded_or_refused_by_name(tmp_path):
    names = lambda rows: {name.partition(",")[0] for name in rows}  # noqa: E731
    assert set(registry.SAE_CLASS_REGISTRY) - names(SAVED) == {"temporal"}
    assert set(registry.SAE_TRAINING_CLASS_REGISTRY) == names(TRAINED)
    of, config = registry.get_sae_class("temporal")
    theirs = of(config(d_in=D, d_sae=64, n_heads=1, device="cpu"))
    theirs.save_model(str(tmp_path))
    with pytest.raises(ValueError, match="temporal"):
        sae.load(tmp_path)
