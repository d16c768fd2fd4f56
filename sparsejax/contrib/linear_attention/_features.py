"""Feature maps whose exponent is the norm of the query."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from ..._arguments import checked
from ..._arrays import wide_dtype


@checked(lam="(0, inf)", tau="[0, inf)", key_power="(0, inf)", sharpness="(0, inf)")
def norm_aware(
    q: Shaped[Array | np.ndarray, "... d"],
    k: Shaped[Array | np.ndarray, "... d"],
    *,
    map: Literal["split", "cos"] = "split",
    lam: float = 3.0,
    tau: float = 0.5,
    key_power: float = 3.0,
    sharpness: float = 20.0,
) -> tuple[Float[Array, "... f"], Float[Array, "... f"]]:
    r"""Non-negative products of features that grow sharper with the norm of the query.

    With `u = q / ||q||`, the exponent `p = lam (tau + tanh ||q||)` and `r = key_power`:

    - "split": `fq = [relu(u)^p, relu(-u)^p]`, `fk = [relu(k)^r, relu(-k)^r]`.
    - "cos": `fq = [|u|^p cos t, |u|^p sin t]`, `fk = [|k|^r cos s, |k|^r sin s]` with the phases
      `t = pi/4 tanh(sharpness u)`, `s = pi/4 tanh(sharpness k / ||k||)`.

    Coordinates of opposite signs contribute 0 ("split") or almost 0 ("cos"). The exponent is
    constant for norms above about 3: scale q to a norm near 1. Keys keep their norms.

    Args:
      q: Queries; a zero query has features of zero.
      k: Keys.
      map: "split", as in the released code, or "cos", as in the paper.
      lam: Factor of the exponent of queries.
      tau: Its offset.
      key_power: r, the exponent of keys.
      sharpness: Steepness of the phases.

    Returns:
      `(fq, fk)` in at least float32, of 2 d features, for `linear_attention`. Their
      gradients are finite everywhere.

    Raises:
      ValueError: If the map is unknown, or q and k differ in d.

    Reference:
      Meng et al., NaLaFormer: Norm-Aware Linear Attention for Transformer Models, 2025 (arXiv
      2506.21137).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import linear_attention
      >>> fq, fk = linear_attention.norm_aware(jnp.array([[3.0, -4.0]]), jnp.array([[1.0, -2.0]]))
      >>> fk.tolist(), (fq > 0).tolist()
      ([[1.0, 0.0, 0.0, 8.0]], [[True, False, False, True]])
    """
    return _norm_aware(jnp.asarray(q), jnp.asarray(k), lam, tau, key_power, sharpness, map=map)


@partial(jax.jit, static_argnames="map")
def _norm_aware(q, k, lam, tau, key_power, sharpness, *, map):
    q, k = (x.astype(wide_dtype(x)) for x in (q, k))
    u, norm = _direction(q)
    power = lam * (tau + jnp.tanh(norm))
    if map == "split":
        return tuple(
            jnp.concatenate([_power(jax.nn.relu(sign * x), p) for sign in (1, -1)], -1)
            for x, p in ((u, power), (k, key_power))
        )
    pairs = (_power(jnp.abs(u), power), u), (_power(jnp.abs(k), key_power), _direction(k)[0])
    return tuple(_turned(size, np.pi / 4 * jnp.tanh(sharpness * unit)) for size, unit in pairs)


def _turned(size: Array, angle: Array) -> Array:
    return jnp.concatenate([size * jnp.cos(angle), size * jnp.sin(angle)], -1)


def _direction(x: Array) -> tuple[Array, Array]:
    """`x / ||x||` and `||x||`, without squares out of range; zeros with derivative 0 at zero."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0))
    size = jnp.where(largest > 0, largest, 1)
    x = x / size
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    root = jnp.sqrt(jnp.where(square > 0, square, 1))
    return x / root, jnp.where(square > 0, size * root, 0)


def _power(a: Array, p: Array) -> Array:
    """`a^p` for a >= 0, with finite derivatives at 0."""
    zero = a <= 0  # not NaN
    return jnp.where(zero, 0, jnp.where(zero, 1, a) ** p)
