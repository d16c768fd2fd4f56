"""The three products with the decompressed matrix: the dense baseline."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ...formats import Matrix, SparseArray
from .._finish import How, finish
from .._table import Implementation
from ._xla import dot_dtypes


def product(x: Shaped[Array, "m k"], w: Matrix, bias: Any, how: How) -> Float[Array, "m n"]:
    """`activation(x W + bias)`."""
    return finish(dot(x, w.todense(), how), bias, how)


def transposed(dy: Shaped[Array, "m n"], w: SparseArray, how: How) -> Float[Array, "m k"]:
    """`dy W^T`."""
    return dot(dy, w.todense().T, how)


def sampled(
    x: Shaped[Array, "m k"], dy: Shaped[Array, "m n"], w: SparseArray, how: How
) -> Float[Array, "..."]:
    """`x^T dy` at the stored positions of W."""
    return w.take(dot(x.T, dy, how))


def explain(rows: int, w: Matrix) -> str:
    """The only form."""
    del rows, w
    return "decompressed"


def dot(a: Shaped[Array, "m k"], b: Shaped[Array, "k n"], how: How) -> Float[Array, "m n"]:
    """`a b` of arrays, unrounded."""
    dtype, total = dot_dtypes(a, b, how)
    return jnp.matmul(
        a.astype(dtype), b.astype(dtype), precision=how.precision, preferred_element_type=total
    )


IMPLEMENTATION = Implementation(product, transposed, sampled, explain)
