"""Gates for the layers of a model, with a fixed number of inputs or with calibrated thresholds."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from ..._arguments import check_fraction, checked
from ..._tree import expression, is_array
from ...nn import linear_layer, record
from ...select import Selector, Threshold
from ._gates import ActivationGate, InputGate, input_scores, kernel_norms, top_selector
from ._quantile import Counts, count_values, pooled_quantile

Sparsity = float | Mapping[str, float]


@checked()
def input_gates(
    model: nnx.Module,
    sparsity: Sparsity,
    counts: Mapping[str, Any] | None = None,
    *,
    where: str = "layers/",
    weighted: str | None = "",
    dense_prefix: float = 0.01,
) -> dict[str, InputGate]:
    r"""Gates for the inputs of the linear layers of a model: WINA or TEAL, without training.

    Each token keeps the `floor(n (1 - sparsity))` largest of n scores. With the counted scores of
    calibration, those above a threshold are kept, their `sparsity` quantile: the number differs
    from token to token, and selecting takes less time.

    Args:
      model: An NNX model, dense, with its layers in a list.
      sparsity: Fraction of the inputs to drop, in [0, 1]; or by path, see `block_sparsities`.
      counts: The result of `input_counts` for the same `weighted`.
      where: Regular expression over the paths of modules (`re.search`).
      weighted: Of these, the layers whose scores are weighted by their kernel (WINA): all by
        default. The paper weights `r"(key|gate)$"` behind `orthogonalize`. None for TEAL.
      dense_prefix: As for `InputGate`.

    Returns:
      Gates by the expressions of paths, for `sj.nn.replace(model, gates)`.

    Raises:
      ValueError: If no linear layer matches, a kernel is stacked, a fraction is not in [0, 1] or
        belongs to no layer, or a layer was not counted.

    Reference:
      Chen et al., WINA, 2025 (arXiv 2505.19427); Liu et al., TEAL, 2024 (arXiv 2408.14690).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> from sparsejax.contrib import activation_sparsity
      >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)))
      >>> gates = activation_sparsity.input_gates(model, 0.5)
      >>> sparse = sj.nn.replace(model, gates)
      >>> list(gates), sparse(jnp.ones((3, 4))).shape
      (['^layers/0$'], (3, 8))
    """
    kernels = kernels_of("input_gates", model, where)
    fractions = _fractions("input_gates", sparsity, kernels)
    norms = weights_of(kernels, weighted)
    units = {path: w.shape[0] for path, w in kernels.items()}
    chosen = _selectors("input_gates", fractions, units, counts)
    gates = {path: InputGate(s, norms[path], dense_prefix) for path, s in chosen.items()}
    return {only(path): gate for path, gate in gates.items()}


@checked()
def activation_gates(
    model: nnx.Module,
    sparsity: Sparsity,
    counts: Mapping[str, Any] | None = None,
    *,
    where: str = r"mlp/gate$",
    activation: Callable[[Array], Array] = nnx.silu,
) -> dict[str, ActivationGate]:
    r"""Gates for the neurons of gated feed-forward networks by `|act(x Wgate)|` (CATS).

    Args:
      model: As for `input_gates`.
      sparsity: As for `input_gates`, of neurons.
      counts: The result of `activation_counts`.
      where: Regular expression over the paths of the gate layers.
      activation: The activation behind these layers.

    Returns:
      As `input_gates`.

    Raises:
      ValueError: As `input_gates`.

    Reference:
      Lee et al., CATS, 2024 (arXiv 2404.08763).

    Example:
      >>> import sparsejax as sj
      >>> from flax import nnx
      >>> from sparsejax.contrib import activation_sparsity
      >>> config = sj.models.LlamaConfig(
      ...     vocabulary=50, width=16, hidden=32, layers=1, heads=4, key_heads=2, head_size=4)
      >>> model = sj.models.Llama(config, rngs=nnx.Rngs(0))
      >>> activation_sparsity.activation_gates(model, 0.5)["^layers/0/mlp/gate$"].selector
      TopK(k=16)
    """
    kernels = kernels_of("activation_gates", model, where)
    fractions = _fractions("activation_gates", sparsity, kernels)
    units = {path: w.shape[1] for path, w in kernels.items()}
    chosen = _selectors("activation_gates", fractions, units, counts)
    return {only(path): ActivationGate(s, activation) for path, s in chosen.items()}


@checked()
def input_counts(
    model: nnx.Module,
    batches: Iterable[Any],
    *,
    where: str = "layers/",
    weighted: str | None = "",
) -> dict[str, Counts]:
    """The scores of the inputs of linear layers on calibration data, for `input_gates`.

    One dense pass for each batch; the scores of one batch are held at a time.

    Args:
      model: As for `input_gates`.
      batches: Inputs of the model, such as token ids `(batch, length)`.
      where: As for `input_gates`.
      weighted: As for `input_gates`.

    Returns:
      Counted scores by path.

    Raises:
      ValueError: If no linear layer matches, a kernel is stacked, there are no batches, or a batch
        gives NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from sparsejax.contrib import activation_sparsity
      >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)))
      >>> counts = activation_sparsity.input_counts(model, [jnp.ones((3, 4))])
      >>> float(activation_sparsity.input_gates(model, 0.5, counts)["^layers/0$"].selector.tau) > 0
      True
    """
    norms = weights_of(kernels_of("input_counts", model, where), weighted)
    given = arguments_of("input_counts", batches)
    scores = lambda path, x, y: input_scores(x, norms[path])  # noqa: E731
    return score_counts("input_counts", model, given, norms, scores)


@checked()
def activation_counts(
    model: nnx.Module,
    batches: Iterable[Any],
    *,
    where: str = r"mlp/gate$",
    activation: Callable[[Array], Array] = nnx.silu,
) -> dict[str, Counts]:
    """The scores of the neurons of gated networks on calibration data, for `activation_gates`.

    Args:
      model: As for `input_gates`.
      batches: As for `input_counts`.
      where: As for `activation_gates`.
      activation: As for `activation_gates`.

    Returns:
      Counted scores by path.

    Raises:
      ValueError: As `input_counts`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from sparsejax.contrib import activation_sparsity
      >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)))
      >>> counts = activation_sparsity.activation_counts(model, [jnp.ones((3, 4))], where="0$")
      >>> int(counts["layers/0"].counts.sum())
      24
    """
    kernels = kernels_of("activation_counts", model, where)
    given = arguments_of("activation_counts", batches)
    scores = lambda path, x, y: jnp.abs(activation(y.astype(jnp.float32)))  # noqa: E731
    return score_counts("activation_counts", model, given, kernels, scores)


def weights_of(kernels: Mapping[str, Any], weighted: str | None) -> dict[str, Any]:
    """The norms of the kernels whose paths match, None for the others."""
    matches = None if weighted is None else expression("weighted", weighted)
    chosen = [path for path in kernels if matches is not None and matches.search(path)]
    if weighted and not chosen:
        raise ValueError(
            f"weighted={weighted!r} matches no layer, of {', '.join(kernels)}; None for no weights."
        )
    return {path: kernel_norms(w) if path in chosen else None for path, w in kernels.items()}


def score_counts(
    what: str,
    model: Any,
    batches: Iterable[tuple[Any, ...]],
    paths: Iterable[str],
    scores: Callable[..., Any],
) -> dict[str, Counts]:
    """The counted scores `scores(path, input, output)` of layers over all `model(*batch)`."""
    where = "|".join(map(only, paths))

    @nnx.jit
    def run(model, *batch):
        return record(model, where, *batch, reduce=lambda inputs, y: (inputs[0], y))[1]

    counts: dict[str, Counts] = {}
    for batch in batches:
        for path, (x, y) in run(model, *batch).items():
            found = scores(path, x, y)
            if bool(jnp.isnan(found).any()):
                raise ValueError(f"{what}: batches give NaN at the layer {path}.")
            counts[path] = count_values(found, counts.get(path))
    if not counts:
        raise ValueError(f"{what}: batches must hold at least one batch.")
    return counts


def _selectors(
    what: str,
    fractions: Mapping[str, float],
    units: Mapping[str, int],
    counts: Mapping[str, Counts] | None,
) -> dict[str, Selector]:
    """The largest scores, or those above the quantile of the counted ones; above 0 for 0."""
    if counts is None:
        return {path: top_selector(units[path], q) for path, q in fractions.items()}
    for path in fractions:
        if path not in counts:
            raise ValueError(
                f"{what}: counts has no {path}; count the scores with the same where=, by "
                f"{what.removesuffix('_gates')}_counts(model, batches)."
            )
    taus = {p: pooled_quantile(counts[p], q) if q else 0.0 for p, q in fractions.items()}
    return {path: Threshold(jnp.float32(tau)) for path, tau in taus.items()}


def kernels_of(what: str, model: nnx.Module, where: str) -> dict[str, Any]:
    """The kernels `(in, out)` of the linear layers that match, by path."""
    found = {}
    for parts, module in nnx.iter_modules(model):
        path, layer = "/".join(map(str, parts)), linear_layer(module)
        if layer is None or not expression("where", where).search(path):
            continue
        kernel = getattr(module, layer.path)[...]
        if kernel.ndim != 2 or layer.contraction != (0,):
            raise ValueError(
                f"{what}: {path} has a kernel of shape {tuple(kernel.shape)}, which is not a "
                "matrix (in, out); hold the layers in a list: scan=False."
            )
        found[path] = kernel
    if not found:
        raise ValueError(f"{what}: where={where!r} matches no linear layer of the model.")
    return found


def arguments_of(what: str, batches: Iterable[Any]) -> Iterator[tuple[Array]]:
    """Each batch as the argument of the model."""
    for batch in batches:
        if not is_array(batch) or not np.ndim(batch):
            raise TypeError(
                f"{what}: batches must hold arrays, such as token ids (batch, length), got a "
                f"{type(batch).__name__}."
            )
        yield (jnp.asarray(batch),)


def _fractions(what: str, sparsity: Sparsity, kernels: Mapping[str, Any]) -> dict[str, float]:
    by_path = sparsity if isinstance(sparsity, Mapping) else dict.fromkeys(kernels, sparsity)
    for path, value in by_path.items():
        if path not in kernels:
            raise ValueError(f"{what}: sparsity names {path}, which is not a selected layer.")
        check_fraction(f"{what}: sparsity", value)
    return {path: float(by_path.get(path, 0.0)) for path in kernels}


def only(path: str) -> str:
    """A regular expression that matches this path and no other."""
    return f"^{re.escape(path)}$"
