"""Sparse vectors over a vocabulary from the logits of a masked-language-model head."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from ..._arguments import check_finite, checked
from ..._arrays import wide_dtype
from ...select import Threshold


@checked()
def splade_pool(
    logits: Float[Array | np.ndarray, "*batch length vocabulary"],
    mask: Bool[Array | np.ndarray, "*batch length"],
    *,
    double_log: bool = False,
) -> Float[Array, "*batch vocabulary"]:
    r"""Weights of a document for every token of the vocabulary: `log(1 + relu(max_t L_tj))`.

    The maximum is over the tokens t that are not padding; without any all weights are 0.

    Args:
      logits: L, one row over the vocabulary for each token.
      mask: True at tokens, False at padding.
      double_log: Whether to take `log(1 + w)` once more, as the models of the l0 variant do.

    Returns:
      Weights >= 0, without a unit, of at least float32.

    Raises:
      ValueError: If there are no tokens, or the mask has another shape.

    Reference:
      Formal et al., SPLADE v2, 2021 (arXiv 2109.10086); Geng et al., Towards Competitive Search
      Relevance For Inference-Free Learned Sparse Retrievers, 2024 (arXiv 2411.04403); double
      logarithm: Shen et al., 2025 (arXiv 2504.14839).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import retrieval
      >>> logits = jnp.array([[1.0, -1.0, 0.0], [2.0, -3.0, 0.0], [9.0, 9.0, 9.0]])
      >>> w = retrieval.splade_pool(logits, jnp.array([True, True, False]))
      >>> [round(float(x), 3) for x in w]
      [1.099, 0.0, 0.0]
    """
    if not logits.shape[-2]:
        raise ValueError(f"splade_pool: logits must have at least one token, got {logits.shape}.")
    logits = jnp.asarray(logits)
    # Padding gives 0 before the logarithm, which relu gives to everything below.
    seen = jnp.where(jnp.asarray(mask)[..., None], logits, 0)
    peak = jnp.max(seen, axis=-2).astype(wide_dtype(logits))
    w = jnp.log1p(jax.nn.relu(peak))
    return jnp.log1p(w) if double_log else w


@checked(ratio="[0, 1]")
def prune_vectors(
    w: Float[Array | np.ndarray, "*batch vocabulary"], ratio: ArrayLike
) -> Float[Array, "*batch vocabulary"]:
    r"""Vectors without their small weights: entries `<= ratio * max_j w_j` become 0.

    Args:
      w: Weights >= 0 of documents.
      ratio: A fraction; 0.1 is usual. A new value does not recompile.

    Returns:
      Weights of the same dtype.

    Raises:
      ValueError: If the weights hold NaN or infinity.

    Reference:
      Geng et al., 2024 (arXiv 2411.04403).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import retrieval
      >>> retrieval.prune_vectors(jnp.array([1.0, 0.5, 2.0]), 0.5).tolist()
      [0.0, 0.0, 2.0]
    """
    w = jnp.asarray(w)
    check_finite("prune_vectors", w=w)
    wide = w.astype(wide_dtype(w))
    peak = jnp.max(wide, axis=-1, keepdims=True, initial=0)
    return jnp.where(Threshold(ratio * peak)(wide), w, 0)
