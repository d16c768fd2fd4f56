"""A layer of a decoder for one token of each row, its products behind gates."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from ..._arguments import checked, known
from ..._arrays import turned
from ...formats import Skipping
from .._table import platform_of, requested
from ._gated import (
    Call,
    Implementation,
    check_gate,
    check_input,
    computed,
    limits_of,
    mlp_in_xla,
    products_in_xla,
)

Room = Shaped[Array | np.ndarray, "_ _ _ _"]
Weight = Shaped[Array | np.ndarray, "_"]


class How(NamedTuple):
    """Static choices of a layer."""

    heads: int
    epsilon: float
    interleaved: bool
    by_neuron: bool


@checked(heads="[1, inf)", epsilon="[0, inf)")
def gated_layer(
    x: Shaped[Array | np.ndarray, "t d"],
    cache: tuple[Room, Room],
    counts: Int[Array | np.ndarray, " t"],
    angles: Float[Array | np.ndarray, "t half"],
    norms: tuple[Weight, Weight],
    kernels: Sequence[Skipping],
    limits: Sequence[Any],
    *,
    heads: int,
    epsilon: float = 1e-5,
    interleaved: bool = False,
    by_neuron: bool = False,
    implementation: Implementation = None,
) -> tuple[Float[Array, "t d"], Any]:
    r"""A layer of a Llama for the next token of each row, its products behind gates.

    `z = x + attention(rms(x)) Wout` over the cache and this token, then `z + mlp(rms(z))`. One
    call: XLA's operations between the small products of a token take as long as the products.

    Args:
      x: The stream, one token of each row.
      cache: Keys and values `(t, room, key heads, size)` of the tokens so far, rotated.
      counts: The number of tokens so far of each row, where the new ones are written; under jit,
        the last place if there is no room.
      angles: By which pairs of entries of queries and keys are turned, `(t, size / 2)`.
      norms: The weights `(d,)` of the norms before the attention and before the network.
      kernels: Those of query, key, value, output, gate, up and down.
      limits: The gate of each, as for `gated_products` and `gated_mlp`.
      heads: Number of heads of the queries.
      epsilon: Of the norms, `x / sqrt(mean x^2 + epsilon)`.
      interleaved: Whether pairs are neighbours; else an entry and the one half a head later.
      by_neuron: As for `gated_mlp`.
      implementation: As for `gated_products`; "native" needs a cache in float32.

    Returns:
      The stream `(t, d)` in the dtype of x, and the cache with the new tokens.

    Raises:
      ValueError: If the shapes do not match.

    Reference:
      Touvron et al., LLaMA, 2023 (arXiv 2302.13971); Chen et al., WINA, 2025 (arXiv 2505.19427).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w, none = sj.formats.Skipping(jnp.eye(2)), (jnp.ones(2), jnp.float32(-1))
      >>> cache = (jnp.zeros((1, 3, 1, 2)),) * 2
      >>> y, (keys, _) = sj.kernels.gated_layer(
      ...     jnp.array([[1.0, 1.0]]), cache, jnp.array([0]), jnp.zeros((1, 1)),
      ...     (jnp.ones(2),) * 2, [w] * 7, [none] * 7, heads=1)
      >>> [round(float(z), 3) for z in y[0]], keys[0, :2, 0].round(3).tolist()
      ([2.731, 2.731], [[1.0, 1.0], [0.0, 0.0]])
    """
    x, given = jnp.asarray(x), limits_of("gated_layer", limits)
    check_input("gated_layer", x)
    keys, values = (jnp.asarray(part) for part in cache)
    how = How(int(heads), float(epsilon), bool(interleaved), bool(by_neuron))
    _check(x, keys, values, counts, angles, norms, kernels, given, how)
    platform = platform_of(x, kernels)
    names = requested("gated_layer", Skipping, implementation, platform)
    rest = keys, values, jnp.asarray(counts, jnp.int32), jnp.asarray(angles), tuple(norms)
    call = Call("gated_layer", names, platform, layer_in_xla, (how,))
    y, new = computed(call, x, *rest, tuple(kernels), tuple(given))
    return y.astype(x.dtype), new


def layer_in_xla(x, keys, values, counts, angles, norms, kernels, limits, how: How):
    """The reference."""
    size = keys.shape[-1]
    h = normalized(x, norms[0], how.epsilon).astype(x.dtype)
    q, k, v = (y.reshape(len(x), 1, -1, size) for y in products_in_xla(h, kernels[:3], limits[:3]))
    q, k = (turned(y, angles[:, None], how.interleaved) for y in (q, k))
    write = jax.vmap(lambda room, new, at: lax.dynamic_update_slice(room, new, (at, 0, 0)))
    keys, values = (
        write(room, new.astype(room.dtype), counts) for room, new in ((keys, k), (values, v))
    )
    mask = jnp.arange(keys.shape[1]) <= counts[:, None, None, None]
    seen = jax.nn.dot_product_attention(q, keys.astype(q.dtype), values.astype(q.dtype), mask=mask)
    (more,) = products_in_xla(seen.reshape(len(x), -1).astype(x.dtype), kernels[3:4], limits[3:4])
    z = x + more
    h = normalized(z, norms[1], how.epsilon).astype(x.dtype)
    return z + mlp_in_xla(h, kernels[4:], limits[4:], how.by_neuron), (keys, values)


def normalized(x: Array, weight: Any, epsilon: float) -> Array:
    """`x / sqrt(mean x^2 + epsilon)` times the weight, in float32."""
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + epsilon) * weight


def _check(x, keys, values, counts, angles, norms, kernels, limits, how: How) -> None:
    what, (rows, width) = "gated_layer", x.shape
    if keys.ndim != 4 or keys.shape != values.shape or keys.shape[0] != rows or not keys.size:
        raise ValueError(
            f"{what}: cache must be keys and values ({rows}, room, key heads, size), got shapes "
            f"{keys.shape} and {values.shape}."
        )
    groups, size = keys.shape[2:]
    if how.heads % groups or size % 2 or angles.shape[1] != size // 2:
        raise ValueError(
            f"{what}: heads must be a multiple of the {groups} key heads, of an even size, and "
            f"angles ({rows}, {size // 2}), got {how.heads} heads of size {size} and angles "
            f"{angles.shape}."
        )
    if known(counts) and np.any((np.asarray(counts) < 0) | (np.asarray(counts) >= keys.shape[1])):
        raise ValueError(
            f"{what}: counts must be from 0 and below the {keys.shape[1]} places of the cache, got "
            f"{np.asarray(counts)}."
        )
    if len(norms) != 2 or any(np.shape(norm) != (width,) for norm in norms):
        raise ValueError(f"{what}: norms must be two weights of shape ({width},).")
    if len(kernels) != 7 or len(limits) != 7:
        raise ValueError(
            f"{what}: kernels and limits must be seven each, of query, key, value, output, gate, "
            f"up and down, got {len(kernels)} and {len(limits)}."
        )
    q, kv, f = how.heads * size, groups * size, kernels[4].shape[1]
    up = (f, width) if how.by_neuron else (width, f)
    wanted = (width, q), (width, kv), (width, kv), (q, width), (width, f), up, (f, width)
    if tuple(w.shape for w in kernels) != wanted:
        raise ValueError(
            f"{what}: kernels must have the shapes {wanted}, got {[w.shape for w in kernels]}."
        )
    for w, limit in zip(kernels, limits):
        check_gate(what, w, limit, w.shape[0])
