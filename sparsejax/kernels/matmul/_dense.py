"""The same three products through the decompressed matrix: what sparse has to beat."""

from typing import Any

from jax import lax
from jaxtyping import Array, Float, Shaped

from ...formats import SparseArray
from ._xla import dot_dtypes


def product(x: Shaped[Array, "m k"], w: SparseArray, precision: Any) -> Float[Array, "m n"]:
    """`x W`."""
    return _dot(x, w.todense(), ((1,), (0,)), precision)


def transposed(dy: Shaped[Array, "m n"], w: SparseArray, precision: Any) -> Float[Array, "m k"]:
    """`dy W^T`."""
    return _dot(dy, w.todense(), ((1,), (1,)), precision)


def sampled(
    x: Shaped[Array, "m k"], dy: Shaped[Array, "m n"], w: SparseArray, precision: Any
) -> Float[Array, "..."]:
    """`x^T dy` where W stores something."""
    return w.take(_dot(x, dy, ((0,), (0,)), precision))


def explain(rows: int, w: SparseArray) -> str:
    """The only form."""
    del rows, w
    return "decompressed"


def _dot(a, b, contracted: tuple[tuple[int], tuple[int]], precision: Any):
    dtype, total = dot_dtypes(a, b)
    return lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        (contracted, ((), ())),
        precision=precision,
        preferred_element_type=total,
    )
