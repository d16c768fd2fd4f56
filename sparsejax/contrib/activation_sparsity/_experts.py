"""BlockFFN: many small experts behind a ReLU router, with exact zeros and no top-k."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from ..._arguments import check_count
from ..._arrays import wide_dtype
from ...kernels import active_ffn
from ...select import NonZero


class Routed(NamedTuple):
    """The steps of a `ReLURouter`, `(..., experts)` each, in float32.

    Attributes:
      logits: `x Wr`, for `activation_locality`.
      active: `relu(x Wr)`.
      normed: Normalised, before the gain, for `chunk_sparsification`.
      weights: The weights of the experts; an expert is active where they are not zero.
    """

    logits: Float[Array, "... e"]
    active: Float[Array, "... e"]
    normed: Float[Array, "... e"]
    weights: Float[Array, "... e"]


class ReLURouter(nnx.Module):
    r"""Weights of experts with exact zeros, `g * A / sqrt(mean_e A_e^2 + eps)`, `A = relu(x Wr)`.

    Differentiable, with a number of active experts that varies from token to token. The mean is
    over all experts.

    Args:
      width: Features of x.
      experts: Number of experts E.
      norm: "rms" as above; "sum" divides by `sum_e A_e + eps`; "none" keeps A (ReMoE).
      epsilon: eps.
      param_dtype: Dtype of the parameters.
      rngs: Keys of the initial parameters.

    Raises:
      ValueError: If the norm is unknown.

    Reference:
      Song et al., BlockFFN, 2025 (arXiv 2507.08771); Wang et al., ReMoE, 2024 (arXiv 2412.14711).

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from sparsejax.contrib import activation_sparsity
      >>> router = activation_sparsity.ReLURouter(4, 8, rngs=nnx.Rngs(0))
      >>> router(jnp.ones((2, 4))).weights.shape
      (2, 8)
    """

    def __init__(
        self,
        width: int,
        experts: int,
        *,
        norm: str = "rms",
        epsilon: float = 1e-5,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if norm not in ("rms", "sum", "none"):
            raise ValueError(f"ReLURouter: norm must be 'rms', 'sum' or 'none', got {norm!r}.")
        self.linear = nnx.Linear(width, experts, use_bias=False, param_dtype=param_dtype, rngs=rngs)
        self.gain = nnx.Param(jnp.ones(experts, param_dtype))
        self.norm, self.epsilon = norm, epsilon

    def __call__(self, x: Shaped[Array, "... d"]) -> Routed:
        logits = self.linear(x)
        logits = logits.astype(wide_dtype(logits))
        active = jax.nn.relu(logits)
        normed = active
        if self.norm == "rms":
            square = jnp.mean(active**2, axis=-1, keepdims=True)
            normed = active * jax.lax.rsqrt(square + self.epsilon)
        elif self.norm == "sum":
            normed = active / (jnp.sum(active, axis=-1, keepdims=True) + self.epsilon)
        return Routed(logits, active, normed, normed * self.gain[...].astype(normed.dtype))


class BlockFFN(nnx.Module):
    r"""A feed-forward network of small experts, `y = sum_e A_e silu(x Wup_e) Wdown_e`.

    Without biases, top-k, shared experts or load balancing. Record the router with
    `sj.nn.record(model, "router$", x)` for the losses; see `activation_locality` and
    `chunk_sparsification`.

    Args:
      width: Features of x.
      experts: Number of experts E.
      size: Neurons of an expert.
      union: Whether to multiply only with the experts that some token of the call uses, by
        `sj.kernels.active_ffn`; for a few tokens at a time. The result is the same.
      norm: As for `ReLURouter`.
      implementation: As for `sj.kernels.active_ffn`.
      param_dtype: Dtype of the parameters.
      rngs: Keys of the initial parameters.

    Raises:
      ValueError: If a size is not a positive integer, or the norm is unknown.

    Reference:
      Song et al., BlockFFN: Towards End-Side Acceleration-Friendly Mixture-of-Experts with
      Chunk-Level Activation Sparsity, 2025 (arXiv 2507.08771).

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from sparsejax.contrib import activation_sparsity
      >>> layer = activation_sparsity.BlockFFN(4, 8, 2, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 3, 4))).shape
      (2, 3, 4)
    """

    def __init__(
        self,
        width: int,
        experts: int,
        size: int,
        *,
        union: bool = False,
        norm: str = "rms",
        implementation: Any = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value in (("width", width), ("experts", experts), ("size", size)):
            check_count(f"BlockFFN: {name}", value)
        self.router = ReLURouter(width, experts, norm=norm, param_dtype=param_dtype, rngs=rngs)
        shape = (experts, size, width)  # the weights of a unit are contiguous
        into = nnx.initializers.lecun_normal(in_axis=2, out_axis=1, batch_axis=0)
        out = nnx.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0)
        self.up = nnx.Param(into(rngs.params(), shape, param_dtype))
        self.down = nnx.Param(out(rngs.params(), shape, param_dtype))
        self.union, self.implementation = union, implementation

    def __call__(self, x: Shaped[Array, "... d"]) -> Shaped[Array, "... d"]:
        rows = x.reshape(-1, x.shape[-1])
        weights = self.router(rows).weights
        y = self._union(rows, weights) if self.union else self._dense(rows, weights)
        return y.astype(x.dtype).reshape(x.shape)

    def _dense(self, x: Array, weights: Array) -> Array:
        total = wide_dtype(x)
        # As two matrices: XLA multiplies three axes slowly on a CPU.
        up, down = (kernel[...].reshape(-1, x.shape[1]) for kernel in (self.up, self.down))
        h = jax.nn.silu(jnp.matmul(x, up.T, preferred_element_type=total))
        h = h.reshape(*weights.shape, -1) * weights[..., None]
        return jnp.matmul(h.reshape(len(x), -1), down, preferred_element_type=total)

    def _union(self, x: Array, weights: Array) -> Array:
        s = NonZero().set(weights, union=True)
        return active_ffn(
            x, self.up[...], self.down[...], s, activation=jax.nn.silu,
            scale=weights[:, s.index], implementation=self.implementation,
        )  # fmt: skip
