"""Top-k feed-forward networks: each token keeps its k largest neurons, in training and after."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Shaped

from ..._arguments import check_count, checked
from ..._arrays import passed, wide_dtype
from ..._tree import register
from ...kernels import active_reduce
from ...select import Threshold, TopK


@register
@dataclass(frozen=True)
class NeuronTopK:
    r"""A tap on the layer behind the neurons that keeps the k largest of each token.

    `V Top_k(a)` for `a = act(K^T x)`: the mask is a constant for gradients, which flow through the
    kept neurons only. Of equal values the lowest index is kept. Attach it in any framework with
    `sj.nn.replace(model, {r"down$": gate})`.

    Args:
      k: Neurons to keep; 0 keeps none, n or more keep all.
      by: "value" for ReLU networks, as in the paper; "magnitude" for activations with two signs.

    Raises:
      ValueError: If k is negative, or `by` is unknown.

    Reference:
      Li et al., The Lazy Neuron Phenomenon: On Emergence of Activation Sparsity in Transformers,
      2022 (arXiv 2210.06313).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import activation_sparsity
      >>> gate = activation_sparsity.NeuronTopK(1)
      >>> gate("down", lambda a: a, jnp.array([[2.0, 3.0, -4.0]])).tolist()
      [[0.0, 3.0, 0.0]]
    """

    k: int = field(metadata=dict(static=True))
    by: str = field(default="value", metadata=dict(static=True))

    def __post_init__(self):
        check_count("NeuronTopK: k", self.k, 0)
        if self.by not in ("value", "magnitude"):
            raise ValueError(f"NeuronTopK: by must be 'value' or 'magnitude', got {self.by!r}.")

    def kept(self, a: Shaped[Array | np.ndarray, "*t n"]) -> Bool[Array, "*t n"]:
        """The mask of the kept neurons."""
        scores = jnp.asarray(a).astype(wide_dtype(a))
        scores = jnp.abs(scores) if self.by == "magnitude" else scores
        return (TopK(min(self.k, a.shape[-1])) if self.k else Threshold(jnp.inf))(scores)

    def __call__(self, path: str, call: Callable[[Any], Any], a: Any) -> Any:
        """The output of the layer for the kept neurons."""
        del path
        return call(passed(self.kept(a), a))


class TopKMLP(nnx.Module):
    r"""A feed-forward network of which each token uses k neurons, `V Top_k(act(K^T x))`.

    With a gate, `V (Top_k(act(x Wgate)) * (x Wup))`. Without biases.

    Args:
      width: Features of x.
      hidden: Number of neurons.
      k: Neurons of a token, from 1; `hidden` gives the ordinary network.
      activation: An elementwise function.
      gated: Whether a second kernel multiplies the activations.
      by: As for `NeuronTopK`.
      gather: Whether to read only the rows of V of the kept neurons, by `sj.kernels.active_reduce`;
        for a few tokens at a time. The result is the same.
      implementation: As for `sj.kernels.active_reduce`.
      param_dtype: Dtype of the parameters.
      rngs: Keys of the initial parameters.

    Raises:
      ValueError: If a size is not a positive integer, k is above `hidden`, or `by` is unknown.

    Reference:
      Li et al., The Lazy Neuron Phenomenon, 2022 (arXiv 2210.06313).

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from sparsejax.contrib import activation_sparsity
      >>> layer = activation_sparsity.TopKMLP(4, 16, 2, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((3, 4))).shape
      (3, 4)
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        k: int,
        *,
        activation: Callable[[Any], Any] = jax.nn.relu,
        gated: bool = False,
        by: str = "value",
        gather: bool = False,
        implementation: Any = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value in (("width", width), ("hidden", hidden), ("k", k)):
            check_count(f"TopKMLP: {name}", value)
        if k > hidden:
            raise ValueError(f"TopKMLP: k must be at most hidden = {hidden}, got {k}.")
        linear = lambda m, n: nnx.Linear(  # noqa: E731
            m, n, use_bias=False, param_dtype=param_dtype, rngs=rngs
        )
        self.first = linear(width, hidden)
        self.up = nnx.data(linear(width, hidden) if gated else None)
        self.down = linear(hidden, width)
        self.activation, self.select = activation, NeuronTopK(k, by)
        self.gather, self.implementation = gather, implementation

    def __call__(self, x: Shaped[Array, "... d"]) -> Shaped[Array, "... d"]:
        rows = x.reshape(-1, x.shape[-1])
        a = self.activation(self.first(rows))
        kept = self.select.kept(a)
        h = a if self.up is None else a * self.up(rows)
        y = self._gathered(h, kept) if self.gather else self.down(passed(kept, h))
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def _gathered(self, h: Array, kept: Array) -> Array:
        s = TopK(self.select.k).set(kept.astype(jnp.float32))
        y = active_reduce(h, self.down.kernel[...], s, implementation=self.implementation)
        return jnp.where(jnp.isnan(h).any(-1, keepdims=True), jnp.nan, y)


@checked(width="[1, inf)", hidden="[1, inf)", active="[0, inf)", candidates="[0, inf)")
def mlp_flops(
    width: int,
    hidden: int,
    active: float | int | None = None,
    *,
    gated: bool = False,
    candidates: float | int | None = None,
) -> float:
    r"""Floating-point operations of a feed-forward network per token, `2 d f + 2 d s`.

    Args:
      width: d.
      hidden: f.
      active: s, neurons whose rows of the last kernel are used; f by default.
      gated: Whether a third kernel `(d, f)` makes the neurons too; it is computed at the active
        ones.
      candidates: Neurons of which the first kernel is computed; f by default. Fewer need an
        approximate search for the largest.

    Reference:
      Li et al., The Lazy Neuron Phenomenon, 2022 (arXiv 2210.06313).

    Example:
      >>> from sparsejax.contrib import activation_sparsity
      >>> dense = activation_sparsity.mlp_flops(768, 3072)
      >>> round(activation_sparsity.mlp_flops(768, 3072, 128) / dense, 2)
      0.52
    """
    used = hidden if active is None else active
    first = hidden if candidates is None else candidates
    return float(2 * width * (first + used * (2 if gated else 1)))
