"""A design matrix on the host in the layout in which it came: dense or of sparse columns."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .._arguments import check_matrix_and_target
from .._sharding import on_host
from .._tree import is_array

COLUMNS, ROWS, SPARSE = range(3)
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

    def _sparse(self) -> Any:
        from scipy.sparse import csc_array

        return csc_array((self.values, self.row, self.start), self.shape)


def host_data(X: Any, y: Any) -> tuple[Design, np.ndarray]:
    """The validated design and target, in float64 if one of them is, else in float32."""
    X = X if is_array(X) else _columns(X)
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
    values = np.ascontiguousarray(X.data, dtype)
    return Design(SPARSE, X.shape, values, X.indptr.astype(np.int64), X.indices.astype(np.int32)), y


def _float(dtype: Any) -> np.dtype:
    """The dtype in which data are solved: float64 stays, 16 bits become float32."""
    if not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
        raise TypeError(f"X and y must hold numbers, got {dtype}; as in {CALL}.")
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"X and y must be real, got {dtype}; use solve.proximal_gradient.")
    if jnp.issubdtype(dtype, jnp.floating):
        return np.dtype(np.float64 if dtype == np.float64 else np.float32)
    return np.dtype(jnp.result_type(float))  # integers, as in JAX


def _columns(X: Any) -> Any:
    """Sparse data of SciPy or JAX as SciPy's compressed columns, duplicates summed."""
    found = _converter()(X)
    if not found.has_canonical_format:
        found = found.copy()
        found.sum_duplicates()
    return found


@functools.cache
def _converter() -> Any:
    """Imports what knows of sparse data when some of it comes."""
    import scipy.sparse
    from jax.experimental import sparse

    @functools.singledispatch
    def convert(X: Any) -> Any:
        raise TypeError(
            f"X must be an array, or sparse data of SciPy or JAX, got a {type(X).__name__}; as in "
            f"{CALL}."
        )

    @convert.register(scipy.sparse.spmatrix)
    @convert.register(scipy.sparse.sparray)
    def _(X):
        return scipy.sparse.csc_array(X)

    @convert.register
    def _(X: sparse.BCOO):
        _plain(X)
        index = np.asarray(X.indices)
        stored = (index < np.array(X.shape)).all(axis=1)  # others fill up the room
        entries = np.asarray(X.data)[stored], (index[stored, 0], index[stored, 1])
        return scipy.sparse.csc_array(scipy.sparse.coo_array(entries, X.shape))

    @convert.register
    def _(X: sparse.BCSR):
        _plain(X)
        end = int(X.indptr[-1])
        entries = np.asarray(X.data)[:end], np.asarray(X.indices)[:end], np.asarray(X.indptr)
        return scipy.sparse.csc_array(scipy.sparse.csr_array(entries, X.shape))

    return convert


def _plain(X: Any) -> None:
    if X.n_batch or X.n_dense:
        raise ValueError(
            f"X must be a sparse matrix without batch and dense axes, got n_batch={X.n_batch}, "
            f"n_dense={X.n_dense}."
        )
