"""Products on a CPU in C++, compiled at first use: blocks, and N:M of any pattern.

Requires a C++ compiler; the compiled file is kept in the user's cache directory. Sums are float32.
Gradients of block products are included; those of N:M products are dense, and second derivatives
are computed by XLA. With several devices, each of them multiplies all rows.
"""

import os
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ..._compile import compiled
from ..._files import cache_file
from ...formats import BlockArray, NMArray
from .._finish import How, finish
from .._table import Implementation, get

SOURCE = pathlib.Path(__file__).with_name("native.cc")
HEADERS = (SOURCE.parents[2] / "native.h",)
CALLS = (
    ("sparsejax_block_product", "SparsejaxBlockProduct"),
    ("sparsejax_block_transposed", "SparsejaxBlockTransposed"),
    ("sparsejax_block_sampled", "SparsejaxBlockSampled"),
    ("sparsejax_nm_product", "SparsejaxGroupedProduct"),
)
SIDE = 16  # entries of the longest vector; block sides are multiples of it
LONGEST = 128  # maximum group length, unpacked together


def product(x: Shaped[Array, "m k"], w: Any, bias: Any, how: How) -> Float[Array, "m n"]:
    """`activation(x W + bias)`."""
    require(w, x.dtype, 1)
    if not w.values.size:
        return finish(jnp.zeros((x.shape[0], w.shape[1])), bias, how)
    y = _differentiable(_product, partial(_truth(w).product, bias=None, how=How(how.precision)))
    return finish(y(x.astype(jnp.float32), w.astype(jnp.float32)), bias, how)


def transposed(dy: Shaped[Array, "m n"], w: Any, how: How) -> Float[Array, "m k"]:
    """`dy W^T`."""
    require_blocks(w, dy.dtype, 0)
    if not w.values.size:
        return finish(jnp.zeros((dy.shape[0], w.shape[0])), None, how)
    dx = _differentiable(_transposed, partial(_truth(w).transposed, how=How(how.precision)))
    return finish(dx(dy.astype(jnp.float32), w.astype(jnp.float32)), None, how)


def sampled(
    x: Shaped[Array, "m k"], dy: Shaped[Array, "m n"], w: Any, how: How
) -> Float[Array, "..."]:
    """`x^T dy` at the stored positions of W."""
    require_blocks(w, jnp.result_type(x, dy), 1)
    if not w.values.size:
        return jnp.zeros(w.values.shape)
    values = _differentiable(_sampled, partial(_truth(w).sampled, how=How(how.precision)))
    return values(x.astype(jnp.float32), dy.astype(jnp.float32), w)


def explain(rows: int, w: Any) -> str:
    """A description of the product."""
    del rows
    require(w, w.dtype, 1)
    return "C++"


def require_blocks(w: Any, dtype: Any, side: int) -> None:
    """As `require`, for products without N:M code."""
    if not isinstance(w, BlockArray):
        raise NotImplementedError("gradients of N:M products are dense")
    require(w, dtype, side)


def require(w: Any, dtype: Any, side: int) -> None:
    """Raises if W is not supported; its blocks become vectors along `side`."""
    if jnp.promote_types(dtype, w.dtype).itemsize > 4:
        raise NotImplementedError(f"sums are float32, not {jnp.promote_types(dtype, w.dtype)}")
    if isinstance(w, BlockArray):
        if w.block[side] % SIDE:
            raise NotImplementedError(
                f"{w}: {'columns' if side else 'rows'} of blocks must be multiples of {SIDE} here; "
                "'xla' has no such limit"
            )
    elif not isinstance(w, NMArray):
        raise NotImplementedError(f"multiplies NMArray and BlockArray, not {type(w).__name__}")
    elif w.m > LONGEST:
        raise NotImplementedError(
            f"{w}: groups must have at most {LONGEST} entries here; 'xla' has no such limit"
        )
    if why := compiled(SOURCE, HEADERS, CALLS, os.environ.get("CXX"), cache_file()):
        raise NotImplementedError(why)


def _product(x: Array, w: Any) -> Array:
    if isinstance(w, BlockArray):
        return _call("sparsejax_block_product", w.shape[1], x, w.values, w.index, w.count)
    # Sharing positions over less than a vector has no benefit.
    code = w.code if w.share >= SIDE else jnp.repeat(w.code, w.share, axis=-1)
    width = (w.m - 1).bit_length()
    return _call("sparsejax_nm_product", w.shape[1], x, w.values, code, length=w.m, width=width)


def _transposed(dy: Array, w: BlockArray) -> Array:
    lists = w.index_t, w.slot_t, w.count_t
    return _call("sparsejax_block_transposed", w.shape[0], dy, w.values, *lists)


def _sampled(x: Array, dy: Array, w: BlockArray) -> Array:
    out = jax.ShapeDtypeStruct(w.values.shape, jnp.float32)
    call = jax.ffi.ffi_call("sparsejax_block_sampled", out, vmap_method="sequential")
    return call(x, dy, w.index, w.count)


def _truth(w: Any) -> Any:
    """XLA's form, whose derivatives are used."""
    return get("matmul", type(w), "xla", "cpu")


def _differentiable(native: Callable[..., Array], truth: Callable[..., Any]) -> Any:
    """The same function with the derivatives of the XLA form, for second order."""
    call = jax.custom_jvp(native)

    @call.defjvp
    def _(primals, tangents):
        return call(*primals), jax.jvp(truth, primals, tangents)[1]

    return call


def _call(name: str, columns: int, x: Array, *w: Array, **attributes: int) -> Array:
    """One call for all rows, also if x is mapped over: rows of one product are contiguous."""

    def call(x, *w):
        out = jax.ShapeDtypeStruct((x.shape[0], columns), jnp.float32)
        return jax.ffi.ffi_call(name, out, vmap_method="sequential")(x, *w, **attributes)

    @jax.custom_batching.custom_vmap
    def rows(x, *w):
        return call(x, *w)

    @rows.def_vmap
    def _(size, mapped, x, *w):
        if any(mapped[1:]):
            axes = [0 if m else None for m in mapped]
            return jax.vmap(call, in_axes=axes, axis_size=size)(x, *w), True
        y = rows(x.reshape(size * x.shape[1], x.shape[2]), *w)
        return y.reshape(size, x.shape[1], columns), True

    return rows(x, *w)


IMPLEMENTATION = Implementation(product, transposed, sampled, explain)
