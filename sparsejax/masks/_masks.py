"""Masks inside a larger state, marked so that `sj.get_masks` finds them."""

from dataclasses import dataclass, field

from jaxtyping import PyTree

from .._tree import pure, register


@register
@dataclass(frozen=True)
class Masks:
    """A tree of masks in the state of an optimizer, which `sj.get_masks` finds.

    A custom transformation wraps the masks of its state in this marker.

    Args:
      tree: Boolean arrays and None, in the structure of the parameters.
      trainable: True if the masks select the entries that are trained, instead of those that are
        not zero.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> state = {"step": 3, "mine": sj.masks.Masks({"kernel": jnp.array([True, False])})}
      >>> sj.get_masks(state)["kernel"].tolist()
      [True, False]
    """

    tree: PyTree
    trainable: bool = field(default=False, metadata=dict(static=True))

    @property
    def dense(self) -> PyTree:
        """The masks as boolean arrays; a class that stores them in another form overrides it."""
        return pure(self.tree)
