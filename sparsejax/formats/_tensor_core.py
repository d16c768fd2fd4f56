"""2:4 matrices in the layout of the sparse tensor cores of Hopper GPUs."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from .._tree import register
from ._array import SparseArray
from ._nm import NMArray
from ._validate import need, need_floats, need_integers, need_static

STEP = 128  # rows of W contracted by four instructions
PART = 64  # columns of W per instruction
WORDS = 256  # metadata words for both: one per pair of lanes and instruction


@register
@dataclass(frozen=True, eq=False, repr=False)
class TensorCoreArray(SparseArray):
    r"""A 2:4 matrix in the order in which sparse tensor cores read it.

    The values of an `NMArray`, ordered once, so that no product has to reorder them; make one with
    `fromnm` from a matrix whose pattern is fixed. Products use the implementation "sparse_cores"
    or, where that cannot run, the dense matrix. Gradients have the layout of `values`.

    Args:
      values: W^T without its zeros, `(stacked..., N, K / 2)`.
      metadata: Positions of the values: `(stacked..., K / 128, N / 64, 256)` words.
      padding: Zero rows appended to the K rows if 4 does not divide K.

    Reference:
      NVIDIA, Parallel Thread Execution ISA, "Sparse wgmma matrices" (9.7.15.6).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.NMArray.fromdense(jnp.ones((128, 64), jnp.bfloat16), 2, 4)
      >>> packed = sj.formats.TensorCoreArray.fromnm(w)
      >>> packed, packed.nbytes / w.todense().nbytes
      (TensorCoreArray(2:4, shape=(128, 64), dtype=bfloat16), 0.5625)
    """

    values: Any
    metadata: Any
    padding: int = field(default=0, metadata=dict(static=True))

    # Rows and columns of W that one instruction contracts, four times over, and its metadata.
    step: ClassVar[int] = STEP
    part: ClassVar[int] = PART
    words: ClassVar[int] = WORDS

    @classmethod
    def misfit(cls, w: NMArray) -> str | None:
        """The reason why the tensor cores cannot read a matrix; None if they can."""
        groups, columns = w.values.shape[-2:]
        fits = groups and columns and 4 * groups % STEP == 0 and columns % PART == 0
        if (w.n, w.m) == (2, 4) and fits:
            return None
        return f"{w} must be 2:4 with K a multiple of {STEP} and N a multiple of {PART}"

    @classmethod
    def fromnm(cls, w: Any) -> "TensorCoreArray":
        """Reorders a 2:4 matrix; can be jitted.

        Args:
          w: An `NMArray` `(stacked..., K, N)`: K, padding included, a multiple of 128, N one of
            64.

        Raises:
          TypeError: If w is not an `NMArray`.
          ValueError: If it is not 2:4, or K or N is not such a multiple.
        """
        if not isinstance(w, NMArray):
            raise TypeError(
                f"TensorCoreArray.fromnm(w) must be an NMArray, got {type(w).__name__}; a dense "
                "matrix becomes one by sj.formats.NMArray.fromdense(w, 2, 4)."
            )
        if why := cls.misfit(w):
            raise ValueError(f"TensorCoreArray.fromnm: {why}.")
        code = jnp.repeat(w.code, w.share, axis=-1)
        return cls(_values(w.values), _metadata(code), w.padding)

    def tonm(self) -> NMArray:
        """The same matrix as an `NMArray`, with one pattern per column."""
        return NMArray(_planes(self.values), _code(self.metadata), 4, self.padding)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(stacked..., K, N)`."""
        *stacked, columns, stored = self.values.shape
        return (*stacked, 2 * stored - self.padding, columns)

    def todense(self) -> Float[Array, "... k n"]:
        """The matrix `(stacked..., K, N)` with zeros where nothing is stored."""
        return self.tonm().todense()

    def take(self, dense: Shaped[Array, "... k columns"]) -> Shaped[Array, "... columns stored"]:
        """The entries of a matrix `(stacked..., K, N)` at the stored positions, as `values`."""
        return _values(self.tonm().take(dense))

    def validate(self) -> None:
        """Raises ValueError if the metadata are not those of a 2:4 matrix of this shape."""
        *lead, columns, stored = need_floats(self, "values", 2)
        fits = stored % (STEP // 2) == 0 and columns % PART == 0
        need(self, fits, f"values of shape {(columns, stored)} are no whole instructions")
        need_static(self, "padding", 0, 3 if stored else 0)
        shape = (*lead, 2 * stored // STEP, columns // PART, WORDS)
        metadata = need_integers(self, "metadata", shape, np.uint32)
        need(self, np.array_equal(_metadata(_code(metadata)), metadata), "lanes of metadata differ")
        self.tonm().validate()

    @property
    def label(self) -> str:
        """ "2:4 for tensor cores"."""
        return "2:4 for tensor cores"

    @property
    def column_axes(self) -> dict[str, int]:
        """Columns, and the parts of 64 of them."""
        return {"values": -2, "metadata": -2}

    def _repr(self) -> str:
        return f"2:4, shape={self.shape}, dtype={self.dtype}"


@partial(jnp.vectorize, signature="(n,g,c)->(c,k)")
def _values(planes: Array) -> Array:
    return planes.transpose(2, 1, 0).reshape(planes.shape[2], -1)


@partial(jnp.vectorize, signature="(c,k)->(n,g,c)")
def _planes(values: Array) -> Array:
    return values.reshape(values.shape[0], -1, 2).transpose(2, 1, 0)


@partial(jnp.vectorize, signature="(g,c)->(s,p,w)")
def _metadata(code: Array) -> Array:
    """Metadata words from group codes of 4 bits, the lower index in the lower 2 bits.

    A word holds eight of them. By the PTX ISA (9.7.15.6.2.1, the figure of `mma.sp.m16n8k32` for
    each warp), the lanes 4 g and 4 g + 1 of warp w give those of the rows 16 w + g (low half of the
    word) and 16 w + g + 8 (high half) of W^T, lane 4 g for the first 16 of the 32 rows of W, lane
    4 g + 1 for the others. The sparsity selector 0 uses these lanes; the other two of a group of
    four receive the same words. CUTLASS uses the same metadata layout.
    """
    columns = code.shape[1]
    code = code.astype(jnp.uint32).reshape(-1, 4, columns)
    half = code[:, 0] | code[:, 1] << 4 | code[:, 2] << 8 | code[:, 3] << 12
    # Step, instruction, lane, part, warp, half, g.
    half = half.reshape(-1, 4, 2, columns // PART, 4, 2, 8)
    words = half[..., 0, :] | half[..., 1, :] << 16
    return words.transpose(0, 3, 4, 5, 2, 1).reshape(-1, columns // PART, WORDS)


@partial(jnp.vectorize, signature="(s,p,w)->(g,c)")
def _code(metadata: Array) -> Array:
    """The codes of the groups from the words: the inverse of `_metadata`."""
    steps, parts, _ = metadata.shape
    words = metadata.reshape(steps, parts, 4, 8, 2, 4).transpose(0, 5, 4, 1, 2, 3)
    half = jnp.stack([words & 0xFFFF, words >> 16], axis=-2).reshape(-1, 1, parts * PART)
    code = half >> (4 * jnp.arange(4, dtype=jnp.uint32)[:, None]) & 15
    return code.reshape(-1, parts * PART).astype(jnp.uint8)
