"""The products as Mosaic GPU kernels for Hopper; what they cannot do raises NotImplementedError."""

from typing import Any

from jaxtyping import Array, Float, Shaped

from ...formats import BlockArray, NMArray, SparseArray
from . import _gpu_block, _gpu_nm
from ._finish import How


def product(x: Shaped[Array, "m k"], w: SparseArray, bias: Any, how: How) -> Float[Array, "m n"]:
    """`activation(x W + bias)`."""
    return _kernels(w).product(x, w, bias, how)


def transposed(dy: Shaped[Array, "m n"], w: SparseArray, how: How) -> Float[Array, "m k"]:
    """`dy W^T`."""
    return _kernels(w).transposed(dy, w, how)


def sampled(
    x: Shaped[Array, "m k"], dy: Shaped[Array, "m n"], w: SparseArray, how: How
) -> Float[Array, "..."]:
    """`x^T dy` where W stores something."""
    return _kernels(w).sampled(x, dy, w, how)


def explain(rows: int, w: SparseArray) -> str:
    """The kernel and its tiles."""
    return _kernels(w).explain(rows, w)


def _kernels(w: SparseArray) -> Any:
    if isinstance(w, BlockArray):
        return _gpu_block
    if isinstance(w, NMArray):
        return _gpu_nm
    raise NotImplementedError(f"multiplies NMArray and BlockArray, not {type(w).__name__}")
