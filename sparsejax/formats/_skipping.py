"""Dense matrices whose products skip the rows that a zero input multiplies."""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from .._arguments import checked, is_infinite_in
from .._tree import register
from ._array import SparseArray, check_matrix
from ._validate import need


@register
@dataclass(frozen=True, eq=False, repr=False)
class Skipping(SparseArray):
    r"""A dense matrix W of which `x @ w` reads only the rows whose input is not zero.

    For activations with many zeros: behind a ReLU, or behind a gate as in `sj.select`. With one to
    eight rows of x, a CPU with a C++ compiler multiplies the rows of W in use, of which the weights
    are contiguous; with more rows of x, and elsewhere, the product is dense. An infinite or NaN
    weight does not show where its input is zero.

    Args:
      values: `(stacked..., K, N)`, floats, or int8 with a scale.
      scale: `(stacked..., 1, N)`, a factor per column for int8 values; None for floats.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.Skipping(jnp.arange(6.0).reshape(3, 2))
      >>> (jnp.array([0.0, 2.0, 0.0]) @ w).tolist()
      [4.0, 6.0]
      >>> sj.formats.Skipping.quantized(w.values).values.dtype
      dtype('int8')
    """

    values: Any
    scale: Any = None

    @classmethod
    @checked()
    def quantized(cls, w: Shaped[Array | np.ndarray, "..."]) -> "Skipping":
        """Rounds a matrix `(stacked..., K, N)` to int8 with a scale per column, `max |w| / 127`.

        Raises:
          ValueError: If w holds NaN or infinity; a column that does becomes NaN if w is traced.
        """
        check_matrix("Skipping.quantized", w)
        if is_infinite_in(w):
            raise ValueError("Skipping.quantized: w holds NaN or infinity, which int8 cannot hold.")
        wide = jnp.asarray(w, jnp.float32)
        largest = jnp.max(jnp.abs(wide), axis=-2, keepdims=True, initial=0)
        scale = jnp.where(largest == 0, 1, largest / 127)
        return cls(jnp.round(wide / scale).astype(jnp.int8), scale)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(stacked..., K, N)`."""
        return tuple(self.values.shape)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the entries: that of the scale for int8 values."""
        return np.dtype(self.values.dtype if self.scale is None else self.scale.dtype)

    @property
    def label(self) -> str:
        """The name, and how the values are stored."""
        return f"Skipping({self.values.dtype})"

    def validate(self) -> None:
        """Raises ValueError unless the values are a matrix of floats, or of int8 with a scale."""
        values, scale = self.values, self.scale
        need(self, len(values.shape) >= 2, "values must have at least 2 axes")
        if scale is None:
            need(self, jnp.issubdtype(values.dtype, jnp.floating), "values must hold floats")
            return
        columns = (*values.shape[:-2], 1, values.shape[-1])
        need(self, values.dtype == jnp.int8, "values with a scale must be int8")
        need(self, tuple(scale.shape) == columns, f"scale must have the shape {columns}")

    def check_gradient(self) -> None:
        """Raises ValueError for int8 values, which have no gradient."""
        if self.scale is not None:
            raise ValueError(
                "matmul: int8 weights have no gradient; differentiate with "
                "sj.formats.Skipping(w.todense())."
            )

    def astype(self, dtype: DTypeLike) -> "Skipping":
        """The same matrix with entries of another dtype; int8 values stay."""
        if self.scale is None:
            return replace(self, values=jnp.asarray(self.values, dtype))
        return replace(self, scale=jnp.asarray(self.scale, dtype))

    def todense(self) -> Float[Array, "... k n"]:
        """The matrix as an array."""
        if self.scale is None:
            return jnp.asarray(self.values)
        return self.values.astype(self.scale.dtype) * self.scale

    def take(self, dense: Shaped[Array, "... k n"]) -> Shaped[Array, "... k n"]:
        """All entries of a matrix."""
        return dense

    def _repr(self) -> str:
        return f"shape={self.shape}, {self.values.dtype}"
