"""Sparsity of each projection of a block, greedily by the error of the block."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ..._arguments import check_not_nan, checked
from ...models import Llama
from ...nn import record, replace
from ...select import Threshold
from ._attach import kernels_of, only, score_counts, weights_of
from ._gates import InputGate, input_scores
from ._quantile import pooled_quantile

ORDER = ("query", "key", "value", "out", "gate", "up", "down")


class Trajectory(NamedTuple):
    """The steps of a greedy allocation: mean sparsity, error, and sparsity by projection.

    Attributes:
      sparsity: `(R,)`, weighted by size.
      error: `(R,)`.
      by_projection: `(R, P)`; a last step may pass 1.
    """

    sparsity: Float[np.ndarray, " r"]
    error: Float[np.ndarray, " r"]
    by_projection: Float[np.ndarray, "r p"]


@checked(error="error(sparsities)", target="[0, 1]", step="(0, 1]")
def greedy_allocation(
    error: Callable[[np.ndarray], float],
    sizes: Sequence[int | float],
    *,
    target: float = 0.66,
    step: float = 0.025,
) -> Trajectory:
    r"""Raises the sparsity of the projection that costs least, until their mean is the target.

    Each step tries `s_p + step / w_p` for every projection with `s_p < 1` and keeps the one with
    the smallest error, the first in case of ties; w are the sizes over the first size.

    Args:
      error: The error of the block for sparsities `(P,)`.
      sizes: Number of weights of each projection.
      target: Mean sparsity `sum w_p s_p / sum w_p` to reach.
      step: Step of the first projection.

    Returns:
      A `Trajectory` from zeros to the target.

    Raises:
      ValueError: If there are no sizes, they are not positive, or an error is NaN.

    Reference:
      Liu et al., TEAL, 2024 (arXiv 2408.14690).

    Example:
      >>> from sparsejax.contrib import activation_sparsity
      >>> path = activation_sparsity.greedy_allocation(
      ...     lambda s: 3 * s[0] + s[1], [1, 1], target=0.25, step=0.25)
      >>> path.by_projection.tolist()
      [[0.0, 0.0], [0.0, 0.25], [0.0, 0.5]]
    """
    if not len(sizes) or not min(sizes) > 0:
        raise ValueError(f"greedy_allocation: sizes must be positive numbers, got {sizes}.")
    w = np.asarray(sizes, np.float64) / sizes[0]
    s = np.zeros(len(w))
    rows = [(0.0, float(error(s)), s)]
    while rows[-1][0] < target - 1e-12:
        tried = []
        for p in np.flatnonzero(s < 1):
            trial = s.copy()
            trial[p] += step / w[p]
            tried.append((float(error(trial)), trial))
        if any(np.isnan(found[0]) for found in tried):
            raise ValueError("greedy_allocation: error(sparsities) must be a number, it is NaN.")
        least, s = min(tried, key=lambda found: found[0])
        rows.append((float(w @ s / w.sum()), least, s))
    return Trajectory(*map(np.array, zip(*rows)))


@checked(target="[0, 1]")
def allocation_at(trajectory: Trajectory, target: float) -> Float[np.ndarray, " p"]:
    """The sparsities of the step whose mean is nearest to a target, at most 1.

    Args:
      trajectory: The result of `greedy_allocation`.
      target: Mean sparsity.

    Example:
      >>> from sparsejax.contrib import activation_sparsity
      >>> path = activation_sparsity.greedy_allocation(
      ...     lambda s: 3 * s[0] + s[1], [1, 1], target=0.25, step=0.25)
      >>> activation_sparsity.allocation_at(path, 0.1).tolist()
      [0.0, 0.25]
    """
    check_not_nan("allocation_at", trajectory=trajectory.sparsity)
    nearest = int(np.argmin(np.abs(np.asarray(trajectory.sparsity) - target)))
    return np.minimum(trajectory.by_projection[nearest], 1)


@checked(sparsity="[0, 1]", step="(0, 1]")
def block_sparsities(
    model: Llama,
    batches: Sequence[Array],
    sparsity: float,
    *,
    weighted: str | None = "",
    step: float = 0.025,
) -> dict[str, float]:
    r"""The sparsity of each projection of a decoder, allocated greedily within each layer.

    Every layer gets the same mean. The error of a layer is measured on its dense inputs: the norm
    over the last quarter of the tokens of the difference to its dense output, averaged over batch
    and features, summed over batches.

    Args:
      model: A decoder with its layers in a list.
      batches: Token ids `(batch, length)` for calibration.
      sparsity: Mean sparsity of each layer.
      weighted: As for `input_gates`.
      step: As for `greedy_allocation`; a larger one takes less time.

    Returns:
      Sparsities by path, for `input_gates`.

    Raises:
      ValueError: As `input_gates`.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> from sparsejax.contrib import activation_sparsity
      >>> config = sj.models.LlamaConfig(
      ...     vocabulary=50, width=16, hidden=32, layers=1, heads=4, key_heads=2, head_size=4)
      >>> model = sj.models.Llama(config, rngs=nnx.Rngs(0))
      >>> found = activation_sparsity.block_sparsities(
      ...     model, [jnp.arange(8)[None]], 0.3, step=0.5)
      >>> len(found)
      7
    """
    kernels = kernels_of("block_sparsities", model, r"^layers/\d+/")
    found: dict[str, float] = {}
    for i, layer in enumerate(model.layers):
        prefix = f"layers/{i}/"
        own = {p.removeprefix(prefix): w for p, w in kernels.items() if p.startswith(prefix)}
        own = dict(sorted(own.items(), key=lambda item: ORDER.index(item[0].split("/")[-1])))
        inputs = [
            record(model, f"^layers/{i}$", jnp.asarray(b), reduce=lambda x, y: x[:2])[1][
                prefix[:-1]
            ]
            for b in batches
        ]
        error = _block_error(layer, own, inputs, weighted)
        sizes = [w.size for w in own.values()]
        path = greedy_allocation(error, sizes, target=sparsity, step=step)
        found |= dict(zip((prefix + p for p in own), map(float, allocation_at(path, sparsity))))
    return found


def _block_error(
    layer: nnx.Module,
    kernels: Mapping[str, Array],
    inputs: Sequence[tuple[Any, ...]],
    weighted: str | None,
) -> Callable[[np.ndarray], float]:
    """The error of a layer for sparsities in the order of its kernels."""
    norms = weights_of(kernels, weighted)
    scores = lambda path, x, y: input_scores(x, norms[path])  # noqa: E731
    counts = score_counts("block_sparsities", layer, inputs, kernels, scores)

    @nnx.jit
    def run(layer, taus, *inputs):
        gates = {
            only(path): InputGate(Threshold(tau), norms[path], dense_prefix=0.0)
            for path, tau in taus.items()
        }
        y, dense = (f(*inputs)[0].astype(jnp.float32) for f in (replace(layer, gates), layer))
        late = slice(int(y.shape[1] * 0.75), None)
        return jnp.linalg.norm((y - dense)[:, late], axis=1).mean()

    def error(sparsities: np.ndarray) -> float:
        shares = zip(kernels, np.minimum(sparsities, 1).tolist())
        taus = {p: jnp.float32(pooled_quantile(counts[p], q) if q else -1.0) for p, q in shares}
        return sum(float(run(layer, taus, *x)) for x in inputs)

    return error
