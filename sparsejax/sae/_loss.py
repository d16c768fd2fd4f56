"""Losses of sparse autoencoders: frozen values that read one pass over a batch."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._tree import register
from ._numbers import check_not_negative
from ._pass import Pass

STATIC: dict[str, Any] = dict(static=True)


class Loss(ABC):
    """Base class of losses: `loss(found, own) -> scalar` of a `Pass` over a batch.

    A custom loss defines `__call__`; `own` is its state in training, `()` unless it defines `init`
    and `update`. The pass holds `features`, `z`, `reconstruction`, `target`, `params` and `state`.

    Example:
      >>> import dataclasses, jax, jax.numpy as jnp, sparsejax as sj
      >>> @sj.register
      ... @dataclasses.dataclass(frozen=True)
      ... class Bias(sj.sae.Loss):
      ...     def __call__(self, found, own):
      ...         return jnp.sum(found.params["b_enc"] ** 2)
      >>> sae = sj.sae.SAE(sj.sae.ReLU(), losses=(Bias(),))
      >>> params = sae.init(2, 4, key=jax.random.key(0))
      >>> float(sae.loss(params, jnp.zeros((1, 2)), sae.state(params))[0])
      0.0
    """

    @abstractmethod
    def __call__(self, found: Pass, own: PyTree) -> Array:
        """The loss, a scalar."""

    def init(self) -> PyTree:
        """The state before training."""
        return ()

    def update(self, found: Pass, own: PyTree) -> PyTree:
        """The state after a step."""
        del found
        return own


def squared_error(error: Array, target: Array, scale: str) -> Array:
    """The squared error by one of three scales."""
    total = jnp.mean(jnp.sum(jnp.square(error), axis=-1))
    if scale == "mean":
        return total / error.shape[-1]
    if scale == "fvu":
        wide = target.astype(error.dtype)
        spread = jnp.mean(jnp.sum(jnp.square(wide - jnp.mean(wide, axis=0)), axis=-1))
        return jnp.where(spread == 0, 0, total / jnp.where(spread == 0, 1, spread))
    return total


def check_scale(what: str, scale: Any) -> None:
    """Raises unless `scale` is one of the three."""
    if scale not in ("sum", "mean", "fvu"):
        raise ValueError(f'{what}: scale must be "sum", "mean" or "fvu", got {scale!r}.')


@register
@dataclass(frozen=True)
class Reconstruction(Loss):
    r"""The squared error `mean_n sum_d (x - xhat)^2` of the reconstruction.

    Args:
      scale: "sum" over features, "mean" over all entries, or "fvu", the fraction of the variance of
        the batch that is not explained.

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> sae = sj.sae.SAE(sj.sae.ReLU(), reconstruction=sj.sae.Reconstruction("mean"))
      >>> params = jax.tree.map(jnp.zeros_like, sae.init(2, 4, key=jax.random.key(0)))
      >>> float(sae.loss(params, jnp.ones((1, 2)), sae.state(params))[0])
      1.0
    """

    scale: Literal["sum", "mean", "fvu"] = field(default="sum", metadata=STATIC)

    def __post_init__(self):
        check_scale("Reconstruction", self.scale)

    def __call__(self, found: Pass, own: PyTree) -> Array:
        """The error."""
        return squared_error(found.residual, found.target, self.scale)


@register
@dataclass(frozen=True)
class Nested(Loss):
    r"""The sum of the errors of nested prefixes of the dictionary (Matryoshka).

    `sum_m weight_m |x - (f_{<m} W_dec + b_dec)|^2` for the first m latents; the whole dictionary is
    the last prefix.

    Args:
      sizes: The sizes m, ascending; h is added if it is missing.
      weights: One number per size, with that of h; None for ones.
      scale: As for `Reconstruction`.

    Raises:
      ValueError: If the sizes do not ascend, or weights do not fit them.

    Reference:
      Bussmann et al., Learning Multi-Level Features with Matryoshka Sparse Autoencoders, 2025
      (arXiv 2503.17547).

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> sae = sj.sae.SAE(sj.sae.TopK(2), reconstruction=sj.sae.Nested((2, 8)))
      >>> params = jax.tree.map(jnp.zeros_like, sae.init(2, 8, key=jax.random.key(0)))
      >>> float(sae.loss(params, jnp.ones((1, 2)), sae.state(params))[0])
      4.0
    """

    sizes: tuple[int, ...] = field(metadata=STATIC)
    weights: tuple[Any, ...] | None = None
    scale: Literal["sum", "mean", "fvu"] = field(default="sum", metadata=STATIC)

    def __post_init__(self):
        check_scale("Nested", self.scale)
        sizes = self.sizes
        whole = isinstance(sizes, tuple | list) and all(type(m) is int and m > 0 for m in sizes)
        if not whole or not sizes or list(sizes) != sorted(set(sizes)):
            raise ValueError(f"Nested: sizes must be ascending integers, got {sizes!r}.")
        object.__setattr__(self, "sizes", tuple(sizes))

    def __call__(self, found: Pass, own: PyTree) -> Array:
        """The sum of errors."""
        rows = found.sae.rows(found.params)
        ends = self._ends(len(rows))
        weights = (1.0,) * len(ends) if self.weights is None else self.weights
        if len(weights) != len(ends):
            raise ValueError(f"Nested: weights must be one for each of {ends}, got {len(weights)}.")
        # What the latents add is subtracted from the error one segment at a time.
        whole = found.codes.decoded(rows)
        out = (found.reconstruction - whole).astype(found.residual.dtype)  # bias and skip
        total = jnp.zeros((), out.dtype)
        for first, last, weight in zip((0, *ends), ends, weights):
            out = out + found.codes.decoded_part(rows, first, last)
            error = found.target.astype(out.dtype) - out
            total = total + weight * squared_error(error, found.target, self.scale)
        return total

    def _ends(self, latents: int) -> tuple[int, ...]:
        if self.sizes[-1] > latents:
            raise ValueError(f"Nested: sizes must be at most {latents} latents, got {self.sizes}.")
        return self.sizes if self.sizes[-1] == latents else (*self.sizes, latents)


@register
@dataclass(frozen=True)
class NormMatching(Loss):
    r"""`strength * mean_n (|f_n| - |x_n|)^2`, for `TopAFA`; x is not centred.

    Args:
      strength: The paper finds values of 1/64 to 1/24 good.

    Reference:
      Lee et al., 2025 (arXiv 2503.24277).

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> sae = sj.sae.SAE(sj.sae.TopAFA(), losses=(sj.sae.NormMatching(1.0),))
      >>> params = jax.tree.map(jnp.zeros_like, sae.init(1, 2, key=jax.random.key(0)))
      >>> round(float(sae.loss(params, jnp.ones((1, 1)), sae.state(params))[0]), 4)
      2.0
    """

    strength: Any

    def __post_init__(self):
        check_not_negative("NormMatching", strength=self.strength)

    def __call__(self, found: Pass, own: PyTree) -> Array:
        """The penalty."""
        wide = found.residual.dtype
        norm = lambda y: jnp.sqrt(jnp.sum(jnp.square(y.astype(wide)), -1) + 1e-12)  # noqa: E731
        return self.strength * jnp.mean(jnp.square(norm(found.features) - norm(found.target)))
