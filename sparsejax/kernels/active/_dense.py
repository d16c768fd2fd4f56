"""The same products over all units: the dense baseline."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

from ..._arrays import wide_dtype
from ...select import ActiveSet


def reduce(
    h: Float[Array, "t k g"], w: Shaped[Array, "n g d"], s: ActiveSet
) -> Float[Array, "t d"]:
    """`sum_j h_j w[index_j]`, with zeros for inactive units."""
    return contract(spread(h, s, w.shape[0]), w)


def expand(
    x: Float[Array, "t d"], w: Shaped[Array, "n g d"], s: ActiveSet
) -> Float[Array, "t k g"]:
    """`x w[index_j]^T`: computes all units and selects the active ones."""
    return jnp.where(s.used[..., None], take_units(produce(x, w), s), 0)


def contract(h: Float[Array, "t k g"], rows: Shaped[Array, "k g d"]) -> Float[Array, "t d"]:
    """The sum over units and their neurons, as one product of matrices."""
    rows = rows.reshape(-1, rows.shape[2])
    return _dot(h.reshape(h.shape[0], rows.shape[0]), rows, 0)


def produce(x: Float[Array, "t d"], rows: Shaped[Array, "k g d"]) -> Float[Array, "t k g"]:
    """The units of these rows, as one product of matrices."""
    u = _dot(x, rows.reshape(-1, rows.shape[2]), 1)
    return u.reshape(x.shape[0], *rows.shape[:2])


def _dot(a, b, axis: int):
    total = wide_dtype(a, b)
    b = b.astype(total) if b.dtype == jnp.int8 else b
    return lax.dot_general(a, b, (((1,), (axis,)), ((), ())), preferred_element_type=total)


def spread(h: Float[Array, "t k g"], s: ActiveSet, units: int) -> Float[Array, "t n g"]:
    """List values scattered to the positions of their units, zero elsewhere."""
    if s.index.ndim == 2:
        one: Callable[..., Any] = partial(spread, units=units)
        return jax.vmap(lambda h, s: one(h[None], s)[0])(h, s)
    # The list position of each unit, from 1: gathering is faster than scattering rows.
    index = jnp.where(s.used, s.index, units)
    order = jnp.arange(1, s.capacity + 1, dtype=jnp.int32)
    place = jnp.zeros(units, jnp.int32).at[index].set(order, mode="drop")
    return jnp.pad(h, ((0, 0), (1, 0), (0, 0))).at[:, place].get(mode="promise_in_bounds")


def take_units(v: Float[Array, "t n g"], s: ActiveSet) -> Float[Array, "t k g"]:
    """The values of the units of a list; unused positions hold those of unit 0."""
    if s.index.ndim == 1:
        return v.at[:, s.index].get(mode="promise_in_bounds")
    return jnp.take_along_axis(v, s.index[..., None], axis=1)
