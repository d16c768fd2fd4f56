"""Weights in unit-major order, as the products of active units read them."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._arguments import checked


@checked(size="[1, inf)")
def unit_major(kernel: Float[Array, "a b"], axis: int, size: int = 1) -> Float[Array, "n g d"]:
    """A kernel with contiguous weights per unit, as the active kernels read it.

    Args:
      kernel: `(in, out)`.
      axis: The axis of the units: 0 for a layer that reduces over them (the second layer of a
        feed-forward network), 1 for a layer that produces them (the first).
      size: Number of neighbours that form one unit, such as the neurons of an expert.

    Returns:
      `(n, size, d)`.

    Raises:
      ValueError: If the size does not divide the axis.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.formats.unit_major(jnp.ones((8, 12)), axis=1, size=4).shape
      (3, 4, 8)
    """
    rows = jnp.moveaxis(kernel, axis, 0)
    if size < 1 or rows.shape[0] % size:
        raise ValueError(
            f"unit_major: units of {size} do not divide axis {axis} of a kernel of shape "
            f"{tuple(kernel.shape)}."
        )
    return rows.reshape(rows.shape[0] // size, size, rows.shape[1])
