"""A layer with a learned mask: scores beside the kernel, as a separate variable type."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from ..._arguments import checked
from ..._tree import pure
from ...masks import plan as make_plan
from ...patterns import Pattern
from ._scores import scaled_scores, score_mask


class Score(nnx.Variable):
    """Scores of a learned mask: a variable type, so that filters select scores or weights.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import search
      >>> search.Score(jnp.ones(2))[...].tolist()
      [1.0, 1.0]
    """


class Scored(nnx.Module):
    r"""A layer masked by learned scores: its kernel is `kernel * score_mask(S, pattern)`.

    The gradient reaches the kept weights, `dL/dW = dL/dW_eff * M`, and all scores,
    `dL/dS = dL/dW_eff * W * sign(S)`. Train the weights with `wrt=nnx.Param`, the scores with
    `wrt=sj.contrib.search.Score`. The pattern may be changed between calls; None is dense.

    Args:
      layer: `nnx.Linear`, `nnx.Conv` or any NNX layer with a parameter `kernel`.
      pattern: Pattern of the mask; None for a dense layer.
      rounding: As for `score_mask`; "down" keeps at least one entry below sparsity 1.

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

    @checked()
    def __init__(self, layer: Any, pattern: Pattern | None, *, rounding: str = "down"):
        if not isinstance(layer, nnx.Module) or "kernel" not in nnx.state(layer, nnx.Param):
            raise TypeError(f"Scored: layer, a {type(layer).__name__}, has no kernel to mask.")
        self.layer: Any = layer
        self.pattern = pattern
        self.rounding = rounding
        self.scores = Score(self.layer.kernel[...])
        if pattern is not None:
            self.rescale()

    def rescale(self) -> None:
        """Sets the scores to `sqrt(6 / fan_in) W / max |W|`, whose mask is magnitude pruning."""
        if self.pattern is None:
            raise ValueError("rescale: the layer needs a pattern; set layer.pattern first.")
        tree = {"kernel": self.layer.kernel[...]}
        self.scores.set_value(scaled_scores(tree, make_plan(tree, self.pattern))["kernel"])

    def masked_kernel(self) -> Float[Array, "..."]:
        """The kernel under the current mask."""
        kernel = self.layer.kernel[...]
        if self.pattern is None:
            return kernel
        mask = score_mask(self.scores[...], self.pattern, rounding=self.rounding)
        return kernel * mask.astype(kernel.dtype)

    def __call__(self, x: Any) -> Any:
        """Applies the layer with the masked kernel."""
        graphdef, params, rest = nnx.split(self.layer, nnx.Param, ...)
        seen = {**pure(params), "kernel": self.masked_kernel()}
        return nnx.merge(graphdef, seen, rest, copy=False)(x)
