"""Iterative pruning: repeated training, pruning of the smallest weights, and rewinding."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from .._arguments import (
    as_number,
    check_callable,
    check_count,
    check_key,
    check_masks,
    check_params,
    check_ranking,
    checked,
    named_masks,
    returned_params,
)
from .._masks import count, within
from .._progress import Progress, appended, check_progress, check_shapes, run_steps
from .._tree import map_named, named_leaves
from ..masks import Plan, apply_masks, magnitude

Rewind = Literal["weights", "learning_rate", "none"]


@checked(train="train(params, masks, key)", evaluate="evaluate(params)", score="score(params)")
def iterative_prune(
    params: PyTree,
    train: Callable[..., PyTree],
    plan: Plan,
    *,
    key: Key[Array, ""],
    rounds: int = 10,
    rewind: Rewind = "weights",
    rewind_step: int = 0,
    trained: bool = False,
    score: Callable[[PyTree], PyTree] | None = None,
    evaluate: Callable[[PyTree], Any] | None = None,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> Progress:
    r"""Iterative magnitude pruning: trains, prunes the smallest weights, rewinds, repeats.

    After round r of R the planned leaves have the density `(1 - s)^(r / R)` of the plan's sparsity
    s (rounded to whole entries): each round removes the same fraction `q = 1 - (1 - s)^(1 / R)` of
    the remaining entries. Counts are computed from the dense size, so rounding errors do not
    accumulate. Pruned entries stay pruned. With a plan made with `allocate=sj.masks.joint` all
    leaves compete, otherwise each leaf has its own sparsity.

    Args:
      params: Parameters before training: a tree of arrays.
      train: `train(params, masks, key) -> params` trains to the end with a fresh optimizer and
        keeps the masks, as `sj.recipes.train_masked` does. If `rewind_step` is positive it is
        also called with `stop=rewind_step`, from the start with the key of the dense training,
        and with `start=rewind_step`, to continue from there in data and learning rate.
      plan: The plan, from `sj.plan`.
      key: A key made by `jax.random.key`; round r folds in r.
      rounds: R, rounds of pruning after the dense training.
      rewind: "weights": kept weights are reset to their values at `rewind_step` (0: the lottery
        ticket); "learning_rate": weights are kept and training restarts at `rewind_step`; "none":
        both continue.
      rewind_step: Step to rewind to.
      trained: Whether `params` are already trained; the dense training is then skipped.
      score: Maps the parameters to scores, the largest of which are kept; None means magnitudes.
      evaluate: `evaluate(params) -> number`, recorded for each round.
      callback: Called with the `Progress` after each round.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      A `Progress` with the records `origin` (the parameters each round starts from, before masking;
      None without rewinding), `sparsity` and `score`: one number for the dense training and one for
      each round. `sj.recipes.ticket` is the sparse network before training.

    Raises:
      TypeError: If a callable has another signature or result type, `params` hold NNX variables
        that are not `nnx.Param`s, or `resume` is not a `Progress`.
      ValueError: If `train` revives pruned entries or returns non-finite values (all earlier
        results were passed to `callback`), a number or name is invalid, or `resume` began with
        other parameters, another plan, number of rounds or rewinding.

    Reference:
      Frankle and Carbin, The Lottery Ticket Hypothesis, 2019 (arXiv 1803.03635); Frankle et al.,
      Linear Mode Connectivity, 2020 (arXiv 1912.05671); Renda et al., Comparing Rewinding and
      Fine-tuning, 2020 (arXiv 2003.02389).

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> params = {"kernel": jnp.array([[1.0, -1.0], [1.0, -1.0]])}
      >>> target = jnp.array([[3.0, -2.0], [1.0, 4.0]])
      >>> train = lambda p, masks, key: sj.masks.apply_masks({"kernel": target}, masks)
      >>> plan = sj.plan(params, sj.Unstructured(0.5))
      >>> found = sj.recipes.iterative_prune(params, train, plan, key=jax.random.key(0), rounds=2)
      >>> sj.recipes.ticket(found)["kernel"].tolist()
      [[1.0, 0.0], [0.0, -1.0]]
    """
    _check(train, rounds, rewind, rewind_step)
    check_params("iterative_prune", params)
    check_key("key", key)
    check_shapes("iterative_prune", resume, params)
    arguments = check_progress(
        "iterative_prune", resume, callback, data={"params": params}, trained=trained,
        score=score is not None, evaluate=evaluate is not None, plan=plan,
        key=key, rounds=rounds, rewind=rewind, rewind_step=rewind_step,
    )  # fmt: skip
    # `start` and `stop` are passed only if they are not 0.
    later = {} if rewind_step == 0 or rewind == "none" else {"start": rewind_step}

    def record(params, masks, step, extra):
        now = {"sparsity": zero_fraction(masks), "score": _score(evaluate, params)}
        return Progress(params, masks, step, appended(extra, now))

    def advance(done):
        masks = prune_remaining(
            plan, (score or magnitude)(done.params), done.masks, (done.step + 1) / rounds
        )
        start = apply_masks(_rewound(done), masks)
        key_of_round = jax.random.fold_in(key, done.step + 1)
        found = returned_params("train", start, train(start, masks, key_of_round, **later), masks)
        return record(found, masks, done.step + 1, done.extra)

    if resume is None:
        masks, first, origin = plan.full_masks(params), jax.random.fold_in(key, 0), None
        if rewind == "weights":
            origin = params
            if rewind_step:
                origin = returned_params(
                    "train", params, train(params, masks, first, stop=rewind_step)
                )
        if not trained:
            params = returned_params("train", params, train(params, masks, first))
        done = record(params, masks, 0, {"arguments": arguments, "origin": origin})
        if callback is not None:
            callback(done)
    else:
        done = resume
        check_masks_at("iterative_prune", done, plan, rounds)
    return run_steps("iterative_prune", done, advance, rounds, callback=callback, progress=progress)


@checked()
def ticket(progress: Progress) -> PyTree:
    """The lottery ticket of `iterative_prune`: the parameters it rewinds to, under its masks.

    Raises:
      ValueError: If the progress is that of another recipe.

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> params = {"kernel": jnp.array([[1.0, -1.0], [1.0, -1.0]])}
      >>> train = lambda p, masks, key: sj.masks.apply_masks({"kernel": 2 * p["kernel"]}, masks)
      >>> plan = sj.plan(params, sj.Unstructured(0.5))
      >>> found = sj.recipes.iterative_prune(params, train, plan, key=jax.random.key(0), rounds=1)
      >>> sj.recipes.ticket(found)["kernel"].tolist()
      [[1.0, -1.0], [0.0, 0.0]]
    """
    if "origin" not in progress.extra:
        raise ValueError("ticket: progress must come from sj.recipes.iterative_prune.")
    return apply_masks(_rewound(progress), progress.masks)


def _rewound(progress: Progress) -> PyTree:
    """The parameters that the next round starts from, before masking."""
    origin = progress.extra["origin"]
    return progress.params if origin is None else origin


@checked(progress="[0, 1]")
def prune_remaining(plan: Plan, scores: PyTree, masks: PyTree, progress: float) -> PyTree:
    r"""Sub-masks of `masks` that keep the fraction `(1 - s)^progress` of each leaf of the plan.

    With `progress = r / R` this is round r of R rounds that remove the same fraction of the
    remaining entries; s is the sparsity of the plan, of each leaf, or of all together if leaves
    compete.

    Args:
      plan: The plan, with the final sparsity.
      scores: A tree of scores with the planned leaves; the largest are kept.
      masks: The current masks; entries they prune stay pruned, so that a leaf with fewer entries
        than the plan keeps those it has.
      progress: In [0, 1]; 1 reaches the plan.

    Returns:
      A tree like `scores` of boolean arrays, None for leaves that are not planned.

    Raises:
      ValueError: If NaN scores would be kept.

    Reference:
      Zimmer et al., Sparse Model Soups, 2023 (arXiv 2306.16788).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> scores = {"kernel": jnp.arange(16.0).reshape(4, 4)}
      >>> plan = sj.plan(scores, sj.Unstructured(0.75))
      >>> masks = plan.full_masks(scores)
      >>> int(sj.recipes.prune_remaining(plan, scores, masks, 0.5)["kernel"].sum())
      8
    """
    masks = check_masks("prune_remaining", scores, named_masks("prune_remaining", masks))
    found = _select(plan, scores, masks, float(progress))
    # What is already pruned does not compete.
    old, new = named_leaves(masks), named_leaves(found)
    given = {
        n: s if n not in old else jnp.where(old[n], s, 0) for n, s in named_leaves(scores).items()
    }
    among = {n: m | ~old.get(n, jnp.ones((), bool)) for n, m in new.items()}
    check_ranking("prune_remaining", given, among, joint=plan.joint)
    return found


@partial(jax.jit, static_argnums=(0, 3))  # one compilation per round, shared by runs and copies
def _select(plan: Plan, scores: PyTree, masks: PyTree, progress: float) -> PyTree:
    by_name = named_leaves(masks)
    scores = map_named(lambda name, s, mask: within(s, mask), scores, by_name)
    if plan.joint:
        found = named_leaves(plan.masks(scores, _reached(plan.sparsity, progress)))
    else:
        found = {}
        for leaf in plan.leaves:
            alone = dataclasses.replace(plan, leaves=(leaf,))
            found |= named_leaves(alone.masks(scores, _reached(leaf.sparsity, progress)))
    kept = {name: mask & by_name.get(name, True) for name, mask in found.items()}
    return map_named(lambda name, s: kept.get(name), scores)


def _reached(sparsity: float, progress: float) -> float:
    """Fraction of the planned zeros after a part of geometric pruning."""
    if sparsity == 0 or progress >= 1:
        return 1.0
    return (1 - (1 - sparsity) ** progress) / sparsity


def zero_fraction(masks: PyTree) -> float:
    """Entries off the masks over entries with a mask."""
    leaves = list(named_leaves(masks).values())
    size, kept = sum(m.size for m in leaves), sum(map(count, leaves))
    return (size - kept) / max(size, 1)


def check_masks_at(what: str, done: Progress, plan: Plan, steps: int) -> None:
    """Raises if the masks of a resumed run are not those of `plan` after its steps."""
    masks = named_leaves(done.masks)
    scores, part = magnitude(done.params), done.step / steps
    again = prune_remaining(plan, scores, plan.full_masks(scores), part)
    # Of the same counts, and selecting again changes nothing.
    same = named_leaves(prune_remaining(plan, scores, done.masks, part))
    if zero_fraction(again) != zero_fraction(done.masks) or not all(
        bool(jnp.array_equal(mask, masks[name])) for name, mask in same.items()
    ):
        raise ValueError(
            f"{what}: resume.masks have sparsity {zero_fraction(done.masks):.4f} after "
            f"{done.step} of {steps} steps, where the plan has {zero_fraction(again):.4f}: they "
            "belong to different runs."
        )


def _score(evaluate, params) -> float | None:
    return None if evaluate is None else as_number("evaluate", evaluate(params))


def _check(train, rounds, rewind, rewind_step) -> None:
    if rewind not in ("weights", "learning_rate", "none"):
        raise ValueError(f"rewind={rewind!r} must be 'weights', 'learning_rate' or 'none'.")
    check_count("rounds", rounds)
    check_count("rewind_step", rewind_step, 0)
    if rewind_step and rewind != "none":
        check_callable("train", train, "params", "masks", "key", keywords=("start",))
    if rewind_step and rewind == "weights":
        check_callable("train", train, "params", "masks", "key", keywords=("stop",))
