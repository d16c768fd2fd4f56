"""Base classes of the formats: matrices whose shape follows from their leaves."""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Shaped

Self = TypeVar("Self", bound="SparseArray")
M = TypeVar("M", bound="Matrix")


@functools.singledispatch
def multiply(w: Any, x: Any) -> Any:
    """`x @ w` for a matrix of any format; `sparsejax.kernels` registers the products.

    Register the product of a custom format with `sj.formats.multiply.register(YourFormat)`.

    Raises:
      TypeError: If no product is registered for the type of `w`.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.NMArray.fromdense(jnp.eye(4), 2, 4)
      >>> sj.formats.multiply(w, jnp.arange(4.0)).tolist()
      [0.0, 1.0, 2.0, 3.0]
    """
    raise TypeError(
        f"multiply: w must be of a format with a registered product, got {w!r:.80}; for an array "
        "write x @ w."
    )


class Matrix(ABC):
    """A matrix `(stacked..., K, N)` that is not stored as a dense array.

    A pytree whose shape follows from its leaves, so that it can be vmapped, scanned, sharded and
    passed to jit; `x @ w` is `sj.kernels.matmul(x, w)`.
    """

    # NumPy and JAX arrays on the left of `@` defer the product to this class.
    __array_priority__: ClassVar[float] = 1000.0
    __array_ufunc__: ClassVar[None] = None
    __hash__ = object.__hash__
    # The contracted axis, as for `sj.patterns.layout`.
    order: ClassVar[str] = "in_out"

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """`(stacked..., K, N)`."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype:
        """The dtype of the entries."""

    @abstractmethod
    def todense(self) -> Float[Array, "..."]:
        """The matrix as an array."""

    def validate(self) -> None:
        """Raises ValueError if the parts do not fit each other, as after a damaged file.

        Shapes, dtypes, ranges of indices and counts are compared on the host. A custom format
        overrides it; `sj.load` calls it for every matrix.
        """
        del self

    def for_product(self: M) -> M:
        """The same matrix as products read it; by default unchanged."""
        return self

    def for_inference(self: M) -> M:
        """The same matrix without parts that only its gradient reads; by default unchanged."""
        return self

    @property
    def label(self) -> str:
        """The format and pattern, for tables."""
        return type(self).__name__

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of entries of the matrix."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves, indices included."""
        leaves = jax.tree.leaves(self)
        return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in leaves)

    def __rmatmul__(self, x: Shaped[Array | np.ndarray, "..."]) -> Shaped[Array, "..."]:
        return multiply(self, x)

    def __repr__(self) -> str:
        name = type(self).__name__
        try:
            return f"{name}({self._repr()})"
        except (AttributeError, IndexError, TypeError):  # leaves that are not arrays
            return f"{name}(...)"

    def _repr(self) -> str:
        """The text between the parentheses of the repr."""
        return f"shape={self.shape}, dtype={self.dtype}"


class SparseArray(Matrix):
    """A matrix `(stacked..., K, N)` of which only some entries are stored, in `values`.

    A custom format is a dataclass with a field `values`, registered as a pytree by `sj.register`;
    it defines `shape`, `todense` and `take`. Products and gradients then use the dense matrix;
    `sj.kernels.implement` registers faster ones.
    """

    values: Any

    @abstractmethod
    def take(self, dense: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """The entries of a matrix `(stacked..., K, N)` at the stored positions, as `values`."""

    @property
    def real(self) -> Bool[Array, "..."] | None:
        """The mask of values that are entries, not padding, broadcast to them; None if all are."""
        return None

    def check_gradient(self) -> None:
        """Raises ValueError if the matrix lacks parts that its gradient reads; by default none."""

    @property
    def column_axes(self) -> dict[str, int]:
        """By field, the axis of the columns (or blocks of columns)."""
        return {}

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the stored values."""
        return np.dtype(self.values.dtype)

    @property
    def density(self) -> float:
        """Fraction of the entries that are stored in `values`, padding included."""
        return math.prod(self.values.shape) / max(self.size, 1)

    @property
    def sparsity(self) -> float:
        """Fraction of the entries that are not stored in `values`: `1 - density`."""
        return 1 - self.density

    def astype(self: Self, dtype: DTypeLike) -> Self:
        """The same matrix with values of another dtype."""
        return replace(self, values=jnp.asarray(self.values, dtype))  # pyright: ignore


def stacked(f: Callable[..., Any], axes: int) -> Callable[..., Any]:
    """`f` mapped over a number of leading axes of all its arguments."""
    for _ in range(axes):
        f = jax.vmap(f)
    return f


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
    """`mask` as booleans of the shape of `w`; None selects the non-zeros."""
    if mask is None:
        return w != 0
    if tuple(mask.shape) != tuple(w.shape):
        raise ValueError(
            f"{name}(mask) has shape {tuple(mask.shape)}, but w has shape {tuple(w.shape)}."
        )
    if mask.dtype != bool:
        raise TypeError(f"{name}(mask) must be boolean, got {mask.dtype}; write mask != 0.")
    return mask
