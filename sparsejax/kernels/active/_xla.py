"""The reference: gathers and multiplies the rows of the active units.

Shapes are static, counts are not: a list is truncated to the shortest of a few lengths that holds
the active units. Beyond a quarter of the units, all of them are multiplied.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

from ...select import ActiveSet
from . import _dense

# Lengths as fractions of all units. Beyond the last the gathered copy costs more than it saves.
BUCKETS = (1 / 16, 1 / 8, 1 / 4)


def reduce(
    h: Float[Array, "t k g"], w: Shaped[Array, "n g d"], s: ActiveSet
) -> Float[Array, "t d"]:
    """`sum_j h_j w[index_j]`."""
    # Unused positions refer to an active unit: weights of other units may be non-finite.
    index = jnp.where(s.used, s.index, s.index[..., :1])
    if s.index.ndim == 2:
        return _by_token(lambda h, index: _dense.contract(h[None], _rows(w, index))[0], h, index)

    def cut(length: int | None):
        if length is None:
            return _dense.reduce(h, w, s)
        return _dense.contract(h[:, :length], _rows(w, index[:length]))

    return _bucketed(cut, w.shape[0], s)


def expand(
    x: Float[Array, "t d"], w: Shaped[Array, "n g d"], s: ActiveSet
) -> Float[Array, "t k g"]:
    """`x w[index_j]^T`, zero from `count` on."""
    if s.index.ndim == 2:
        u = _by_token(lambda x, index: _dense.produce(x[None], _rows(w, index))[0], x, s.index)
        return jnp.where(s.used[..., None], u, 0)

    def cut(length: int | None):
        if length is None:
            return _dense.expand(x, w, s)
        u = _dense.produce(x, _rows(w, s.index[:length]))
        used = s.used[:length, None]
        missing = s.capacity - length
        return jnp.pad(jnp.where(used, u, 0), ((0, 0), (0, missing), (0, 0)))

    return _bucketed(cut, w.shape[0], s)


def _rows(w, index) -> Shaped[Array, "k g d"]:
    return w.at[index].get(mode="promise_in_bounds")


def _by_token(f: Callable[..., Any], *arrays: Any) -> Any:
    """One token at a time: gathering all rows at once would take T times the active weights."""
    return jax.vmap(f)(*arrays) if arrays[0].shape[0] == 1 else lax.map(lambda a: f(*a), arrays)


def _bucketed(cut: Callable[[int | None], Any], units: int, s: ActiveSet) -> Any:
    """`cut(length)` for the shortest length that holds the set; `cut(None)` uses all units."""
    lengths: list[int | None] = [
        length for f in BUCKETS if 0 < (length := int(f * units)) < s.capacity
    ]
    lengths.append(s.capacity if s.capacity <= max(BUCKETS[-1] * units, 1) else None)
    if len(lengths) == 1:
        return cut(lengths[0])
    bounds = jnp.asarray(lengths[:-1])
    branches = [lambda length=length: cut(length) for length in lengths]
    return lax.switch(jnp.searchsorted(bounds, s.count), branches)
