"""Which neurons of a network are active, how often, over data without its padding."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._arguments import checked
from ...nn import record
from ._attach import arguments_of

WHAT = "neuron_activity"


class Activity(NamedTuple):
    """How often the neurons of a layer are active.

    Attributes:
      frequency: `(f,)`, the share of the tokens at which each neuron is active.
      tokens: Number of tokens. Rare neurons need many: a frequency of 1e-5 about 1e5.
    """

    frequency: Float[np.ndarray, " f"]
    tokens: int

    @property
    def nonzero_fraction(self) -> float:
        """The mean share of active neurons of a token, in [0, 1]."""
        return float(self.frequency.mean())

    @property
    def count(self) -> float:
        """The mean number of active neurons of a token."""
        return float(self.frequency.sum())

    @property
    def dead(self) -> int:
        """The number of neurons that are never active."""
        return int(np.sum(self.frequency == 0))

    def rarer(self, than: float) -> float:
        """The share of the neurons whose frequency is below a limit."""
        return float(np.mean(self.frequency < than))


@checked()
def neuron_activity(
    model: Any,
    batches: Iterable[Any],
    *,
    where: str = r"mlp/gate$",
    valid: Callable[..., Any] | None = None,
    inputs: bool = False,
) -> dict[str, Activity]:
    r"""The neurons that are above 0, by layer, for models of any framework.

    A ReLU network has an active neuron where the output of the layer before the ReLU is above 0, so
    layers before activations are recorded: `a_i > 0`, strictly. About half are active at random
    initial parameters; training lowers the share.

    Args:
      model: As for `sj.nn.record`.
      batches: Arguments of the model: arrays, or tuples of several, such as `(variables, x)` for a
        Linen module.
      where: Regular expression over the paths of the layers (`re.search`).
      valid: Function of the same arguments to a mask of the tokens that are not padding, of the
        shape of the tokens; None counts all.
      inputs: Whether to count the inputs of the layers instead of their outputs: for the layer
        behind the activations.

    Returns:
      An `Activity` by path.

    Raises:
      ValueError: If no module matches, there are no batches, no token is valid, a mask does not
        have the shape of the tokens, or a layer gives NaN.

    Reference:
      Li et al., The Lazy Neuron Phenomenon, 2022 (arXiv 2210.06313).

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from sparsejax.contrib import activation_sparsity
      >>> model = nnx.Sequential(nnx.Linear(4, 64, rngs=nnx.Rngs(0)), nnx.relu)
      >>> found = activation_sparsity.neuron_activity(
      ...     model, [jnp.eye(4)], where="layers/0$", valid=lambda x: x.sum(-1) > 0)
      >>> found["layers/0"].tokens, 0.3 < found["layers/0"].nonzero_fraction < 0.7
      (4, True)
    """
    totals: dict[str, tuple[np.ndarray, int]] = {}
    pick = (lambda given, y: given[0]) if inputs else (lambda given, y: y)
    for batch in batches:
        arguments = batch if isinstance(batch, tuple) else next(arguments_of(WHAT, [batch]))
        mask = None if valid is None else jnp.asarray(valid(*arguments))
        for path, a in record(model, where, *arguments, reduce=pick)[1].items():
            counts, tokens = _counted(path, a, mask)
            before = totals.get(path, (0, 0))
            totals[path] = before[0] + counts, before[1] + tokens
    if not totals:
        raise ValueError("neuron_activity: batches must hold at least one batch.")
    if not all(tokens for _, tokens in totals.values()):
        raise ValueError("neuron_activity: valid selects no token of the batches.")
    return {path: Activity(counts / tokens, tokens) for path, (counts, tokens) in totals.items()}


def _counted(path: str, a: Array, mask: Array | None) -> tuple[np.ndarray, int]:
    """Counts of valid tokens: those at which each neuron is active, and all of them."""
    mask = jnp.ones(a.shape[:-1], bool) if mask is None else mask
    if mask.shape != a.shape[:-1]:
        raise ValueError(
            f"neuron_activity: valid gives a mask of shape {mask.shape}, the tokens of {path} have "
            f"{a.shape[:-1]}."
        )
    active, tokens, broken = _counts(a, mask)
    if broken:
        raise ValueError(f"neuron_activity: batches give NaN at the layer {path}.")
    return np.asarray(active, np.int64), int(tokens)


@jax.jit
def _counts(a, mask):
    rows, chosen = a.reshape(-1, a.shape[-1]), mask.astype(bool).ravel()
    active = jnp.sum((rows > 0) & chosen[:, None], axis=0, dtype=jnp.int32)
    broken = jnp.any(jnp.isnan(rows) & chosen[:, None])
    return active, jnp.sum(chosen, dtype=jnp.int32), broken
