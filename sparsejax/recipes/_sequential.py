"""One-shot pruning of whole networks, each block on the outputs of the pruned blocks before it."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PyTree

from .._arguments import checked
from .._progress import Progress, check_progress, check_shapes, run_steps
from .._tree import map_named, named_leaves, pure
from ..masks import Plan, PlannedLeaf, apply_masks, magnitude, wanda
from ._blocks import check_ran, module_steps, steps_of_functions, steps_without_inputs
from ._sparsegpt import sparsegpt

_METHODS = ("sparsegpt", "wanda", "magnitude")
Block = Callable[[PyTree, Any], Any]


@checked()
def sequential_prune(
    model: Any,
    batches: Iterable[PyTree],
    plan: Plan,
    method: str = "sparsegpt",
    *,
    blocks: str | Sequence[Block] | None = None,
    call: Callable[[Any, Any], Any] | None = None,
    block: int = 128,
    damping: float = 0.01,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> Progress:
    r"""Prunes a network block by block, each on what the pruned blocks before it give.

    A block is a layer of a transformer, say. It runs twice: once to collect the Gram matrices of
    the inputs of its kernels, which are then pruned, and once to give the inputs of the next block.
    So the whole costs two forward passes, and the activations of one block are held at a time.

    Blocks are found where a network runs a list of modules, or one stack of them under `nnx.scan`,
    one after another, which is verified on the first batch. Planned kernels before and after them,
    and all of a network without blocks, are pruned one by one in the order in which they run, each
    with a pass over the whole network.

    Args:
      model: An NNX module, which is not changed: `nnx.update(model, result.params)` prunes it.
        With functions as `blocks` the tree of their parameters.
      batches: Calibration data, as for `sj.nn.input_grams`; held in memory.
      plan: The plan, without joint selection.
      method: "sparsegpt" (`sj.recipes.sparsegpt`, which moves the kept weights too), "wanda"
        (`sj.masks.wanda`) or "magnitude" (needs no data, and no batches).
      blocks: The path of the list or stack, such as "layers", found by itself if None; "" for a
        network without blocks. Or functions `block(params, x) -> x` that make the network one after
        another and call `sj.nn.observe` on the inputs of their kernels.
      call: Calls the model on a batch, for example `lambda model, batch: model(*batch)`.
      block: As for `sj.recipes.sparsegpt`: the number of inputs selected together.
      damping: As for `sj.recipes.sparsegpt`.
      callback: Called with the `Progress` after each block.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar, with the time left.

    Returns:
      A `Progress`; kernels that are not reached yet have no masks.

    Raises:
      TypeError: If the model is not an NNX module, or `plan` is not a plan.
      ValueError: If the plan is empty or selects leaves together, there are no batches, a planned
        leaf is not a linear kernel that ran, the modules at `blocks` do not run one after another,
        `resume` began with something else, or as for `sj.recipes.sparsegpt`.

    Reference:
      Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in
      One-Shot, 2023 (arXiv 2301.00774); Sun et al., 2023 (arXiv 2306.11695).

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(8, 4, rngs=rngs), nnx.relu, nnx.Linear(4, 2, rngs=rngs))
      >>> x = jax.random.normal(jax.random.key(0), (32, 8))
      >>> found = sj.recipes.sequential_prune(model, [x], sj.plan(model, sj.NM(2, 4)))
      >>> nnx.update(model, found.params)
      >>> print(f"{sj.report(model, found.masks).sparsity:.2f}")
      0.50
    """
    Plan.require("sequential_prune", plan)
    if method not in _METHODS:
        raise ValueError(
            f"sequential_prune: method must be one of {', '.join(_METHODS)}, got {method!r}."
        )
    if plan.joint or not plan.leaves:
        what = "selects all leaves together" if plan.joint else "has no leaves"
        raise ValueError(
            f"sequential_prune: the plan {what}; it prunes leaf by leaf, so plan some kernels, for "
            'example sj.plan(model, {r"kernel$": sj.NM(2, 4)}).'
        )
    batches = list(batches)
    if not batches and method != "magnitude":
        raise ValueError(
            "sequential_prune: no batches; pass calibration data, a list of inputs of the model."
        )
    if blocks is None or isinstance(blocks, str):
        if not isinstance(model, nnx.Module):
            raise TypeError(
                f"sequential_prune: model must be an NNX module, got a {type(model).__name__}; for "
                "other networks pass their parameters and blocks=[functions of params and x]."
            )
        params = pure(nnx.state(model, nnx.Param))
    else:
        params = model
    missing = [leaf.name for leaf in plan.leaves if leaf.name not in named_leaves(params)]
    if missing:
        raise ValueError(
            f"sequential_prune: the plan names {', '.join(missing)}, which the parameters do not "
            "have; make it from this model: sj.plan(model, rules)."
        )
    plan.check_shapes(named_leaves(params))
    if method == "magnitude":
        steps = steps_without_inputs(plan)
    elif blocks is None or isinstance(blocks, str):
        steps = module_steps(model, batches, plan, blocks, call)
    else:
        steps = steps_of_functions(params, batches, plan, blocks)
    check_shapes("sequential_prune", resume, params)
    arguments = check_progress(
        "sequential_prune", resume, callback, plan=plan, method=method, block=block,
        damping=damping, data={"params": params, "batches": batches},
    )  # fmt: skip

    def prune(leaf: PlannedLeaf, w: Array, gram: Array | None) -> tuple[Array, Array]:
        alone = dataclasses.replace(plan, leaves=(leaf,), allocate=None)
        if method == "sparsegpt":
            new, masks = sparsegpt(
                {leaf.name: w}, {leaf.name: gram}, alone, block=block, damping=damping
            )
            return new[leaf.name], masks[leaf.name]
        tree = {leaf.name: w}
        if method == "wanda":
            scores = wanda(tree, {leaf.name: gram}, alone)
        else:
            scores = magnitude(tree)
        masks = alone.masks(scores)
        return apply_masks(tree, masks)[leaf.name], masks[leaf.name]

    at, flow = 0, None

    def advance(done: Progress) -> Progress:
        nonlocal at, flow
        # Activations are not kept in a Progress: a resumed run computes them again.
        while at < done.step:
            at, flow = at + 1, steps[at].onward(done.params, flow)
        step = steps[done.step]
        grams = step.grams(done.params, flow)
        if method != "magnitude":
            check_ran([part.leaf for part in step.parts], grams)
        pruned, masks = named_leaves(done.params), named_leaves(done.masks)
        for part in step.parts:
            w, mask = prune(part.leaf, part.of(pruned[part.name]), grams.get(part.name))
            pruned[part.name] = part.put(pruned[part.name], w)
            masks[part.name] = part.put(_or_full(masks.get(part.name), pruned[part.name]), mask)
        params = map_named(lambda name, w: pruned[name], done.params)
        masks = map_named(lambda name, w: masks.get(name), params)
        return Progress(params, masks, done.step + 1, done.extra)

    start = Progress(params, map_named(lambda *_: None, params), 0, {"arguments": arguments})
    return run_steps(
        "sequential_prune",
        resume or start,
        advance,
        len(steps),
        callback=callback,
        progress=progress,
    )


def _or_full(mask: Array | None, w: Array) -> Array:
    return jnp.ones(w.shape, bool) if mask is None else mask
