"""Matrices of single entries at arbitrary positions that a bitmask marks."""

import math
import operator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt

from .._arguments import checked, known
from .._sharding import on_host
from .._tree import register
from ._array import SparseArray, as_mask, check_matrix, stacked
from ._validate import need, need_floats, need_integers


@register
@dataclass(frozen=True, eq=False, repr=False)
class BitmaskArray(SparseArray):
    r"""A matrix that stores its entries row by row, and one bit for each position.

    The smallest format for unstructured zeros above 3 %: a fraction d of entries of b bytes takes
    `(d b + 1/8) K N` bytes. It saves memory, not time: products and gradients decompress it. Make
    one with `fromdense`. Slots of `values` behind the last set bit are padding, whose gradient is
    exactly zero.

    Args:
      bits: `(stacked..., K, ceil(N / 8))`, uint8; bit i of byte c is column `8 c + i`.
      values: `(stacked..., s)`, the entries of the set bits, row by row.
      columns: N.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.BitmaskArray.fromdense(jnp.array([[0.0, 5.0, 0.0], [7.0, 0.0, 8.0]]))
      >>> w, w.bits.tolist(), w.values.tolist()
      (BitmaskArray(3, shape=(2, 3), dtype=float32), [[2], [5]], [5.0, 7.0, 8.0])
      >>> (jnp.ones(2) @ w).tolist()
      [7.0, 5.0, 8.0]
    """

    bits: Any
    values: Any
    columns: int = field(metadata=dict(static=True))

    def __post_init__(self):
        object.__setattr__(self, "columns", operator.index(self.columns))

    @classmethod
    @checked()
    def fromdense(
        cls,
        w: Shaped[Array | np.ndarray, "..."],
        *,
        mask: Shaped[Array | np.ndarray, "..."] | None = None,
        slots: int | None = None,
    ) -> "BitmaskArray":
        """Compresses a matrix; can be jitted and vmapped.

        Args:
          w: `(stacked..., K, N)`, floats.
          mask: Entries to store, in the shape of w; None stores those that are not zero: NaN is
            stored, and -0.0 becomes 0.0.
          slots: s, the capacity in entries. None uses the number of entries of the fullest matrix,
            or `K N` if w is traced. If traced, excess entries become zero.

        Raises:
          ValueError: If (unless traced) there are more entries than slots.
          TypeError: If w does not hold floats or the mask booleans.
        """
        check_matrix("BitmaskArray.fromdense", w)
        kept, size = (
            jnp.asarray(as_mask("BitmaskArray.fromdense", w, mask)),
            math.prod(w.shape[-2:]),
        )
        if known(kept):
            most = int(on_host(kept).sum((-2, -1)).max(initial=0))
            slots = most if slots is None else slots
            if most > slots:
                raise ValueError(
                    f"BitmaskArray.fromdense: {most} entries do not fit slots={slots}."
                )
        slots = size if slots is None else min(slots, size)
        pack = stacked(partial(_pack, slots=slots), kept.ndim - 2)
        bits, values = pack(jnp.asarray(w), kept)
        return cls(bits, values, w.shape[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """`(stacked..., K, N)`."""
        return (*self.bits.shape[:-1], self.columns)

    @property
    def mask(self) -> Bool[Array, "... k n"]:
        """The stored positions, `(stacked..., K, N)`."""
        return _unpacked(self.bits)[..., : self.columns]

    def todense(self) -> Float[Array, "... k n"]:
        """The matrix `(stacked..., K, N)` with zeros where nothing is stored."""
        fill = stacked(partial(_filled, columns=self.columns), self.values.ndim - 1)
        return fill(self.bits, self.values)

    def take(self, dense: Shaped[Array, "... k n"]) -> Shaped[Array, "... s"]:
        """The entries of a matrix `(stacked..., K, N)` at the stored positions; padding is zero."""
        gather = stacked(partial(_gathered, slots=self.values.shape[-1]), self.values.ndim - 1)
        return gather(dense, self.mask)

    @property
    def real(self) -> Bool[Array, "... s"]:
        """The slots that hold an entry."""
        count = lax.population_count(self.bits).sum((-2, -1), dtype=jnp.int32)
        return jnp.arange(self.values.shape[-1]) < count[..., None]

    def validate(self) -> None:
        """Raises ValueError if the bits are not those of so many values and columns."""
        *lead, slots = need_floats(self, "values", 1)
        rows = getattr(self.bits, "shape", (0, 0))[-2:-1]
        need(self, self.columns >= 0, "columns must not be negative")
        width = -(-self.columns // 8)
        bits = need_integers(self, "bits", (*lead, *rows, width), np.uint8)
        set_bits = np.unpackbits(bits, axis=-1, bitorder="little")
        need(self, not set_bits[..., self.columns :].any(), "bits beyond the columns are set")
        counts = set_bits.sum((-2, -1), dtype=np.int64)
        most = int(counts.max(initial=0))
        need(self, most <= slots, f"{most} bits are set, but there are {slots} values")
        padding = jnp.where(self.real, jnp.zeros((), self.dtype), self.values)
        need(self, ~jnp.any(padding != 0), "values must be 0 behind the last set bit")

    @property
    def label(self) -> str:
        """ "bitmask, n entries"."""
        return f"bitmask, {self.values.shape[-1]} entries"

    def _repr(self) -> str:
        return f"{self.values.shape[-1]}, shape={self.shape}, dtype={self.dtype}"


@partial(jax.jit, static_argnames="slots")
def _pack(w: Shaped[Array, "k n"], kept: Bool[Array, "k n"], slots: int) -> tuple[Array, Array]:
    # Entries beyond the slots are possible only if the mask is traced.
    rank = jnp.cumsum(kept.ravel(), dtype=jnp.int32).reshape(kept.shape)
    kept &= rank <= slots
    padded = jnp.pad(kept, ((0, 0), (0, -kept.shape[1] % 8)))
    eights = padded.reshape(kept.shape[0], padded.shape[1] // 8, 8).astype(jnp.uint8)
    bits = (eights << jnp.arange(8, dtype=jnp.uint8)).sum(-1, dtype=jnp.uint8)
    return bits, _gathered(w, kept, slots)


def _gathered(w: Shaped[Array, "k n"], kept: Bool[Array, "k n"], slots: int) -> Array:
    at = jnp.nonzero(kept.ravel(), size=slots, fill_value=kept.size)[0]
    return w.ravel().at[at].get(mode="fill", fill_value=0)


def _unpacked(bits: UInt[Array, "... k bytes"]) -> Bool[Array, "... k n"]:
    each = bits[..., None] >> jnp.arange(8, dtype=jnp.uint8) & 1
    return each.astype(bool).reshape(*bits.shape[:-1], 8 * bits.shape[-1])


@partial(jax.jit, static_argnames="columns")
def _filled(bits: UInt[Array, "k bytes"], values: Array, columns: int) -> Array:
    mask, zero = _unpacked(bits), jnp.zeros((), values.dtype)
    if not values.size:
        return jnp.zeros((bits.shape[0], columns), values.dtype)
    found = values.at[_places(bits)].get(mode="clip")
    return jnp.where(mask, found, zero)[:, :columns]


def _places(bits: UInt[Array, "k bytes"]) -> Int[Array, "k n"]:
    """The number of set bits before each bit: a running sum over bytes, and one within them."""
    counts = lax.population_count(bits).astype(jnp.int32)
    before = jnp.cumsum(counts.ravel()).reshape(bits.shape) - counts
    lower = jnp.asarray(2 ** np.arange(8) - 1, jnp.uint8)
    within = lax.population_count(bits[..., None] & lower).astype(jnp.int32)
    return (before[..., None] + within).reshape(bits.shape[0], 8 * bits.shape[1])
