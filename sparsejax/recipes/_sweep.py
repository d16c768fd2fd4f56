"""Many sparsities of one model: nested masks from one order, and a score for each."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from .._arguments import check_count, check_key
from .._topk import sortable
from .._tree import map_named, named_leaves
from ..masks import Plan, apply_masks, magnitude, plan as make_plan
from ..patterns import NM, Unstructured
from ._check import as_number, check_callable, check_params, check_resume, returned_params
from ._iterative import report, zero_fraction


class Sweep(NamedTuple):
    """What a sweep leaves, and resumes from.

    Args:
      sparsities: Fraction of planned entries that is zero, for each point done.
      scores: One tuple of seeds for each point done.
      leaf_sparsities: The same by leaf: where global selection empties a small layer.
    """

    sparsities: tuple[float, ...]
    scores: tuple[tuple[float, ...], ...]
    leaf_sparsities: tuple[dict[str, float], ...]

    @property
    def table(self) -> Float[Array, "points seeds"]:
        """The scores as an array."""
        return jnp.asarray(self.scores)


def nested_masks(scores: PyTree, plan: Plan, sparsities: Sequence[float]) -> list[PyTree]:
    r"""Masks at many sparsities from one order: each lies within those before it.

    The rank of each score, its place in decreasing order with the lowest index first among equals,
    is computed once; `m_s = rank < n - round(n s)`. These are the masks of `Plan.masks`.

    Args:
      scores: A tree of scores with the planned leaves; the largest stay.
      plan: Which leaves, from `sj.plan` with `sj.Unstructured`; leaves compete if it was made
        with `allocate=sj.masks.global_`. Its own sparsity plays no part.
      sparsities: Fractions of zeros in [0, 1].

    Returns:
      One tree of masks for each sparsity.

    Raises:
      ValueError: If a leaf has another pattern, or a sparsity is not in [0, 1].

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
            raise ValueError(f"the sparsity {s!r} is not in [0, 1].")
    found = named_leaves(scores)
    names = [leaf.name for leaf in plan.leaves if leaf.name in found]
    groups = [names] if plan.together else [[name] for name in names]
    ranks, sizes = {}, {}
    for group in groups:
        flat = _ranks(jnp.concatenate([found[name].ravel() for name in group]))
        ends = np.cumsum([found[name].size for name in group])
        for name, part in zip(group, jnp.split(flat, ends[:-1])):
            ranks[name], sizes[name] = part.reshape(found[name].shape), flat.size

    def at(sparsity):
        kept = lambda n: n - round(n * sparsity)  # noqa: E731
        cut = {name: rank < kept(sizes[name]) for name, rank in ranks.items()}
        return map_named(lambda name, s: cut.get(name), scores)

    return [at(float(s)) for s in sparsities]


def sparsity_sweep(
    params: PyTree,
    evaluate: Callable[[PyTree], Any],
    *,
    sparsities: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    rules: Mapping[str, Any] | None = None,
    patterns: Sequence[NM] | None = None,
    together: bool = True,
    score: Callable[[PyTree], PyTree] | None = None,
    finetune: Callable[..., PyTree] | None = None,
    seeds: int = 1,
    key: Key[Array, ""] | None = None,
    callback: Callable[[Sweep], Any] | None = None,
    resume: Sweep | None = None,
) -> Sweep:
    r"""The curve of score against sparsity: one-shot masks of one checkpoint, each fine-tuned.

    At each s the smallest magnitudes of the given parameters are removed, `m_s theta`, with masks
    nested in s from one order; the result is fine-tuned with the mask fixed, or not, and scored.
    `sj.metrics.essential_sparsity` and `knee` read the turning point off the curve.

    Args:
      params: Trained parameters: a tree of arrays; all masks are made of them.
      evaluate: `evaluate(params) -> number`, larger is better.
      sparsities: Fractions of zeros, increasing.
      rules: Which leaves, as `{regular expression: sj.Unstructured(0.5)}` with None for dense
        ones (the number plays no part); None means those named `kernel` or `weight`.
      patterns: Patterns such as `sj.NM(n, 8)` for n = 7, ..., 1 in place of the sparsities; for
        the leaves of `rules`.
      together: Whether all leaves compete (as in the paper) or each meets the sparsity.
      score: Function of the parameters to scores, the largest stay; None means magnitudes. Scores
        at random are the control.
      finetune: `finetune(params, masks, key) -> params`, as `sj.recipes.train_masked`; None
        scores without training.
      seeds: How often each point is fine-tuned and scored.
      key: A key made by `jax.random.key`, for fine-tuning: seed i trains with it folded with i,
        the same at each sparsity.
      callback: Called with the `Sweep` so far after each point.
      resume: A sweep so far, to go on from.

    Returns:
      A `Sweep`.

    Raises:
      TypeError: If a callable cannot be called so, or returns something else, `params` hold
        variables of NNX that are not `nnx.Param`s, or `resume` is no `Sweep`.
      ValueError: If there are no sparsities, they do not increase, fine-tuning has no key or
        returns what is not finite (`callback` has had all points before).

    Reference:
      Jaiswal et al., The Emergence of Essential Sparsity in Large Pre-trained Models, 2023
      (arXiv 2306.03805).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"kernel": jnp.array([[3.0, 0.1], [2.0, 0.2]])}
      >>> sweep = sj.recipes.sparsity_sweep(
      ...     params, lambda p: p["kernel"].sum() > 4.9, sparsities=[0.0, 0.25, 0.5, 0.75]
      ... )
      >>> sj.metrics.essential_sparsity(sweep.sparsities, sweep.scores)
      0.5
    """
    _check(evaluate, finetune, callback, seeds, key)
    check_params("sparsity_sweep", params)
    if resume is not None:
        check_resume("resume", resume, Sweep)
    points = _points(params, sparsities, rules, patterns, together, score or magnitude)
    done = Sweep((), (), ()) if resume is None else resume
    for masks in points[len(done.sparsities) :]:
        start = apply_masks(params, masks)
        own = tuple(_one(start, masks, finetune, evaluate, key, i) for i in range(seeds))
        by_leaf = {n: zero_fraction(m) for n, m in named_leaves(masks).items()}
        done = Sweep(
            (*done.sparsities, zero_fraction(masks)),
            (*done.scores, own),
            (*done.leaf_sparsities, by_leaf),
        )
        report(callback, done)
    return done


def _points(params, sparsities, rules, patterns, together, score) -> list[PyTree]:
    given = rules if rules is not None else Unstructured(0.5)
    plan = make_plan(params, given)
    if patterns is None:
        grid = [float(s) for s in sparsities]
        if not grid or any(b <= a for a, b in zip(grid, grid[1:])):
            raise ValueError(f"sparsities={grid} must be increasing fractions, at least one.")
        plan = dataclasses.replace(plan, together=together)
        return nested_masks(score(params), plan, grid)
    if not patterns:
        raise ValueError("sparsity_sweep: patterns is empty; give some, as in [sj.NM(2, 4)].")
    names = [leaf.name for leaf in plan.leaves]
    scores = score(params)
    return [
        make_plan(params, {f"^{re.escape(name)}$": pattern for name in names}).masks(scores)
        for pattern in patterns
    ]


def _one(start, masks, finetune, evaluate, key, i) -> float:
    params = start
    if finetune is not None:
        tuned = finetune(start, masks, jax.random.fold_in(key, i))
        params = returned_params("finetune", start, tuned, masks)
    return as_number("evaluate", evaluate(params))


def _ranks(scores: Float[Array, " n"]) -> Int[Array, " n"]:
    """Place of each entry in decreasing order; the lowest index first among equals, NaN last."""
    order = jnp.argsort(~sortable(scores), stable=True)
    return jnp.zeros(scores.size, jnp.int32).at[order].set(jnp.arange(scores.size, dtype=jnp.int32))


def _check(evaluate, finetune, callback, seeds, key) -> None:
    check_callable("evaluate", evaluate, "params")
    check_count("seeds", seeds)
    if finetune is not None:
        check_callable("finetune", finetune, "params", "masks", "key")
        if key is None:
            raise ValueError("sparsity_sweep: fine-tuning needs key=jax.random.key(0).")
        check_key("key", key)
    if callback is not None:
        check_callable("callback", callback, "result")
