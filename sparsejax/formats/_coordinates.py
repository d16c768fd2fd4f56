"""Matrices that store single entries at arbitrary positions."""

import math
import operator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from .._arguments import known
from .._sharding import on_host
from .._tree import register
from ._array import SparseArray, as_mask, check_matrix, stacked
from ._validate import need_ascending, need_floats, need_integers, need_range


@register
@dataclass(frozen=True, eq=False, repr=False)
class Entries(SparseArray):
    r"""A matrix of single entries: `values[i]` at row `index[i] // N` and column `index[i] % N`.

    For few entries at any positions, such as a sparse adapter: `Sum(w, Entries(...))`. Products
    gather and scatter while rows of x times entries are fewer than K N, and decompress beyond.
    An index of `K N` is padding, whose gradient is exactly zero.

    Args:
      index: `(stacked..., s)`, int32, ascending, without repetition except for padding.
      values: `(stacked..., s)`.
      matrix: `(K, N)`.

    Raises:
      ValueError: If index and values differ in shape, or an int32 cannot count `K N` entries.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.Entries.fromdense(jnp.diag(jnp.array([1.0, 0.0, 3.0])))
      >>> w, w.index.tolist(), (jnp.ones(3) @ w).tolist()
      (Entries(2, shape=(3, 3), dtype=float32), [0, 8], [1.0, 0.0, 3.0])
    """

    index: Any
    values: Any
    matrix: tuple[int, int] = field(metadata={"static": True})

    def __post_init__(self):
        object.__setattr__(self, "matrix", tuple(map(operator.index, self.matrix)))
        shapes = [getattr(x, "shape", None) for x in (self.index, self.values)]
        if None not in shapes and shapes[0] != shapes[1]:
            raise ValueError(f"Entries: index {shapes[0]} and values {shapes[1]} differ in shape.")
        if len(self.matrix) != 2 or min(self.matrix) < 0 or math.prod(self.matrix) >= 2**31:
            raise ValueError(
                f"Entries(matrix={self.matrix}) must be (K, N) with fewer than 2^31 entries."
            )

    @classmethod
    def fromdense(
        cls,
        w: Shaped[Array | np.ndarray, "..."],
        *,
        mask: Bool[Array | np.ndarray, "..."] | None = None,
        slots: int | None = None,
    ) -> "Entries":
        """Stores the entries of a mask; can be jitted and vmapped.

        Args:
          w: `(stacked..., K, N)`, floats.
          mask: Entries to store, in the shape of w; None stores the non-zeros.
          slots: s, the capacity in entries. None uses the number of entries of the fullest matrix,
            or `K N` if w is traced. If traced, excess entries are dropped.

        Raises:
          ValueError: If (unless traced) there are more entries than slots.
          TypeError: If w does not hold floats or the mask booleans.
        """
        check_matrix("Entries.fromdense", w)
        kept, (k, n) = jnp.asarray(as_mask("Entries.fromdense", w, mask)), w.shape[-2:]
        kept = kept.reshape(*kept.shape[:-2], k * n)
        if known(kept):
            most = int(on_host(kept).sum(-1).max(initial=0))
            slots = most if slots is None else slots
            if most > slots:
                raise ValueError(f"Entries.fromdense: {most} entries do not fit slots={slots}.")
        find = stacked(partial(_indices, slots=k * n if slots is None else slots), kept.ndim - 1)
        index = find(kept)
        return cls(index, _gathered(jnp.asarray(w), index), (k, n))

    @property
    def shape(self) -> tuple[int, ...]:
        """`(stacked..., K, N)`."""
        return (*self.values.shape[:-1], *self.matrix)

    def validate(self) -> None:
        """Raises ValueError if an index is out of range, or the indices do not ascend."""
        shape = need_floats(self, "values", 1)
        size = math.prod(self.matrix)
        index = need_integers(self, "index", shape, np.int32)
        need_range(self, "index", index, size + 1)
        need_ascending(self, "index", index, index < size)

    @property
    def real(self) -> Bool[Array, "... s"]:
        """The slots that hold an entry."""
        return self.index < math.prod(self.matrix)

    @property
    def label(self) -> str:
        """ "n entries"."""
        return f"{self.values.shape[-1]} entries"

    @property
    def rows(self) -> Shaped[Array, "... s"]:
        """The row of each entry; K for padding."""
        return self.index // self.matrix[1]

    @property
    def columns(self) -> Shaped[Array, "... s"]:
        """The column of each entry; 0 for padding."""
        return self.index % self.matrix[1]

    def todense(self) -> Float[Array, "... k n"]:
        """The matrix `(stacked..., K, N)` with zeros where nothing is stored."""
        put = stacked(partial(_scattered, size=math.prod(self.matrix)), self.values.ndim - 1)
        return put(self.values, self.index).reshape(self.shape)

    def take(self, dense: Shaped[Array, "... k n"]) -> Shaped[Array, "... s"]:
        """The entries of a matrix `(stacked..., K, N)` at the stored positions; padding is zero."""
        return _gathered(dense, self.index)

    def _repr(self) -> str:
        return f"{self.values.shape[-1]}, shape={self.shape}, dtype={self.dtype}"


def _indices(kept: Bool[Array, " size"], slots: int) -> Shaped[Array, " n"]:
    found = jnp.nonzero(kept, size=slots, fill_value=kept.shape[0])[0]
    return found.astype(jnp.int32)


def _gathered(w: Shaped[Array, "... k n"], index: Shaped[Array, "... s"]) -> Shaped[Array, "... s"]:
    flat = w.reshape(*w.shape[:-2], -1)
    one = lambda w, at: w.at[at].get(mode="fill", fill_value=0)  # noqa: E731
    return stacked(one, index.ndim - 1)(flat, index)


def _scattered(values: Any, index: Any, size: int) -> Array:
    at = {"mode": "drop", "indices_are_sorted": True}
    return jnp.zeros(size, values.dtype).at[index].set(values, **at)
