"""2:4 matrices as the sparse tensor cores of Hopper GPUs read them."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from .._tree import register_dataclass
from ._array import SparseArray
from ._nm import NMArray

STEP = 128  # rows of W that four instructions contract
PART = 64  # columns of W of an instruction
WORDS = 256  # of metadata for both: one for each pair of lanes and each instruction


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class TensorCoreArray(SparseArray):
    r"""A 2:4 matrix in the order in which sparse tensor cores read it.

    The same numbers as in an `NMArray`, so that no product has to reorder them; make one with
    `fromnm`, once, from a matrix whose pattern is fixed. Multiplied by the implementation
    "sparse_cores"; where that cannot run, by the dense matrix. Gradients have the layout of
    `values`.

    Args:
      values: W^T without its zeros, `(stacked..., N, K / 2)`.
      metadata: Where they stood: `(stacked..., K / 128, N / 64, 256)` words.
      padding: Zero rows after the last of the K, where 4 does not divide K.

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

    @classmethod
    def fromnm(cls, w: Any) -> "TensorCoreArray":
        """Reorders a 2:4 matrix; can be jitted.

        Args:
          w: An `NMArray` `(stacked..., K, N)`: K, padding included, a multiple of 128, N one of
            64.

        Raises:
          TypeError: If w is not an `NMArray`.
          ValueError: If it is not 2:4, or its sizes are not such multiples.
        """
        if not isinstance(w, NMArray):
            raise TypeError(
                f"TensorCoreArray.fromnm(w) must be an NMArray, got {type(w).__name__}; a dense "
                "matrix becomes one by sj.formats.NMArray.fromdense(w, 2, 4)."
            )
        if why := misfit(w):
            raise ValueError(f"TensorCoreArray.fromnm: {why}.")
        code = jnp.repeat(w.code, w.share, axis=-1)
        return cls(_values(w.values), _metadata(code), w.padding)

    def tonm(self) -> NMArray:
        """The same matrix as an `NMArray`, every column with a pattern of its own."""
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

    def _repr(self) -> str:
        return f"2:4, shape={self.shape}, dtype={self.dtype}"


def misfit(w: NMArray) -> str | None:
    """Why the tensor cores cannot read a matrix, if so."""
    groups, columns = w.values.shape[-2:]
    fits = groups and columns and 4 * groups % STEP == 0 and columns % PART == 0
    if (w.n, w.m) == (2, 4) and fits:
        return None
    return f"{w} is not 2:4 of K a multiple of {STEP} and N one of {PART}"


@partial(jnp.vectorize, signature="(n,g,c)->(c,k)")
def _values(planes: Array) -> Array:
    return planes.transpose(2, 1, 0).reshape(planes.shape[2], -1)


@partial(jnp.vectorize, signature="(c,k)->(n,g,c)")
def _planes(values: Array) -> Array:
    return values.reshape(values.shape[0], -1, 2).transpose(2, 1, 0)


@partial(jnp.vectorize, signature="(g,c)->(s,p,w)")
def _metadata(code: Array) -> Array:
    """The words from the codes of the groups, 4 bits each, the lower index in the lower 2 bits.

    A word holds eight of them. By the PTX ISA (9.7.15.6.2.1, the figure of `mma.sp.m16n8k32` for
    each warp), the lanes 4 g and 4 g + 1 of warp w give those of the rows 16 w + g (low half of the
    word) and 16 w + g + 8 (high half) of W^T, lane 4 g for the first 16 of the 32 rows of W, lane
    4 g + 1 for the others. The sparsity selector 0 takes these lanes; the other two of a group of
    four are given the same. CUTLASS lays the metadata of this instruction out alike.
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
    """The codes of the groups from the words: `_metadata` backwards."""
    steps, parts, _ = metadata.shape
    words = metadata.reshape(steps, parts, 4, 8, 2, 4).transpose(0, 5, 4, 1, 2, 3)
    half = jnp.stack([words & 0xFFFF, words >> 16], axis=-2).reshape(-1, 1, parts * PART)
    code = half >> (4 * jnp.arange(4, dtype=jnp.uint32)[:, None]) & 15
    return code.reshape(-1, parts * PART).astype(jnp.uint8)
