"""A layer whose mask is learned: scores beside the kernel, of a variable type of their own."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from ..._tree import pure
from ...masks import plan as make_plan
from ...patterns import Pattern
from ._scores import scaled_scores, score_mask


class Score(nnx.Variable):
    """The scores that a mask is made of, so that filters can train them or the weights alone.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import search
      >>> search.Score(jnp.ones(2))[...].tolist()
      [1.0, 1.0]
    """


class Scored(nnx.Module):
    r"""A layer under a mask that its own scores make: `kernel * score_mask(S, pattern)`.

    The gradient reaches the kept weights, `dL/dW = dL/dW_eff * M`, and all scores,
    `dL/dS = dL/dW_eff * W * sign(S)`. Train the weights with `wrt=nnx.Param`, the scores with
    `wrt=sj.contrib.search.Score`. The pattern may be changed between calls, `layer.pattern = None` is dense.

    Args:
      layer: `nnx.Linear`, `nnx.Conv` or any layer with a `kernel`.
      pattern: What the mask keeps to; None for a dense layer.

    Raises:
      TypeError: If the layer has no kernel.
      ValueError: If the pattern does not fit it.

    Reference:
      Mousavi et al., DASS, 2022 (arXiv 2207.06968): SparseConv and SparseLinear.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from sparsejax.contrib import search
      >>> from flax import nnx
      >>> layer = search.Scored(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), sj.Unstructured(0.75))
      >>> int((layer.masked_kernel() != 0).sum()), layer(jnp.ones((2, 8))).shape
      (8, (2, 4))
      >>> grads = nnx.grad(lambda m, x: m(x).sum(), argnums=nnx.DiffState(0, search.Score))(
      ...     layer, jnp.ones((2, 8)))
      >>> list(grads), int((grads["scores"][...] != 0).sum())
      (['scores'], 32)
    """

    def __init__(self, layer: Any, pattern: Pattern | None):
        if not hasattr(layer, "kernel"):
            raise TypeError(f"Scored: a {type(layer).__name__} has no kernel to mask.")
        self.layer = layer
        self.pattern = pattern
        self.scores = Score(layer.kernel[...])
        if pattern is not None:
            self.rescale()

    def rescale(self) -> None:
        """Sets the scores to `sqrt(6 / fan_in) W / max |W|`: the mask is that of magnitude."""
        if self.pattern is None:
            raise ValueError("rescale: the layer has no pattern; set layer.pattern first.")
        tree = {"kernel": self.layer.kernel[...]}
        self.scores.set_value(scaled_scores(tree, make_plan(tree, self.pattern))["kernel"])

    def masked_kernel(self) -> Float[Array, "..."]:
        """The kernel that inputs are multiplied by."""
        kernel = self.layer.kernel[...]
        if self.pattern is None:
            return kernel
        return kernel * score_mask(self.scores[...], self.pattern).astype(kernel.dtype)

    def __call__(self, x: Any) -> Any:
        """What the layer gives with the masked kernel."""
        graphdef, params, rest = nnx.split(self.layer, nnx.Param, ...)
        seen = {**pure(params), "kernel": self.masked_kernel()}
        return nnx.merge(graphdef, seen, rest, copy=False)(x)
