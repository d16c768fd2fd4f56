"""Memory of a kernel in a given format, indices included."""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool

from .._arguments import checked
from .._masks import count
from ..patterns import NM, Block, Layout, Pattern

Format = Literal["dense", "bitmask", "csr"] | Pattern


@checked()
def bytes_of(
    mask: Bool[Array, "..."] | Bool[np.ndarray, "..."] | tuple[int, ...],
    dtype: DTypeLike = jnp.float32,
    format: Format = "dense",
    *,
    kept: int | None = None,
) -> int:
    r"""Bytes of a kernel stored in a format, values and indices together.

    With n entries, k kept and b bytes per value: dense `n b`; bitmask `k b + n / 8`; CSR with int32
    indices `k b + 4 k + 4 (rows + 1)`; N:M `s b + s ceil(log2 m) / 8` with s = n_groups * N slots;
    block `blocks (size b + 4) + 4 (block rows + 1)`.

    Args:
      mask: A boolean array, True where kept; or the shape of the kernel.
      dtype: dtype of the values.
      format: "dense", "bitmask", "csr" (rows are all axes but the last), or a pattern whose groups
        are the units of storage, `sj.NM(2, 4)` or `sj.Block((64, 64), 0.9)`.
      kept: Number of kept entries, if `mask` is a shape; all of them by default.

    Returns:
      Bytes, a Python int.

    Raises:
      ValueError: If the format is unknown or does not fit the shape.

    Reference:
      Liu and Wang, Ten Lessons We Have Learned in the New "Sparseland", 2023 (arXiv 2302.02596).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from sparsejax.reporting import bytes_of
      >>> [bytes_of((128, 128), format=f, kept=1638) for f in ("dense", "bitmask", "csr")]
      [65536, 8600, 13620]
      >>> bytes_of((128, 128), jnp.bfloat16, sj.NM(2, 4))
      18432
    """
    shape = mask if isinstance(mask, tuple) else tuple(mask.shape)
    n, bits = math.prod(shape), _bits(dtype)
    if isinstance(format, Pattern):
        return pattern_bytes(format, mask, format.layout(shape), kept, bits)
    if kept is None:
        kept = n if isinstance(mask, tuple) else count(mask)
    values = _whole(kept * bits)
    if format == "dense":
        return _whole(n * bits)
    if format == "bitmask":
        return values + _whole(n)
    if format == "csr":
        return values + 4 * kept + 4 * (math.prod(shape[:-1]) + 1)
    raise ValueError(
        f'bytes_of: format must be "dense", "bitmask", "csr", or a pattern such as sj.NM(2, 4) or '
        f"sj.Block((64, 64), 0.9), got {format!r}."
    )


@functools.singledispatch
def pattern_bytes(pattern: Pattern, mask: Any, layout: Layout, kept: int | None, bits: int) -> int:
    """Bytes in the format of a pattern; patterns of custom formats can be registered."""
    del mask, layout, kept, bits
    raise ValueError(f"bytes_of: {pattern.label} has no compressed format; use sj.NM or sj.Block.")


@pattern_bytes.register
def _(pattern: NM, mask, layout: Layout, kept: int | None, bits: int) -> int:
    del mask, kept
    slots = pattern.groups(layout) * pattern.n
    return _whole(slots * bits) + _whole(slots * (pattern.m - 1).bit_length())


@pattern_bytes.register
def _(pattern: Block, mask, layout: Layout, kept: int | None, bits: int) -> int:
    units = pattern.units(layout)
    if isinstance(mask, tuple):
        share = math.prod(layout.shape) if kept is None else kept
        blocks = min(units, -(-share // math.prod(pattern.shape)))
    else:
        blocks = count(pattern.active(jnp.asarray(mask, bool), layout))
    *stacked, rows, _ = layout.matrix_shape
    pointers = math.prod(stacked) * (rows // pattern.shape[0]) + 1
    return blocks * (_whole(math.prod(pattern.shape) * bits) + 4) + 4 * pointers


def _bits(dtype: Any) -> int:
    return jax.dtypes.itemsize_bits(jnp.dtype(dtype))


def _whole(bits: int) -> int:
    return -(-bits // 8)
