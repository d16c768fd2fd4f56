"""Activations that keep the k latents of the largest scores of each token, or of the batch."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from .._arrays import passed, wide_dtype
from .._topk import topk_mask
from .._tree import register
from ._activation import Activation, Context, JumpReLU
from ._numbers import check_positive, most_of

STATIC: dict[str, Any] = dict(static=True)


class Ranked(Activation):
    """The latents of the largest scores of each token; the lowest index wins ties.

    The selection has no gradient; unselected features are exactly 0. NaN is always a feature:
    it ranks last among all latents, and first in sparse codes.
    """

    @abstractmethod
    def scores(self, z: Array, context: Context | None) -> Array:
        """The ranked values."""

    @abstractmethod
    def count(self, scores: Array, context: Context | None) -> Any:
        """The number of kept latents, one for all or one per token `(..., 1)`."""

    def value(self, z: Array) -> Array:
        """The feature of a selected latent."""
        return jax.nn.relu(z)

    def __call__(
        self, z: Float[Array, "*n h"], context: Context | None = None
    ) -> Float[Array, "*n h"]:
        """The features."""
        scores = _ranks(self.scores(z, context), -jnp.inf)
        count = jnp.asarray(self.count(scores, context), jnp.int32)
        return passed(topk_mask(scores, count, (z.ndim - 1,)), self.value(z))

    def codes(
        self, z: Array, context: Context, at: Callable[[Array], Array]
    ) -> tuple[Array, Array]:
        """Indices in descending order of the scores, and features; z has no gradient, `at` does."""
        scores = _ranks(self.scores(z, context), jnp.inf)
        ranked, indices = lax.top_k(scores, min(self.capacity or z.shape[-1], z.shape[-1]))
        kept = jnp.arange(indices.shape[-1]) < self.count(ranked, context)
        return indices, jnp.where(kept, self.value(at(indices)), 0)


def _ranks(scores: Array, nan: float) -> Array:
    """Scores without gradient, at least float32, in which NaN has a place."""
    wide = lax.stop_gradient(scores.astype(wide_dtype(scores)))
    return jnp.where(jnp.isnan(wide), nan, wide)


@register
@dataclass(frozen=True)
class TopK(Ranked):
    r"""`f_i = max(z_i, 0)` for the k largest z of each token, 0 for the others.

    Args:
      k: Number of latents per token; fewer are active where fewer are positive. Data: a new value
        does not recompile if `most` is given, and `jax.vmap` runs over an array of them.
      most: The capacity of sparse codes, at least every k; k itself if that is a plain integer.
      anneal: Number of training steps in which k falls linearly from all latents; None for none.

    Raises:
      ValueError: If k is below 1 or above `most`.

    Reference:
      Gao et al., Scaling and evaluating sparse autoencoders, 2024 (arXiv 2406.04093).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.sae.TopK(2)(jnp.array([1.0, 3.0, 2.0])).tolist()
      [0.0, 3.0, 2.0]
    """

    k: Any
    most: int | None = field(default=None, metadata=STATIC)
    anneal: Any = None

    def __post_init__(self):
        object.__setattr__(self, "most", most_of("TopK", self.k, self.most))

    @property
    def capacity(self) -> int | None:
        """`most`, unless k is annealed."""
        return self.most if self.anneal is None else None

    def scores(self, z: Array, context: Context | None) -> Array:
        """z."""
        return z

    def count(self, scores: Array, context: Context | None) -> Any:
        """k, or the annealed one in training."""
        if self.anneal is None or context is None or context.state is None:
            return self.k
        done = jnp.clip(context.state.step / self.anneal, 0, 1)
        all_of = scores.shape[-1]
        return jnp.round(all_of + (self.k - all_of) * done).astype(jnp.int32)


@register
@dataclass(frozen=True)
class AbsTopK(Ranked):
    r"""`f_i = z_i` for the k largest |z| of each token: features have both signs.

    Args:
      k: As for `TopK`.
      most: As for `TopK`.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.sae.AbsTopK(1)(jnp.array([1.0, -3.0, 2.0])).tolist()
      [0.0, -3.0, 0.0]
    """

    k: Any
    most: int | None = field(default=None, metadata=STATIC)

    def __post_init__(self):
        object.__setattr__(self, "most", most_of("AbsTopK", self.k, self.most))

    @property
    def capacity(self) -> int | None:
        """`most`."""
        return self.most

    def scores(self, z: Array, context: Context | None) -> Array:
        """|z|."""
        return jnp.abs(z)

    def count(self, scores: Array, context: Context | None) -> Any:
        """k."""
        return self.k

    def value(self, z: Array) -> Array:
        """z."""
        return z


@register
@dataclass(frozen=True)
class BatchTopK(Activation):
    r"""`f = max(z, 0)` for the `floor(k n)` largest z of n tokens together, 0 for the others.

    Training keeps a running threshold, `t <- (1 - rate) t + rate min positive f`;
    `sae.inference(params, state)` turns the autoencoder into one with `JumpReLU` at it, whose
    features do not depend on the other tokens.

    Args:
      k: Active latents per token on average; may be fractional, and be vmapped.
      rate: Rate of the running threshold.

    Reference:
      Bussmann et al., BatchTopK Sparse Autoencoders, 2024 (arXiv 2412.06410).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.sae.BatchTopK(1)(jnp.array([[3.0, 2.0], [1.0, 0.0]])).tolist()
      [[3.0, 2.0], [0.0, 0.0]]
    """

    k: Any
    rate: Any = 0.01

    def __post_init__(self):
        check_positive("BatchTopK", k=self.k, rate=self.rate)

    def __call__(
        self, z: Float[Array, "*n h"], context: Context | None = None
    ) -> Float[Array, "*n h"]:
        """The features."""
        count = self._count(int(np.prod(z.shape[:-1])))
        return passed(topk_mask(_ranks(z, -jnp.inf), count), jax.nn.relu(z))

    def _count(self, tokens: int) -> Array:
        k = jnp.asarray(self.k, jnp.float32)
        whole = jnp.floor(k)
        # Float32 holds 0.7 a little below 0.7: the product is raised by as much.
        rest = (k - whole) * tokens + jnp.minimum(2e-7 * k * tokens, 0.5)
        return whole.astype(jnp.int32) * tokens + jnp.floor(rest).astype(jnp.int32)

    def threshold(self, old: Array, codes: Any, state: Any) -> Array:
        """The running threshold; that of the first step is its smallest feature."""
        features = codes.dense()
        least = jnp.min(jnp.where(features > 0, features, jnp.inf)).astype(jnp.float32)
        moved = jnp.where(state.step == 0, least, old + self.rate * (least - old))
        return jnp.where(jnp.isfinite(least), moved, old)

    def inference(
        self, params: dict[str, Array], state: Any
    ) -> tuple[Activation, dict[str, Array]]:
        """`JumpReLU` at the running threshold."""
        theta = jnp.full(params["W_dec"].shape[:1], state.threshold, jnp.float32)
        return JumpReLU(), params | {"threshold": theta}
