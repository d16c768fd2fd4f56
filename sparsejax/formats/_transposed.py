"""The transpose of a matrix, for frameworks that multiply from the left."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Float, Shaped

from .._tree import register
from ._array import Matrix, multiply
from ._validate import need


@register
@dataclass(frozen=True, eq=False, repr=False)
class Transposed(Matrix):
    r"""The transpose `(N, K)` of a matrix W `(K, N)`: `Transposed(W) @ x = W^T x`.

    Replaces the weight `(out, in)` of an Equinox layer, which computes `weight @ x`.

    Args:
      matrix: A compressed matrix `(K, N)`.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.NMArray.fromdense(jnp.eye(4), 1, 4)
      >>> (sj.formats.Transposed(w) @ jnp.arange(4.0)).tolist()
      [0.0, 1.0, 2.0, 3.0]
    """

    matrix: Any
    order: ClassVar[str] = "out_in"

    @property
    def shape(self) -> tuple[int, ...]:
        """`(stacked..., N, K)`."""
        *stacked, k, n = self.matrix.shape
        return (*stacked, n, k)

    def validate(self) -> None:
        """Raises ValueError unless the matrix is valid."""
        need(self, isinstance(self.matrix, Matrix), "matrix must be a compressed matrix")
        self.matrix.validate()

    def for_inference(self) -> "Transposed":
        """The transpose of the matrix without parts that only its gradient reads."""
        return Transposed(self.matrix.for_inference())

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the entries."""
        return self.matrix.dtype

    def todense(self) -> Float[Array, "..."]:
        """The matrix as an array."""
        return self.matrix.todense().swapaxes(-1, -2)

    def __matmul__(self, x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """`(N,)` of a vector `(K,)`, `(N, columns)` of a matrix `(K, columns)`."""
        if x.ndim == 1:
            return multiply(self.matrix, x)
        return multiply(self.matrix, x.swapaxes(-1, -2)).swapaxes(-1, -2)

    def _repr(self) -> str:
        return repr(self.matrix)
