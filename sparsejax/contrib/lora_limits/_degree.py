"""The size of the logits of attention, and the degree that they need."""

import functools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped

from ..._arguments import checked
from ..._arrays import wide_dtype


@checked(bound="[0, 500]", eps="(0, 1)")
def degree_for(bound: float, eps: float = 1e-3) -> int:
    r"""The smallest even degree g with `|sum_{t <= g} x^t / t! - e^x| <= eps e^x` for |x| <= bound.

    Args:
      bound: Gamma, bound of the logits.
      eps: Relative error of the exponential.

    Returns:
      g. The `C(d + g, g)` features grow fast with it: the method pays for bounds of about 1.

    Reference:
      Hu et al., 2024 (arXiv 2406.03136), where the degree is given up to a constant.

    Example:
      >>> from sparsejax.contrib import lora_limits
      >>> [lora_limits.degree_for(bound, 1e-2) for bound in (0.0, 0.5, 1.0, 2.0, 4.0)]
      [0, 4, 6, 8, 16]
    """
    degree = 0
    while taylor_error(float(bound), degree) > eps:
        degree += 2
    return degree


def taylor_error(bound: float, degree: int) -> float:
    """The largest relative error of an even degree, at `-bound`: `int_0^bound t^g / g! e^t dt`."""
    if bound == 0:
        return 0.0
    terms = np.arange(int(3 * bound) + 60)
    powers = degree + 1 + terms
    factorials = np.array([math.lgamma(i + 1) for i in terms])
    logs = powers * math.log(bound) - math.lgamma(degree + 1) - np.log(powers) - factorials
    with np.errstate(over="ignore"):
        return float(np.exp(logs).sum())


@functools.cache
def bound_for(degree: int, eps: float) -> float:
    """The largest bound for which an even degree has the error eps."""
    low, high = 0.0, 500.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if taylor_error(middle, degree) <= eps else (low, middle)
    return low


@checked(scale="(0, inf)", chunk="[1, inf)")
def attention_norm(
    q: Shaped[Array | np.ndarray, "*b n h d"],
    k: Shaped[Array | np.ndarray, "*b m h d"],
    *,
    mask: Bool[Array | np.ndarray, "*b m"] | None = None,
    scale: float | None = None,
    center: bool = True,
    exact: bool = False,
    chunk: int = 1024,
) -> Float[Array, "*b h"]:
    r"""Gamma, a bound of the logits: `scale max_i |q_i| max_j |k_j|`, or `max_ij |S_ij|` itself.

    Below about `sqrt(log n)` attention and its gradients can be computed in almost linear time, and
    above in no less than quadratic time (under the strong exponential time hypothesis).

    Args:
      q: Queries `(batch, n, heads, d)`.
      k: Keys `(batch, m, heads, d)`.
      mask: False at keys that are padding.
      scale: Factor of the logits; None for `1 / sqrt(d)`.
      center: Whether to subtract the mean key first, which changes no weight and lowers the norm.
      exact: Whether to compute all logits, in O(n m), in place of the bound, in O(n + m).
      chunk: Queries at a time, if exact.

    Returns:
      The norm of each head.

    Reference:
      Hu et al., 2024 (arXiv 2406.03136).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import lora_limits
      >>> q, k = jnp.array([[[2.0, 0.0]]]), jnp.array([[[3.0, 3.0]], [[1.0, 1.0]]])
      >>> lora_limits.attention_norm(q, k, scale=1.0, exact=True).tolist()
      [2.0]
    """
    q, k, seen, lead = heads_first(q, k, mask)
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    return _norm(q, k, seen, center=center, exact=exact, chunk=int(chunk)).reshape(lead)


@partial(jax.jit, static_argnames=("center", "exact", "chunk"))
def _norm(q, k, seen, *, center, exact, chunk):
    k = centred(k, seen) if center else jnp.where(seen, k, 0)
    if not exact:
        longest = lambda x: jnp.sqrt(jnp.max(jnp.sum(x * x, -1), axis=-1, initial=0))  # noqa: E731
        return longest(q) * longest(k)
    rows, _ = in_chunks(jnp.moveaxis(q, 1, 0), chunk)
    largest = lambda x: jnp.max(jnp.abs(jnp.einsum("cbd,bmd->bcm", x, k)), (1, 2), initial=0)  # noqa: E731
    return jnp.max(lax.map(largest, rows), axis=0, initial=0)


def heads_first(
    q: Array | np.ndarray, k: Array | np.ndarray, mask: Array | np.ndarray | None
) -> tuple[Array, Array, Array, tuple[int, ...]]:
    """(heads of all batches, n, d) of queries and keys, keys that count, and (*b, h)."""
    q, k = (jnp.asarray(x) for x in (q, k))
    lead, wide = (*q.shape[:-3], q.shape[-2]), wide_dtype(q, k)
    q, k = (head_rows(x).astype(wide) for x in (q, k))
    seen = jnp.ones((*lead, k.shape[1], 1), bool)
    if mask is not None:
        seen = seen & jnp.asarray(mask)[..., None, :, None]
    return q, k, seen.reshape(*k.shape[:2], 1), lead


def head_rows(x: Array) -> Array:
    """(*b, n, h, d) as (heads of all batches, n, d)."""
    *lead, n, h, d = x.shape
    return jnp.moveaxis(x, -2, -3).reshape(math.prod(lead) * h, n, d)


def centred(k: Array, seen: Array) -> Array:
    """Keys without their mean, zeros at padding: logits change by a constant of each row."""
    k = jnp.where(seen, k, 0)
    mean = jnp.sum(k, 1, keepdims=True) / jnp.maximum(jnp.sum(seen, 1, keepdims=True), 1)
    return jnp.where(seen, k - mean, 0)


def in_chunks(x: Array, chunk: int) -> tuple[Array, int]:
    """(chunks, rows, ...) of (n, ...), filled with zeros, and n."""
    n = len(x)
    chunk = max(min(chunk, n), 1)
    x = jnp.pad(x, [(0, -n % chunk)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(-1, chunk, *x.shape[1:]), n
