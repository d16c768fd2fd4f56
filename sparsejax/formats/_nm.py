"""N:M matrices: n of every m consecutive entries along the contraction, in planes."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped, UInt

from .._arguments import checked, known
from .._arrays import wide_dtype
from .._sharding import on_host
from .._topk import nm_mask
from .._tree import register
from ._array import SparseArray, as_mask, check_matrix
from ._validate import (
    need,
    need_ascending,
    need_floats,
    need_integers,
    need_range,
    need_static,
)

# Ranks by pairwise comparison cost m^2 passes; for larger m lax.top_k is faster.
_PAIRWISE = 16
_LONGEST = 2**16  # entries of a group, counted by 16 bits


@register
@dataclass(frozen=True, eq=False, repr=False)
class NMArray(SparseArray):
    r"""A matrix that stores n of every m consecutive entries of a column.

    `W[g m + index[s, g, j // t], j] = values[s, g, j]` and zero elsewhere, for slots s < n, groups
    g < G = ceil(K / m) and columns j < N. Slots ascend in index; an unused slot has the value 0 and
    a valid, distinct index, so it is an ordinary stored position. Make one with `fromdense`.

    Args:
      values: `(stacked..., n, G, N)`, one plane per slot.
      code: The indices of a group in one unsigned integer, slot 0 in the lowest bits:
        `(stacked..., G, N / t)` of the smallest dtype; or, if that needs more than 32 bits, planes
        `(stacked..., n, G, N / t)`.
      m: Length of a group.
      padding: Zero rows appended to the K rows if m does not divide K.

    Reference:
      Zhou et al., 2021 (arXiv 2102.04010).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.NMArray.fromdense(jnp.array([[4.0], [1.0], [3.0], [2.0]]), 2, 4)
      >>> w.todense().ravel().tolist(), w.index.ravel().tolist()
      ([4.0, 0.0, 3.0, 0.0], [0, 2])
      >>> (jnp.ones((1, 4)) @ w).tolist()
      [[7.0]]
    """

    values: Any
    code: Any
    m: int = field(metadata=dict(static=True))
    padding: int = field(default=0, metadata=dict(static=True))

    @classmethod
    @checked()
    def fromdense(
        cls,
        w: Shaped[Array | np.ndarray, "..."],
        n: int,
        m: int,
        *,
        mask: Shaped[Array | np.ndarray, "..."] | None = None,
        share: int = 1,
    ) -> "NMArray":
        """Compresses a matrix; can be jitted and vmapped.

        Args:
          w: `(stacked..., K, N)`, floats. K is padded with zeros to a multiple of m.
          n: Entries kept of each group, the largest in magnitude; the lower index wins ties.
          m: Length of a group.
          mask: Entries to keep, in the shape of `w`. A group with fewer than n has unused slots.
          share: Number t of neighbouring columns with one common pattern, chosen by the sum of
            their magnitudes.

        Raises:
          ValueError: If not 1 <= n <= m, share does not divide N, or (unless traced) the mask has
            more than n ones in a group.
          TypeError: If `w` does not hold floats or the mask booleans.
        """
        check_matrix("NMArray.fromdense", w)
        _check_sizes(w.shape, n, m, share)
        w = jnp.asarray(w)
        kept = as_mask("NMArray.fromdense", w, mask)
        if mask is not None and known(mask):
            _check_mask(mask, n, m, share)
        values, index = _pack(w, jnp.asarray(kept), n, m, share)
        return cls(values, encode(index, m), m, -w.shape[-2] % m)

    @property
    def n(self) -> int:
        """Entries stored of each group."""
        return self.values.shape[-3]

    @property
    def share(self) -> int:
        """Neighbouring columns with one common pattern."""
        return self.values.shape[-1] // max(self.code.shape[-1], 1) or 1

    @property
    def shape(self) -> tuple[int, ...]:
        """`(stacked..., K, N)`."""
        *stacked, _, groups, columns = self.values.shape
        return (*stacked, groups * self.m - self.padding, columns)

    @property
    def index(self) -> UInt[Array, "... n g tiles"]:
        """Position within its group of each slot, `(stacked..., n, G, N / t)`."""
        if self.code.ndim == self.values.ndim:
            return self.code
        width, dtype = _width(self.m), _plane(self.m)
        mask = jnp.asarray(2**width - 1, self.code.dtype)
        slots = [(self.code >> (s * width)) & mask for s in range(self.n)]
        return jnp.stack(slots, axis=-3).astype(dtype)

    def todense(self) -> Float[Array, "... k n"]:
        """The matrix `(stacked..., K, N)` with zeros where nothing is stored."""
        *stacked, groups, columns = self.values.shape[:-3] + self.values.shape[-2:]
        dense = _unpack(self.values, self.index, self.m, self.share)
        return dense.reshape(*stacked, groups * self.m, columns)[..., : self.shape[-2], :]

    def take(self, dense: Shaped[Array, "... k columns"]) -> Shaped[Array, "... slots g columns"]:
        """The entries of a matrix `(stacked..., K, N)` at the stored positions, as planes."""
        groups = _groups(dense, self.m)
        index = jnp.repeat(self.index, self.share, axis=-1)
        return jnp.stack([_at(groups, index[..., s, :, :]) for s in range(self.n)], axis=-3)

    def validate(self) -> None:
        """Raises ValueError if a code is not that of n ascending positions of a group."""
        *lead, n, groups, columns = need_floats(self, "values", 3)
        m = need_static(self, "m", 1, _LONGEST)
        need(self, 1 <= n <= m, f"1 <= n <= m must hold, got n={n}, m={m}")
        need_static(self, "padding", 0, m - 1 if groups else 0)
        tiles = (getattr(self.code, "shape", ())[-1:] or (0,))[0]
        need(self, tiles and columns % tiles == 0 or tiles == columns, "code must divide columns")
        dtype = _packed(n, m)
        shape = (*lead, groups, tiles) if dtype else (*lead, n, groups, tiles)
        code = need_integers(self, "code", shape, dtype or _plane(m))
        index = on_host(self.index)
        need_range(self, "index", index, m)
        need_ascending(self, "index", index, True, axis=-3)
        need(
            self,
            np.array_equal(on_host(encode(self.index, m)), code),
            "code has bits beyond its slots",
        )

    @property
    def label(self) -> str:
        """ "n:m, share t"."""
        return f"{self.n}:{self.m}, share {self.share}"

    @property
    def column_axes(self) -> dict[str, int]:
        """Columns are the last axis."""
        return {"values": -1, "code": -1}

    def _repr(self) -> str:
        shared = f", share={self.share}" if self.share > 1 else ""
        return f"{self.n}:{self.m}, shape={self.shape}, dtype={self.dtype}{shared}"


def encode(index: UInt[Array, "... n g tiles"], m: int) -> UInt[Array, "..."]:
    """One unsigned integer per group, or the planes if that takes more than 32 bits."""
    n, width = index.shape[-3], _width(m)
    if (dtype := _packed(n, m)) is None:
        return index
    slots = [index[..., s, :, :].astype(dtype) << (s * width) for s in range(n)]
    return sum(slots[1:], slots[0])


def _packed(n: int, m: int) -> Any:
    """The smallest dtype for the indices of a group, or None."""
    bits = n * _width(m)
    return next((d for d in (jnp.uint8, jnp.uint16, jnp.uint32) if _fits(d, bits)), None)


def _plane(m: int) -> Any:
    """The dtype of one index."""
    return jnp.uint8 if m <= 256 else jnp.uint16


def _width(m: int) -> int:
    return (m - 1).bit_length()


def _fits(dtype: Any, bits: int) -> bool:
    return bits <= jnp.iinfo(dtype).bits


@partial(jax.jit, static_argnames=("n", "m", "share"))
def _pack(w: Float[Array, "..."], kept: Bool[Array, "..."], n: int, m: int, share: int):
    groups, kept = _groups(w, m), _groups(kept, m)
    index = _positions(_scores(groups, kept, share), n, m)
    wide = jnp.repeat(index, share, axis=-1)
    values = jnp.where(kept, groups, jnp.zeros_like(groups))
    return jnp.stack([_at(values, wide[..., s, :, :]) for s in range(n)], axis=-3), index


def _groups(x: Shaped[Array, "... k columns"], m: int) -> Shaped[Array, "... g m columns"]:
    *stacked, k, columns = x.shape
    x = jnp.pad(x, [(0, 0)] * len(stacked) + [(0, -k % m), (0, 0)])
    return x.reshape(*stacked, -(-k // m), m, columns)


def _scores(groups, kept, share: int) -> Float[Array, "... g m tiles"]:
    """Scores for slots: kept entries by magnitude, then the others, lowest index first."""
    *lead, columns = groups.shape
    size = jnp.abs(groups).astype(wide_dtype(groups))
    size = jnp.where(jnp.isnan(size) | ~kept, 0, size).reshape(*lead, columns // share, share)
    kept = kept.reshape(*lead, columns // share, share)
    return jnp.where(kept.any(-1), size.sum(-1), -1)


def _positions(scores: Float[Array, "... g m t"], n: int, m: int) -> UInt[Array, "... n g t"]:
    """The n indices of largest score in each group, ascending."""
    dtype = _plane(m)
    if m > _PAIRWISE:
        best = jnp.sort(lax.top_k(jnp.swapaxes(scores, -1, -2), n)[1], axis=-1)
        return jnp.moveaxis(best, -1, -3).astype(dtype)
    *lead, groups, _, tiles = scores.shape
    kept = nm_mask(scores.reshape(*lead, groups * m, tiles), n, m).reshape(scores.shape)
    rank = jnp.cumsum(kept, axis=-2, dtype=jnp.int8)
    return jnp.stack([(rank <= s).sum(-2, dtype=jnp.int8) for s in range(n)], axis=-3).astype(dtype)


def _at(groups: Shaped[Array, "... g m n"], index: UInt[Array, "... g n"]):
    """The entry of each group at `index`."""
    wanted = index[..., None, :].astype(jnp.int32)
    return jnp.take_along_axis(groups, wanted, axis=-2)[..., 0, :]


@partial(jax.jit, static_argnames=("m", "share"))
def _unpack(values, index, m: int, share: int) -> Float[Array, "... g m n"]:
    # Selects are several times faster than a one-hot sum or a scatter, and exact bit for bit.
    index = jnp.repeat(index, share, axis=-1)[..., None, :]
    values = values[..., None, :]
    place = jnp.arange(m, dtype=index.dtype).reshape(*(1,) * (index.ndim - 3), m, 1)
    dense = jnp.zeros((), values.dtype)
    for s in range(values.shape[-4]):
        dense = jnp.where(index[..., s, :, :, :] == place, values[..., s, :, :, :], dense)
    return dense


def _check_sizes(shape: tuple[int, ...], n: int, m: int, share: int) -> None:
    if not 1 <= n <= m:
        raise ValueError(f"NMArray.fromdense(n={n}, m={m}) must keep 1 <= n <= m, as in n=2, m=4.")
    if m > _LONGEST:
        raise ValueError(f"NMArray.fromdense(m={m}) must have groups of at most 65536 entries.")
    if share < 1 or shape[-1] % share:
        raise ValueError(
            f"NMArray.fromdense(share={share}) must divide the {shape[-1]} columns of w of shape "
            f"{tuple(shape)}; share=1 gives every column its own pattern."
        )


def _check_mask(mask, n: int, m: int, share: int) -> None:
    with jax.ensure_compile_time_eval():  # the mask may be concrete even if w is traced
        groups = _groups(jnp.asarray(mask), m)
        tiles = groups.reshape(*groups.shape[:-1], groups.shape[-1] // share, share).any(-1)
        worst = int(tiles.sum(-2).max(initial=0))
    if worst > n:
        shared = f" that {share} columns share" if share > 1 else ""
        raise ValueError(
            f"NMArray.fromdense(mask) of shape {tuple(mask.shape)} keeps {worst} entries of a "
            f"group of {m}{shared}, more than n={n}; make it with sj.masks.topk(scores, "
            f"sj.NM({n}, {m}, axis=0)), omit it, or train until the schedule ends."
        )
