"""The reference: the three products of every format in XLA, with derivatives of any order."""

from types import ModuleType
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ..._arrays import wide_dtype
from ...formats import SparseArray
from .._finish import How, finish
from .._table import Implementation


def of(forms: ModuleType) -> Implementation:
    """The implementation from a module with `product`, `transposed`, `sampled` and `form`."""

    def product(
        x: Shaped[Array, "m k"], w: SparseArray, bias: Any, how: How
    ) -> Float[Array, "m n"]:
        """`activation(x W + bias)`, accumulated in at least float32."""
        x, w, dot = _promoted(x, w, how)
        return finish(forms.product(x, w, **dot), bias, how)

    def transposed(dy: Shaped[Array, "m n"], w: SparseArray, how: How) -> Float[Array, "m k"]:
        """`dy W^T`, the gradient with respect to x."""
        dy, w, dot = _promoted(dy, w, how)
        return forms.transposed(dy, w, **dot)

    def sampled(
        x: Shaped[Array, "m k"], dy: Shaped[Array, "m n"], w: SparseArray, how: How
    ) -> Float[Array, "..."]:
        """`x^T dy` at the stored positions, the gradient with respect to the values."""
        dtype, total = dot_dtypes(x, dy, how)
        dot = {"precision": how.precision, "preferred_element_type": total}
        return forms.sampled(x.astype(dtype), dy.astype(dtype), w, **dot)

    def explain(rows: int, w: SparseArray) -> str:
        """The form chosen for `rows` rows of x."""
        return forms.form(rows, w).__name__ if w.values.size else "zeros"

    return Implementation(product, transposed, sampled, explain)


def _promoted(x: Any, w: SparseArray, how: How) -> tuple[Any, SparseArray, dict[str, Any]]:
    dtype, total = dot_dtypes(x, w, how)
    dot = {"precision": how.precision, "preferred_element_type": total}
    return x.astype(dtype), w if w.dtype == dtype else w.astype(dtype), dot


def dot_dtypes(a: Any, b: Any, how: How) -> tuple[Any, Any]:
    """The dtype of the operands, and that of their sums."""
    dtype = jnp.promote_types(a.dtype, b.dtype)
    total = wide_dtype(dtype)
    # XLA's CPU backend fails on some batched bfloat16 products and has no fast ones.
    return (total if how.platform == "cpu" else dtype), total
