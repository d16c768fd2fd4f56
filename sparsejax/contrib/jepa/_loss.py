"""The loss in the space of embeddings."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..._arguments import checked, known
from ..._sharding import on_host
from ._blocks import Blocks
from ._modules import chosen

Encoder = Callable[..., Float[Array, "b c width"]]


@checked(encoder="encoder(patches, index)", target="target(patches)",
         predictor="predictor(context, seen, hidden)")  # fmt: skip
def jepa_loss(
    encoder: Encoder,
    target: Encoder,
    predictor: Callable[[Array, Array, Array], Array],
    patches: Float[Array, "b n d"],
    blocks: Blocks,
) -> Float[Array, ""]:
    r"""The mean squared error of the predicted embeddings of hidden patches.

    `mean (P(E(x_context), positions) - norm(E_t(x))_targets)^2`. The target encoder sees the whole
    image; its tokens are standardised and get no gradient.

    Args:
      encoder: E, `(patches, index)` to tokens, such as a `PatchEncoder`.
      target: E_t, of the same kind.
      predictor: P, `(tokens, seen, hidden)` to embeddings, such as a `Predictor`.
      patches: Patches of a batch of images.
      blocks: `Blocks` of each image: `context` (b, c) and `targets` (b, m, t).

    Returns:
      A scalar.

    Raises:
      ValueError: If the blocks are not those of the images, or hold patches beyond them.

    Reference:
      Assran et al., Self-Supervised Learning from Images with a Joint-Embedding Predictive
      Architecture, 2023 (arXiv 2301.08243).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from sparsejax.contrib import jepa
      >>> encoder = jepa.PatchEncoder(16, 4, 8, 1, 2, rngs=nnx.Rngs(0))
      >>> predictor = jepa.Predictor(16, 8, 8, 4, 1, 2, rngs=nnx.Rngs(1))
      >>> draw = lambda key: jepa.block_masks((4, 4), (2, 2), key=key)
      >>> blocks = jax.vmap(draw)(jax.random.split(jax.random.key(0), 3))
      >>> jepa.jepa_loss(encoder, encoder, predictor, jnp.ones((3, 16, 4)), blocks).shape
      ()
    """
    context, targets = blocks
    if len(context) != len(patches) or len(targets) != len(patches):
        raise ValueError(
            f"jepa_loss: patches {patches.shape} and blocks, of {len(context)} images, must have "
            "the same images: jax.vmap block_masks over one key for each."
        )
    for name, rows in (("context", context), ("targets", targets)):
        if known(rows) and not np.isin(on_host(rows), np.arange(patches.shape[1])).all():
            raise ValueError(
                f"jepa_loss: blocks.{name} must hold patches from 0 to {patches.shape[1] - 1}."
            )
    whole = jax.nn.standardize(target(patches), axis=-1)
    seen = encoder(patches, context)
    each = [_error(predictor, seen, context, whole, targets[:, m]) for m in range(targets.shape[1])]
    return jnp.mean(jnp.stack(each))


def _error(predictor, seen: Array, context: Int[Array, "b c"], whole: Array, hidden: Array):
    wanted = jax.lax.stop_gradient(chosen(whole, hidden))
    return jnp.mean((predictor(seen, context, hidden) - wanted) ** 2)
