"""A design matrix on the host in the layout in which it came: dense or of sparse columns."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .._arguments import check_matrix_and_target
from .._scipy import compressed_columns
from .._sharding import on_host
from .._tree import is_array

COLUMNS, ROWS, SPARSE = range(3)
LAYOUTS = "COLUMNS", "ROWS", "SPARSE"  # the names of `paths.h`
CALL = "solve.lasso_host(X, y, 0.1)"


class Design(NamedTuple):
    """X (n, p): `values` (n, p) in Fortran or C order, or the entries of compressed columns."""

    layout: int
    shape: tuple[int, int]
    values: np.ndarray
    start: np.ndarray | None = None
    row: np.ndarray | None = None

    def dense(self, which: Any = slice(None)) -> np.ndarray:
        """Some columns (n, k), or all."""
        if self.start is None:
            return self.values[:, which]
        return self._sparse()[:, which].toarray()

    def replaced(self, which: np.ndarray, columns: np.ndarray) -> "Design":
        """A copy with other values (n, k) in some columns, which are dense there."""
        columns = columns.astype(self.values.dtype)
        if self.start is None or self.row is None:
            values = self.values.copy(order="K")
            values[:, which] = columns
            return self._replace(values=values)
        values, rows = (np.split(x, self.start[1:-1]) for x in (self.values, self.row))
        for j, column in zip(which, columns.T):
            values[j], rows[j] = column, np.arange(self.shape[0], dtype=np.int32)
        start = np.cumsum([0, *map(len, values)])
        return self._replace(values=np.concatenate(values), row=np.concatenate(rows), start=start)

    def product(self, w: np.ndarray) -> np.ndarray:
        """`X w` (n,)."""
        return self.values @ w if self.start is None else self._sparse() @ w

    def transposed_product(self, r: np.ndarray) -> np.ndarray:
        """`X^T r` (p,)."""
        return r @ self.values if self.start is None else self._sparse().T @ r

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Means of the features and of their squares (p,), in float64."""
        n, wide = self.shape[0], np.float64
        if self.start is None:
            squares = np.einsum("ij,ij->j", self.values, self.values, dtype=wide)
            return self.values.mean(axis=0, dtype=wide), squares / n
        column = np.repeat(np.arange(self.shape[1]), np.diff(self.start))
        values = self.values.astype(wide)
        sums = [np.bincount(column, x, self.shape[1]) for x in (values, values**2)]
        return sums[0] / n, sums[1] / n

    def _sparse(self) -> Any:
        from scipy.sparse import csc_array

        return csc_array((self.values, self.row, self.start), self.shape)


def host_data(X: Any, y: Any) -> tuple[Design, np.ndarray]:
    """The validated design and target, in float64 if one of them is, else in float32."""
    columns = X if is_array(X) else compressed_columns("X", X)
    check_matrix_and_target(X, y, 1, CALL)
    dtype = np.result_type(_float(X.dtype), _float(y.dtype))
    y = np.asarray(on_host(y), dtype)
    if not np.isfinite(y).all():
        raise ValueError("y holds NaN or infinity; drop or impute those rows first.")
    if is_array(X):
        values = np.asarray(on_host(X), dtype)
        if not (values.flags.f_contiguous or values.flags.c_contiguous):
            values = np.ascontiguousarray(values)
        return Design(COLUMNS if values.flags.f_contiguous else ROWS, values.shape, values), y
    values, rows = np.ascontiguousarray(columns.data, dtype), columns.indices.astype(np.int32)
    return Design(SPARSE, X.shape, values, columns.indptr.astype(np.int64), rows), y


def _float(dtype: Any) -> np.dtype:
    """The dtype in which data are solved: float64 stays, 16 bits become float32."""
    if not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
        raise TypeError(f"X and y must hold numbers, got {dtype}; as in {CALL}.")
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"X and y must be real, got {dtype}; use solve.proximal_gradient.")
    if jnp.issubdtype(dtype, jnp.floating):
        return np.dtype(np.float64 if dtype == np.float64 else np.float32)
    return np.dtype(jnp.result_type(float))  # integers, as in JAX
