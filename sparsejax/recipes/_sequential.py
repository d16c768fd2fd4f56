"""SparseGPT layer by layer: each is pruned for what the pruned layers before it give."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import PyTree

from .._tree import map_named, named_leaves, pure
from ..masks import Plan
from ..masks._plan import check_plan
from ..nn import input_grams
from ._check import check_callable
from ._iterative import report
from ._sparsegpt import sparsegpt


class SequentialResult(NamedTuple):
    """What `sequential_sparsegpt` leaves, and resumes from.

    Args:
      params: The parameters, exactly 0 off the masks.
      masks: The masks; None for leaves that are not planned, or not yet reached.
    """

    params: PyTree
    masks: PyTree


def sequential_sparsegpt(
    model: nnx.Module,
    batches: Iterable[Any],
    plan: Plan,
    *,
    call: Callable[[Any, Any], Any] | None = None,
    block: int = 128,
    damping: float = 0.01,
    callback: Callable[[SequentialResult], Any] | None = None,
    resume: SequentialResult | None = None,
) -> SequentialResult:
    r"""SparseGPT as published: layers in the order in which they run, on the inputs they will see.

    Layer l is pruned by `sj.recipes.sparsegpt` with the Gram matrix of its inputs in the network
    whose layers before l are pruned already, so that it makes up for their errors too. One pass
    over the batches a layer, where all layers at once take one in all.

    Args:
      model: An NNX module; it is not changed. `nnx.update(model, result.params)` prunes it.
      batches: Calibration data, as for `sj.nn.input_grams`; held in memory.
      plan: What is to be pruned; not selected together.
      call: How a batch is given to the model, `lambda model, batch: model(*batch)` for example.
      block: As in `sj.recipes.sparsegpt`.
      damping: As in `sj.recipes.sparsegpt`.
      callback: Called with the `SequentialResult` so far after each layer.
      resume: A result so far, to go on from: the end is that of an uninterrupted run.

    Returns:
      A `SequentialResult`.

    Raises:
      TypeError: If the model is no NNX module, or there is no plan.
      ValueError: If a planned leaf is no linear kernel that ran, or as `sj.recipes.sparsegpt`.

    Reference:
      Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in
      One-Shot, 2023 (arXiv 2301.00774).

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(8, 4, rngs=rngs), nnx.relu, nnx.Linear(4, 2, rngs=rngs))
      >>> x = jax.random.normal(jax.random.key(0), (32, 8))
      >>> found = sj.recipes.sequential_sparsegpt(model, [x], sj.plan(model, sj.NM(2, 4)))
      >>> nnx.update(model, found.params)
      >>> print(f"{sj.report(model, found.masks).sparsity:.2f}")
      0.50
    """
    check_plan("sequential_sparsegpt", plan)
    if callback is not None:
        check_callable("callback", callback, "result")
    batches = list(batches)
    names = _in_order(list(input_grams(model, batches[:1], call)), plan)
    model = nnx.clone(model)
    params = pure(nnx.state(model, nnx.Param)) if resume is None else resume.params
    kept = {} if resume is None else named_leaves(resume.masks)
    for name in [name for name in names if name not in kept]:
        nnx.update(model, params)
        alone = dataclasses.replace(plan, leaves=(plan[name],))
        grams = input_grams(model, batches, call)
        params, masks = sparsegpt(params, grams, alone, block=block, damping=damping)
        kept = kept | named_leaves(masks)
        report(callback, _result(params, kept))
    return _result(params, kept)


def _in_order(ran: list[str], plan: Plan) -> list[str]:
    """The planned leaves in the order in which their layers run."""
    silent = [leaf.name for leaf in plan.leaves if leaf.name not in ran]
    if silent:
        raise ValueError(
            f"sequential_sparsegpt: {', '.join(silent)} did not run as linear layers, only "
            f"{', '.join(ran)} did; leave the others out of the plan with a rule `pattern: None`."
        )
    return [name for name in ran if name in plan]


def _result(params: PyTree, kept: dict[str, Any]) -> SequentialResult:
    return SequentialResult(params, map_named(lambda name, w: kept.get(name), params))
