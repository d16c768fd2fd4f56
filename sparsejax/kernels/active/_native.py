"""Products with active units on a CPU in C++, compiled at first use: one to eight rows at a time.

Requires a C++ compiler; the compiled file is kept in the user's cache directory. Weights are
float32, bfloat16 or int8, sums float32. With several devices, each of them multiplies all rows.
"""

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ..._compile import compiled
from ..._files import cache_file
from ...formats import Skipping
from ...select import ActiveSet
from .._finish import How, finish
from .._table import Implementation

SOURCE = pathlib.Path(__file__).with_name("active.cc")
GATED = SOURCE.with_name("gated.cc")
HEADERS = (
    *map(SOURCE.with_name, ("rows.h", "products.h", "gated.h", "layer.h")),
    SOURCE.parents[2] / "native.h",
)
CALLS = (
    ("sparsejax_active_reduce", "SparsejaxActiveReduce"),
    ("sparsejax_active_expand", "SparsejaxActiveExpand"),
    ("sparsejax_skipping_product", "SparsejaxSkippingProduct"),
)
GATED_CALLS = (
    ("sparsejax_gated_products", "SparsejaxGatedProducts"),
    ("sparsejax_gated_mlp", "SparsejaxGatedMLP"),
    ("sparsejax_gated_neurons", "SparsejaxGatedNeurons"),
    ("sparsejax_gated_layer", "SparsejaxGatedLayer"),
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
    require_few(x.shape[0])
    require(x, w.values)
    y = _call("sparsejax_skipping_product", (x.shape[0], w.shape[1]), x, w.values)
    return finish(y if w.scale is None else y * w.scale.astype(y.dtype), bias, how)


def explain(rows: int, w: Skipping) -> str:
    """A description of the product."""
    del w
    require_few(rows)
    return "C++, rows in use"


def gated_products(x: Shaped[Array, "m k"], kernels: Any, limits: Any) -> tuple[Array, ...]:
    """`(x kept by gate j) W_j` in one call."""
    require_few(x.shape[0])
    require(x, *(w.values for w in kernels), gated=True)
    outs = [jax.ShapeDtypeStruct((x.shape[0], w.shape[1]), jnp.float32) for w in kernels]
    call = jax.ffi.ffi_call("sparsejax_gated_products", outs, vmap_method="sequential")
    return tuple(call(x.astype(jnp.float32), *_matrices(kernels, limits)))


def gated_mlp(x: Shaped[Array, "m k"], kernels: Any, limits: Any, by_neuron: bool) -> Array:
    """A gated feed-forward network in one call."""
    require_few(x.shape[0])
    require(x, *(w.values for w in kernels), gated=True)
    _require_network(kernels, by_neuron)
    name = "sparsejax_gated_neurons" if by_neuron else "sparsejax_gated_mlp"
    return _call(name, x.shape, x, *_matrices(kernels, limits))


def gated_layer(x, keys, values, counts, angles, norms, kernels, limits, how: Any):
    """A layer of a decoder for one token of each row in one call, which writes into the cache."""
    require_few(x.shape[0])
    require(x, *(w.values for w in kernels), gated=True)
    _require_network(kernels[4:], how.by_neuron)
    if keys.dtype != jnp.float32 or values.dtype != jnp.float32:
        raise NotImplementedError(f"a cache of {keys.dtype} is not supported")
    outs = [jax.ShapeDtypeStruct(y.shape, jnp.float32) for y in (x, keys, values)]
    call = jax.ffi.ffi_call(
        "sparsejax_gated_layer", outs, vmap_method="sequential", input_output_aliases={4: 1, 5: 2}
    )
    wide = [y.astype(jnp.float32) for y in (x, jnp.cos(angles), jnp.sin(angles))]
    weights = [jnp.asarray(norm, jnp.float32) for norm in norms]
    y, keys, values = call(
        *wide, counts, keys, values, *weights, *_matrices(kernels, limits),
        heads=np.int64(how.heads), epsilon=np.float32(how.epsilon),
        interleaved=how.interleaved, by_neuron=how.by_neuron,
    )  # fmt: skip
    return y, (keys, values)


def _require_network(kernels: Any, by_neuron: bool) -> None:
    if len({w.values.dtype for w in kernels}) > 1:
        raise NotImplementedError("the three kernels must have one dtype")
    if by_neuron and kernels[1].scale is not None:
        # A factor of each column is one of each input here.
        raise NotImplementedError("int8 kernels (neurons, inputs) are not supported")


def _matrices(kernels: Any, limits: Any) -> list[Array]:
    """Weights, norms, limit and scales of each kernel; no scales for floats."""
    none = jnp.zeros(0, jnp.float32)
    return [
        array
        for w, (norms, tau) in zip(kernels, limits)
        for array in (
            w.values,
            jnp.asarray(norms, jnp.float32),
            jnp.asarray(tau, jnp.float32),
            none if w.scale is None else w.scale.astype(jnp.float32).ravel(),
        )
    ]


def require_few(rows: int) -> None:
    """Raises NotImplementedError for numbers of rows that are not supported."""
    if not 1 <= rows <= MOST:
        raise NotImplementedError(f"multiplies 1 to {MOST} rows of x, not {rows}")


def require(x: Any, *weights: Any, gated: bool = False) -> None:
    """Raises NotImplementedError for dtypes that are not supported, or without a compiler."""
    for w in weights:
        if w.dtype not in WEIGHTS or x.dtype == jnp.float64:
            raise NotImplementedError(f"weights of {w.dtype} times {x.dtype} are not supported")
    source, calls = (GATED, GATED_CALLS) if gated else (SOURCE, CALLS)
    if why := compiled(source, HEADERS, calls, os.environ.get("CXX"), cache_file()):
        raise NotImplementedError(why)


def _plain(w: Any) -> Any:
    """Units of one neuron without their axis: XLA may copy a reshaped argument."""
    return w[:, 0] if w.shape[1] == 1 else w


def _call(name: str, shape: tuple[int, ...], x: Array, *arrays: Array) -> Array:
    out = jax.ShapeDtypeStruct(shape, jnp.float32)
    call = jax.ffi.ffi_call(name, out, vmap_method="sequential")
    return call(x.astype(jnp.float32), *arrays)


SKIPPING = Implementation(product, explain=explain)
GATED_PRODUCTS, GATED_MLP = Implementation(gated_products), Implementation(gated_mlp)
GATED_LAYER = Implementation(gated_layer)
