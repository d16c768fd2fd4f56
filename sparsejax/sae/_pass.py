"""One pass of an autoencoder over a batch: what losses and metrics read."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ._activation import Context
from ._codes import Dense, Sparse
from ._normalize import Units

if TYPE_CHECKING:
    from ._sae import SAE


class Pass:
    """The values of one pass, on the normalised scale; computed once where they are read.

    Attributes:
      sae: The autoencoder.
      params: Its parameters.
      context: The centred input, the gradient and the state.
      codes: The features, `Dense` or `Sparse`.
      reconstruction: `(n, d)`.
      target: `(n, d)`, the normalised input, or the given target, which a transcoder needs.
      units: The units of the reconstruction and the target.
    """

    def __init__(
        self, sae: "SAE", context: Context, codes: Dense | Sparse, reconstruction: Array,
        target: Array | None, units: Units,
    ):  # fmt: skip
        self.sae, self.context, self.codes = sae, context, codes
        self.reconstruction, self._target, self.units = reconstruction, target, units
        self.params = context.params

    @property
    def target(self) -> Array:
        """The samples to reconstruct."""
        if self._target is None:
            raise ValueError(
                "SAE: a transcoder needs the target of each sample, the output of the module: pass "
                'a dict of arrays, {"x": inputs, "target": outputs}.'
            )
        return self._target

    def dense(self) -> Array:
        """All features, `(n, h)`."""
        return self.features

    @cached_property
    def features(self) -> Array:
        """All features, `(n, h)`."""
        return self.codes.dense()

    @cached_property
    def z(self) -> Array:
        """All pre-activations, `(n, h)`, with their gradients."""
        return self.sae.preactivations(self.params, self.context.x)

    @cached_property
    def fixed_z(self) -> Array:
        """All pre-activations without gradients: the product is that of the forward pass."""
        fixed, x = lax.stop_gradient((dict(self.params), self.context.x))
        return self.sae.preactivations(fixed, x)

    def z_at(self, indices: Array) -> Array:
        """The pre-activations at some indices of each token, with their gradients."""
        return self.sae.preactivations_at(self.params, self.context.x, indices)

    @cached_property
    def firing(self) -> Array:
        """1 where a latent is active, with the gradient of the activation."""
        return self.sae.activation.firing(self.z, self.features, self.context)

    @cached_property
    def penalized(self) -> Array:
        """The features, or the gates of an activation that has them."""
        gate = self.sae.activation.gate(self.z, self.context)
        return self.features if gate is None else gate

    @property
    def state(self) -> Any:
        """The state of training."""
        return self.context.state

    @cached_property
    def residual(self) -> Array:
        """The target minus the reconstruction, at least float32."""
        wide = jnp.promote_types(self.target.dtype, jnp.float32)
        return self.target.astype(wide) - self.reconstruction.astype(wide)
