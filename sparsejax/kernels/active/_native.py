"""Products with active units on a CPU in C++, compiled at first use: one to eight rows at a time.

Requires a C++ compiler; the compiled file is kept in the user's cache directory. Weights are
float32, bfloat16 or int8, sums float32. With several devices, each of them multiplies all rows.
"""

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ..._compile import compiled
from ..._files import cache_file
from ...formats import Skipping
from ...select import ActiveSet
from .._finish import How, finish
from .._table import Implementation

SOURCE = pathlib.Path(__file__).with_name("active.cc")
HEADERS = (SOURCE.parents[1] / "native.h",)
CALLS = (
    ("sparsejax_active_reduce", "SparsejaxActiveReduce"),
    ("sparsejax_active_expand", "SparsejaxActiveExpand"),
    ("sparsejax_skipping_product", "SparsejaxSkippingProduct"),
)
WEIGHTS = (jnp.float32, jnp.bfloat16, jnp.int8)
# Rows of x up to which rows of W in use are multiplied; a dense product is as fast with more.
MOST = 8


def reduce(
    h: Float[Array, "t k g"], w: Shaped[Array, "n g d"], s: ActiveSet
) -> Float[Array, "t d"]:
    """`sum_j h_j w[index_j]`."""
    require(h, w)
    return _call(
        "sparsejax_active_reduce", (h.shape[0], w.shape[2]), h, _plain(w), s.index, s.count
    )


def expand(
    x: Float[Array, "t d"], w: Shaped[Array, "n g d"], s: ActiveSet
) -> Float[Array, "t k g"]:
    """`x w[index_j]^T`, zero from `count` on."""
    require(x, w)
    shape = x.shape[0], s.capacity, w.shape[1]
    return _call("sparsejax_active_expand", shape, x, _plain(w), s.index, s.count)


def product(x: Shaped[Array, "m k"], w: Skipping, bias: Any, how: How) -> Float[Array, "m n"]:
    """`activation(x W + bias)`, reading the rows of W with an input that is not zero."""
    if not 1 <= x.shape[0] <= MOST:
        raise NotImplementedError(f"multiplies 1 to {MOST} rows of x, not {x.shape[0]}")
    require(x, w.values)
    y = _call("sparsejax_skipping_product", (x.shape[0], w.shape[1]), x, w.values)
    return finish(y if w.scale is None else y * w.scale.astype(y.dtype), bias, how)


def explain(rows: int, w: Skipping) -> str:
    """A description of the product."""
    del w
    if rows > MOST:
        raise NotImplementedError(f"multiplies 1 to {MOST} rows of x, not {rows}")
    return "C++, rows in use"


def require(x: Any, w: Any) -> None:
    """Raises NotImplementedError for dtypes that are not supported, or without a compiler."""
    if w.dtype not in WEIGHTS or x.dtype == jnp.float64:
        raise NotImplementedError(f"weights of {w.dtype} times {x.dtype} are not supported")
    if why := compiled(SOURCE, HEADERS, CALLS, os.environ.get("CXX"), cache_file()):
        raise NotImplementedError(why)


def _plain(w: Any) -> Any:
    """Units of one neuron without their axis: XLA may copy a reshaped argument."""
    return w[:, 0] if w.shape[1] == 1 else w


def _call(name: str, shape: tuple[int, ...], x: Array, *arrays: Array) -> Array:
    out = jax.ShapeDtypeStruct(shape, jnp.float32)
    call = jax.ffi.ffi_call(name, out, vmap_method="sequential")
    return call(x.astype(jnp.float32), *arrays)


SKIPPING = Implementation(product, explain=explain)
