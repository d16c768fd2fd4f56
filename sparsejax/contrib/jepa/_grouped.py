"""A linear layer by groups of outputs, and which latents each group uses."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from ..._arguments import checked
from ..._arrays import wide_dtype


class GroupedLinear(nnx.Module):
    r"""A linear layer whose outputs form groups: `out^(g) = z W^(g) + b^(g)`.

    The kernel has the shape (groups, latents, group_dim); its rows `W^(g)[k]`, from latent k into
    group g, are the groups of `sj.prox.group_lasso(strength, axis=2, weights=1.0)`. Without a
    penalty it is a dense layer.

    Args:
      latents: Inputs.
      groups: Number of groups of outputs.
      group_dim: Outputs of a group; the layer has `groups * group_dim`.
      rngs: Uses `params`; the kernel starts as N(0, 1 / latents).

    Raises:
      ValueError: If a size is less than 1.

    Reference:
      Ainsworth et al., oi-VAE, 2018 (arXiv 1802.06765); Hartman and Varshney, SparseJEPA, 2025
      (arXiv 2504.16140).

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from sparsejax.contrib import jepa
      >>> layer = jepa.GroupedLinear(3, 2, 4, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((5, 3))).shape, layer.group_norms().shape
      ((5, 8), (2, 3))
    """

    @checked(latents="[1, inf)", groups="[1, inf)", group_dim="[1, inf)")
    def __init__(self, latents: int, groups: int, group_dim: int, *, rngs: nnx.Rngs):
        shape = (groups, latents, group_dim)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape) / np.sqrt(latents))
        self.bias = nnx.Param(jnp.zeros(groups * group_dim))

    def __call__(self, z: Float[Array, "... latents"]) -> Float[Array, "... features"]:
        """`(..., latents)` to `(..., groups * group_dim)`."""
        out = jnp.einsum("...k,gkp->...gp", z, self.kernel[...])
        return out.reshape(*z.shape[:-1], -1) + self.bias[...]

    def group_norms(self) -> Float[Array, "groups latents"]:
        """The norm of each row, exactly 0 where a group does not use a latent."""
        return jnp.linalg.norm(self.kernel[...], axis=-1)


@checked()
def row_sparsity(kernel: Float[Array, "groups latents dim"]) -> Float[Array, ""]:
    """The fraction of rows, from a latent into a group, that are exactly zero.

    Args:
      kernel: The kernel of a `GroupedLinear`.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import jepa
      >>> float(jepa.row_sparsity(jnp.eye(2).reshape(1, 2, 2).repeat(2, 0).at[0, 0].set(0)))
      0.25
    """
    used = jnp.any(kernel != 0, -1)
    return 1 - jnp.mean(used, dtype=wide_dtype(kernel))


@checked()
def groups_per_latent(kernel: Float[Array, "groups latents dim"]) -> Int[Array, " latents"]:
    """The number of groups that use each latent; 0 for a latent that is dead in every group.

    Args:
      kernel: The kernel of a `GroupedLinear`.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import jepa
      >>> jepa.groups_per_latent(jnp.ones((3, 2, 4)).at[:2, 0].set(0)).tolist()
      [1, 3]
    """
    return jnp.sum(jnp.any(kernel != 0, -1), 0)
