"""The truth: the three products of every format in plain XLA, any order of reverse derivatives."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ...formats import BlockArray, NMArray, SparseArray
from . import _xla_block, _xla_nm
from ._finish import How, finish


def product(x: Shaped[Array, "m k"], w: SparseArray, bias: Any, how: How) -> Float[Array, "m n"]:
    """`activation(x W + bias)`, accumulated in at least float32."""
    x, w, dot = _promoted(x, w, how)
    return finish(_forms(w).product(x, w, **dot), bias, how)


def transposed(dy: Shaped[Array, "m n"], w: SparseArray, how: How) -> Float[Array, "m k"]:
    """`dy W^T`, the gradient with respect to x."""
    dy, w, dot = _promoted(dy, w, how)
    return _forms(w).transposed(dy, w, **dot)


def sampled(
    x: Shaped[Array, "m k"], dy: Shaped[Array, "m n"], w: SparseArray, how: How
) -> Float[Array, "..."]:
    """`x^T dy` where W stores something, the gradient with respect to its values."""
    dtype, total = dot_dtypes(x, dy)
    dot = {"precision": how.precision, "preferred_element_type": total}
    return _forms(w).sampled(x.astype(dtype), dy.astype(dtype), w, **dot)


def explain(rows: int, w: SparseArray) -> str:
    """The form chosen for `rows` rows of x."""
    if not w.values.size:
        return "zeros"
    return _forms(w).form(rows, w).__name__


def _forms(w: SparseArray) -> Any:
    if isinstance(w, BlockArray):
        return _xla_block
    if isinstance(w, NMArray):
        return _xla_nm
    raise NotImplementedError(f"xla multiplies NMArray and BlockArray, not {type(w).__name__}")


def _promoted(x: Any, w: SparseArray, how: How) -> tuple[Any, SparseArray, dict[str, Any]]:
    dtype, total = dot_dtypes(x, w)
    dot = {"precision": how.precision, "preferred_element_type": total}
    return x.astype(dtype), w if w.dtype == dtype else w.astype(dtype), dot


def dot_dtypes(a: Any, b: Any) -> tuple[Any, Any]:
    """The dtype in which two operands meet, and the one in which their products add up."""
    dtype = jnp.promote_types(a.dtype, b.dtype)
    total = jnp.promote_types(dtype, jnp.float32)
    # XLA's CPU backend fails on some batched products of bfloat16 and has no fast ones.
    return (total if jax.default_backend() == "cpu" else dtype), total
