"""Active sets: the units of a layer that a token, or a few tokens, use."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from .._arguments import is_int
from .._tree import register

Out = TypeVar("Out")


@register
@dataclass(frozen=True)
class ActiveSet:
    r"""A subset of n units, as indices in lists of a fixed length.

    Made by the `set` method of a selector, or from a mask by `from_mask`.

    Args:
      index: `(K,)` for one set, `(T, K)` for a set of each token, int32; ascending, 0 from position
        `count` on. K is the capacity.
      count: How many units are active, `()` or `(T,)`, at most K.
      overflow: Whether more than K units were active, `()` or `(T,)`; the excess is not in the
        list.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> s = sj.select.NonZero().set(jnp.array([0.0, 2.0, 0.0, 1.0]), capacity=3)
      >>> s.index.tolist(), int(s.count), bool(s.overflow)
      ([1, 3, 0], 2, False)
    """

    index: Any
    count: Any
    overflow: Any

    @classmethod
    def from_mask(
        cls, mask: Bool[Array, "*t n"], capacity: int, *, union: bool = False
    ) -> "ActiveSet":
        """The units where a mask is True.

        Args:
          mask: `(n,)` for one set, `(T, n)` for a set of each token.
          capacity: Length of the lists, see `unless_overflow`.
          union: Whether to merge the rows of `mask` into one set for all tokens.

        Raises:
          ValueError: If the capacity is not between 1 and n.

        Example:
          >>> import jax.numpy as jnp, sparsejax as sj
          >>> mask = jnp.array([[True, False, True], [False, False, True]])
          >>> int(sj.select.ActiveSet.from_mask(mask, capacity=3, union=True).count)
          2
        """
        check_capacity(capacity, mask.shape[-1])
        return _pack(mask.reshape(-1, mask.shape[-1]).any(0) if union else mask, capacity)

    @property
    def capacity(self) -> int:
        """Length of the lists."""
        return self.index.shape[-1]

    @property
    def used(self) -> Bool[Array, "... k"]:
        """The mask of list positions that hold a unit."""
        return _filled(self.count, self.capacity)

    def unless_overflow(self, active: Callable[[], Out], dense: Callable[[], Out]) -> Out:
        """`active()`, or `dense()` if a list was too short; both must return the same shapes."""
        return lax.cond(jnp.any(self.overflow), dense, active)


def check_capacity(capacity: int, units: int) -> None:
    """Raises unless the capacity is valid."""
    if not is_int(capacity) or not 1 <= capacity <= units:
        raise ValueError(
            f"ActiveSet: capacity must be an integer between 1 and the {units} units, got "
            f"{capacity!r}."
        )


def _pack(mask: Bool[Array, "*t n"], capacity: int) -> ActiveSet:
    """The first True positions of each row: the j-th is where the cumulative count reaches j."""
    running = jnp.cumsum(mask, axis=-1, dtype=jnp.int32)
    find: Callable[..., Any] = partial(jnp.searchsorted, v=jnp.arange(1, capacity + 1))
    index = find(running) if mask.ndim == 1 else jax.vmap(find)(running)
    total = running[..., -1]
    count = jnp.minimum(total, capacity)
    used = _filled(count, capacity)
    return ActiveSet(jnp.where(used, index, 0).astype(jnp.int32), count, total > capacity)


def _filled(count: Int[Array, "*t"], capacity: int) -> Bool[Array, "*t k"]:
    """Which positions of each list are in use: the first `count`."""
    place = lax.broadcasted_iota(jnp.int32, (*count.shape, capacity), count.ndim)
    return place < count[..., None]
