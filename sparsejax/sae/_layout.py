"""The configuration of SAELens for each activation, both ways."""

from collections.abc import Callable, Mapping
from functools import singledispatch
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._arguments import is_int, known
from ._activation import Activation, Gated, JumpReLU, ReLU
from ._attribution import GradientTopK
from ._normalize import UNITS
from ._pursuit import MatchingPursuit
from ._sae import SAE, Params
from ._top_k import AbsTopK, BatchTopK, TopK

Configuration = dict[str, Any]
# Readers of SAELens take a file without a version of at least 6 for the layout before it.
VERSION = "6.18.0"
_RENAMED = {
    "hook_point": "hook_name", "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}  # fmt: skip
_METADATA = (
    "model_name", "hook_name", "hook_head_index", "model_class_name", "prepend_bos", "context_size",
    "dataset_path", "neuronpedia_id", "sae_lens_version", "sae_lens_training_version",
)  # fmt: skip
# Activations with a counterpart among transcoders, by architecture.
_TRANSCODERS = {"standard": "transcoder", "jumprelu": "jumprelu_transcoder"}
_SKIP = {"transcoder": "skip_transcoder", "jumprelu_transcoder": "jumprelu_skip_transcoder"}


@singledispatch
def _written(activation: Activation) -> Configuration:
    raise ValueError(
        f"save: sae has the activation {type(activation).__name__}, which the layout of SAELens "
        "does not hold."
    )


@_written.register
def _(activation: ReLU) -> Configuration:
    return {"architecture": "standard"}


@_written.register
def _(activation: JumpReLU) -> Configuration:
    return {"architecture": "jumprelu"}


@_written.register
def _(activation: Gated) -> Configuration:
    return {"architecture": "gated"}


@_written.register
def _(activation: TopK) -> Configuration:
    return {"architecture": "topk", "k": _whole(activation.k)}


@_written.register
def _(activation: AbsTopK) -> Configuration:
    return {"architecture": "abstopk", "k": _whole(activation.k)}


@_written.register
def _(activation: MatchingPursuit) -> Configuration:
    return {
        "architecture": "matching_pursuit", "max_iterations": activation.steps,
        "residual_threshold": float(activation.residual),
        "stop_on_duplicate_support": activation.stop_on_repeat,
    }  # fmt: skip


@_written.register
def _(activation: BatchTopK) -> Configuration:
    raise ValueError(
        "save: sae has the activation BatchTopK, which depends on the batch; save "
        "sae.inference(params, state), with a fixed threshold."
    )


@_written.register
def _(activation: GradientTopK) -> Configuration:
    raise ValueError(
        "save: sae has the activation GradientTopK, which needs labels; save SAE(TopK(k), ...)."
    )


def _whole(k: Any) -> int:
    if not known(k) or np.ndim(k) or int(k) != k:
        raise ValueError(f"save: sae must have one integer k, got {k!r}.")
    return int(k)


def to_configuration(sae: SAE, params: Mapping[str, Any], metadata: Configuration) -> Configuration:
    """The entries of cfg.json."""
    found = _written(sae.activation)
    h, out = params["W_dec"].shape
    width = params["W_enc"].shape[0] if "W_enc" in params else out
    if sae.transcoder:
        found |= {"architecture": _transcoder(found["architecture"], "W_skip" in params)}
        found |= {"d_out": out}
    if found["architecture"] in ("topk", "abstopk"):
        found |= {"rescale_acts_by_decoder_norm": sae.rescale}
    elif sae.rescale:
        raise ValueError(
            f"save: sae has rescale=True, which SAELens has for topk only, not for "
            f"{found['architecture']}."
        )
    return found | {
        "d_in": width, "d_sae": h, "dtype": str(params["W_dec"].dtype), "device": "cpu",
        "apply_b_dec_to_input": sae.center, "normalize_activations": sae.normalize,
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": VERSION, "sae_lens_training_version": None} | metadata,
    }  # fmt: skip


def _transcoder(architecture: str, skip: bool) -> str:
    if architecture not in _TRANSCODERS:
        raise ValueError(f"save: sae is a transcoder, which SAELens has not for {architecture}.")
    found = _TRANSCODERS[architecture]
    return _SKIP[found] if skip else found


def _count(cfg: Configuration, name: str, default: Any = None) -> int:
    found = cfg.get(name, default)
    if not is_int(found) or found < 1:
        raise ValueError(f"cfg.json must have an integer {name} of at least 1, got {found!r:.80}")
    return int(found)


# For each architecture its activation, and its tensors other than W_dec and b_dec.
_Reader = Callable[[Configuration, int], Activation]
_Shapes = dict[str, tuple[str, ...]]
_BIAS: _Shapes = {"W_enc": ("d_in", "d_sae"), "b_enc": ("d_sae",)}
_JUMP: _Shapes = _BIAS | {"threshold": ("d_sae",)}
_GATED: _Shapes = {
    "W_enc": ("d_in", "d_sae"), "b_gate": ("d_sae",), "b_mag": ("d_sae",), "r_mag": ("d_sae",),
}  # fmt: skip
_LINEAR: _Shapes = {"W_skip": ("d_out", "d_in")}


def _pursuit(cfg: Configuration, width: int) -> MatchingPursuit:
    given = cfg.get("max_iterations")
    steps = width if given is None else _count(cfg, "max_iterations")
    residual = cfg.get("residual_threshold", 1e-2)
    if isinstance(residual, bool) or not isinstance(residual, int | float):
        raise ValueError(f"cfg.json must have a number residual_threshold, got {residual!r:.80}")
    return MatchingPursuit(steps, residual, bool(cfg.get("stop_on_duplicate_support", True)))


ARCHITECTURES: dict[str, tuple[_Reader, _Shapes]] = {
    "standard": (lambda cfg, d: ReLU(), _BIAS),
    "topk": (lambda cfg, d: TopK(_count(cfg, "k")), _BIAS),
    "abstopk": (lambda cfg, d: AbsTopK(_count(cfg, "k")), _BIAS),
    "jumprelu": (lambda cfg, d: JumpReLU(), _JUMP),
    "gated": (lambda cfg, d: Gated(), _GATED),
    "matching_pursuit": (_pursuit, {}),
    "transcoder": (lambda cfg, d: ReLU(), _BIAS),
    "skip_transcoder": (lambda cfg, d: ReLU(), _BIAS | _LINEAR),
    "jumprelu_transcoder": (lambda cfg, d: JumpReLU(), _JUMP),
    "jumprelu_skip_transcoder": (lambda cfg, d: JumpReLU(), _JUMP | _LINEAR),
}


def from_configuration(
    cfg: Configuration, tensors: dict[str, Array]
) -> tuple[SAE, Params, Configuration]:
    """The autoencoder, its parameters and the metadata; raises for what is not represented."""
    cfg = cfg if _is_modern(cfg) else _modern(cfg)
    architecture = cfg.get("architecture", "standard")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise ValueError(
            f"the architecture {architecture!r:.80} is not among {', '.join(ARCHITECTURES)}"
        )
    read, wanted = ARCHITECTURES[architecture]
    transcoder = architecture.endswith("transcoder")
    normalize, center = _plain(cfg, transcoder)
    params = _checked(tensors, wanted, cfg, transcoder)
    width = params["W_enc"].shape[0] if "W_enc" in params else params["W_dec"].shape[1]
    if architecture == "matching_pursuit" and not center:  # then SAELens does not add it either
        params["b_dec"] = jnp.zeros_like(params["b_dec"])
    rescale = architecture in ("topk", "abstopk") and cfg.get("rescale_acts_by_decoder_norm", False)
    sae = SAE(
        read(cfg, width), normalize=normalize, center=center, transcoder=transcoder,
        rescale=bool(rescale),
    )  # fmt: skip
    metadata = cfg.get("metadata") or {}
    return sae, params, dict(metadata)


def _is_modern(cfg: Configuration) -> bool:
    metadata = cfg.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ValueError(f"cfg.json must have an object metadata, got {metadata!r:.80}")
    version = cfg.get("sae_lens_version") or metadata.get("sae_lens_version")
    if not version:
        return False
    major = str(version).split(".")[0]
    if not major.isdigit():
        raise ValueError(f"sae_lens_version must be a version such as {VERSION}, got {version!r}")
    return int(major) >= 6


def _modern(cfg: Configuration) -> Configuration:
    """A configuration before version 6 with the names and defaults of 6."""
    new = {_RENAMED.get(name, name): x for name, x in cfg.items()}
    activation = new.get("activation_fn", "relu")
    if activation == "topk":
        kwargs = new.get("activation_fn_kwargs")
        new |= {"architecture": "topk", "k": kwargs.get("k") if isinstance(kwargs, dict) else None}
    elif activation != "relu":
        raise ValueError(f"the activation_fn {activation!r:.80} is neither relu nor topk")
    hook = new.get("hook_name")
    if "reshape_activations" not in new and isinstance(hook, str) and "hook_z" in hook:
        new["reshape_activations"] = "hook_z"
    if isinstance(new.get("normalize_activations"), bool):
        scaled = new["normalize_activations"]
        new["normalize_activations"] = "expected_average_only_in" if scaled else "none"
    return new | {"metadata": {name: new[name] for name in _METADATA if name in new}}


def _plain(cfg: Configuration, transcoder: bool) -> tuple[Any, bool]:
    """Normalisation and centring; raises for other steps before the encoder."""
    normalize = cfg.get("normalize_activations") or "none"
    if not isinstance(normalize, str) or normalize not in UNITS:
        raise ValueError(f"normalize_activations {normalize!r:.80} is not among {', '.join(UNITS)}")
    reshape = cfg.get("reshape_activations") or "none"
    if reshape != "none":
        raise ValueError(
            f"reshape_activations {reshape!r:.80} is not supported: join the heads of the "
            'activations to (tokens, d_in) and set reshape_activations to "none"'
        )
    center = cfg.get("apply_b_dec_to_input", not transcoder)
    if not isinstance(center, bool) or (center and transcoder):
        raise ValueError(
            f"apply_b_dec_to_input must be {'false' if transcoder else 'a boolean'}, got "
            f"{center!r:.80}"
        )
    return normalize, center


def _checked(
    tensors: dict[str, Array], wanted: Mapping[str, Any], cfg: Configuration, transcoder: bool
) -> Params:
    """The parameters, if all tensors are present, in the shapes of the configuration."""
    left = dict(tensors)
    scale = left.pop("scaling_factor", None)
    if scale is not None and not bool(jnp.all(scale == 1)):
        raise ValueError("scaling_factor, for fine-tuned autoencoders, is not supported")
    if missing := [name for name in ("W_dec", "b_dec", *wanted) if name not in left]:
        raise ValueError(f"it has no tensor {', '.join(missing)}, only {', '.join(left)}")
    if left["W_dec"].ndim != 2:
        raise ValueError(f"W_dec must be a matrix, got shape {left['W_dec'].shape}")
    h, out = left["W_dec"].shape
    encoder = left["W_enc"].shape if "W_enc" in wanted else (out, h)
    width = encoder[0] if transcoder and len(encoder) == 2 else out
    sizes = {"d_sae": h, "d_in": width, "d_out": out}
    for name, size in sizes.items():
        if name in cfg and cfg[name] != size:
            raise ValueError(f"cfg.json has {name} = {cfg[name]!r:.80} and the tensors {size}")
    shapes = {name: tuple(sizes[axis] for axis in axes) for name, axes in wanted.items()}
    shapes |= {"W_dec": (h, out), "b_dec": (out,)}
    if left["b_dec"].shape == (1, out):
        left["b_dec"] = left["b_dec"][0]
    if extra := left.keys() - shapes.keys():
        raise ValueError(f"its tensors {', '.join(sorted(extra))} are not supported")
    for name, shape in shapes.items():
        if left[name].shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {left[name].shape}")
    if "threshold" in left:  # below 0 the same function: SAELens applies max(z, 0) first
        left["threshold"] = jnp.maximum(left["threshold"].astype(jnp.float32), 0)
    return {name: left[name] for name in shapes}
