"""Active sets: which units of a layer a token, or a few tokens, make use of."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Shaped

from .._topk import topk_mask
from .._tree import register_dataclass

Out = TypeVar("Out")


@register_dataclass
@dataclass(frozen=True)
class ActiveSet:
    r"""Some of n units: their indices, in lists of a fixed length.

    Make one with `select_topk`, `select_threshold`, `select_nonzero` or `select_union`.

    Args:
      index: `(K,)` for one set, `(T, K)` for a set of each token, int32; ascending, 0 from `count`
        on. K is the capacity.
      count: How many units are active, `()` or `(T,)`, at most K.
      overflow: Whether there were more than K, `()` or `(T,)`; those beyond are not in the list.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> s = sj.select.select_nonzero(jnp.array([[0.0, 2.0, 0.0, 1.0]]), capacity=3)
      >>> s.index.tolist(), int(s.count), bool(s.overflow)
      ([1, 3, 0], 2, False)
    """

    index: Any
    count: Any
    overflow: Any

    @property
    def capacity(self) -> int:
        """Length of the lists."""
        return self.index.shape[-1]

    @property
    def used(self) -> Bool[Array, "... k"]:
        """Which places of the lists hold a unit."""
        return jnp.arange(self.capacity) < self.count[..., None]

    def unless_overflow(self, active: Callable[[], Out], dense: Callable[[], Out]) -> Out:
        """`active()`, or `dense()` where some list was too short; the same shapes from both."""
        return lax.cond(jnp.any(self.overflow), dense, active)


def select_topk(score: Float[Array, "*t n"], k: int) -> ActiveSet:
    """The k largest scores, of each token if there are several rows; the lowest index wins ties.

    Args:
      score: `(n,)` or `(T, n)`; NaN ranks last.
      k: Units, at least 1 and at most n.

    Returns:
      A set with `count` k.

    Raises:
      ValueError: If k is not between 1 and n.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.select.select_topk(jnp.array([0.1, 3.0, 2.0]), 2).index.tolist()
      [1, 2]
    """
    check_capacity("select_topk", "k", k, score.shape[-1])
    choose: Callable[..., Any] = partial(topk_mask, k=k)
    return _pack(choose(score) if score.ndim == 1 else jax.vmap(choose)(score), k)


def select_threshold(score: Float[Array, "*t n"], threshold: ArrayLike, capacity: int) -> ActiveSet:
    """The scores above a threshold, of each token if there are several rows.

    Args:
      score: `(n,)` or `(T, n)`.
      threshold: A number, or one per unit `(n,)`.
      capacity: Length of the lists; see `ActiveSet.unless_overflow`.

    Raises:
      ValueError: If the capacity is not between 1 and n.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> s = sj.select.select_threshold(jnp.array([0.1, 3.0, 2.0]), 1.0, capacity=1)
      >>> s.index.tolist(), bool(s.overflow)
      ([1], True)
    """
    check_capacity("select_threshold", "capacity", capacity, score.shape[-1])
    return _pack(score > threshold, capacity)


def select_nonzero(score: Shaped[Array, "t n"], capacity: int) -> ActiveSet:
    """One set for all rows: the units that any of them uses.

    Args:
      score: `(T, n)`; what is not zero is used.
      capacity: Length of the list; see `ActiveSet.unless_overflow`.

    Raises:
      ValueError: If the capacity is not between 1 and n.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> routed = jnp.array([[0.0, 0.7, 0.0], [0.0, 0.0, 0.2]])
      >>> sj.select.select_nonzero(routed, capacity=2).index.tolist()
      [1, 2]
    """
    return select_union(score != 0, capacity)


def select_union(mask: Bool[Array, "t n"], capacity: int) -> ActiveSet:
    """One set for all rows: the union of their masks.

    Args:
      mask: `(T, n)`.
      capacity: Length of the list; see `ActiveSet.unless_overflow`.

    Raises:
      ValueError: If the capacity is not between 1 and n.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> mask = jnp.array([[True, False, True], [False, False, True]])
      >>> int(sj.select.select_union(mask, capacity=3).count)
      2
    """
    check_capacity("select_union", "capacity", capacity, mask.shape[-1])
    return _pack(mask.any(0), capacity)


def check_capacity(what: str, name: str, value: int, units: int) -> None:
    """Raises if a list cannot have this length."""
    if not isinstance(value, int | np.integer) or not 1 <= value <= units:
        raise ValueError(
            f"{what}({name}={value}) must be an integer between 1 and the {units} units."
        )


def _pack(mask: Bool[Array, "*t n"], capacity: int) -> ActiveSet:
    """The first ones of each row: the j-th is where the running count reaches j."""
    running = jnp.cumsum(mask, axis=-1, dtype=jnp.int32)
    find: Callable[..., Any] = partial(jnp.searchsorted, v=jnp.arange(1, capacity + 1))
    index = find(running) if mask.ndim == 1 else jax.vmap(find)(running)
    total = running[..., -1]
    count = jnp.minimum(total, capacity)
    used = jnp.arange(capacity) < count[..., None]
    return ActiveSet(jnp.where(used, index, 0).astype(jnp.int32), count, total > capacity)
