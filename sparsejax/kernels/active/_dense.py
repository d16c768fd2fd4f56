"""The same through all units: what the active set has to beat."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ...formats import ActiveSet


def reduce(h: Float[Array, "t k g"], w: Float[Array, "n g d"], s: ActiveSet) -> Float[Array, "t d"]:
    """`sum_j h_j w[index_j]`, zeros for what is not active."""
    return jnp.einsum("tng,ngd->td", spread(h, s, w.shape[0]), w, preferred_element_type=h.dtype)


def expand(x: Float[Array, "t d"], w: Float[Array, "n g d"], s: ActiveSet) -> Float[Array, "t k g"]:
    """`x w[index_j]^T`, of all units computed those that are active."""
    every = jnp.einsum("td,ngd->tng", x, w, preferred_element_type=jnp.float32)
    return jnp.where(s.used[..., None], take_units(every, s), 0)


def spread(h: Float[Array, "t k g"], s: ActiveSet, units: int) -> Float[Array, "t n g"]:
    """Values of a list in the places of their units."""
    index = jnp.where(s.used, s.index, units)
    if index.ndim == 1:
        index = jnp.broadcast_to(index, (h.shape[0], index.shape[0]))
    rows = jnp.arange(h.shape[0])[:, None]
    return jnp.zeros((h.shape[0], units, h.shape[2]), h.dtype).at[rows, index].add(h, mode="drop")


def take_units(v: Float[Array, "t n g"], s: ActiveSet) -> Float[Array, "t k g"]:
    """The values of the units of a list; those of unit 0 in unused places."""
    if s.index.ndim == 1:
        return v.at[:, s.index].get(mode="promise_in_bounds")
    return jnp.take_along_axis(v, s.index[..., None], axis=1)
