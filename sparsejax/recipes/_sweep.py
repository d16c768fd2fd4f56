"""Sparsity sweeps of one model: nested masks from one ranking, and their scores."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from .._arguments import (
    as_number,
    check_count,
    check_key,
    check_params,
    checked,
    returned_params,
)
from .._progress import Progress, appended, check_progress, check_shapes, run_steps
from .._tree import named_leaves
from ..masks import Allocation, Plan, apply_masks, joint as together, magnitude, plan as make_plan
from ..patterns import NM, Unstructured
from ._iterative import zero_fraction


@checked()
def nested_masks(scores: PyTree, plan: Plan, sparsities: Sequence[float]) -> list[PyTree]:
    r"""Nested masks at many sparsities from one ranking.

    They are the masks of the plan at each sparsity, `plan.at_sparsities`: slices of stacked leaves
    are pruned one by one, an allocation distributes the zeros again, and the largest scores are
    kept, the lowest index in ties.

    Args:
      scores: A tree of scores with the planned leaves; the largest are kept.
      plan: The leaves, from `sj.plan` with `sj.Unstructured`; leaves compete if it was made with
        `allocate=sj.masks.joint`. Its sparsity is ignored.
      sparsities: Fractions of zeros in [0, 1].

    Returns:
      One tree of masks for each sparsity.

    Raises:
      ValueError: If a leaf has another pattern, a sparsity is not in [0, 1], or (outside of jit)
        NaN scores would be kept.

    Reference:
      Jaiswal et al., The Emergence of Essential Sparsity, 2023 (arXiv 2306.03805).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> scores = {"kernel": jnp.array([[4.0, 1.0], [2.0, 3.0]])}
      >>> plan = sj.plan(scores, sj.Unstructured(0.5))
      >>> masks = sj.recipes.nested_masks(scores, plan, [0.25, 0.75])
      >>> [int(m["kernel"].sum()) for m in masks]
      [3, 1]
    """
    for leaf in plan.leaves:
        if type(leaf.pattern) is not Unstructured:
            raise ValueError(f"nested_masks: {leaf.name} has {leaf.pattern}, not sj.Unstructured.")
    for s in sparsities:
        if not 0 <= s <= 1:
            raise ValueError(f"nested_masks: sparsities must be in [0, 1], got {s!r}.")
    return [at.masks(scores) for at in plan.at_sparsities([float(s) for s in sparsities])]


@checked(
    evaluate="evaluate(params)", score="score(params)", finetune="finetune(params, masks, key)"
)
def sparsity_sweep(
    params: PyTree,
    evaluate: Callable[[PyTree], Any],
    *,
    sparsities: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    rules: Mapping[str, Any] | None = None,
    patterns: Sequence[NM] | None = None,
    joint: bool = True,
    allocate: Allocation | None = None,
    score: Callable[[PyTree], PyTree] | None = None,
    finetune: Callable[..., PyTree] | None = None,
    seeds: int = 1,
    key: Key[Array, ""] | None = None,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> Progress:
    r"""The curve of score against sparsity, for one-shot masks of one checkpoint.

    At each s the smallest magnitudes of the given parameters are removed, `m_s theta`, with nested
    masks from one ranking; the result is optionally fine-tuned with the mask fixed, and scored.
    `sj.metrics.essential_sparsity` and `knee` locate the drop of the curve.

    Args:
      params: Trained parameters: a tree of arrays; all masks are derived from them.
      evaluate: `evaluate(params) -> number`, larger is better.
      sparsities: Fractions of zeros, increasing.
      rules: The leaves, as `{regular expression: sj.Unstructured(0.5)}` with None for dense ones
        (the sparsity is ignored); None means those named `kernel` or `weight`.
      patterns: Patterns such as `sj.NM(n, 8)` for n = 7, ..., 1 in place of the sparsities; for
        the leaves of `rules`.
      joint: Whether all leaves compete (as in the paper) or each has the sparsity.
      allocate: An allocation such as `sj.masks.erk` that distributes each sparsity over the leaves,
        in place of `joint`.
      score: Maps the parameters to scores, the largest of which are kept; None means magnitudes.
        Random scores are the control.
      finetune: `finetune(params, masks, key) -> params`, such as `sj.recipes.train_masked`; None
        scores without training.
      seeds: Number of times each point is fine-tuned and scored.
      key: A key made by `jax.random.key`, for fine-tuning: seed i folds in i, the same at each
        sparsity.
      callback: Called with the `Progress` after each point.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      A `Progress`: `params` and `masks` are those of the last point before fine-tuning. Records for
      each point: `sparsity`, the fraction of planned entries that is zero; `scores`, a tuple over
      seeds; `leaf_sparsity` by path, which shows where global selection empties a small layer.

    Raises:
      TypeError: If a callable has another signature or result type, `params` hold NNX variables
        that are not `nnx.Param`s, or `resume` is not a `Progress`.
      ValueError: If sparsities are missing or do not increase, two have the same masks (a grid
        finer than the entries), or fine-tuning has no key or returns non-finite values (all
        earlier points were passed to `callback`).

    Reference:
      Jaiswal et al., The Emergence of Essential Sparsity in Large Pre-trained Models, 2023
      (arXiv 2306.03805).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"kernel": jnp.array([[3.0, 0.1], [2.0, 0.2]])}
      >>> sweep = sj.recipes.sparsity_sweep(
      ...     params, lambda p: p["kernel"].sum() > 4.9, sparsities=[0.0, 0.25, 0.5, 0.75]
      ... )
      >>> sj.metrics.essential_sparsity(sweep.extra["sparsity"], sweep.extra["scores"])
      0.5
    """
    _check(finetune, seeds, key)
    check_params("sparsity_sweep", params)
    check_shapes("sparsity_sweep", resume, params)
    arguments = check_progress(
        "sparsity_sweep", resume, callback, data={"params": params},
        key=key, score=score is not None, finetune=finetune is not None,
        sparsities=tuple(map(float, sparsities)), joint=joint, seeds=seeds,
        rules=None if rules is None else tuple(rules.items()),
        patterns=None if patterns is None else tuple(patterns),
    )  # fmt: skip
    points = _points(
        params,
        sparsities,
        rules,
        patterns,
        allocate or (together if joint else None),
        score or magnitude,
    )

    def advance(done):
        masks = points[done.step]
        start = apply_masks(params, masks)
        now = {
            "sparsity": zero_fraction(masks),
            "scores": tuple(_one(start, masks, finetune, evaluate, key, i) for i in range(seeds)),
            "leaf_sparsity": {n: zero_fraction(m) for n, m in named_leaves(masks).items()},
        }
        return Progress(start, masks, done.step + 1, appended(done.extra, now))

    if resume is None:
        done = Progress(params, None, 0, {"arguments": arguments})
    else:
        done = resume
        _check_point(done, points)
    return run_steps(
        "sparsity_sweep", done, advance, len(points), callback=callback, progress=progress
    )


def _points(params, sparsities, rules, patterns, allocate, score) -> list[PyTree]:
    given = rules if rules is not None else Unstructured(0.5)
    plan = make_plan(params, given, allocate=allocate if patterns is None else None)
    if patterns is None:
        grid = [float(s) for s in sparsities]
        if not grid or any(b <= a for a, b in zip(grid, grid[1:])):
            raise ValueError(f"sparsities={grid} must be increasing fractions, at least one.")
        points = nested_masks(score(params), plan, grid)
        _check_grid(grid, points)
        return points
    if not patterns:
        raise ValueError("sparsity_sweep: patterns must not be empty, as in [sj.NM(2, 4)].")
    names = [leaf.name for leaf in plan.leaves]
    scores = score(params)
    return [
        make_plan(params, {f"^{re.escape(name)}$": pattern for name in names}).masks(scores)
        for pattern in patterns
    ]


def _check_grid(grid: list[float], points: list[PyTree]) -> None:
    """Raises if two sparsities have the same masks: the curve would have no order of them."""
    size = sum(m.size for m in jax.tree.leaves(points[0]))
    found = [zero_fraction(masks) for masks in points]
    for at in range(1, len(grid)):
        if found[at] <= found[at - 1]:
            raise ValueError(
                f"sparsity_sweep: sparsities={grid} must differ by at least one of the {size} "
                f"planned entries, but {grid[at - 1]} and {grid[at]} both zero "
                f"{round(found[at] * size)} of them; pass a coarser grid."
            )


def _check_point(done: Progress, points: list[PyTree]) -> None:
    """Raises unless the masks of a resumed sweep are those of its last point."""
    if not 0 < done.step <= len(points):
        return
    before, again = (named_leaves(masks) for masks in (done.masks, points[done.step - 1]))
    if not all(n in before and bool(jnp.array_equal(before[n], m)) for n, m in again.items()):
        raise ValueError(
            f"sparsity_sweep: resume.masks (sparsity {zero_fraction(done.masks):.4f}) are not "
            f"those of point {done.step}; resume with the original params and arguments."
        )


def _one(start, masks, finetune, evaluate, key, i) -> float:
    params = start
    if finetune is not None:
        tuned = finetune(start, masks, jax.random.fold_in(key, i))
        params = returned_params("finetune", start, tuned, masks)
    return as_number("evaluate", evaluate(params))


def _check(finetune, seeds, key) -> None:
    check_count("seeds", seeds)
    if finetune is not None:
        if key is None:
            raise ValueError("sparsity_sweep: fine-tuning needs key=jax.random.key(0).")
        check_key("key", key)
