"""The same three products through the decompressed matrix: what sparse has to beat."""

from typing import Any

from jax import lax
from jaxtyping import Array, Float, Shaped

from ...formats import SparseArray
from ._finish import How, finish
from ._xla import dot_dtypes


def product(x: Shaped[Array, "m k"], w: SparseArray, bias: Any, how: How) -> Float[Array, "m n"]:
    """`activation(x W + bias)`."""
    return finish(_dot(x, w.todense(), ((1,), (0,)), how), bias, how)


def transposed(dy: Shaped[Array, "m n"], w: SparseArray, how: How) -> Float[Array, "m k"]:
    """`dy W^T`."""
    return _dot(dy, w.todense(), ((1,), (1,)), how)


def sampled(
    x: Shaped[Array, "m k"], dy: Shaped[Array, "m n"], w: SparseArray, how: How
) -> Float[Array, "..."]:
    """`x^T dy` where W stores something."""
    return w.take(_dot(x, dy, ((0,), (0,)), how))


def explain(rows: int, w: SparseArray) -> str:
    """The only form."""
    del rows, w
    return "decompressed"


def _dot(a, b, contracted: tuple[tuple[int], tuple[int]], how: How):
    dtype, total = dot_dtypes(a, b)
    return lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        (contracted, ((), ())),
        precision=how.precision,
        preferred_element_type=total,
    )
