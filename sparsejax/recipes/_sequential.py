"""SparseGPT layer by layer: each layer is pruned on the outputs of the pruned layers before it."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from flax import nnx

from .._progress import Progress, check_progress, check_shapes, run_steps
from .._tree import map_named, named_leaves, pure
from ..masks import Plan
from ..nn import input_grams
from ._sparsegpt import sparsegpt


def sequential_sparsegpt(
    model: nnx.Module,
    batches: Iterable[Any],
    plan: Plan,
    *,
    call: Callable[[Any, Any], Any] | None = None,
    block: int = 128,
    damping: float = 0.01,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> Progress:
    r"""SparseGPT as published: layers in order of execution, on inputs from pruned layers.

    Layer l is pruned by `sj.recipes.sparsegpt` with the Gram matrix of its inputs in the network
    whose layers before l are already pruned, so that it compensates their errors too. It takes one
    pass over the batches per layer, whereas pruning all layers at once takes a single pass.

    Args:
      model: An NNX module; it is not changed. `nnx.update(model, result.params)` prunes it.
      batches: Calibration data, as for `sj.nn.input_grams`; held in memory.
      plan: The plan, without joint selection.
      call: Calls the model on a batch, for example `lambda model, batch: model(*batch)`.
      block: As for `sj.recipes.sparsegpt`.
      damping: As for `sj.recipes.sparsegpt`.
      callback: Called with the `Progress` after each layer.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      A `Progress`; layers that are not reached yet have no masks.

    Raises:
      TypeError: If the model is not an NNX module, or `plan` is not a plan.
      ValueError: If a planned leaf is not a linear kernel that ran, or as for
        `sj.recipes.sparsegpt`.

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
    Plan.require("sequential_sparsegpt", plan)
    arguments = check_progress(
        "sequential_sparsegpt", resume, callback, plan=plan, block=block, damping=damping
    )
    batches = list(batches)
    names = _in_order(list(input_grams(model, batches[:1], call)), plan)
    model = nnx.clone(model)
    params = pure(nnx.state(model, nnx.Param))

    def advance(done):
        nnx.update(model, done.params)
        name = names[done.step]
        alone = dataclasses.replace(plan, leaves=(plan[name],))
        grams = input_grams(model, batches, call)
        pruned, masks = sparsegpt(done.params, grams, alone, block=block, damping=damping)
        kept = named_leaves(done.masks) | named_leaves(masks)
        masks = map_named(lambda name, w: kept.get(name), pruned)
        return Progress(pruned, masks, done.step + 1, done.extra)

    if resume is None:
        done = Progress(params, map_named(lambda *_: None, params), 0, {"arguments": arguments})
    else:
        done = resume
        check_shapes("sequential_sparsegpt", done, params)
    return run_steps(
        "sequential_sparsegpt", done, advance, len(names), callback=callback, progress=progress
    )


def _in_order(ran: list[str], plan: Plan) -> list[str]:
    """The planned leaves in the order in which their layers run."""
    silent = [leaf.name for leaf in plan.leaves if leaf.name not in ran]
    if silent:
        raise ValueError(
            f"sequential_sparsegpt: {', '.join(silent)} did not run as linear layers, only "
            f"{', '.join(ran)} did; exclude the others by a rule `pattern: None`."
        )
    return [name for name in ran if name in plan]
