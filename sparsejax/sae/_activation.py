"""Activations of sparse autoencoders: frozen values that turn pre-activations into features."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._tree import register
from ._numbers import check_positive


class Context(NamedTuple):
    """Values that an activation may read in addition to the pre-activations.

    Attributes:
      x: `(n, d)`, the normalised input minus the decoder bias.
      params: The parameters of the autoencoder.
      grad: `(n, d)`, the gradient of the model's loss in the normalised input, or None.
      state: The `State` of training, or None at inference.
    """

    x: Any
    params: Mapping[str, Any]
    grad: Any = None
    state: Any = None


class Activation(ABC):
    """Base class of activations: `activation(z, context) -> features`, both `(..., latents)`.

    A custom activation defines `__call__`; as a frozen dataclass registered by `sj.register` it
    works under jit and vmap. `params` returns its parameters other than W_enc, W_dec and b_dec.

    Example:
      >>> import dataclasses, jax.numpy as jnp, sparsejax as sj
      >>> @sj.register
      ... @dataclasses.dataclass(frozen=True)
      ... class Square(sj.sae.Activation):
      ...     def __call__(self, z, context=None):
      ...         return jnp.maximum(z, 0) ** 2
      >>> Square()(jnp.array([-1.0, 3.0])).tolist()
      [0.0, 9.0]
    """

    @abstractmethod
    def __call__(
        self, z: Float[Array, "*n h"], context: Context | None = None
    ) -> Float[Array, "*n h"]:
        """The features."""

    @property
    def capacity(self) -> int | None:
        """The largest number of active latents per token, if it is fixed."""
        return None

    def params(self, latents: int, dtype: Any) -> dict[str, Array]:
        """Initial parameters by name."""
        return {"b_enc": jnp.zeros(latents, dtype)}

    def firing(self, z: Array, features: Array, context: Context) -> Array:
        """1 where a latent is active and 0 elsewhere, with the gradient of an L0 penalty."""
        del z, context
        return (features != 0).astype(features.dtype)

    def gate(self, z: Array, context: Context) -> Array | None:
        """The values that an L1 penalty applies to, if not the features."""
        del z, context
        return None

    def codes(
        self, z: Array, context: Context, at: Callable[[Array], Array]
    ) -> tuple[Array, Array]:
        """Indices and features of the active latents, for activations with a capacity.

        z has no gradient; `at(indices)` returns its entries with theirs.
        """
        raise NotImplementedError(f"{type(self).__name__}: a capacity needs a method codes.")

    @property
    def scales(self) -> bool:
        """Whether latents may be rescaled: `f(c z) = c f(z)` with thresholds and biases scaled."""
        return False

    @property
    def tied(self) -> bool:
        """Whether the encoder is the transposed decoder, without parameters."""
        return False

    def threshold(self, old: Array, codes: Any, state: Any) -> Array:
        """The running threshold after a step of training; unchanged by default."""
        del codes, state
        return old

    def inference(
        self, params: dict[str, Array], state: Any
    ) -> tuple["Activation", dict[str, Array]]:
        """The activation and parameters after training; unchanged by default."""
        del state
        return self, params


@register
@dataclass(frozen=True)
class ReLU(Activation):
    """`f = max(z, 0)`.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.sae.ReLU()(jnp.array([-1.0, 2.0])).tolist()
      [0.0, 2.0]
    """

    @property
    def scales(self) -> bool:
        """True."""
        return True

    def __call__(
        self, z: Float[Array, "*n h"], context: Context | None = None
    ) -> Float[Array, "*n h"]:
        """The features."""
        return jax.nn.relu(z)


@register
@dataclass(frozen=True)
class JumpReLU(Activation):
    r"""`f = z 1[z > theta]` with a trained threshold for each latent.

    With the rectangle `K(u) = 1[|u| < 1/2]` and the bandwidth e the gradients are
    `df/dz = 1[z > theta]` and `df/dtheta = -(theta/e) K((z - theta)/e)`. Second derivatives by
    reverse mode are those of this rule; forward mode raises. The threshold is trained directly, in
    float32 whatever the dtype of the weights, and kept at least 0 by `sj.sae.train`.

    Args:
      bandwidth: e, in units of z.
      init: The initial threshold.
      input_gradient: Whether the term of the threshold also reaches z, with the opposite sign.

    Reference:
      Rajamanoharan et al., Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse
      Autoencoders, 2024 (arXiv 2407.14435).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"threshold": jnp.array([1.0, 1.0])}
      >>> z = jnp.array([0.5, 2.0])
      >>> sj.sae.JumpReLU()(z, sj.sae.Context(None, params)).tolist()
      [0.0, 2.0]
    """

    bandwidth: Any = 0.05
    init: Any = 0.01
    input_gradient: bool = field(default=False, metadata=dict(static=True))

    def __post_init__(self):
        check_positive("JumpReLU", bandwidth=self.bandwidth)

    @property
    def scales(self) -> bool:
        """True."""
        return True

    def __call__(
        self, z: Float[Array, "*n h"], context: Context | None = None
    ) -> Float[Array, "*n h"]:
        """The features."""
        return jump(z, _threshold(context), jnp.float32(self.bandwidth), self.input_gradient)

    def params(self, latents: int, dtype: Any) -> dict[str, Array]:
        """Encoder bias and thresholds."""
        theta = jnp.full(latents, self.init, jnp.float32)
        return {"b_enc": jnp.zeros(latents, dtype), "threshold": theta}

    def firing(self, z: Array, features: Array, context: Context) -> Array:
        """`1[z > theta]` with `d/dtheta = -(1/e) K((z - theta)/e)`."""
        del features
        return step(z, _threshold(context), jnp.float32(self.bandwidth), self.input_gradient)


@register
@dataclass(frozen=True)
class Gated(Activation):
    r"""`f = 1[pi > 0] max(m, 0)`: one gate and one magnitude for each latent.

    `pi = x W_enc + b_gate` and `m = x (W_enc exp(r_mag)) + b_mag` for the centred input x. The
    features have no gradient in the gate: train it by `L1`, which applies to `max(pi, 0)`, and by
    `GateAuxiliary`.

    Reference:
      Rajamanoharan et al., Improving Dictionary Learning with Gated Sparse Autoencoders, 2024
      (arXiv 2404.16014).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {name: jnp.zeros(2) for name in ("b_gate", "b_mag", "r_mag")}
      >>> sj.sae.Gated()(jnp.array([-1.0, 2.0]), sj.sae.Context(None, params)).tolist()
      [0.0, 2.0]
    """

    @property
    def scales(self) -> bool:
        """True."""
        return True

    def __call__(
        self, z: Float[Array, "*n h"], context: Context | None = None
    ) -> Float[Array, "*n h"]:
        """The features; z has no bias."""
        p = _params("Gated", context, "b_gate", "b_mag", "r_mag")
        magnitude = jax.nn.relu(z * jnp.exp(p["r_mag"]) + p["b_mag"])
        return above(z + p["b_gate"], 0, magnitude)

    def params(self, latents: int, dtype: Any) -> dict[str, Array]:
        """Two biases and the logarithm of a scale; no encoder bias."""
        return {name: jnp.zeros(latents, dtype) for name in ("b_gate", "b_mag", "r_mag")}

    def gate(self, z: Array, context: Context) -> Array | None:
        """`max(pi, 0)`."""
        return jax.nn.relu(z + _params("Gated", context, "b_gate")["b_gate"])


def _threshold(context: Context | None) -> Array:
    return _params("JumpReLU", context, "threshold")["threshold"]


def _params(name: str, context: Context | None, *wanted: str) -> Mapping[str, Array]:
    params = {} if context is None else context.params
    missing = [x for x in wanted if x not in params]
    if missing:
        raise ValueError(
            f"{name}: params must hold {', '.join(missing)}, got {', '.join(params) or 'none'}; "
            "sae.init(...) makes them."
        )
    return params


def jump(z: Array, theta: Array, bandwidth: Array, input_gradient: bool) -> Array:
    """`z 1[z > theta]` in the dtype of z; compared in at least float32."""
    return _jump(z, jnp.broadcast_to(theta, z.shape), bandwidth, input_gradient)


def step(z: Array, theta: Array, bandwidth: Array, input_gradient: bool) -> Array:
    """`1[z > theta]` in the dtype of z."""
    return _step(z, jnp.broadcast_to(theta, z.shape), bandwidth, input_gradient)


def above(score: Array, limit: Any, value: Array) -> Array:
    """The value where the score is above a limit, NaN where that is unknown, and 0 elsewhere."""
    return jnp.where(score > limit, value, jnp.where(score <= limit, 0, jnp.nan))


@jax.custom_vjp
def _jump(z, theta, bandwidth, input_gradient):
    return above(z.astype(theta.dtype), theta, z)


@jax.custom_vjp
def _step(z, theta, bandwidth, input_gradient):
    return (z.astype(theta.dtype) > theta).astype(z.dtype)


def _forward(f):
    return lambda z, theta, *rest: (f(z, theta, *rest), (z, theta, *rest))


def _near(z, theta, bandwidth):
    """`K((z - theta)/e) / e`."""
    return (jnp.abs(z.astype(theta.dtype) - theta) < bandwidth / 2).astype(theta.dtype) / bandwidth


def _jump_backward(residual, g):
    z, theta, bandwidth, input_gradient = residual
    at_edge = theta * _near(z, theta, bandwidth) * g.astype(theta.dtype)
    through = jnp.where(z.astype(theta.dtype) > theta, g, 0)
    through = through + jnp.where(input_gradient, at_edge, 0).astype(z.dtype)
    return through, -at_edge, jnp.zeros_like(bandwidth), None


def _step_backward(residual, g):
    z, theta, bandwidth, input_gradient = residual
    at_edge = _near(z, theta, bandwidth) * g.astype(theta.dtype)
    return jnp.where(input_gradient, at_edge, 0).astype(z.dtype), -at_edge, 0 * bandwidth, None


_jump.defvjp(_forward(_jump), _jump_backward)
_step.defvjp(_forward(_step), _step_backward)
