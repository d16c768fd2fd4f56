"""Linear attention: softmax replaced by products of features, in time linear in the length."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from ..._arguments import check_heads, checked
from ..._arrays import wide_dtype

Features = Shaped[Array | np.ndarray, "..."]


class LinearState(NamedTuple):
    """All that later tokens read of earlier ones, of a size that does not grow.

    Attributes:
      values: `sum_j fk_j v_j^T`, (batch..., key heads, f, e).
      keys: `sum_j fk_j`, (batch..., key heads, f).
      count: Number of tokens, (batch...).
    """

    values: Float[Array, "*b hk f e"]
    keys: Float[Array, "*b hk f"]
    count: Int[Array, "*b"]


@checked(eps="[0, inf)", chunk="[1, inf)")
def linear_attention(
    fq: Shaped[Array | np.ndarray, "*b n h f"],
    fk: Shaped[Array | np.ndarray, "*b m hk f"],
    v: Shaped[Array | np.ndarray, "*b m hk e"],
    *,
    mask: Bool[Array | np.ndarray, "*b m"] | None = None,
    causal: bool = False,
    rotated: tuple[Features, Features] | None = None,
    eps: float = 1e-6,
    chunk: int = 128,
) -> Float[Array, "*b n h e"]:
    r"""Attention with weights that are products of features, `w_ij = fq_i fk_j`.

    `y_i = mean_j w_ij v_j / (mean_j w_ij + eps)` over the keys j, or over `j <= i` if causal:
    `fq (fk^T v)` in O(n f e), without the n x n weights. Causal attention takes chunks in turn,
    quadratic within a chunk. A query without a key, or with weights of zero, gives zeros.

    Args:
      fq: Features of the queries, `(batch, n, heads, f)` or `(n, heads, f)`.
      fk: Features of the keys, `(batch, m, key heads, f)`; a key head serves `heads / key heads`
        neighbouring heads.
      v: Values `(batch, m, key heads, e)`.
      mask: False at keys that are padding.
      causal: Whether a query sees no later key; needs m = n.
      rotated: Other features of queries and keys for the numerator, such as rotated ones; the
        denominator keeps fq and fk, so that it stays positive.
      eps: Added to the mean weight.
      chunk: Tokens of a chunk of causal attention.

    Returns:
      `(batch, n, heads, e)` in the dtype of v; sums are at least float32.

    Raises:
      ValueError: If the shapes do not match.
      TypeError: If fq, fk or v do not hold floats.

    Reference:
      Katharopoulos et al., Transformers are RNNs: Fast Autoregressive Transformers with Linear
      Attention, 2020 (arXiv 2006.16236).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import linear_attention
      >>> ones, v = jnp.ones((4, 1, 2)), jnp.arange(4.0)[:, None, None]
      >>> linear_attention.linear_attention(ones, ones, v, eps=0.0)[:, 0, 0].tolist()
      [1.5, 1.5, 1.5, 1.5]
      >>> linear_attention.linear_attention(ones, ones, v, eps=0.0, causal=True)[:, 0, 0].tolist()
      [0.0, 0.5, 1.0, 1.5]
    """
    parts = _parts("linear_attention", fq, fk, v, rotated)
    n, m = parts[0].shape[1], parts[1].shape[1]
    if causal and n != m:
        raise ValueError(
            f"linear_attention: causal=True needs as many keys as queries, got fk {np.shape(fk)} "
            f"and fq {np.shape(fq)}; write causal=False."
        )
    valid = jnp.ones(parts[1].shape[:2], bool)
    valid = valid if mask is None else jnp.reshape(mask, valid.shape)
    if causal:
        y, _ = _chunks(*parts, valid, _empty(parts), eps, chunk=min(int(chunk), max(n, 1)))
    else:
        y = _whole(*parts, valid, eps)
    return y.reshape(*np.shape(fq)[:-1], np.shape(v)[-1]).astype(jnp.result_type(v))


@checked(eps="[0, inf)", chunk="[1, inf)")
def linear_attention_step(
    fq: Shaped[Array | np.ndarray, "*b n h f"],
    fk: Shaped[Array | np.ndarray, "*b n hk f"],
    v: Shaped[Array | np.ndarray, "*b n hk e"],
    state: LinearState | None = None,
    *,
    rotated: tuple[Features, Features] | None = None,
    eps: float = 1e-6,
    chunk: int = 128,
) -> tuple[Float[Array, "*b n h e"], LinearState]:
    r"""Causal linear attention of further tokens, of a prompt or one by one, and the state.

    Args:
      fq: Features of the queries of n tokens, as for `linear_attention`.
      fk: Features of their keys.
      v: Their values.
      state: The state of the tokens before; None if there are no earlier tokens.
      rotated: As for `linear_attention`.
      eps: As for `linear_attention`.
      chunk: As for `linear_attention`.

    Returns:
      The attention of the tokens, as that of the whole text, and the state for the next ones.

    Raises:
      ValueError: If the shapes do not match, or the state is of other shapes.
      TypeError: If fq, fk or v do not hold floats.

    Reference:
      Katharopoulos et al., 2020 (arXiv 2006.16236).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import linear_attention
      >>> one = jnp.ones((1, 1, 2))
      >>> y, state = linear_attention.linear_attention_step(one, one, 0 * one, eps=0.0)
      >>> y, state = linear_attention.linear_attention_step(one, one, one, state, eps=0.0)
      >>> y.tolist(), state.count.item()
      ([[[0.5, 0.5]]], 2)
    """
    parts = _parts("linear_attention_step", fq, fk, v, rotated)
    lead, n = np.shape(fq)[:-3], parts[0].shape[1]
    empty = _empty(parts)
    if state is not None:
        found = [np.shape(x) for x in state]
        wanted = [(*lead, *x.shape[1:]) for x in empty]
        if found != wanted:
            raise ValueError(
                f"linear_attention_step: state must hold the shapes {wanted}, got {found}; pass "
                "the state that the call before returned."
            )
        empty = LinearState(*(jnp.reshape(x, e.shape) for x, e in zip(state, empty)))
    valid = jnp.ones(parts[0].shape[:2], bool)
    y, after = _chunks(*parts, valid, empty, eps, chunk=min(int(chunk), max(n, 1)))
    y = y.reshape(*np.shape(fq)[:-1], np.shape(v)[-1]).astype(jnp.result_type(v))
    return y, LinearState(*(x.reshape(*lead, *x.shape[1:]) for x in after))


def _parts(what: str, fq: Any, fk: Any, v: Any, rotated: Any) -> list[Array]:
    """Features of denominator and numerator and the values, with one batch axis, in one dtype."""
    fq, fk, v = (jnp.asarray(x) for x in (fq, fk, v))
    check_heads(what, fq=fq, fk=fk, v=v)
    rq, rk = (fq, fk) if rotated is None else map(jnp.asarray, rotated)
    if (rq.shape, rk.shape) != (fq.shape, fk.shape):
        raise ValueError(
            f"{what}: rotated must have the shapes of fq {fq.shape} and fk {fk.shape}, got "
            f"{rq.shape} and {rk.shape}."
        )
    wide, batch = wide_dtype(fq, fk, v), math.prod(fq.shape[:-3])
    return [x.reshape(batch, *x.shape[-3:]).astype(wide) for x in (fq, fk, rq, rk, v)]


def _empty(parts: list[Array]) -> LinearState:
    fk, v = parts[1], parts[-1]
    b, _, hk, f = fk.shape
    zeros = jnp.zeros((b, hk, f, v.shape[-1]), v.dtype)
    return LinearState(zeros, jnp.zeros((b, hk, f), v.dtype), jnp.zeros(b, jnp.int32))


def _grouped(q: Array, key_heads: int) -> Array:
    """Queries (b, n, h, f) as (b, n, key heads, heads of each, f)."""
    return q.reshape(*q.shape[:2], key_heads, q.shape[2] // key_heads, q.shape[-1])


def _divided(y: Array, total: Array, count: Array, eps: Array) -> Array:
    """`y / (total + eps count)` with 0 / 0 = 0; the count is (b, n or 1)."""
    total = total + eps * count[:, :, None, None].astype(total.dtype)
    y = y / jnp.where(total == 0, 1, total)[..., None]
    return y.reshape(*y.shape[:2], math.prod(y.shape[2:4]), y.shape[-1])


def _visible(valid: Array, *arrays: Array) -> list[Array]:
    """Zeros at padding, whatever is there."""
    return [jnp.where(valid[:, :, None, None], x, 0) for x in arrays]


@jax.jit
def _whole(fq, fk, rq, rk, v, valid, eps):
    fk, rk, v = _visible(valid, fk, rk, v)
    fq, rq = (_grouped(x, fk.shape[2]) for x in (fq, rq))
    y = jnp.einsum("bnhgf,bhfe->bnhge", rq, jnp.einsum("bmhf,bmhe->bhfe", rk, v))
    total = jnp.einsum("bnhgf,bhf->bnhg", fq, fk.sum(1))
    return _divided(y, total, valid.sum(1)[:, None], eps)


@partial(jax.jit, static_argnames="chunk")
def _chunks(fq, fk, rq, rk, v, valid, state, eps, *, chunk):
    """Causal attention, chunk by chunk, and the state after the last."""
    b, n = fq.shape[:2]
    if not n:
        return jnp.zeros((*fq.shape[:3], v.shape[-1]), v.dtype), state

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, -n % chunk)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(b, x.shape[1] // chunk, chunk, *x.shape[2:]), 1, 0)

    step = partial(_chunk, eps=eps)
    state, y = lax.scan(step, state, [split(x) for x in (fq, fk, rq, rk, v, valid)])
    y = jnp.moveaxis(y, 0, 1)
    return y.reshape(b, y.shape[1] * chunk, *y.shape[3:])[:, :n], state


def _chunk(state, parts, eps):
    """The attention of one chunk: its own keys by their weights, earlier ones by the state."""
    fq, fk, rq, rk, v, valid = parts
    fk, rk, v = _visible(valid, fk, rk, v)
    fq, rq = (_grouped(x, fk.shape[2]) for x in (fq, rq))
    weights = jnp.einsum("bihgf,bjhf->bhgij", rq, rk)
    weights = jnp.where(jnp.tri(fk.shape[1], dtype=bool), weights, 0)
    y = jnp.einsum("bhgij,bjhe->bihge", weights, v)
    y = y + jnp.einsum("bihgf,bhfe->bihge", rq, state.values)
    keys = state.keys[:, None] + jnp.cumsum(fk, 1)
    count = state.count[:, None] + jnp.cumsum(valid, 1, dtype=jnp.int32)
    y = _divided(y, jnp.einsum("bihgf,bihf->bihg", fq, keys), count, eps)
    values = state.values + jnp.einsum("bjhf,bjhe->bhfe", rk, v)
    return LinearState(values, keys[:, -1], count[:, -1]), y
