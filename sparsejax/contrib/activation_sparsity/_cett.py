"""Activation sparsity at a tail error (CETT), and at a rise of perplexity (CETT-PPL-p%)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Shaped

from ..._arguments import check_not_nan, checked
from ..._arrays import passed
from ..._tree import register
from ...models import Llama
from ...nn import record, replace
from ._attach import arguments_of, kernels_of, only
from ._gates import kernel_norms


@checked(epsilon="[0, inf)")
def cett(
    z: Shaped[Array | np.ndarray, "m f"],
    w_out: Shaped[Array | np.ndarray, "f d"],
    epsilon: float | Array,
) -> Array:
    r"""The relative error of dropping the neurons whose output is small (CETT).

    `mean_tokens(||sum_{i: |z_i| ||W_i|| <= epsilon} z_i W_i|| / ||z W||)`; a token of zero output
    counts as 0.

    Args:
      z: Neurons of each token, `act(x Wgate) * (x Wup)`.
      w_out: The kernel behind them, `(f, d)`.
      epsilon: The threshold of the norms.

    Reference:
      Luo et al., Sparsing Law, 2024 (arXiv 2411.02335).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import activation_sparsity
      >>> z, w = jnp.array([[3.0, 4.0]]), jnp.eye(2)
      >>> round(float(activation_sparsity.cett(z, w, 3.5)), 3)
      0.6
    """
    z, w = (jnp.asarray(a).astype(jnp.float32) for a in (z, w_out))
    small = jnp.abs(z) * kernel_norms(w) <= epsilon
    tail, whole = (jnp.linalg.norm(a @ w, axis=1) for a in (jnp.where(small, z, 0), z))
    return jnp.mean(jnp.where(whole == 0, 0, tail / jnp.where(whole == 0, 1, whole)))


@checked(target="[0, inf)", candidates="[2, inf)", quantile="(0, 1]")
def cett_threshold(
    z: Shaped[Array | np.ndarray, "m f"],
    w_out: Shaped[Array | np.ndarray, "f d"],
    target: float | Array,
    *,
    candidates: int = 65536,
    quantile: float = 0.99,
) -> Float[Array, ""]:
    r"""The threshold of a layer at which `cett` reaches a target, by bisection.

    Candidates are evenly spaced between the least norm and the quantile of the norms, so that
    large targets (above about 0.7) are not reached. A target below the `cett` of the first
    candidate gives 0, which drops nothing.

    Args:
      z: As for `cett`, of the tokens of one dense pass.
      w_out: As for `cett`.
      target: The `cett` to reach.
      candidates: Number of candidates.
      quantile: Of the norms, the largest candidate.

    Reference:
      Luo et al., Sparsing Law, 2024 (arXiv 2411.02335).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import activation_sparsity
      >>> z, w = jnp.array([[1.0, 2.0, 20.0]]), jnp.eye(3)
      >>> 1 <= float(activation_sparsity.cett_threshold(z, w, 0.06)) < 2
      True
    """
    norms = jnp.abs(jnp.asarray(z).astype(jnp.float32)) * kernel_norms(w_out)
    flat = norms.ravel()[:: max(norms.size // 65536, 1)]
    steps = jnp.linspace(jnp.min(norms), jnp.quantile(flat, quantile), candidates)

    def halve(ends):
        left, right = ends
        middle = (left + right) // 2
        above = cett(z, w_out, steps[middle]) > target
        return jnp.where(above, left, middle + 1), jnp.where(above, middle, right)

    ends = jnp.int32(0), jnp.int32(candidates - 1)
    left, _ = lax.while_loop(lambda ends: ends[0] < ends[1], halve, ends)
    return jnp.where(left > 0, steps[left - 1], 0.0)


@checked(epsilon="[0, inf)")
def cett_mask(
    z: Shaped[Array | np.ndarray, "*m f"],
    w_out: Shaped[Array | np.ndarray, "f d"],
    epsilon: float | Array,
) -> Bool[Array, "*m f"]:
    r"""The neurons to keep, `|z_i| >= epsilon / ||W_i||`; a row of zeros only for epsilon = 0.

    Args:
      z: As for `cett`.
      w_out: As for `cett`.
      epsilon: From `cett_threshold`.

    Reference:
      Luo et al., Sparsing Law, 2024 (arXiv 2411.02335).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import activation_sparsity
      >>> z, w = jnp.array([3.0, 4.0]), jnp.array([[1.0], [0.5]])
      >>> activation_sparsity.cett_mask(z, w, 3.0).tolist()
      [True, False]
    """
    check_not_nan("cett_mask", z=z, w_out=w_out)
    return NeuronGate.at(w_out, epsilon).kept(jnp.asarray(z))


@register
@dataclass(frozen=True)
class NeuronGate:
    """A tap on the last layer of a feed-forward network that drops neurons below a limit.

    Args:
      limits: `(f,)`, the least magnitude of each neuron that is kept.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import activation_sparsity
      >>> gate = activation_sparsity.NeuronGate(jnp.array([1.0, 5.0]))
      >>> gate.kept(jnp.array([2.0, -4.0])).tolist()
      [True, False]
    """

    limits: Any

    @classmethod
    def at(cls, w_out: Shaped[Array | np.ndarray, "f d"], epsilon: ArrayLike) -> "NeuronGate":
        """The gate for a threshold of `cett`."""
        norms = kernel_norms(w_out)
        never = jnp.where(jnp.asarray(epsilon) > 0, jnp.inf, 0.0)
        return cls(jnp.where(norms > 0, epsilon / jnp.where(norms > 0, norms, 1), never))

    def kept(self, z: Shaped[Array | np.ndarray, "*m f"]) -> Bool[Array, "*m f"]:
        """The mask of the neurons to keep."""
        return jnp.abs(z.astype(jnp.float32)) >= self.limits

    def __call__(self, path: str, call: Callable[[Any], Any], x: Any) -> Any:
        """The output of the layer for the neurons that are kept."""
        del path
        return call(passed(self.kept(x), x))


class PerplexitySparsity(NamedTuple):
    """The activation sparsity of a model at a rise of perplexity.

    Attributes:
      cett: The tail error of all layers.
      thresholds: Of the norms, by path of the layer.
      activation_ratio: Share of neurons that are kept in the sparse run, by path.
      perplexity_ratio: Perplexity over that of the dense model.
    """

    cett: float
    thresholds: dict[str, float]
    activation_ratio: dict[str, float]
    perplexity_ratio: float


@checked(rise="(0, inf)", tol="(0, 1)")
def perplexity_sparsity(
    model: Llama,
    batches: Sequence[Any],
    rise: float = 0.01,
    *,
    tol: float = 1e-6,
    where: str = r"mlp/down$",
) -> PerplexitySparsity:
    r"""The share of active neurons at which perplexity rises by a fraction (CETT-PPL-p%).

    One tail error c for all layers, by bisection in [0, 1]: the threshold of each layer reaches the
    `cett` c on the neurons of the dense model, and the perplexity of the model with all layers
    sparse is at most `1 + rise` times the dense one.

    Args:
      model: A decoder with its layers in a list.
      batches: Token ids `(batch, length)` of validation text, without padding.
      rise: p; 0.01 for CETT-PPL-1%.
      tol: Width of the last interval of c.
      where: Regular expression over the paths of the layers behind the neurons.

    Returns:
      A `PerplexitySparsity`; the sparsity of a layer is 1 minus its ratio.

    Raises:
      ValueError: If no linear layer matches, a kernel is stacked, or there are no batches.

    Reference:
      Luo et al., Sparsing Law: Towards Large Language Models with Greater Activation Sparsity, 2024
      (arXiv 2411.02335).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> from sparsejax.contrib import activation_sparsity
      >>> config = sj.models.LlamaConfig(
      ...     vocabulary=50, width=16, hidden=32, layers=1, heads=4, key_heads=2, head_size=4)
      >>> model = sj.models.Llama(config, rngs=nnx.Rngs(0))
      >>> ids = jnp.arange(20)[None]
      >>> found = activation_sparsity.perplexity_sparsity(model, [ids], tol=0.1)
      >>> found.perplexity_ratio < 1.01
      True
    """
    kernels = kernels_of("perplexity_sparsity", model, where)
    batches = [batch for (batch,) in arguments_of("perplexity_sparsity", batches)]
    if not batches:
        raise ValueError("perplexity_sparsity: batches must hold at least one batch.")
    found = "|".join(map(only, kernels))

    @nnx.jit
    def run(model, gates, ids):
        """Sum of the losses, and the neurons by path; thresholds are data, so it compiles twice."""
        model = replace(model, gates) if gates else model
        logits, z = record(model, found, ids, reduce=lambda inputs, y: inputs[0])
        logits = logits[:, :-1].astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, ids[:, 1:, None], axis=-1)[..., 0]
        return jnp.sum(jax.nn.logsumexp(logits, axis=-1) - chosen), z

    def measured(gates):
        losses, z = zip(*(run(model, gates, ids) for ids in batches))
        rows = {p: jnp.concatenate([_rows(part[p]) for part in z]) for p in kernels}
        return float(sum(losses)) / sum(ids[:, 1:].size for ids in batches), rows

    dense, neurons = measured({})
    search = jax.jit(cett_threshold)

    def at(c: float) -> PerplexitySparsity:
        thresholds = {p: search(neurons[p], w, c) for p, w in kernels.items()}
        gates = {p: NeuronGate.at(w, thresholds[p]) for p, w in kernels.items()}
        loss, z = measured({only(p): gate for p, gate in gates.items()})
        ratios = {p: float(gate.kept(z[p]).mean()) for p, gate in gates.items()}
        taus = {p: float(tau) for p, tau in thresholds.items()}
        return PerplexitySparsity(c, taus, ratios, float(np.exp(loss - dense)))

    low, high, best = 0.0, 1.0, at(0.0)
    while high - low > tol:
        middle = at((low + high) / 2)
        if middle.perplexity_ratio < 1 + rise:
            low, best = middle.cett, middle
        else:
            high = middle.cett
    return best


def _rows(z: Array) -> Array:
    return z.reshape(-1, z.shape[-1])
