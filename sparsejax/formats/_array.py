"""What the compressed formats share: they behave as matrices of a derived shape."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

Self = TypeVar("Self", bound="SparseArray")


class SparseArray(ABC):
    """A matrix `(stacked..., K, N)` of which only some entries are stored.

    A pytree whose shape follows from its leaves, so that it can be vmapped, scanned, sharded and
    passed to jit; `x @ w` is `sj.kernels.matmul(x, w)`.
    """

    # NumPy arrays and JAX arrays on the left of `@` leave the product to us.
    __array_priority__: ClassVar[float] = 1000.0
    __array_ufunc__: ClassVar[None] = None
    __hash__ = object.__hash__
    # Formats are below kernels and may not import them: `kernels.matmul` puts itself here.
    product: ClassVar[Callable[..., Any] | None] = None

    values: Any

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """`(stacked..., K, N)`."""

    @abstractmethod
    def todense(self) -> Float[Array, "..."]:
        """The matrix with zeros where nothing is stored."""

    @abstractmethod
    def take(self, dense: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """The entries of a matrix `(stacked..., K, N)` where this one stores something."""

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of entries of the matrix."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the stored values."""
        return np.dtype(self.values.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves, indices included."""
        leaves = jax.tree.leaves(self)
        return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in leaves)

    @property
    def density(self) -> float:
        """Fraction of the entries that have a place in `values`, padding included."""
        return math.prod(self.values.shape) / max(self.size, 1)

    @property
    def sparsity(self) -> float:
        """Fraction of the entries that have no place in `values`: `1 - density`."""
        return 1 - self.density

    def astype(self: Self, dtype: DTypeLike) -> Self:
        """The same matrix with values of another dtype."""
        return replace(self, values=jnp.asarray(self.values, dtype))  # pyright: ignore

    def __rmatmul__(self, x: Shaped[Array | np.ndarray, "..."]) -> Shaped[Array, "..."]:
        if SparseArray.product is None:
            return NotImplemented
        return SparseArray.product(x, self)

    def __repr__(self) -> str:
        name = type(self).__name__
        try:
            return f"{name}({self._repr()})"
        except (AttributeError, IndexError, TypeError):  # leaves that are not arrays
            return f"{name}(...)"

    @abstractmethod
    def _repr(self) -> str:
        """What stands between the parentheses of the repr."""


def is_concrete(*arrays: Any) -> bool:
    """Whether the numbers can be looked at: none of the arrays is traced."""
    return not any(isinstance(x, Tracer) for x in arrays)


def check_matrix(name: str, w: Any) -> None:
    """Raises unless `w` is a floating point matrix, possibly stacked."""
    if not jnp.issubdtype(w.dtype, jnp.floating):
        raise TypeError(
            f"{name}(w) must hold floats, got {w.dtype} of shape {tuple(w.shape)}; write "
            "w.astype(jnp.float32)."
        )
    if len(w.shape) < 2:
        raise ValueError(
            f"{name}(w) must be a matrix (K, N), possibly with stacked axes before, got shape "
            f"{tuple(w.shape)}; see sj.compress for kernels with more axes."
        )


def as_mask(name: str, w: Any, mask: Any) -> Any:
    """`mask` as booleans of the shape of `w`; None stands for the non-zeros."""
    if mask is None:
        return w != 0
    if tuple(mask.shape) != tuple(w.shape):
        raise ValueError(
            f"{name}(mask) has shape {tuple(mask.shape)}, but w has shape {tuple(w.shape)}."
        )
    if mask.dtype != bool:
        raise TypeError(f"{name}(mask) must be boolean, got {mask.dtype}; write mask != 0.")
    return mask
