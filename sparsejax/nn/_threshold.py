"""Learned thresholds."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import PyTree

from .._arguments import checked
from .._tree import map_named, named_leaves
from ..prox import soft_threshold


@checked()
def learned_threshold(params: PyTree, logits: PyTree) -> PyTree:
    r"""Soft thresholding with learned thresholds: `sign(w) max(|w| - sigmoid(s), 0)`.

    The reparametrisation of STR: apply it inside the loss and train `params` and `logits` together;
    weight decay on the logits s, which drives them up to 0, controls the sparsity.

    Args:
      params: A tree of arrays.
      logits: s of the leaves to be pruned, scalars or arrays that broadcast, by path. Initialise
        them with small thresholds, -5 to -12.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: If a threshold belongs to no leaf or does not broadcast with it.

    Reference:
      Kusupati et al., Soft Threshold Weight Reparameterization for Learnable Sparsity, 2020
      (arXiv 2002.03231).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"kernel": jnp.array([1.0, -0.25])}
      >>> sj.nn.learned_threshold(params, {"kernel": jnp.array(0.0)})["kernel"].tolist()
      [0.5, 0.0]
    """
    by_name, leaves = named_leaves(logits), named_leaves(params)
    for name, s in by_name.items():
        if name not in leaves:
            raise ValueError(f"there is a threshold for {name} but no such parameter.")
        shape = jnp.shape(leaves[name])
        if not _broadcasts(jnp.shape(s), shape):
            raise ValueError(
                f"{name} has shape {shape}, with which a threshold of shape {jnp.shape(s)} does "
                "not broadcast; one number per leaf is usual."
            )

    def one(name, w, s: ArrayLike | None):
        return w if s is None else soft_threshold(w, jax.nn.sigmoid(jnp.asarray(s)))

    return map_named(one, params, by_name)


def _broadcasts(small: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(small) <= len(shape) and all(
        a in (1, b) for a, b in zip(reversed(small), reversed(shape))
    )
