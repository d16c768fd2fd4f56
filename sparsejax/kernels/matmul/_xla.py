"""The truth: the three products of every format in plain XLA, differentiable to any order."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ...formats import BlockArray, NMArray, SparseArray
from . import _xla_block, _xla_nm


def product(x: Shaped[Array, "m k"], w: SparseArray, precision: Any) -> Float[Array, "m n"]:
    """`x W`, accumulated and returned in at least float32."""
    x, w, dot = _promoted(x, w, precision)
    return _forms(w).product(x, w, **dot)


def transposed(dy: Shaped[Array, "m n"], w: SparseArray, precision: Any) -> Float[Array, "m k"]:
    """`dy W^T`, the gradient with respect to x."""
    dy, w, dot = _promoted(dy, w, precision)
    return _forms(w).transposed(dy, w, **dot)


def sampled(
    x: Shaped[Array, "m k"], dy: Shaped[Array, "m n"], w: SparseArray, precision: Any
) -> Float[Array, "..."]:
    """`x^T dy` where W stores something, the gradient with respect to its values."""
    dtype = jnp.promote_types(x.dtype, dy.dtype)
    x, _, dot = _promoted(x.astype(dtype), w, precision)
    return _forms(w).sampled(x, dy.astype(x.dtype), w, **dot)


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


def _promoted(x: Any, w: SparseArray, precision: Any) -> tuple[Any, SparseArray, dict[str, Any]]:
    dtype = jnp.promote_types(x.dtype, w.dtype)
    total = jnp.promote_types(dtype, jnp.float32)
    dot = {"precision": precision, "preferred_element_type": total}
    return x.astype(dtype), w if w.dtype == dtype else w.astype(dtype), dot
