"""Products with composed matrices."""

from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float, Shaped

from ..._arrays import wide_dtype
from ...formats import LowRank, Sum
from .._finish import How, finish
from .._table import Implementation
from ._api import matmul
from ._dense import dot


def _low_rank(x: Shaped[Array, "m k"], w: LowRank, bias: Any, how: How) -> Float[Array, "m n"]:
    """`activation((x A) B + bias)`."""
    inner = dot(x, w.a, how)
    return finish(dot(inner.astype(x.dtype), w.b, how), bias, how)


def _sum(x: Shaped[Array, "m k"], w: Sum, bias: Any, how: How) -> Float[Array, "m n"]:
    """`activation(x frozen + x trainable + bias)`, without a gradient of the frozen part."""
    product = partial(matmul, x, precision=how.precision, out_dtype=_total(x, w))
    frozen = product(jax.lax.stop_gradient(w.frozen))
    return finish(frozen + product(w.trainable), bias, how)


def _total(x: Any, w: Any) -> Any:
    return wide_dtype(x, w)


LOW_RANK = Implementation(_low_rank, explain=lambda rows, w: "two products")
SUM = Implementation(_sum, explain=lambda rows, w: "one product each")
