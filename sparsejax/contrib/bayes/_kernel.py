"""Gaussian weights on a support."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Key

from ..._arguments import checked
from ..._arrays import wide_dtype


class Support(nnx.Variable):
    """The mask of a `GaussianKernel`: state of the model that optimizers do not see."""


class GaussianKernel(nnx.Module):
    r"""Independent Gaussian weights: `w ~ N(mu, softplus(rho)^2)` on a mask, exactly 0 off it.

    The mask is explicit: `softplus(0)` is 0.69 and a live mean may be 0, so that neither parameter
    can mark an absent weight. The gradient with respect to `mu` is dense, as growth needs it.

    Args:
      mu: Initial means.
      sigma: Initial standard deviation of all weights, > 0.
      prior_std: Standard deviation of the prior `N(0, prior_std^2)`, > 0.
      mask: Weights that exist; None means all.

    Raises:
      ValueError: If a deviation is not positive, or the mask has another shape than the means.

    Reference:
      Li et al., Training Bayesian Neural Networks with Sparse Subspace Variational Inference, 2024
      (arXiv 2402.11025).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import bayes
      >>> kernel = bayes.GaussianKernel(jnp.ones(3), 0.5, mask=jnp.array([True, True, False]))
      >>> kernel.mean().tolist(), kernel.std().round(2).tolist()
      ([1.0, 1.0, 0.0], [0.5, 0.5, 0.0])
    """

    @checked(sigma="(0, inf)", prior_std="(0, inf)")
    def __init__(
        self,
        mu: Float[Array, "*shape"],
        sigma: float = 0.01,
        *,
        prior_std: float = 1.0,
        mask: Bool[ArrayLike, "*shape"] | None = None,
    ):
        mask = jnp.ones(mu.shape, bool) if mask is None else jnp.asarray(mask)
        if mask.shape != mu.shape:
            raise ValueError(
                f"GaussianKernel: mask has shape {mask.shape} and mu {mu.shape}; pass a mask "
                "of the shape of the weights."
            )
        self.mu = nnx.Param(jnp.where(mask, mu, 0))
        self.rho = nnx.Param(jnp.full(mu.shape, inverse_softplus(sigma), mu.dtype))
        self.mask = Support(mask)
        self.prior_std = prior_std

    def mean(self) -> Float[Array, "..."]:
        """The means, exactly 0 off the mask, with a dense gradient."""
        mu = self.mu[...]
        return mu - jax.lax.stop_gradient(jnp.where(self.mask[...], 0, mu))

    def std(self) -> Float[Array, "..."]:
        """The standard deviations, exactly 0 off the mask."""
        # Masked after softplus: the softplus of a masked parameter would be 0.69.
        return jnp.where(self.mask[...], jax.nn.softplus(self.rho[...]), 0)

    def kl(self) -> Float[Array, ""]:
        r"""`sum KL(N(mu, sigma^2) || N(0, prior_std^2))` over the mask, in nats."""
        dtype = wide_dtype(self.mu[...])
        mu, rho = self.mu[...].astype(dtype), self.rho[...].astype(dtype)
        sigma = jnp.maximum(jax.nn.softplus(rho), jnp.finfo(dtype).tiny) / self.prior_std
        each = (sigma**2 + (mu / self.prior_std) ** 2 - 1) / 2 - jnp.log(sigma)
        return jnp.sum(jnp.where(self.mask[...], each, 0))

    def sample(self, key: Key[Array, ""]) -> Float[Array, "..."]:
        """A draw of the weights."""
        mean = self.mean()
        return mean + self.std() * jax.random.normal(key, mean.shape, mean.dtype)


def inverse_softplus(sigma):
    """rho with `softplus(rho) = sigma`; log(expm1(sigma)) would overflow for large sigma."""
    numbers = np if isinstance(sigma, float | int) else jnp
    return sigma + numbers.log(-numbers.expm1(-sigma))
