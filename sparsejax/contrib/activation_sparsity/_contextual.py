"""Decoders that use a part of the neurons: one choice for a prompt, or one for each token."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped

from ..._arguments import checked
from ..._arrays import wide_dtype
from ...models import Llama
from ...nn import record, replace
from ...select import TopK
from ._attach import kernels_of, only
from ._gates import ActivationGate


@checked()
def griffin_scores(z: Shaped[Array | np.ndarray, "t f"]) -> Float[Array, " f"]:
    r"""The share of each neuron in the activations of a prompt, `sqrt(sum_t (z_ti / ||z_t||)^2)`.

    Args:
      z: The neurons of each token, `act(x Wgate) * (x Wup)`. A token of zeros adds nothing.

    Reference:
      Dong et al., Prompt-prompted Adaptive Structured Pruning for Efficient LLM Generation
      (GRIFFIN), 2024 (arXiv 2404.01365).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import activation_sparsity
      >>> z = jnp.array([[3.0, 4.0], [0.0, 2.0]])
      >>> activation_sparsity.griffin_scores(z).round(3).tolist()
      [0.6000000238418579, 1.281000018119812]
    """
    z = jnp.asarray(z).astype(wide_dtype(z))
    norms = jnp.linalg.norm(z, axis=1, keepdims=True)
    return jnp.linalg.norm(z / jnp.where(norms > 0, norms, 1), axis=0)


def prompt_tokens(what: str, prompt: Any, model: Llama) -> Int[np.ndarray, " n"]:
    """A prompt as an array of the ids of tokens that the model knows."""
    ids, known = np.asarray(prompt), model.config.vocabulary
    if ids.ndim != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{what}: prompt must be a list of token ids, got {prompt!r:.80}.")
    if ids.min() < 0 or ids.max() >= known:
        raise ValueError(
            f"{what}: prompt must hold ids from 0 to {known - 1}, got {ids.min()} to {ids.max()}; "
            "is this the tokenizer of this model?"
        )
    return ids.astype(np.int32)


@checked(density="(0, 1]")
def coarse_sparse(model: Llama, prompt: Any, density: float) -> Llama:
    r"""A decoder with the neurons that matter most for a prompt (CSparse, as GRIFFIN).

    In each feed-forward network the `floor(density f)` neurons of the largest `griffin_scores` are
    kept, in smaller kernels; attention, embeddings and head stay dense.

    Args:
      model: A decoder with its layers in a list; it is not changed.
      prompt: Token ids, `(length,)`; one prompt.
      density: Fraction of the neurons.

    Returns:
      A decoder of the same cache, for `corrected_generate`.

    Raises:
      ValueError: If the layers are one stack, the prompt is not a list of tokens that the model
        knows, or no neuron would be kept.

    Reference:
      Zhou et al., Sirius: Contextual Sparsity with Correction for Efficient LLMs, 2024 (arXiv
      2409.03856).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> from sparsejax.contrib import activation_sparsity
      >>> config = sj.models.LlamaConfig(
      ...     vocabulary=50, width=16, hidden=32, layers=1, heads=4, key_heads=2, head_size=4)
      >>> model = sj.models.Llama(config, rngs=nnx.Rngs(0))
      >>> small = activation_sparsity.coarse_sparse(model, [1, 2, 3], 0.5)
      >>> small.layers[0].mlp.gate.kernel.shape
      (16, 16)
    """
    kernels_of("coarse_sparse", model, r"mlp/down$")
    ids = jnp.asarray(prompt_tokens("coarse_sparse", prompt, model))
    kept = int(model.config.hidden * density + 1e-9)
    if not kept:
        raise ValueError(
            f"coarse_sparse: density must keep one of {model.config.hidden} neurons, got {density}."
        )
    _, seen = record(model, r"mlp/down$", ids[None], reduce=lambda inputs, y: inputs[0][0])
    model = nnx.clone(model)
    for i, layer in enumerate(model.layers):
        index = TopK(kept).set(griffin_scores(seen[f"layers/{i}/mlp/down"])).index
        mlp = layer.mlp
        for linear, axis in ((mlp.gate, 1), (mlp.up, 1), (mlp.down, 0)):
            linear.kernel = nnx.Param(jnp.take(linear.kernel[...], index, axis=axis))
            linear.in_features, linear.out_features = linear.kernel[...].shape
    return model


@checked(density="(0, 1]")
def fine_sparse(model: Llama, density: float, *, shared: bool = False) -> Any:
    r"""A decoder with the neurons that matter most for each token (FSparse, as CATS).

    Of f neurons the `floor((1 - density) f)` of the smallest `|act(x Wgate)|` are dropped.

    Args:
      model: A decoder with its layers in a list; it is not changed.
      density: Fraction of the neurons.
      shared: Whether the rows of a batch share one set, of the largest sums: for the beams of a
        tree.

    Raises:
      ValueError: If the layers are one stack.

    Reference:
      Zhou et al., Sirius, 2024 (arXiv 2409.03856).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> from sparsejax.contrib import activation_sparsity
      >>> config = sj.models.LlamaConfig(
      ...     vocabulary=50, width=16, hidden=32, layers=1, heads=4, key_heads=2, head_size=4)
      >>> model = sj.models.Llama(config, rngs=nnx.Rngs(0))
      >>> activation_sparsity.fine_sparse(model, 0.5)(jnp.array([[1, 2]])).shape
      (1, 2, 50)
    """
    kernels = kernels_of("fine_sparse", model, r"mlp/gate$")
    width = {path: kernel.shape[1] for path, kernel in kernels.items()}
    kept = {path: f - int(f * (1 - density) + 1e-9) for path, f in width.items()}
    gates = {path: ActivationGate(TopK(k), shared=shared) for path, k in kept.items()}
    return replace(model, {only(path): gate for path, gate in gates.items()})
