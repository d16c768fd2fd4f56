"""Recalibration of normalisation statistics, after weights were averaged or pruned."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from .._arguments import checked, is_nan_in


@checked(fraction="(0, 1]", momentum="(0, 1]")
def recalibrate(
    model: nnx.Module,
    batches: Sequence[PyTree],
    *,
    fraction: float = 1.0,
    momentum: float | None = None,
    call: Callable[[Any, Any], Any] | None = None,
) -> Any:
    r"""A copy of a model whose batch norms have the statistics of its present weights.

    Averaged, pruned or transplanted weights give other activations than those from which the
    running statistics come. Forward passes in training mode, the other layers in evaluation mode,
    replace them: `mean = (1 / B) sum_b mean_b` and `var = (1 / B) sum_b var_b` over B batches, or
    with a momentum `s <- (1 - momentum) s + momentum s_b` from mean 0 and variance 1. The
    statistics of a batch are those of `flax.nnx.BatchNorm`, whose variances are divided by the
    number of samples.

    Args:
      model: An NNX module with `nnx.BatchNorm` layers; it is not changed.
      batches: Inputs, each passed to the model as one argument; few distinct shapes avoid
        recompilation.
      fraction: Fraction of the batches that are used, the first of them, at least one.
      momentum: Weight of a new batch, 0.1 in the paper's code; None averages all batches equally,
        which is exact. (The `momentum` of `nnx.BatchNorm` is `1 - momentum`.)
      call: How a batch is passed to the model: `lambda model, batch: model(*batch)`.

    Returns:
      A module of the same class, with the same parameters.

    Raises:
      TypeError: If the model is not an NNX module.
      ValueError: If it has no `nnx.BatchNorm` or none ran in training mode, there are no batches,
        `fraction` or `momentum` is not in (0, 1], or a statistic is NaN.

    Reference:
      Zimmer et al., Sparse Model Soups, 2023 (arXiv 2306.16788).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> norm = nnx.BatchNorm(1, rngs=nnx.Rngs(0))
      >>> found = sj.nn.recalibrate(norm, [jnp.array([[1.0], [3.0]]), jnp.array([[6.0], [6.0]])])
      >>> found.mean[...].tolist(), found.var[...].tolist(), norm.mean[...].tolist()
      ([4.0], [0.5], [0.0])
    """
    if not _norms(model):
        raise ValueError("recalibrate: the model has no nnx.BatchNorm, and no statistics to renew.")
    batches = list(batches)
    if not batches:
        raise ValueError("recalibrate: batches must hold at least one batch, got none.")
    batches = batches[: max(math.ceil(fraction * len(batches) - 1e-9), 1)]
    measured = nnx.clone(model)
    measured.eval()
    for norm in _norms(measured).values():
        norm.mean.set_value(jnp.full_like(norm.mean[...], _UNTOUCHED))
        norm.use_running_average, norm.momentum = False, 0.0  # the statistics of the last batch
        norm.dtype = norm.mean[...].dtype  # of a wider batch, too, under jax_enable_x64
    graphdef, state = nnx.split(measured)

    @jax.jit
    def statistics(state, batch):
        now = nnx.merge(graphdef, state)
        now(batch) if call is None else call(now, batch)
        return {path: (n.mean[...], n.var[...]) for path, n in _norms(now).items()}

    found: Any = None
    new: Any = {}
    for count, batch in enumerate(batches):
        new = statistics(state, batch)
        if found is None:
            found = jax.tree.map(jnp.zeros_like, new)
            found = {path: (mean, jnp.ones_like(var)) for path, (mean, var) in found.items()}
        weight = 1 / (count + 1) if momentum is None else momentum
        found = jax.tree.map(lambda s, b, w=weight: s + w * (b - s), found, new)
    small = nnx.clone(model)
    ran = [path for path, (mean, _) in new.items() if not bool(jnp.all(mean == _UNTOUCHED))]
    if not ran:
        raise ValueError(
            "recalibrate: no batch norm ran in training mode; a model that passes "
            "use_running_average itself is called by call=lambda model, batch: model(batch, "
            "train=True), or as its arguments are named."
        )
    for path, norm in _norms(small).items():
        if path not in ran:
            continue
        for name, variable, value in zip(("mean", "var"), (norm.mean, norm.var), found[path]):
            if is_nan_in(value):
                raise ValueError(f"recalibrate: the {name} of {path} is NaN; check the batches.")
            variable.set_value(value)
    return small


# The mean of a norm that did not run.
_UNTOUCHED = -12345.0


def _norms(model: nnx.Module) -> dict[str, nnx.BatchNorm]:
    """The batch norms by path."""
    modules = ((path, m) for path, m in nnx.iter_modules(model) if isinstance(m, nnx.BatchNorm))
    return {"/".join(map(str, path)): norm for path, norm in modules}
