"""Attention over lists of key blocks: one function, several implementations."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ..._arguments import check_heads, checked
from .._table import attempt, platform_of, requested
from . import _xla
from ._lists import KeyBlocks, broadcast_lists, check_lists
from ._rule import Rule

# The time of the XLA form on a CPU in dense pairs: of a chunk of keys, and of a pair of a chunk.
CHUNK_PAIRS, PAIR = 3_000, 1.2
# The most scores that the dense form is chosen for, since it stores all of them: on a CPU those
# that fit into the cache. On a GPU or TPU the loop of the XLA form is sequential, and slower.
DENSE_SCORES = {"cpu": 2**23, "gpu": 2**30, "tpu": 2**30}


@checked(window="[1, inf)", sinks="[0, inf)", scale="(0, inf)")
def block_sparse_attention(
    q: Shaped[Array | np.ndarray, "*b n h d"],
    k: Shaped[Array | np.ndarray, "*b m hk d"],
    v: Shaped[Array | np.ndarray, "*b m hk e"],
    blocks: KeyBlocks,
    *,
    causal: bool = True,
    window: int | None = None,
    sinks: int = 0,
    scale: float | None = None,
    implementation: str | Sequence[str] | None = None,
) -> Float[Array, "*b n h e"]:
    r"""Softmax attention of each block of queries over its list of key blocks.

    `y_i = sum_j p_ij v_j` with `p_ij` the softmax of `scale q_i k_j` over the visible keys j: those
    of the listed blocks with `j <= i` (causal) and `i - j < window` or `j < sinks`. A query without
    a visible key gives zeros; `KeyBlocks.from_mask` lists the diagonal, so that there is none.
    Memory is linear in the length, time is proportional to the listed blocks. Gradients are those
    of the XLA form.

    Args:
      q: Queries `(batch, n, heads, d)` or `(n, heads, d)`, as for `jax.nn.dot_product_attention`.
      k: Keys `(batch, m, key heads, d)`; a key head serves `heads / key heads` neighbouring heads.
      v: Values `(batch, m, key heads, e)`.
      blocks: The lists, of `ceil(n / bq)` blocks of queries.
      causal: Whether a query sees no later key; needs m = n.
      window: Number of keys up to the query itself that are visible; None for all. It hides pairs
        of listed blocks: see `KeyBlocks.sliding_window` for its lists.
      sinks: Number of first keys that the window does not hide.
      scale: Factor of the scores; None for `1 / sqrt(d)`.
      implementation: "xla", "dense" (all scores, masked), "pallas_tpu", "pallas_gpu" (bfloat16 and
        float16, blocks and widths of 64 and 128), or names to try in turn; None selects "xla" or
        "dense" by platform and size.

    Returns:
      `(batch, n, heads, e)` in the dtype of q; sums are at least float32.

    Raises:
      ValueError: If the shapes do not match, or an implementation is unknown.
      TypeError: If q, k or v do not hold floats.
      NotImplementedError: If no implementation supports the case.

    Reference:
      Dao et al., FlashAttention, 2022 (arXiv 2205.14135); Xiao et al., Efficient Streaming Language
      Models with Attention Sinks, 2023 (arXiv 2309.17453).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> q, k = jnp.ones((8, 2, 4)), jnp.ones((8, 1, 4))
      >>> v = jnp.arange(8.0)[:, None, None]
      >>> blocks = sj.kernels.KeyBlocks.from_mask(jnp.eye(4) > 0, (2, 2))
      >>> sj.kernels.block_sparse_attention(q, k, v, blocks)[:, 0, 0].tolist()
      [0.0, 0.5, 2.0, 2.5, 4.0, 4.5, 6.0, 6.5]
    """
    q, k, v = (jnp.asarray(x) for x in (q, k, v))
    check_heads("block_sparse_attention", q=q, k=k, v=v)
    n, m = q.shape[-3], k.shape[-3]
    if causal and n != m:
        raise ValueError(
            f"block_sparse_attention: causal=True needs as many keys as queries, got k {k.shape} "
            f"and q {q.shape}; write causal=False."
        )
    heads = (*q.shape[:-3], q.shape[-2])
    bq, bk = blocks.block
    check_lists("block_sparse_attention", blocks, heads, -(-n // bq), -(-m // bk))
    platform = platform_of(q, k, v)
    names = requested("attention", KeyBlocks, implementation, platform, "block_sparse_attention")
    if implementation is None:
        names = _order(names, blocks, (math.prod(heads), n, m), platform)
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    rule = Rule(m, bool(causal), None if window is None else int(window), int(sinks), factor)
    return _jitted(q, k, v, blocks, names=names, rule=rule, platform=platform)


def _order(
    names: tuple[str, ...], blocks: KeyBlocks, shape: tuple[int, int, int], platform: str
) -> tuple[str, ...]:
    """The names in the order of expected speed, for numbers of heads, queries and keys."""
    (heads, n, m), (bq, bk) = shape, blocks.block
    listed = min(blocks.slots * bk, m)
    chunk = min(listed, max(_xla.KEYS, bk))
    # The lists of a causal pattern are shorter at the start: half as long if they list all.
    chunks = max(1, listed * (1 - listed / (2 * m)) / max(chunk, 1) + 0.5)
    pairs = -(-n // bq) * chunks * (CHUNK_PAIRS + PAIR * bq * chunk)
    loses = platform != "cpu" or pairs > n * m
    fits = heads * n * m <= DENSE_SCORES[platform]
    return ("dense", *names) if loses and fits else names


@partial(jax.jit, static_argnames=("names", "rule", "platform"))
def _jitted(q, k, v, blocks: KeyBlocks, names: tuple[str, ...], rule: Rule, platform: str):
    lead, key_blocks = (*q.shape[:-3], q.shape[-2]), -(-k.shape[-3] // blocks.block[1])
    lists = broadcast_lists(blocks, lead, key_blocks)
    if not q.size or not k.size:
        return jnp.zeros((*q.shape[:-1], v.shape[-1]), q.dtype)
    heads = [jnp.moveaxis(x, -2, -3).reshape(-1, x.shape[-3], x.shape[-1]) for x in (q, k, v)]
    y: Any = _attend(*heads, *lists, names, blocks.block, rule, platform)
    y = y.reshape(*q.shape[:-3], q.shape[-2], q.shape[-3], v.shape[-1])
    return jnp.moveaxis(y, -3, -2).astype(q.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
def _attend(q, k, v, index, count, names, block, rule, platform):
    return _product(q, k, v, index, count, names, block, rule, platform)[0]


def _product(q, k, v, index, count, names, block, rule, platform):
    call = lambda i: i.product(q, k, v, index, count, block, rule)  # noqa: E731
    return attempt("attention", KeyBlocks, names, call, platform)


def _attend_forward(q, k, v, index, count, names, block, rule, platform):
    out, log_sum = _product(q, k, v, index, count, names, block, rule, platform)
    return out, (q, k, v, index, count, out, log_sum)


def _attend_backward(names, block, rule, platform, saved, dy):
    del names, platform
    q, k, v, index, count, out, log_sum = saved
    no_gradient = [np.zeros(x.shape, jax.dtypes.float0) for x in (index, count)]
    return *_xla.backward(q, k, v, index, count, block, rule, out, log_sum, dy), *no_gradient


_attend.defvjp(_attend_forward, _attend_backward)
