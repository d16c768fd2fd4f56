"""Sparse data from SciPy and JAX, whose indices are checked before compiled code reads them."""

import functools
from typing import Any

import numpy as np


def compressed_columns(name: str, matrix: Any) -> Any:
    """A `csc_array` with sorted rows, duplicates summed; integers and small floats in float64.

    Raises:
      TypeError: If it is neither SciPy nor JAX sparse data.
      ValueError: If it has not two axes, or an index is outside of its shape.
    """
    found = _converter()(matrix, name)
    if not found.has_canonical_format:
        found = found.copy()
        found.sum_duplicates()
    return found


def within_shape(name: str, matrix: Any) -> Any:
    """A view of a SciPy matrix as rows, columns, blocks or entries, with indices within its shape.

    SciPy checks them when it makes a matrix, but they can be assigned to later, and its C++ reads
    or writes wherever they point.
    """
    try:
        if matrix.format in ("csr", "csc", "bsr"):
            parts = matrix.data, matrix.indices, matrix.indptr
            found = type(matrix)(parts, shape=matrix.shape)
            found.check_format()
            return found
        entries = matrix.tocoo(copy=False)
        return type(entries)((entries.data, entries.coords), shape=entries.shape)
    except ValueError as error:
        raise ValueError(
            f"{name} of shape {matrix.shape} must be a valid sparse matrix: {error}."
        ) from error


def _wide(values: np.ndarray) -> np.ndarray:
    """SciPy sums duplicates in the dtype of the values, int8 for example, and knows no bfloat16."""
    known = values.dtype in (np.float32, np.float64) or values.dtype.kind in "cOSUMm"
    return values if known else values.astype(np.float64)


@functools.cache
def _converter() -> Any:
    """Imported at first use: scipy.sparse is slow to load."""
    import scipy.sparse
    from jax.experimental import sparse

    @functools.singledispatch
    def convert(matrix: Any, name: str) -> Any:
        raise TypeError(
            f"{name} must be an array, or sparse data of SciPy or JAX, got a "
            f"{type(matrix).__name__}: scipy.sparse.csr_array(x)."
        )

    @convert.register(scipy.sparse.spmatrix)
    @convert.register(scipy.sparse.sparray)
    def _(matrix, name):
        if matrix.ndim != 2:
            raise ValueError(f"{name} must have two axes, got shape {matrix.shape}.")
        found = within_shape(name, matrix)
        wide = _wide(found.data)
        return scipy.sparse.csc_array(found if wide is found.data else found.astype(wide.dtype))

    @convert.register
    def _(matrix: sparse.BCOO, name):
        _check_plain(name, matrix)
        index = np.asarray(matrix.indices)
        stored = (index < np.array(matrix.shape)).all(axis=1)  # the others are padding
        values = _wide(np.asarray(matrix.data)[stored])
        if (index[stored] < 0).any():
            raise ValueError(f"{name} of shape {matrix.shape} must have indices >= 0.")
        entries = values, (index[stored, 0], index[stored, 1])
        return scipy.sparse.csc_array(scipy.sparse.coo_array(entries, matrix.shape))

    @convert.register
    def _(matrix: sparse.BCSR, name):
        _check_plain(name, matrix)
        starts = np.asarray(matrix.indptr)
        values, columns = (np.asarray(x)[: max(int(starts[-1]), 0)] for x in
                           (matrix.data, matrix.indices))  # fmt: skip
        found = scipy.sparse.csr_array((_wide(values), columns, starts), matrix.shape)
        return scipy.sparse.csc_array(within_shape(name, found))

    return convert


def _check_plain(name: str, matrix: Any) -> None:
    if matrix.n_batch or matrix.n_dense or len(matrix.shape) != 2:
        raise ValueError(
            f"{name} must be a sparse matrix without batch and dense axes, got "
            f"n_batch={matrix.n_batch}, n_dense={matrix.n_dense}: sparse.BCOO.fromdense(x)."
        )
