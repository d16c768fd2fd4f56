"""Autoencoders in the files of SAELens and of Gemma Scope."""

import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._arguments import checked
from .._files import read_npz, replacing
from .._sharding import on_host
from .._tree import is_array
from ..nn import load as load_tensors
from ._layout import from_configuration, to_configuration
from ._sae import SAE, Params, Weights, check_names

WEIGHTS, CONFIGURATION = "sae_weights.safetensors", "cfg.json"


class Loaded(NamedTuple):
    """An autoencoder from a file, its parameters, and the metadata: names of model and place."""

    sae: SAE
    params: Params
    metadata: dict[str, Any]


@checked()
def save(
    path: str | os.PathLike[str],
    sae: SAE,
    params: Weights,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes an autoencoder in the layout of SAELens 6: `cfg.json` and `sae_weights.safetensors`.

    SAELens loads it by `SAE.load_from_disk(path)`. Losses and constraint are not stored.

    Args:
      path: A folder, which is made if it is missing.
      sae: With `ReLU`, `TopK`, `AbsTopK`, `JumpReLU`, `Gated` or `MatchingPursuit`. One with
        `BatchTopK` is saved after `sae.inference(params, state)`, one with `GradientTopK` as
        `TopK(k)`; others have no counterpart.
      params: Its parameters.
      metadata: Entries of the metadata, such as `model_name` and `hook_name`.

    Raises:
      ImportError: If safetensors is not installed.
      ValueError: If the layout cannot hold the autoencoder.

    Example:
      >>> import jax, tempfile, sparsejax as sj
      >>> sae = sj.sae.SAE(sj.sae.TopK(2))
      >>> params = sae.init(4, 8, key=jax.random.key(0))
      >>> folder = tempfile.mkdtemp()
      >>> sj.sae.save(folder, sae, params, metadata={"hook_name": "blocks.3"})
      >>> found = sj.sae.load(folder)
      >>> found.sae.activation, found.metadata["hook_name"]
      (TopK(k=2, most=2, anneal=None), 'blocks.3')
    """
    check_names(params)
    configuration = to_configuration(sae, params, dict(metadata or {}))
    tensors = {name: on_host(jnp.asarray(x)) for name, x in params.items()}
    if "b_enc" not in tensors and configuration["architecture"] not in _WITHOUT_BIAS:
        tensors["b_enc"] = np.zeros(params["W_dec"].shape[0], tensors["W_dec"].dtype)
    text = json.dumps(configuration, indent=2)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as file:
        whole = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
        _library().save_file(whole, file)
    with replacing(folder / CONFIGURATION) as file:
        file.write_text(text)


_WITHOUT_BIAS = ("gated", "matching_pursuit")


@checked()
def load(path: str | os.PathLike[str]) -> Loaded:
    """Reads an autoencoder that SAELens (6 or before), Gemma Scope or `save` wrote.

    Args:
      path: A folder with `cfg.json` and `sae_weights.safetensors`, or an npz file of Gemma Scope.

    Returns:
      The autoencoder, its parameters (thresholds in float32), and the metadata.

    Raises:
      ImportError: If safetensors is not installed.
      FileNotFoundError: If a file is missing.
      ValueError: If a file is damaged, a tensor is missing or has the wrong shape, or the
        autoencoder has a part that is not represented here, which the error names.

    Example:
      >>> import os, tempfile, numpy as np, sparsejax as sj
      >>> arrays = dict(W_enc=np.eye(2), W_dec=np.eye(2), b_enc=np.zeros(2), b_dec=np.zeros(2))
      >>> path = os.path.join(tempfile.mkdtemp(), "params.npz")
      >>> np.savez(path, **arrays, threshold=np.ones(2))
      >>> sae, params, _ = sj.sae.load(path)
      >>> sae.encode(params, np.array([[0.5, 2.0]], np.float32)).tolist()
      [[0.0, 2.0]]
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"load: path {place} does not exist.")
    try:
        if place.is_dir():
            configuration = _configuration(place / CONFIGURATION)
            tensors = load_tensors(place / WEIGHTS)
        else:
            configuration, tensors = _GEMMA_SCOPE, _npz(place)
        return Loaded(*from_configuration(configuration, _arrays(tensors)))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = str(error).removesuffix(".")
        raise ValueError(f"load: path {place} cannot be loaded: {reason}.") from error


_GEMMA_SCOPE: dict[str, Any] = {
    "architecture": "jumprelu", "apply_b_dec_to_input": False, "normalize_activations": "none",
    "metadata": {"sae_lens_version": "6.0.0"},
}  # fmt: skip


def _configuration(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise FileNotFoundError(f"load: there is no {file}.")
    found = json.loads(file.read_text())
    if not isinstance(found, dict):
        raise ValueError(f"{CONFIGURATION} must hold an object, it holds a {type(found).__name__}")
    return found


def _npz(file: Path) -> dict[str, Any]:
    """The arrays of a file of Gemma Scope; some have names in lower case."""
    arrays = {"W" + n[1:] if n.startswith("w_") else n: x for n, x in read_npz(file).items()}
    if "threshold" not in arrays:
        raise ValueError(f"it has no threshold, only {', '.join(arrays) or 'nothing'}")
    return arrays


def _arrays(tensors: Mapping[str, Any]) -> dict[str, Array]:
    for name, x in tensors.items():
        if not is_array(x) or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} must be an array of floats")
    return {name: jnp.asarray(x) for name, x in tensors.items()}


def _library() -> Any:
    try:
        return importlib.import_module("safetensors.numpy")
    except ImportError as error:
        raise ImportError('safetensors files need: pip install "sparsejax[models]".') from error
