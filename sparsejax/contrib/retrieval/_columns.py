"""Vectors in arrays, SciPy matrices, BCOO and BCSR as compressed columns."""

from typing import Any

import jax
import numpy as np

from ..._scipy import compressed_columns
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
    dense = isinstance(matrix, jax.Array | np.ndarray)
    found = compressed_columns(name, _sparse_rows(matrix) if dense else matrix)
    if found.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got {found.dtype}.")
    found = found.astype(np.float64)
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


def _sparse_rows(w: Any) -> Any:
    """A dense array as compressed rows."""
    from scipy.sparse import csr_array

    host = on_host(w)
    known = host.dtype in (np.float32, np.float64) or host.dtype.kind in "biuc"
    return csr_array(host if known else host.astype(np.float32))
