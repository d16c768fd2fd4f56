"""Vectors in arrays, SciPy matrices, BCOO and BCSR as compressed columns."""

import functools
from typing import Any

import jax
import numpy as np

from ..._sharding import on_host


def columns_of(name: str, matrix: Any) -> Any:
    """A `csc_array` of float64 with sorted rows and duplicates summed.

    Raises:
      TypeError: If the matrix is of another type, or holds other numbers than real ones.
      ValueError: If it has not two axes, or a number is not finite or below 0.
    """
    shape = getattr(matrix, "shape", None)
    if isinstance(shape, tuple) and len(shape) != 2:
        raise ValueError(f"{name} must have the shape (vectors, vocabulary), got {shape}.")
    found = _converter()(matrix)
    if found is None:
        raise TypeError(
            f"{name} must be an array, a SciPy sparse matrix, a BCOO or a BCSR, got a "
            f"{type(matrix).__name__}: scipy.sparse.csr_array(w)."
        )
    if found.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got {found.dtype}.")
    found = found.astype(np.float64)
    found.sum_duplicates()
    if not np.all(np.isfinite(found.data)) or np.any(found.data < 0):
        raise ValueError(f"{name} of shape {found.shape} must hold finite weights >= 0.")
    return found


def checked_columns(path: Any, found: Any) -> Any:
    """The columns of a file, after every check that keeps indices within memory."""
    from scipy.sparse import csc_array

    names = {"documents", "rows", "values", "lengths"}
    if not isinstance(found, dict) or set(found) != names:
        raise ValueError(f"load: {path} is not an index: it must hold {', '.join(sorted(names))}.")
    documents = found.pop("documents")
    rows, values, lengths = (np.asarray(found[name]) for name in ("rows", "values", "lengths"))
    wrong = {
        "documents": type(documents) is not int or not 0 <= documents < 2**31,
        "rows": rows.dtype != np.int32 or rows.ndim != 1,
        "values": values.dtype != np.float32 or values.shape != rows.shape,
        "lengths": lengths.dtype != np.int32 or lengths.ndim != 1,
    }
    if not any(wrong.values()):
        ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        first = np.isin(np.arange(len(rows)), ends)
        falling = (np.diff(rows, prepend=-1) <= 0) & ~first
        wrong["lengths"] = bool(np.any(lengths < 0)) or ends[-1] != len(rows)
        wrong["rows"] = bool(np.any((rows < 0) | (rows >= documents) | falling))
        wrong["values"] = not np.all(np.isfinite(values) & (values > 0))
    if bad := [name for name, is_wrong in wrong.items() if is_wrong]:
        raise ValueError(f"load: {path} is damaged: {', '.join(bad)} cannot be those of an index.")
    return csc_array((values, rows, ends), (documents, len(lengths)))


def _wide(values: Any) -> Any:
    """In float64: SciPy sums duplicates in the dtype of the values, int8 for example."""
    return values if values.dtype.kind == "c" else values.astype(np.float64)


@functools.cache
def _converter() -> Any:
    """Imported at first use: scipy.sparse is slow to load."""
    import scipy.sparse
    from jax.experimental import sparse

    @functools.singledispatch
    def convert(matrix: Any) -> Any:
        return None

    @convert.register(scipy.sparse.spmatrix)
    @convert.register(scipy.sparse.sparray)
    def _(matrix):
        return scipy.sparse.csc_array(_wide(matrix))

    @convert.register(np.ndarray)
    @convert.register(jax.Array)
    def _(matrix):
        host = on_host(matrix)
        known = host.dtype in (np.float32, np.float64) or host.dtype.kind in "biuc"
        rows = scipy.sparse.csr_array(host if known else host.astype(np.float32))
        return scipy.sparse.csc_array(rows)

    @convert.register
    def _(matrix: sparse.BCOO):
        if matrix.n_batch or matrix.n_dense:
            raise ValueError(
                f"a BCOO must have two sparse axes, got n_batch={matrix.n_batch} and n_dense="
                f"{matrix.n_dense}: sparse.BCOO.fromdense(w)."
            )
        index = np.asarray(matrix.indices)
        stored = (index < np.array(matrix.shape)).all(axis=1)  # the others are padding
        values = _wide(np.asarray(matrix.data)[stored])
        entries = values, (index[stored, 0], index[stored, 1])
        return scipy.sparse.csc_array(scipy.sparse.coo_array(entries, matrix.shape))

    @convert.register
    def _(matrix: sparse.BCSR):
        return convert(matrix.to_bcoo())

    return convert
