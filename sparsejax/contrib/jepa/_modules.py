"""A small vision transformer over patches, and the predictor of hidden patches."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ..._arguments import checked
from ._grouped import GroupedLinear


class _Layer(nnx.Module):
    """Attention and a feed-forward network, each of normalised inputs and added."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = x + self.attention(self.attention_norm(x))
        return x + self.down(jax.nn.gelu(self.up(self.norm(x))))


class PatchEncoder(nnx.Module):
    """A vision transformer over any subset of the patches of an image.

    Args:
      patches: Number of patches of an image.
      patch_dim: Entries of a patch.
      width: Width of the tokens.
      layers: Number of layers.
      heads: Number of attention heads, which divides the width.
      rngs: Uses `params`.

    Raises:
      ValueError: If a size is less than 1, or the width is not a multiple of the heads.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from sparsejax.contrib import jepa
      >>> encoder = jepa.PatchEncoder(16, 4, 8, 1, 2, rngs=nnx.Rngs(0))
      >>> encoder(jnp.ones((3, 16, 4))).shape
      (3, 16, 8)
    """

    @checked(patches="[1, inf)", patch_dim="[1, inf)", width="[1, inf)", layers="[0, inf)",
             heads="[1, inf)")  # fmt: skip
    def __init__(
        self, patches: int, patch_dim: int, width: int, layers: int, heads: int, *, rngs: nnx.Rngs
    ):
        _check_heads("PatchEncoder", "width", width, heads)
        self.embed = nnx.Linear(patch_dim, width, rngs=rngs)
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (patches, width)))
        self.layers = nnx.List([_Layer(width, heads, rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(
        self, patches: Float[Array, "b n d"], index: Int[Array, "b c"] | None = None
    ) -> Float[Array, "b c width"]:
        """Tokens of the patches at `index`, of all by default; other patches are not seen."""
        position = jnp.broadcast_to(self.position[...], (len(patches), *self.position.shape))
        if index is not None:
            patches, position = chosen(patches, index), chosen(position, index)
        x = self.embed(patches) + position
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Predictor(nnx.Module):
    """Predicts the embeddings of hidden patches from those of the context.

    A transformer over the context and a mask token, with its position, for each hidden patch; its
    normalised latents are mapped to groups of features by a `GroupedLinear` called `output`.

    Args:
      patches: Number of patches of an image.
      width: Width of the encoder.
      latents: Width of the predictor.
      groups: Number of groups of features, which divides the width of the encoder.
      layers: Number of layers.
      heads: Number of attention heads, which divides `latents`.
      rngs: Uses `params`.

    Raises:
      ValueError: If a size is less than 1, the width is not a multiple of the groups, or `latents`
        not of the heads.

    Reference:
      Hartman and Varshney, SparseJEPA, 2025 (arXiv 2504.16140).

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from sparsejax.contrib import jepa
      >>> predictor = jepa.Predictor(16, 8, 6, 4, 1, 2, rngs=nnx.Rngs(0))
      >>> seen, hidden = jnp.arange(12)[None], jnp.arange(12, 16)[None]
      >>> predictor(jnp.ones((1, 12, 8)), seen, hidden).shape
      (1, 4, 8)
    """

    @checked(patches="[1, inf)", width="[1, inf)", latents="[1, inf)", groups="[1, inf)",
             layers="[0, inf)", heads="[1, inf)")  # fmt: skip
    def __init__(
        self,
        patches: int,
        width: int,
        latents: int,
        groups: int,
        layers: int,
        heads: int,
        *,
        rngs: nnx.Rngs,
    ):
        if width % groups:
            raise ValueError(
                f"Predictor: groups={groups} must divide the width {width} of the encoder."
            )
        _check_heads("Predictor", "latents", latents, heads)
        self.embed = nnx.Linear(width, latents, rngs=rngs)
        self.mask_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (latents,)))
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (patches, latents)))
        self.layers = nnx.List([_Layer(latents, heads, rngs) for _ in range(layers)])
        # Without a norm the penalty could be evaded by larger latents.
        self.norm = nnx.LayerNorm(latents, rngs=rngs)
        self.output = GroupedLinear(latents, groups, width // groups, rngs=rngs)

    def __call__(
        self, context: Float[Array, "b c w"], seen: Int[Array, "b c"], hidden: Int[Array, "b t"]
    ) -> Float[Array, "b t w"]:
        """Embeddings of the patches at `hidden` from those of the patches at `seen`."""
        position = self.position[...]
        masked = self.mask_token[...] + position[hidden]
        x = jnp.concatenate([self.embed(context) + position[seen], masked], 1)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x[:, seen.shape[1] :]))


def _check_heads(what: str, name: str, width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"{what}: heads={heads} must divide {name}={width}.")


def chosen(x: Float[Array, "b n d"], index: Int[Array, "b c"]) -> Float[Array, "b c d"]:
    """The tokens at the indices of each image."""
    return jnp.take_along_axis(x, index[..., None], 1)


@checked(size="[1, inf)")
def patches_of(images: Float[Array, "n h w c"], size: int) -> Float[Array, "n patches dim"]:
    """Splits images into square patches, in row-major order.

    Args:
      images: Images.
      size: Side of a patch, which divides both sides of an image.

    Returns:
      Patches of `size * size * c` entries.

    Raises:
      ValueError: If the size does not divide the sides.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import jepa
      >>> jepa.patches_of(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, 1].tolist()
      [2.0, 3.0, 6.0, 7.0]
    """
    n, h, w, c = images.shape
    if h % size or w % size:
        raise ValueError(f"patches_of: size={size} must divide the sides of images {(h, w)}.")
    split = images.reshape(n, h // size, size, w // size, size, c)
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, size * size * c)


@checked(encoder="encoder(patches)")
def features(
    encoder: Callable[..., Array], patches: Float[Array, "n patches dim"]
) -> Float[Array, "n width"]:
    """The representation of images for probes: the mean token of all patches.

    Args:
      encoder: A function of patches to tokens: a `PatchEncoder`, usually the target encoder.
      patches: Patches of whole images.

    Returns:
      Features, for example for scikit-learn's `LogisticRegression`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from sparsejax.contrib import jepa
      >>> encoder = jepa.PatchEncoder(16, 4, 8, 1, 2, rngs=nnx.Rngs(0))
      >>> jepa.features(encoder, jnp.ones((3, 16, 4))).shape
      (3, 8)
    """
    return jnp.mean(encoder(patches), 1)
