"""Attention of one token over listed pages of a cache."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from ..._arguments import check_heads, checked
from .._table import attempt, platform_of, requested
from ._dense import masked
from ._lists import KeyBlocks, check_lists


@checked(scale="(0, inf)")
def paged_attention(
    q: Shaped[Array | np.ndarray, "*b h d"],
    keys: Shaped[Array | np.ndarray, "*b room hk d"],
    values: Shaped[Array | np.ndarray, "*b room hk e"],
    pages: KeyBlocks,
    length: Int[Array | np.ndarray, "..."] | int,
    *,
    scale: float | None = None,
    implementation: str | Sequence[str] | None = None,
) -> Float[Array, "*b h e"]:
    r"""Attention of one token over listed pages of a cache of keys and values.

    Reads the listed pages only; places from `length` on are hidden.

    Args:
      q: The query of each head, `(batch, heads, d)` or `(heads, d)`.
      keys: `(batch, room, key heads, d)`; a page is so many neighbouring places of the room.
      values: `(batch, room, key heads, e)`.
      pages: Lists with one block of queries, `block=(1, page)`: index `(batch, heads, 1, slots)`,
        for each head or for each key head.
      length: Number of places in use, `(batch,)` or a number.
      scale: Factor of the scores; None for `1 / sqrt(d)`.
      implementation: "xla", "dense" (the whole cache, masked), "pallas_tpu" (whole pages of
        multiples of 16 places; not yet measured on hardware), or names to try in turn; None for
        "xla".

    Returns:
      `(batch, heads, e)` in the dtype of q.

    Raises:
      ValueError: If the shapes do not match, or an implementation is unknown.
      TypeError: If q, keys or values do not hold floats.

    Reference:
      Tang et al., Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference, 2024 (arXiv
      2406.10774).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> keys, values = jnp.ones((8, 1, 4)), jnp.arange(8.0)[:, None, None]
      >>> pages = sj.kernels.KeyBlocks(jnp.array([[[0, 3]]]), jnp.array([[2]]), (1, 2))
      >>> sj.kernels.paged_attention(jnp.ones((1, 4)), keys, values, pages, 7).tolist()
      [[2.3333332538604736]]
    """
    q, keys, values = (jnp.asarray(x) for x in (q, keys, values))
    check_heads("paged_attention", q=q, keys=keys, values=values)
    lead, listed = q.shape[:-2], jnp.shape(pages.index)[-3:-2]
    heads = keys.shape[-2] if listed == keys.shape[-2:-1] else q.shape[-2]
    if pages.block[0] != 1:
        raise ValueError(
            f"paged_attention: pages must have blocks of one query, got {pages.block}; write "
            f"block=(1, {pages.block[1]})."
        )
    room = -(-keys.shape[-3] // pages.block[1])
    check_lists("paged_attention", pages, (*lead, heads), 1, room, "pages")
    length = jnp.asarray(length)
    if length.shape not in ((), lead):
        raise ValueError(
            f"paged_attention: length must be a number or have the shape {lead}, got "
            f"{length.shape}."
        )
    platform = platform_of(q, keys, values)
    names = requested("paged_attention", KeyBlocks, implementation, platform)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    index = jnp.broadcast_to(pages.index[..., 0, :], (*lead, heads, pages.slots))
    count = jnp.broadcast_to(pages.count[..., 0], (*lead, heads))
    whole = q, keys, values, index, count, jnp.broadcast_to(length, lead)
    return _jitted(*whole, names=names, page=pages.block[1], scale=scale, platform=platform)


@partial(jax.jit, static_argnames=("names", "page", "scale", "platform"))
def _jitted(q, k, v, index, count, length, names, page, scale, platform):
    lead, room = q.shape[:-2], -(-k.shape[-3] // page)
    # An entry out of range becomes a page behind the cache.
    index = jnp.where((index >= 0) & (index < room), index, room)
    args = [x.reshape(-1, *x.shape[len(lead) :]) for x in (q, k, v, index, count, length)]
    call = lambda i: i.product(*args, page, scale)  # noqa: E731
    y: Any = attempt("paged_attention", KeyBlocks, names, call, platform)
    return y.reshape(*lead, *y.shape[1:]).astype(q.dtype)


def by_sequence(one: Any) -> Any:
    """A product `(q, k, v, index, count, length, page, scale)` of each sequence of a batch."""
    return lambda *args: jax.vmap(lambda *arrays: one(*arrays, *args[-2:]))(*args[:-2])


@by_sequence
def gathered(
    q: Shaped[Array, "h d"],
    k: Shaped[Array, "m hk d"],
    v: Shaped[Array, "m hk e"],
    index: Int[Array, "l s"],
    count: Int[Array, " l"],
    length: Int[Array, ""],
    page: int,
    scale: float,
) -> Float[Array, "h e"]:
    """The pages of each list, gathered, and one small dense attention."""
    (lists, slots), groups = index.shape, k.shape[1]
    head = jnp.arange(lists)[:, None] // (lists // groups)
    place = index[..., None] * page + jnp.arange(page)
    listed = (jnp.arange(slots) < count[:, None])[..., None]
    seen = listed & (place < jnp.minimum(length, k.shape[0]))
    place = jnp.minimum(place, k.shape[0] - 1).reshape(lists, -1)
    take = lambda x: x.at[place, head].get(mode="promise_in_bounds")  # noqa: E731
    q = q.reshape(lists, -1, q.shape[1])  # the heads that share a list
    y, _ = masked(q, take(k), take(v), seen.reshape(lists, 1, -1), scale)
    return y.reshape(-1, v.shape[2])


@by_sequence
def dense(
    q: Shaped[Array, "h d"],
    k: Shaped[Array, "m hk d"],
    v: Shaped[Array, "m hk e"],
    index: Int[Array, "l s"],
    count: Int[Array, " l"],
    length: Int[Array, ""],
    page: int,
    scale: float,
) -> Float[Array, "h e"]:
    """The whole cache, with a mask."""
    pages = KeyBlocks(index[:, None], count[:, None], (1, page))
    seen = pages.to_mask(1, k.shape[0]) & (jnp.arange(k.shape[0]) < length)
    seen = jnp.repeat(seen, q.shape[0] // index.shape[0], 0)
    k, v = (jnp.moveaxis(x, 1, 0) for x in (k, v))
    y, _ = masked(q[:, None], k, v, seen, scale)
    return y[:, 0]
