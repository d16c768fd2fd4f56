"""The product of a dense and a compressed matrix: one function, several implementations."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Shaped

from ..._arguments import checked
from ..._arrays import wide_dtype
from ..._tree import is_array
from ...formats import Matrix, multiply
from .._finish import FUSED, How, finish
from .._table import get, platform_of, requested
from .._tuning import fastest
from ._derivatives import product_of
from ._order import case_of, known_rows, order


@checked()
def matmul(
    x: Shaped[Array | np.ndarray, "..."],
    w: Matrix | Shaped[Array | np.ndarray, "..."],
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

    On a CPU, no XLA form of N:M with `share` below 32 is faster than dense. "native" is faster at
    1:4 and sparser for some numbers of rows of x, and is faster than XLA for block sides that are
    multiples of 16. It is C++, compiled at first use by name or by `tune`, which takes seconds. It
    cannot be exported, multiplies all rows on each device, and has no gradients in `jax.shard_map`:
    use "xla" there. See the benchmark.

    Args:
      x: `(..., K)`, floats; `(stacked..., ..., K)` if W is stacked.
      w: `NMArray`, `BlockArray`, `TensorCoreArray` or array of shape `(stacked..., K, N)`.
      implementation: "xla", "dense" (decompress first), "native" (on a CPU with a C++ compiler;
        sums of float32), "pallas_tpu", "pallas_gpu"; for 2:4 on a Hopper GPU "sparse_cores" and on
        NVIDIA GPUs "cusparselt" (with the extra of that name), each after a self-test; or names to
        try in turn. None uses the fastest one measured by `tune`, or otherwise selects by platform.
        Gradients without a kernel are computed by XLA.
      precision: As for `jax.lax.dot_general`.
      out_dtype: Dtype of the result; None means that of x.
      bias: `(N,)`, or what broadcasts to the result, added before it is rounded to `out_dtype`.
      activation: Elementwise function applied before rounding; kernels fuse `jax.nn.relu`, `silu`,
        `sigmoid` and `jnp.tanh`.

    Returns:
      `(..., N)`.

    Raises:
      ValueError: If the shapes do not match, or an implementation is unknown.
      TypeError: If x, W or the result do not hold floats.
      NotImplementedError: If no implementation supports the case.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.NMArray.fromdense(jnp.eye(4), 1, 4)
      >>> sj.kernels.matmul(jnp.arange(4.0), w, bias=jnp.ones(4)).tolist()
      [1.0, 2.0, 3.0, 4.0]
    """
    x = jnp.asarray(x)
    w = w if isinstance(w, Matrix) else jnp.asarray(w)
    _check(x, w)
    _check_precision(precision)
    bias = None if bias is None else _checked_bias(bias, (*x.shape[:-1], w.shape[-1]))
    platform = platform_of(x, w)
    dtype = x.dtype if out_dtype is None else jnp.dtype(out_dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"matmul: out_dtype must be of floats, got {dtype}; round the result.")
    how = How(precision, activation, dtype, platform)
    if not isinstance(w, Matrix):
        requested("matmul", Matrix, implementation, platform)
        return finish(_dense(x, w, precision), bias, how)
    names = _names(x, w, implementation, platform)
    one_bias = bias is None or bias.shape == w.shape[-1:]
    if one_bias and (activation is None or any(activation is f for f in FUSED)):
        return _jitted(x, w, bias, names, how)
    return finish(_jitted(x, w, None, names, How(precision, platform=platform)), bias, how)


@checked()
def explain(
    x: Any,
    w: Any,
    implementation: str | Sequence[str] | None = None,
) -> str:
    """Describes how `matmul(x, w)` is computed: the implementation, its form, and skipped ones.

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
    platform = platform_of(x, w)
    if not isinstance(w, Matrix):
        requested("matmul", Matrix, implementation, platform)
        return "dense"
    rows = known_rows(math.prod(x.shape[w.ndim - 2 : -1]))
    passed, one = [], _one_of(w, x.dtype)
    for name in _names(x, w, implementation, platform):
        try:
            explain = get("matmul", type(w), name, platform).explain
            form = f"{name}: {explain(rows, one)}" if explain else name
        except NotImplementedError as error:
            passed.append(f"not {name}: {error}")
            continue
        if implementation is None and name == fastest(case_of, x, w):
            form += ", measured fastest"
        return "; ".join([form, *passed])
    raise NotImplementedError("explain: no implementation supports this case: " + "; ".join(passed))


def _names(x: Any, w: Matrix, implementation: Any, platform: str) -> tuple[str, ...]:
    """The names to try: as requested, or the fastest measured one and then by expected speed."""
    names = requested("matmul", type(w), implementation, platform)
    if implementation is not None:
        return names
    names = order(w, names, known_rows(math.prod(x.shape[w.ndim - 2 : -1])), platform)
    measured = fastest(case_of, x, w)
    return names if measured is None else tuple(dict.fromkeys((measured, *names)))


@partial(jax.jit, static_argnames=("names", "how"))
def _jitted(x, w, bias, names: tuple[str, ...], how: How):
    w = w.for_product()
    multiply: Callable[..., Any] = partial(_flat, names=names, how=how)
    for _ in range(w.ndim - 2):
        multiply = jax.vmap(multiply, in_axes=(0, 0, None))
    return multiply(x, w, bias)


def _flat(x, w, bias, names: tuple[str, ...], how: How):
    *batch, k = x.shape
    y: Any = product_of(x.reshape(math.prod(batch), k), w, bias, names, how)
    return y.reshape(*batch, y.shape[-1])


def _dense(x: Array, w: Array, precision: Any) -> Array:
    """`x W` of arrays, unrounded; stacked axes of W match the leading axes of x."""
    total = wide_dtype(x, w)
    multiply: Any = partial(jnp.matmul, precision=precision, preferred_element_type=total)
    for _ in range(w.ndim - 2):
        multiply = jax.vmap(multiply)
    return multiply(x, w)


def _one_of(w: Any, dtype: Any) -> Any:
    """Shapes and dtypes of one matrix of W as passed to an implementation, given x's dtype."""

    def shape_of(leaf):
        wide = jnp.issubdtype(leaf.dtype, jnp.floating)
        dtype_of = jnp.promote_types(dtype, leaf.dtype) if wide else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape[w.ndim - 2 :], dtype_of)

    return jax.tree.map(shape_of, w)


def _checked_bias(bias: Any, shape: tuple[Any, ...]) -> Array:
    """The bias, which must not enlarge the result."""
    found = np.shape(bias)
    fits = len(found) <= len(shape) and all(b in (1, n) for b, n in zip(found[::-1], shape[::-1]))
    if not fits:
        raise ValueError(f"matmul: bias {found} must be ({shape[-1]},) for a result of {shape}.")
    return jnp.asarray(bias)


def _check_precision(precision: Any) -> None:
    """Raises for what `jax.lax.dot_general` does not take, naming the argument."""
    try:
        x = jax.ShapeDtypeStruct((1, 1), jnp.float32)
        jax.eval_shape(partial(jnp.matmul, precision=precision), x, x)
    except (TypeError, ValueError) as error:
        raise type(error)(f"matmul: precision={precision!r} is not valid: {error}") from None


def _check(x, w) -> None:
    for name, array in (("x", x), ("w", w)):
        if not isinstance(array, Matrix) and not is_array(array):
            raise TypeError(f"matmul: {name} must be an array or a matrix, got {array!r:.80}.")
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
            f"shape {x.shape}; for one x use jax.vmap(matmul, in_axes=(None, 0))(x, w)."
        )


@multiply.register
def _(w: Matrix, x: Any) -> Array:
    return matmul(x, w)
