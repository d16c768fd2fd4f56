"""Linear and convolutional layers with Gaussian weights."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Key

from ..._arguments import checked
from ..._arrays import common_dtype
from ._kernel import GaussianKernel

Initializer = Callable[..., Array]

_HE = nnx.initializers.he_normal()
# Keeps the gradient of the square root finite in a unit without incoming weights.
_LEAST_VARIANCE = 1e-8


class BayesLinear(nnx.Module):
    r"""A linear layer with Gaussian weights: `y = x W + b`, `W_ij ~ N(mu_ij, sigma_ij^2)`.

    With a key it samples outputs by local reparametrisation,
    `y = x mu + sqrt(x^2 sigma^2 + 1e-8) eps + b` with `eps ~ N(0, 1)` for each output; without a
    key it uses the means. The bias is a plain parameter. Weights are in `kernel`, a
    `GaussianKernel`.

    Args:
      in_features: Inputs.
      out_features: Outputs.
      prior_std: Standard deviation of the prior of each weight.
      sigma: Initial standard deviation of each weight.
      mask: Weights that exist, `(in_features, out_features)`; None means all. `train_ssvi` and
        `set_masks` set it later.
      use_bias: Whether to add a bias.
      kernel_init: Initializer of the means; for a density d,
        `nnx.initializers.variance_scaling(2 / d, "fan_in", "normal")`.
      rngs: Uses `params`.

    Raises:
      ValueError: If a size is less than 1, a deviation is not positive or the mask does not fit.

    Reference:
      Li et al., Training Bayesian Neural Networks with Sparse Subspace Variational Inference, 2024
      (arXiv 2402.11025).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from sparsejax.contrib import bayes
      >>> layer = bayes.BayesLinear(4, 2, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((3, 4)), jax.random.key(0)).shape
      (3, 2)
    """

    @checked(in_features="[1, inf)", out_features="[1, inf)", kernel_init="kernel_init(k, s, d)")
    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        prior_std: float = 1.0,
        sigma: float = 0.01,
        mask: Bool[ArrayLike, "..."] | None = None,
        use_bias: bool = True,
        kernel_init: Initializer = _HE,
        rngs: nnx.Rngs,
    ):
        shape = (in_features, out_features)
        self.kernel = _kernel(shape, prior_std, sigma, mask, kernel_init, rngs)
        self.bias = nnx.data(nnx.Param(jnp.zeros(out_features)) if use_bias else None)

    def __call__(
        self, x: Float[Array, "..."], key: Key[Array, ""] | None = None
    ) -> Float[Array, "..."]:
        """`(..., in_features)` to `(..., out_features)`."""
        return _output(jnp.matmul, x, self.kernel, self.bias, key)


class BayesConv(nnx.Module):
    r"""A convolution with Gaussian weights, sampled by local reparametrisation as `BayesLinear`.

    `y = conv(x, mu) + sqrt(conv(x^2, sigma^2) + 1e-8) eps + b`.

    Args:
      in_features: Input channels.
      out_features: Output channels.
      kernel_size: Size of the window, one number an axis.
      strides: Steps of the window, one number an axis; None means 1.
      padding: "SAME" or "VALID".
      prior_std: Standard deviation of the prior of each weight.
      sigma: Initial standard deviation of each weight.
      mask: Weights that exist, `(*kernel_size, in_features, out_features)`; None means all.
      use_bias: Whether to add a bias.
      kernel_init: Initializer of the means.
      rngs: Uses `params`.

    Raises:
      ValueError: If a size is less than 1, a deviation is not positive, the mask does not fit or
        `strides` has another length than `kernel_size`.

    Reference:
      Li et al., 2024 (arXiv 2402.11025).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from sparsejax.contrib import bayes
      >>> layer = bayes.BayesConv(1, 2, (3, 3), rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((5, 8, 8, 1)), jax.random.key(0)).shape
      (5, 8, 8, 2)
    """

    @checked(in_features="[1, inf)", out_features="[1, inf)", kernel_size="[1, inf)",
             strides="[1, inf)", kernel_init="kernel_init(k, s, d)")  # fmt: skip
    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        *,
        strides: Sequence[int] | None = None,
        padding: Literal["SAME", "VALID"] = "SAME",
        prior_std: float = 1.0,
        sigma: float = 0.01,
        mask: Bool[ArrayLike, "..."] | None = None,
        use_bias: bool = True,
        kernel_init: Initializer = _HE,
        rngs: nnx.Rngs,
    ):
        shape = (*map(int, kernel_size), in_features, out_features)
        self.strides = (1,) * len(kernel_size) if strides is None else tuple(map(int, strides))
        if len(self.strides) != len(kernel_size) or not len(kernel_size):
            raise ValueError(
                f"BayesConv: strides={strides} and kernel_size={kernel_size} must have one number "
                "for each spatial axis: kernel_size=(3, 3), strides=(1, 1)."
            )
        self.padding = padding
        self.kernel = _kernel(shape, prior_std, sigma, mask, kernel_init, rngs)
        self.bias = nnx.data(nnx.Param(jnp.zeros(out_features)) if use_bias else None)

    def __call__(
        self, x: Float[Array, "n *spatial c"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "n *out k"]:
        """`(n, *spatial, in_features)` to `(n, *spatial, out_features)`."""
        return _output(self._conv, x, self.kernel, self.bias, key)

    def _conv(self, x: Array, kernel: Array) -> Array:
        last = kernel.ndim - 1
        spatial = tuple(range(1, last))
        order = jax.lax.ConvDimensionNumbers(
            (0, last, *spatial), (last, last - 1, *range(last - 1)), (0, last, *spatial)
        )
        return jax.lax.conv_general_dilated(
            x, kernel, self.strides, self.padding, dimension_numbers=order
        )


def _kernel(shape, prior_std, sigma, mask, init, rngs) -> GaussianKernel:
    mu = init(rngs.params(), shape, jnp.float32)
    return GaussianKernel(mu, sigma, prior_std=prior_std, mask=mask)


def _output(product: Any, x: Array, kernel: GaussianKernel, bias: Any, key: Any) -> Array:
    """The product with the mean weights, or with a key a sample of the output's distribution."""
    mean, std = kernel.mean(), kernel.std()
    x = x.astype(common_dtype(x, mean))
    y = product(x, mean.astype(x.dtype))
    if key is not None:
        variance = product(x * x, (std * std).astype(x.dtype))
        noise = jax.random.normal(key, y.shape, y.dtype)
        y = y + jnp.sqrt(variance + _LEAST_VARIANCE) * noise
    return y if bias is None else y + bias[...].astype(y.dtype)
