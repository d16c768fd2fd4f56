"""Attention by a polynomial of the exponential, with the gradients of the paper."""

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped

from ..._arguments import checked
from ._degree import attention_norm, bound_for, centred, head_rows, heads_first, in_chunks
from ._features import feature_rows

Method = Literal["polynomial", "exact", "auto"]


@checked(degree="[0, inf)", eps="(0, 1)", scale="(0, inf)", chunk="[1, inf)")
def polynomial_attention(
    q: Shaped[Array | np.ndarray, "*b n h d"],
    k: Shaped[Array | np.ndarray, "*b m h d"],
    v: Shaped[Array | np.ndarray, "*b m h e"],
    degree: int,
    *,
    method: Method = "polynomial",
    eps: float = 1e-3,
    mask: Bool[Array | np.ndarray, "*b m"] | None = None,
    scale: float | None = None,
    center: bool = True,
    chunk: int = 1024,
) -> Float[Array, "*b n h e"]:
    r"""Softmax attention with `e^x ~ sum_{t <= degree} x^t / t!`, linear in the length.

    Each row of weights is `f_ij = phi(q_i) phi(k_j) / n_i` with `polynomial_features` of both. The
    gradient puts these weights into the formula of softmax, `dS = f * (dy v^T - sum(dy y))`, whose
    factors have few columns: O(n k d e) for `k = C(d + degree, degree)` features, and no n x n
    array. For sizes as of heads of 64 that pays for very long texts only, see "auto".

    Args:
      q: Queries `(batch, n, heads, d)` or `(n, heads, d)`.
      k: Keys `(batch, m, heads, d)`.
      v: Values `(batch, m, heads, e)`.
      degree: Even; see `degree_for` and `attention_norm`.
      method: "polynomial"; "exact" for softmax; "auto" for softmax where it takes fewer
        operations, or where `attention_norm` of a head is above the bound of the degree for `eps`.
      eps: Relative error of the exponential, for "auto".
      mask: False at keys that are padding.
      scale: Factor of the logits; None for `1 / sqrt(d)`.
      center: Whether to subtract the mean key, which changes no weight of softmax and lowers the
        logits.
      chunk: Rows at a time.

    Returns:
      `(batch, n, heads, e)` in the dtype of v; computed in at least float32, whose rounding limits
      the accuracy from a degree of about 8 on. Zeros without keys.

    Raises:
      ValueError: If the shapes do not match or the degree is odd.

    Reference:
      Hu et al., Computational Limits of Low-Rank Adaptation (LoRA) Fine-Tuning for Transformer
      Models, 2024 (arXiv 2406.03136).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import lora_limits
      >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 64, 1, 4))
      >>> y = lora_limits.polynomial_attention(q / 4, k, v, 6)
      >>> bool(jnp.allclose(y, jax.nn.dot_product_attention(q / 4, k, v), atol=1e-4))
      True
    """
    if degree % 2:
        raise ValueError(
            f"polynomial_attention: degree must be even, so that weights are positive, got {degree}"
            f"; pass {degree + 1}."
        )
    found = chosen(method, int(degree), np.shape(q)[-3], np.shape(k)[-1], np.shape(v)[-1])
    if found == "auto":
        norm = attention_norm(q, k, mask=mask, scale=scale, center=center)
        within = jnp.max(norm, initial=0) <= bound_for(int(degree), float(eps))
    else:
        within = None
    q, k, seen, lead = heads_first(q, k, mask)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    rows = head_rows(jnp.asarray(v)).astype(q.dtype)
    y = _attend(
        q, k, rows, seen, factor, within, method=found, degree=int(degree), center=center,
        chunk=int(chunk),
    )  # fmt: skip
    y = jnp.moveaxis(y.reshape(*lead, *y.shape[1:]), -3, -2)
    return y.astype(jnp.result_type(v))


def chosen(method: Method, degree: int, n: int, d: int, e: int) -> Method:
    """The method as far as sizes decide: "auto" is exact where that takes fewer operations."""
    cost = math.comb(d + degree, degree) * d * e
    return "exact" if method == "auto" and cost > n * (d + e) else method


@partial(jax.jit, static_argnames=("method", "degree", "center", "chunk"))
def _attend(q, k, v, seen, scale, within, *, method, degree, center, chunk):
    v = jnp.where(seen, v, 0)
    k = centred(k, seen) if center else jnp.where(seen, k, 0)
    # The root on both sides keeps the features of both of one size.
    root = jnp.sqrt(jnp.asarray(scale, q.dtype))
    low_rank = jax.vmap(lambda q, k, values: _polynomial(q, k, values, degree, chunk))
    softmax = jax.vmap(lambda q, k, values: _softmax(q, k, values, chunk))
    # The column of ones, zero at padding, sums the weights.
    args = (q * root, k * root, jnp.concatenate([v, seen.astype(v.dtype)], -1))
    if method == "auto":
        return lax.cond(within, low_rank, softmax, *args)
    return (softmax if method == "exact" else low_rank)(*args)


def _softmax(q: Array, k: Array, values: Array, chunk: int) -> Array:
    """Attention of one head, some queries at a time also in the backward pass."""
    v, seen = values[:, :-1], values[:, -1] > 0

    @jax.checkpoint
    def rows(q):
        logits = jnp.where(seen, q @ k.T, -jnp.inf)
        return jax.nn.softmax(logits, -1, where=seen) @ v

    parts, n = in_chunks(q, chunk)
    return lax.map(rows, parts).reshape(-1, v.shape[-1])[:n]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _polynomial(q: Array, k: Array, values: Array, degree: int, chunk: int) -> Array:
    return _forward(q, k, values, degree, chunk)[0]


def _forward(q, k, values, degree, chunk):
    def collect(total, rows):
        k, values = rows
        return total + _dot(_features(k, degree), values), None

    zeros = jnp.zeros((math.comb(q.shape[1] + degree, degree), values.shape[1]), q.dtype)
    table, _ = lax.scan(collect, zeros, _split(chunk, k, values))
    y = lax.map(lambda q: _dot(_features(q[0], degree).T, table), _split(chunk, q))
    y = y.reshape(-1, y.shape[-1])[: len(q)]
    total = jnp.where(y[:, -1:] > 0, y[:, -1:], 1)
    return y[:, :-1] / total, (q, k, values, y[:, :-1] / total, total)


def _backward(degree, chunk, saved, dy):
    """With `values = [v, 1]` and `c = [dy, -sum(dy y)]`, `dS_ij = f_ij c_i values_j`."""
    q, k, values, y, total = saved
    e, d = y.shape[1], q.shape[1]
    c = jnp.concatenate([dy, -jnp.sum(dy * y, 1, keepdims=True)], 1) / total

    def keys(table, rows):
        k, values = rows
        return table + _dot(_features(k, degree), _pairs(values, k)), None

    def queries(table, rows):
        q, c = rows
        phi = _features(q, degree)
        dq = jnp.einsum("ia,iad->id", c, _dot(phi.T, of_keys).reshape(len(q), e + 1, d))
        return table + _dot(phi, jnp.concatenate([_pairs(c, q), c[:, :e]], 1)), dq

    def gradients(rows):
        k, values = rows
        found = _dot(_features(k, degree).T, of_queries)
        pairs, dv = found[:, :-e], found[:, len(found[0]) - e :]
        dk = jnp.einsum("ja,jad->jd", values, pairs.reshape(len(k), e + 1, d))
        return dk, jnp.concatenate([dv * values[:, -1:], jnp.zeros_like(dv[:, :1])], 1)

    features = math.comb(d + degree, degree)
    zeros = jnp.zeros((features, (e + 1) * d), q.dtype)
    of_keys, _ = lax.scan(keys, zeros, _split(chunk, k, values))
    zeros = jnp.zeros((features, (e + 1) * d + e), q.dtype)
    of_queries, dq = lax.scan(queries, zeros, _split(chunk, q, c))
    dk, dv = lax.map(gradients, _split(chunk, k, values))
    whole = lambda x, n: x.reshape(-1, x.shape[-1])[:n]  # noqa: E731
    return whole(dq, len(q)), whole(dk, len(k)), whole(dv, len(k))


_polynomial.defvjp(_forward, _backward)


def _features(x: Array, degree: int) -> Array:
    return feature_rows(x.T, degree)


def _pairs(a: Array, b: Array) -> Array:
    """All products of an entry of a and one of b, by row."""
    return (a[:, :, None] * b[:, None]).reshape(len(a), a.shape[1] * b.shape[1])


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _split(chunk: int, *arrays: Array) -> tuple[Array, ...]:
    return tuple(in_chunks(x, chunk)[0] for x in arrays)
