"""Other block sizes; interchange with `jax.experimental.sparse` and SciPy."""

import functools
import importlib
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from .._arguments import checked, known
from .._scipy import within_shape
from .._sharding import on_host
from ._array import SparseArray
from ._block import BlockArray
from ._nm import NMArray

# Imported where used: jax.experimental.sparse loads scipy.sparse.
if TYPE_CHECKING:
    from jax.experimental.sparse import BCOO, BCSR
else:
    BCOO = BCSR = Any


@checked()
def to_bcoo(w: SparseArray) -> BCOO:
    """The stored entries as a BCOO matrix, sorted by row; unused N:M slots are explicit zeros.

    Args:
      w: A matrix `(K, N)`; can be traced (padding then has out-of-range indices, as usual for
        BCOO).

    Raises:
      ValueError: If `w` is stacked.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.BlockArray.fromdense(jnp.eye(4), 2)
      >>> sj.formats.to_bcoo(w).nse
      8
    """
    values, rows, columns = _entries(w)
    if known(rows):
        stored = np.flatnonzero(on_host(rows) < w.shape[0])
        values, rows, columns = values[stored], rows[stored], columns[stored]
    indices = jnp.stack([rows, columns], axis=-1)
    from jax.experimental.sparse import BCOO

    return BCOO((values, indices), shape=w.shape, unique_indices=True).sort_indices()


@checked()
def to_bcsr(w: SparseArray) -> BCSR:
    """The stored entries as a BCSR matrix; unused N:M slots are explicit zeros.

    Args:
      w: A matrix `(K, N)`, not traced.

    Raises:
      ValueError: If `w` is stacked.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.NMArray.fromdense(jnp.eye(4), 1, 4)
      >>> sj.formats.to_bcsr(w).indptr.tolist()
      [0, 1, 2, 3, 4]
    """
    from jax.experimental.sparse import BCSR

    return BCSR.from_bcoo(to_bcoo(w))


@checked()
def to_scipy(w: SparseArray) -> Any:
    """The stored entries as a SciPy array: `bsr_array` of blocks, `csr_array` of N:M.

    Args:
      w: A matrix `(K, N)`, not traced. SciPy does not support bfloat16; such values become float32.

    Raises:
      ValueError: If `w` is stacked.
      ImportError: If SciPy is not installed.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.BlockArray.fromdense(jnp.eye(4), 2)
      >>> sj.formats.to_scipy(w).blocksize
      (2, 2)
    """
    sparse = _scipy()
    _check_matrix(w)
    if isinstance(w, BlockArray):
        return _to_bsr(w, sparse)
    values, rows, columns = (on_host(x) for x in _entries(w))
    inside = rows < w.shape[0]
    entries = _known(values)[inside], (rows[inside], columns[inside])
    return sparse.csr_array(entries, shape=w.shape)


@checked()
def from_sparse(
    matrix: Any,
    *,
    block: int | tuple[int, int] | None = None,
    nm: tuple[int, int] | None = None,
) -> SparseArray:
    """Converts a BCOO, BCSR or SciPy matrix to a `BlockArray` or `NMArray`; keeps explicit zeros.

    Args:
      matrix: `(K, N)`.
      block: The block shape, for a `BlockArray`; None with a SciPy BSR array uses its block shape.
      nm: `(n, m)`, for an `NMArray`.

    Raises:
      ValueError: If neither or both of block and nm are given, or the entries do not fit.
      TypeError: If it is not a sparse matrix.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from jax.experimental.sparse import BCOO
      >>> sj.formats.from_sparse(BCOO.fromdense(jnp.eye(4)), nm=(1, 4))
      NMArray(1:4, shape=(4, 4), dtype=float32)
    """
    if block is None and nm is None:
        block = getattr(matrix, "blocksize", None)
    if (block is None) == (nm is None):
        raise ValueError(
            "from_sparse needs one of block and nm, as in from_sparse(matrix, block=(16, 16)) or "
            "from_sparse(matrix, nm=(2, 4))."
        )
    dense, mask = _dense_and_mask(matrix)
    if nm is not None:
        return NMArray.fromdense(dense, *nm, mask=mask)
    return BlockArray.fromdense(dense, block, mask=mask)  # pyright: ignore


@checked()
def convert_block(w: BlockArray, block: int | tuple[int, int]) -> BlockArray:
    """The same matrix in blocks of another size, through the dense matrix.

    Smaller blocks drop zeros of the larger ones; larger blocks store the zeros in between.

    Args:
      w: `(stacked..., K, N)`.
      block: `(bk, bn)` or one number for both.

    Raises:
      ValueError: If the blocks do not divide the matrix.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.BlockArray.fromdense(jnp.eye(8), 4)
      >>> sj.formats.convert_block(w, 2).density
      0.25
    """
    return BlockArray.fromdense(w.todense(), block)


def _entries(w: SparseArray):
    """Values, rows and columns of the stored entries, flat; padding has row K."""
    _check_matrix(w)
    return w.values.ravel(), *_coordinates(w)


@functools.singledispatch
def _coordinates(w: SparseArray):
    """Rows and columns of the stored values, flat; padding has row K."""
    k, n = w.shape
    rows = w.take(jnp.broadcast_to(jnp.arange(1, k + 1)[:, None], (k, n)))  # 0 in the padding
    columns = w.take(jnp.broadcast_to(jnp.arange(n), (k, n)))
    return jnp.where(rows > 0, rows - 1, k).ravel(), columns.ravel()


@_coordinates.register
def _(w: NMArray):
    _, groups, columns = w.values.shape
    index = jnp.repeat(w.index.astype(jnp.int32), w.share, axis=-1)
    rows = jnp.minimum(index + w.m * jnp.arange(groups)[None, :, None], w.shape[0])
    column = jnp.broadcast_to(jnp.arange(columns), rows.shape)
    return rows.ravel(), column.ravel()


@_coordinates.register
def _(w: BlockArray):
    columns, _, bk, bn = w.values.shape
    inner = jnp.arange(bk)[None, None, :, None], jnp.arange(bn)[None, None, None]
    rows = w.index[..., None, None] * bk + inner[0]
    rows = jnp.where(w.used[..., None, None], rows, w.shape[0])
    column = jnp.arange(columns)[:, None, None, None] * bn + inner[1]
    rows, column = (jnp.broadcast_to(x, w.values.shape).ravel() for x in (rows, column))
    return rows, column


def _to_bsr(w: BlockArray, sparse: Any) -> Any:
    w = w.with_rows()
    count = on_host(w.count_t)
    used = np.arange(w.slot_t.shape[1]) < count[:, None]
    slot, column = on_host(w.slot_t)[used], on_host(w.index_t)[used]
    blocks = _known(on_host(w.values)).reshape(-1, *w.block)[slot]
    indptr = np.concatenate([[0], np.cumsum(count)])
    return sparse.bsr_array((blocks, column, indptr), shape=w.shape, blocksize=w.block)


def _dense_and_mask(matrix: Any):
    from jax.experimental.sparse import BCOO, BCSR

    if isinstance(matrix, BCSR):
        matrix = matrix.to_bcoo()
    if isinstance(matrix, BCOO):
        ones = BCOO((jnp.ones_like(matrix.data), matrix.indices), shape=matrix.shape)
        return matrix.todense(), ones.todense() != 0
    if not _scipy().issparse(matrix):
        raise TypeError(f"from_sparse(matrix) must be BCOO, BCSR or SciPy, got {type(matrix)}.")
    matrix = within_shape("from_sparse: matrix", matrix)
    entries = matrix.tocoo()
    mask = np.zeros(matrix.shape, bool)
    mask[entries.coords] = True
    return np.asarray(matrix.todense()), mask


def _known(values: np.ndarray) -> np.ndarray:
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)


def _check_matrix(w: SparseArray) -> None:
    if w.ndim != 2:
        raise ValueError(
            f"a stacked matrix of shape {w.shape} has no single sparse form; convert the slices "
            "jax.tree.map(lambda leaf: leaf[i], w)."
        )


def _scipy() -> Any:
    try:
        return importlib.import_module("scipy.sparse")
    except ImportError as error:
        raise ImportError("to_scipy needs SciPy: pip install scipy") from error
