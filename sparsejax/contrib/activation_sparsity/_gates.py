"""Gates: taps that zero the inputs or the outputs of a layer, selected by score."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from ..._arguments import check_fraction, checked
from ..._arrays import passed, wide_dtype
from ..._tree import register
from ...select import Selector, Threshold, TopK


@checked()
def kernel_norms(kernel: Shaped[Array | np.ndarray, "k n"]) -> Float[Array, " k"]:
    r"""The norm of the weights that multiply each input, `c_i = ||W[i, :]||_2`, in float32.

    Args:
      kernel: `(in, out)`, as in Flax.

    Raises:
      ValueError: If the kernel is not a matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import activation_sparsity
      >>> activation_sparsity.kernel_norms(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
      [5.0, 0.0]
    """
    kernel = jnp.asarray(kernel)
    return jnp.linalg.norm(kernel.astype(wide_dtype(kernel)), axis=1)


@checked()
def input_scores(
    x: Shaped[Array | np.ndarray, "*t n"], norms: Shaped[Array | np.ndarray, " n"] | None = None
) -> Float[Array, "*t n"]:
    r"""The scores of the inputs of a layer, `|x_i| c_i` (WINA) or `|x_i|` (TEAL), in float32.

    If the rows of the kernel are orthogonal, keeping the k inputs of the largest `|x_i| c_i` has
    the least output error `sum_dropped (x_i c_i)^2` of all sets of k inputs.

    Args:
      x: Inputs.
      norms: `kernel_norms` of the kernel; None for ones.

    Reference:
      Chen et al., WINA: Weight Informed Neuron Activation, 2025 (arXiv 2505.19427); Liu et al.,
      TEAL, 2024 (arXiv 2408.14690).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import activation_sparsity
      >>> x, norms = jnp.array([-2.0, 1.0]), jnp.array([1.0, 3.0])
      >>> activation_sparsity.input_scores(x, norms).tolist()
      [2.0, 3.0]
    """
    x = jnp.asarray(x)
    size = jnp.abs(x.astype(wide_dtype(x)))
    return size if norms is None else size * jnp.asarray(norms).astype(size.dtype)


@register
@dataclass(frozen=True)
class InputGate:
    r"""A tap that zeroes the inputs of a layer outside the selected ones, `y = (x * mask) W + b`.

    A selector of the `input_scores` of each token. The first tokens of a prompt stay dense, as in
    TEAL: `T - floor((1 - dense_prefix) T)` of T > 1 tokens, on the axis before the last. Attach
    gates with `sj.nn.replace(model, gates)`.

    Args:
      selector: For example `sj.select.TopK(k)` or `sj.select.Threshold(tau)`.
      norms: `(n,)`, as for `input_scores`.
      dense_prefix: Fraction of the tokens of a prompt, in [0, 1].

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from sparsejax.contrib import activation_sparsity
      >>> gate = activation_sparsity.InputGate(sj.select.TopK(1))
      >>> gate.kept(jnp.array([[0.5, -2.0]])).tolist()
      [[False, True]]
    """

    selector: Selector
    norms: Any = None
    dense_prefix: float = field(default=0.01, metadata=dict(static=True))

    def __post_init__(self):
        check_fraction("InputGate: dense_prefix", self.dense_prefix)

    def kept(self, x: Shaped[Array | np.ndarray, "*t n"]) -> Bool[Array, "*t n"]:
        """The mask of the selected inputs."""
        mask = self.selector(input_scores(x, self.norms))
        tokens = x.shape[-2] if x.ndim > 1 else 1
        dense = tokens - int((1 - self.dense_prefix) * tokens + 1e-9) if tokens > 1 else 0
        return mask | (jnp.arange(tokens) < dense)[:, None] if dense else mask

    def __call__(self, path: str, call: Callable[[Any], Any], x: Any) -> Any:
        """The output of the layer for the selected inputs."""
        del path
        return call(passed(self.kept(x), x))


@register
@dataclass(frozen=True)
class ActivationGate:
    r"""A tap on the gate of a gated network that drops neurons of small `|act(x Wgate)|` (CATS).

    The output of the layer is zero outside the selected neurons, so that `act(0) = 0` removes them
    from `(act(x Wgate) * (x Wup)) Wdown`.

    Args:
      selector: Selects by `|act(y)|` of each token.
      activation: The activation behind the layer; 0 at 0.
      shared: Whether to select by the sums over the first axis, one set for all rows of a batch.

    Reference:
      Lee et al., CATS: Contextually-Aware Thresholding for Sparsity, 2024 (arXiv 2404.08763).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from sparsejax.contrib import activation_sparsity
      >>> gate = activation_sparsity.ActivationGate(sj.select.TopK(1))
      >>> gate("mlp/gate", lambda x: x, jnp.array([[-1.0, 3.0]])).tolist()
      [[0.0, 3.0]]
    """

    selector: Selector
    activation: Callable[[Any], Any] = field(default=jax.nn.silu, metadata=dict(static=True))
    shared: bool = field(default=False, metadata=dict(static=True))

    def kept(self, y: Shaped[Array | np.ndarray, "*t n"]) -> Bool[Array, "*t n"]:
        """The mask of the selected neurons, by the output of the layer."""
        scores = jnp.abs(self.activation(y.astype(wide_dtype(y))))
        if not self.shared:
            return self.selector(scores)
        return jnp.broadcast_to(self.selector(scores.sum(0, keepdims=True)), y.shape)

    def __call__(self, path: str, call: Callable[[Any], Any], x: Any) -> Any:
        """The output of the layer at the selected neurons, zero at the others."""
        del path
        y = call(x)
        return passed(self.kept(y), y)


def top_selector(units: int, sparsity: float) -> Selector:
    """The `floor(n (1 - sparsity))` largest scores, or none."""
    k = int(units * (1 - sparsity) + 1e-9)
    return TopK(k) if k else Threshold(jnp.inf)
