"""Products with single entries, by gather and scatter."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ...formats import Entries


def product(x: Shaped[Array, "m k"], w: Entries, **dot: Any) -> Float[Array, "m n"]:
    """`x W`."""
    return gathered(x, w, w.rows, w.columns, w.shape[1], dot["preferred_element_type"])


def transposed(dy: Shaped[Array, "m n"], w: Entries, **dot: Any) -> Float[Array, "m k"]:
    """`dy W^T`."""
    return gathered(dy, w, w.columns, w.rows, w.shape[0], dot["preferred_element_type"])


def sampled(
    x: Shaped[Array, "m k"], dy: Shaped[Array, "m n"], w: Entries, **dot: Any
) -> Float[Array, " s"]:
    """`x^T dy` at the entries."""
    x, dy = _at(x, w.rows), _at(dy, w.columns)
    total = jnp.einsum("ms,ms->s", x, dy, **dot)
    return jnp.where(w.real, total, 0)


def form(rows: int, w: Entries) -> Callable[..., Array]:
    """The only form."""
    del rows, w
    return gathered


def gathered(x: Any, w: Entries, here: Any, there: Any, size: int, total: Any) -> Array:
    """Entries of x times the values, summed into `size` columns."""
    values = jnp.where(w.real, w.values, 0).astype(total)
    terms = _at(x, here).astype(total) * values
    there = jnp.where(w.real, there, size)
    return jnp.zeros((x.shape[0], size), total).at[:, there].add(terms, mode="drop")


def _at(x: Any, columns: Any) -> Array:
    return x.at[:, columns].get(mode="fill", fill_value=0)
