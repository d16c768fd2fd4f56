"""Active units on Hopper: lists of units processed as lists of blocks, one set for all tokens."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ...select import ActiveSet
from .._finish import How
from .._tiles import promoted
from .._walk import DEPTH, SIDES, walk


def reduce(
    h: Float[Array, "t k g"], w: Shaped[Array, "n g d"], s: ActiveSet
) -> Float[Array, "t d"]:
    """`sum_j h_j w[index_j]`."""
    size, width = check(w, s)
    depth = min(size, DEPTH)
    parts = size // depth
    return walk(
        h.reshape(h.shape[0], -1).astype(w.dtype),
        w.reshape(-1, w.shape[2]),
        (s.index, s.count.reshape(1)),
        columns=(w.shape[2] // width, width),
        depth=depth,
        steps=lambda j, index, count: count[0] * parts,
        x_at=lambda j, k, index, count: k,
        stored_at=lambda j, k, index, count: (index[k // parts] * parts + k % parts, j),
        how=How(),
    )


def expand(
    x: Float[Array, "t d"], w: Shaped[Array, "n g d"], s: ActiveSet
) -> Float[Array, "t k g"]:
    """`x w[index_j]^T`, zero from `count` on."""
    size, _ = check(w, s)
    steps = w.shape[2] // DEPTH
    u = walk(
        x.astype(w.dtype),
        w.reshape(-1, w.shape[2]),
        (s.index, s.count.reshape(1)),
        columns=(s.capacity, size),
        depth=DEPTH,
        steps=lambda j, index, count: jnp.where(j < count[0], steps, 0),
        x_at=lambda j, k, index, count: k,
        stored_at=lambda j, k, index, count: (index[j], k),
        transposed=True,
        how=How(),
    )
    return u.reshape(x.shape[0], s.capacity, size)


def check(w: Any, s: ActiveSet) -> tuple[int, int]:
    """Neurons of a unit and columns of a tile; raises if the tensor cores do not support them."""
    promoted(w)
    if s.index.ndim != 1:
        raise NotImplementedError("one set per token is not supported")
    if w.shape[1] not in SIDES or w.shape[2] % DEPTH:
        raise NotImplementedError(
            f"units of {w.shape[1]} neurons over {w.shape[2]} features: {SIDES} neurons, and "
            f"features in multiples of {DEPTH}, are required"
        )
    return w.shape[1], 128 if w.shape[2] % 128 == 0 else 64
