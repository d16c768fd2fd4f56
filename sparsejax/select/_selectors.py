"""Selectors: frozen values that select units by score."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._arguments import check_count
from .._arrays import wide_dtype
from .._topk import topk_mask
from .._tree import register
from ._active_set import ActiveSet


class Selector(ABC):
    """Base class of selectors: a function of scores `(..., n)` to a mask of the same shape.

    A custom selector defines `__call__`; a frozen dataclass works under jit and vmap.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> class Even(sj.select.Selector):
      ...     def __call__(self, scores):
      ...         return jnp.broadcast_to(jnp.arange(scores.shape[-1]) % 2 == 0, scores.shape)
      >>> Even().set(jnp.ones(5), capacity=3).index.tolist()
      [0, 2, 4]
    """

    @abstractmethod
    def __call__(self, scores: Float[Array, "*t n"]) -> Bool[Array, "*t n"]:
        """The mask of the selected units."""

    def set(
        self, scores: Float[Array, "*t n"], capacity: int | None = None, *, union: bool = False
    ) -> ActiveSet:
        """The selected units as an `ActiveSet`.

        Args:
          scores: `(n,)` for one set, `(T, n)` for a set of each token.
          capacity: Length of the lists; None uses the largest number that can be selected.
          union: Whether to merge the units of all tokens into one set.

        Raises:
          ValueError: If the capacity is not between 1 and n.
        """
        most = self.most(scores.shape[-1]) if capacity is None else capacity
        if union and capacity is None:
            most = scores.shape[-1]
        return ActiveSet.from_mask(self(scores), most, union=union)

    def most(self, units: int) -> int:
        """The largest number of units that can be selected per token."""
        return units


@register
@dataclass(frozen=True)
class TopK(Selector):
    """The k largest scores of each token; the lowest index wins ties, NaN ranks last.

    Args:
      k: Number of units, at least 1 and at most n.

    Raises:
      ValueError: If k is less than 1 or (when called) larger than the number of units.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.select.TopK(2)(jnp.array([0.1, 3.0, 2.0])).tolist()
      [False, True, True]
    """

    k: int = field(metadata=dict(static=True))

    def __post_init__(self):
        check_count("TopK: k", self.k)

    def __call__(self, scores: Float[Array, "*t n"]) -> Bool[Array, "*t n"]:
        """The mask of the k largest scores."""
        _check_units("TopK", self.k, scores.shape[-1])
        rows = scores.reshape(-1, scores.shape[-1])
        return jax.vmap(partial(topk_mask, k=self.k))(rows).reshape(scores.shape)

    def most(self, units: int) -> int:
        """k."""
        del units
        return self.k


@register
@dataclass(frozen=True)
class BatchTopK(Selector):
    """The `k T` largest scores of T tokens together: k for each token on average.

    Args:
      k: Number of units per token.

    Reference:
      Bussmann et al., BatchTopK Sparse Autoencoders, 2024 (arXiv 2412.06410).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.select.BatchTopK(1)(jnp.array([[3.0, 2.0], [1.0, 0.0]])).tolist()
      [[True, True], [False, False]]
    """

    k: int = field(metadata=dict(static=True))

    def __post_init__(self):
        check_count("BatchTopK: k", self.k)

    def __call__(self, scores: Float[Array, "*t n"]) -> Bool[Array, "*t n"]:
        """The mask of the `k T` largest scores."""
        _check_units("BatchTopK", self.k, scores.shape[-1])
        return topk_mask(scores, self.k * (scores.size // max(scores.shape[-1], 1)))


@register
@dataclass(frozen=True)
class Threshold(Selector):
    """The scores above a threshold.

    Args:
      tau: A number, or one per unit `(n,)`; a new value does not recompile.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.select.Threshold(1.0)(jnp.array([0.1, 3.0, 2.0])).tolist()
      [False, True, True]
    """

    tau: Any

    def __call__(self, scores: Float[Array, "*t n"]) -> Bool[Array, "*t n"]:
        """The mask of the scores above the threshold; NaN is not above."""
        return scores > self.tau


@register
@dataclass(frozen=True)
class TopP(Selector):
    """The smallest set of scores of each token with a fraction p of their sum.

    Args:
      p: Fraction in [0, 1]; a new value does not recompile. Scores are at least 0, as those of a
        softmax; the lowest index wins ties, and at least one unit is selected.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.select.TopP(0.7)(jnp.array([0.1, 0.6, 0.3])).tolist()
      [False, True, True]
    """

    p: Any

    def __call__(self, scores: Float[Array, "*t n"]) -> Bool[Array, "*t n"]:
        """The mask of the largest scores up to the fraction."""
        wide = scores.astype(wide_dtype(scores))
        order = jnp.argsort(-wide, axis=-1, stable=True)
        falling = jnp.take_along_axis(wide, order, axis=-1)
        before = jnp.cumsum(falling, axis=-1) - falling
        chosen = before < self.p * jnp.sum(wide, axis=-1, keepdims=True)
        chosen = chosen.at[..., 0].set(True)
        return jnp.put_along_axis(jnp.zeros(scores.shape, bool), order, chosen, -1, inplace=False)


@register
@dataclass(frozen=True)
class NonZero(Selector):
    """The scores that are not zero.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> routed = jnp.array([[0.0, 0.7, 0.0], [0.0, 0.0, 0.2]])
      >>> sj.select.NonZero().set(routed, capacity=2, union=True).index.tolist()
      [1, 2]
    """

    def __call__(self, scores: Float[Array, "*t n"]) -> Bool[Array, "*t n"]:
        """The mask of the scores that are not zero."""
        return scores != 0


def _check_units(name: str, k: int, units: int) -> None:
    if k > units:
        raise ValueError(f"{name}: k must be at most the {units} units, got {k}.")
