"""The product of a dense and a compressed matrix: one function, several implementations."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Shaped

from ...formats import BlockArray, NMArray, SparseArray, TensorCoreArray
from ...formats._block import stacked
from .._choose import NAMES, attempt, load, names_of, without_hardware
from .._tuning import fastest
from ._finish import FUSED, How, finish

# On a TPU: rows of x up to which reading less of an N:M matrix pays, and the density up to which
# skipping blocks does. From a model of bytes and products, not yet measured.
NM_ROWS, BLOCK_DENSITY = 64, 0.6
# The same on a GPU, measured on an H200 (benchmarks/results/hopper.md): the density by the shorter
# side of a block; rows of x with which 2:4 tensor cores are slower than dense products, although W
# is in their order, and rows from which they pay even where it must be reordered each time.
GPU_DENSITY = {128: 0.6, 64: 0.45, 32: 0.1}
CORES_LOSE = range(65, 1024)
# Of 2:4 matrices on GPUs: "pallas_gpu" tries the first for many rows; both if measured fastest.
SPARSE_CORES, CUSPARSELT = TWO_FOUR = "sparse_cores", "cusparselt"
# What only products have, beyond the implementations that every operation has.
OTHERS = (*TWO_FOUR, "native")
# Each implementation has product(x, w, bias, how), transposed(dy, w, how), sampled(x, dy, w, how)
# and explain(rows, w); what it cannot do raises NotImplementedError and the next is tried.


@without_hardware
def matmul(
    x: Shaped[Array | np.ndarray, "..."],
    w: SparseArray | Shaped[Array | np.ndarray, "..."],
    *,
    implementation: str | Sequence[str] | None = None,
    precision: Any = None,
    out_dtype: DTypeLike | None = None,
    bias: Shaped[Array | np.ndarray, "..."] | None = None,
    activation: Callable[[Array], Array] | None = None,
) -> Shaped[Array, "..."]:
    r"""The product of activations with a dense or compressed matrix.

    `y = activation(x W + bias)`, accumulated in at least float32. The gradient with respect to a
    compressed W is a compressed matrix: its values hold the gradient at the stored positions, its
    indices are `float0`. Patterns are data: a new one of the same shape does not recompile.

    On a CPU, N:M with `share` below 32 is no faster than dense in any form XLA has. "native" is,
    at 1:4 and sparser for some rows of x, and is faster than XLA with blocks whose sides 16
    divides: C++ that is compiled when first asked for, which takes seconds, by name or by `tune`.
    It is not exported, multiplies all rows on each device, and has no gradients in
    `jax.shard_map`: name "xla" there. See the benchmark.

    Args:
      x: `(..., K)`, floats; `(stacked..., ..., K)` if W is stacked.
      w: `NMArray`, `BlockArray`, `TensorCoreArray` or array of shape `(stacked..., K, N)`.
      implementation: "xla", "dense" (decompress first), "native" (on a CPU with a C++ compiler;
        sums of float32), "pallas_tpu", "pallas_gpu"; for 2:4 on a Hopper GPU "sparse_cores" and on
        NVIDIA GPUs "cusparselt" (with the extra of that name), each after a probe of it; or names
        to try in turn. None takes what `tune` has measured fastest, or else chooses by the
        platform. Gradients that one has no kernel for are XLA's.
      precision: As in `jax.lax.dot_general`.
      out_dtype: Dtype of the result; None means that of x.
      bias: `(N,)`, added before the result is rounded to `out_dtype`.
      activation: Elementwise function applied before rounding; kernels do `jax.nn.relu`, `silu`,
        `sigmoid` and `jnp.tanh` before they write.

    Returns:
      `(..., N)`.

    Raises:
      ValueError: If the shapes do not match, or an implementation is unknown.
      TypeError: If x or W do not hold floats.
      NotImplementedError: If none of the implementations can do the case.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.NMArray.fromdense(jnp.eye(4), 1, 4)
      >>> sj.kernels.matmul(jnp.arange(4.0), w, bias=jnp.ones(4)).tolist()
      [1.0, 2.0, 3.0, 4.0]
    """
    x = jnp.asarray(x)
    w = w if isinstance(w, SparseArray) else jnp.asarray(w)
    _check(x, w)
    bias = None if bias is None else jnp.asarray(bias)
    how = How(precision, activation, x.dtype if out_dtype is None else jnp.dtype(out_dtype))
    if not isinstance(w, SparseArray):
        names_of("matmul", implementation, OTHERS)
        return finish(_dense(x, w, precision), bias, how)
    names = _names(x, w, implementation)
    one_bias = bias is None or bias.shape == w.shape[-1:]
    if one_bias and (activation is None or any(activation is f for f in FUSED)):
        return _jitted(x, w, bias, names, how)
    return finish(_jitted(x, w, None, names, How(precision)), bias, how)


def explain(x: Any, w: Any, implementation: str | Sequence[str] | None = None) -> str:
    """How `matmul(x, w)` would be computed: the implementation, its form, and what was passed over.

    Args:
      x: As for `matmul`; anything with a shape and a dtype.
      w: As for `matmul`.
      implementation: As for `matmul`.

    Raises:
      ValueError: If the shapes do not match, or an implementation is unknown.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.BlockArray.fromdense(jnp.eye(8), 4)
      >>> sj.kernels.explain(jnp.ones((2, 8)), w)
      'xla: batched'
    """
    _check(x, w)
    if not isinstance(w, SparseArray):
        names_of("matmul", implementation, OTHERS)
        return "dense"
    rows, passed, one = math.prod(x.shape[w.ndim - 2 : -1]), [], _one_of(w, x.dtype)
    for name in _names(x, w, implementation):
        try:
            form = f"{name}: {load(__package__, name).explain(rows, one)}"
        except NotImplementedError as error:
            passed.append(f"not {name}: {error}")
            continue
        if implementation is None and name == fastest(case_of, x, w):
            form += ", measured fastest"
        return "; ".join([form, *passed])
    raise NotImplementedError("explain: no implementation can do this: " + "; ".join(passed))


def case_of(x: Any, w: Any) -> str:
    """What `tune` measures and `matmul` looks up: shapes, pattern and dtypes."""
    *stacked, k, n = w.shape
    if isinstance(w, NMArray):
        pattern = f"{w.n}:{w.m}, share {w.share}"
    elif isinstance(w, TensorCoreArray):
        pattern = "2:4 for tensor cores"
    else:
        pattern = f"blocks of {w.block[0]}x{w.block[1]}, {w.index.shape[-1]} slots"
    rows = math.prod(x.shape[len(stacked) : -1])
    size = "x".join(map(str, (*stacked, rows, k, n)))
    return f"matmul {size}, {x.dtype} times {w.dtype}, {pattern}"


@partial(jax.jit, static_argnames=("names", "how"))
def _jitted(x, w, bias, names: tuple[str, ...], how: How):
    multiply: Callable[..., Any] = partial(_flat, names=names, how=how)
    for _ in range(w.ndim - 2):
        multiply = jax.vmap(multiply, in_axes=(0, 0, None))
    return multiply(x, w, bias)


def _dense(x: Array, w: Array, precision: Any) -> Array:
    """`x W` of arrays, unrounded; matrices that are stacked meet the leading axes of x."""
    total = _sum_dtype(jnp.promote_types(x.dtype, w.dtype))
    multiply = partial(jnp.matmul, precision=precision, preferred_element_type=total)
    return stacked(multiply, w.ndim - 2)(x, w)


def _one_of(w: SparseArray, dtype: Any) -> Any:
    """Shapes and dtypes of what an implementation is given of W, by an x of this dtype."""

    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[w.ndim - 2 :], x.dtype), w)
    values = jax.ShapeDtypeStruct(one.values.shape, jnp.promote_types(dtype, w.dtype))
    return replace(one, values=values)


def _flat(x, w, bias, names: tuple[str, ...], how: How):
    *batch, k = x.shape
    y: Any = _product(x.reshape(math.prod(batch), k), w, bias, names, how)
    return y.reshape(*batch, y.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _product(x, w, bias, names: tuple[str, ...], how: How):
    return _try(names, "product", x, w, bias, how)


def _forward(x, w, bias, names, how):
    if how.activation is None:
        return _try(names, "product", x, _still(w), bias, how), (x, w, bias, None)
    # The derivative of the activation needs what comes before it.
    before = _try(names, "product", x, _still(w), bias, How(how.precision))
    return finish(before, None, how), (x, w, bias, before)


def _backward(names, how, saved, dy):
    x, w, bias, before = saved
    if before is not None:
        dy = jax.vjp(how.activation, before)[1](dy.astype(before.dtype))[0]
    # What an implementation has no gradient kernel for, XLA does.
    names = dict.fromkeys((*names, "xla", "dense"))
    back = How(how.precision, dtype=x.dtype)
    dx = _try(names, "transposed", dy, w, back).astype(x.dtype)
    values = _try(names, "sampled", x, dy, w, back).astype(w.dtype)
    db = None if bias is None else dy.sum(0, dtype=_sum_dtype(dy.dtype)).astype(bias.dtype)
    return dx, replace(jax.tree.map(_no_gradient, w), values=values), db


_product.defvjp(_forward, _backward)


def _still(w: SparseArray) -> SparseArray:
    """W whose padding has no derivative, also where the forward pass is differentiated."""
    if not isinstance(w, BlockArray):
        return w
    return replace(w, values=_without_padding(w.values, w.used[..., None, None]))


@jax.custom_jvp
def _without_padding(values, used):
    del used
    return values


@_without_padding.defjvp
def _without_padding_jvp(primals, tangents):
    values, used = primals
    return values, jnp.where(used, tangents[0], jnp.zeros((), values.dtype))


def _names(x: Any, w: SparseArray, implementation: Any) -> tuple[str, ...]:
    """The names to try; unasked, first what was measured fastest, or else dense where kernels of a
    device are expected to lose."""
    names = names_of("matmul", implementation, OTHERS)
    rows, packed = math.prod(x.shape[w.ndim - 2 : -1]), isinstance(w, TensorCoreArray)
    if implementation == "pallas_gpu" and (packed or isinstance(w, NMArray) and rows > NM_ROWS):
        return (SPARSE_CORES, *names)
    if implementation is not None:
        return names
    measured = fastest(case_of, x, w)
    names = _expected(jax.default_backend(), names, rows, w)
    if measured in (*NAMES, *OTHERS):
        names = tuple(dict.fromkeys((measured, *names)))
    return names


def _expected(platform: str, names: tuple[str, ...], rows: int, w: Any) -> tuple[str, ...]:
    """The names in the order of their expected speed: dense first where kernels lose."""
    if isinstance(w, TensorCoreArray):
        wins = platform == "gpu" and rows not in CORES_LOSE
        return (SPARSE_CORES, "dense") if wins else ("dense",)
    if platform not in ("gpu", "tpu"):
        return names
    if isinstance(w, NMArray):
        if platform == "tpu":
            return names if rows <= NM_ROWS and 2 * w.n <= w.m else ("dense", *names)
        return (SPARSE_CORES, "dense") if rows >= CORES_LOSE.stop else ("dense", *names)
    most = BLOCK_DENSITY if platform == "tpu" else GPU_DENSITY.get(min(w.block), 0)
    return names if w.density <= most else ("dense", *names)


def _sum_dtype(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def _no_gradient(leaf: Any) -> np.ndarray:
    return np.zeros(leaf.shape, jax.dtypes.float0)


def _try(names: Iterable[str], operation: str, *args: Any):
    return attempt(__package__, "matmul", names, operation, *args)


def _check(x, w) -> None:
    for name, array in (("x", x), ("w", w)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(
                f"matmul({name}) must hold floats, got {array.dtype} of shape {array.shape}; write "
                f"{name}.astype(jnp.float32)."
            )
    if len(w.shape) < 2 or not x.shape or x.shape[-1] != w.shape[-2]:
        raise ValueError(
            f"matmul(x, w) contracts the last axis of x with K of w (stacked..., K, N): x of shape "
            f"{x.shape} does not fit w of shape {tuple(w.shape)}."
        )
    lead = tuple(w.shape[:-2])
    if x.shape[:-1][: len(lead)] != lead:
        raise ValueError(
            f"matmul: w of shape {w.shape} is stacked, so x must begin with {lead}, but has "
            f"shape {x.shape}; for one x write jax.vmap(matmul, in_axes=(None, 0))(x, w)."
        )


SparseArray.product = staticmethod(matmul)
