"""Sparse model soups: averaging inside iterative pruning."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from .._arguments import check_count, check_key
from ..masks import Plan, apply_masks, magnitude
from ._average import greedy_soup, uniform_soup
from ._check import as_number, check_callable, check_params, check_resume, returned_params
from ._iterative import check_done, fold, prune_remaining, report, zero_fraction


class Phase(NamedTuple):
    """One phase: sparsity, scores of the candidates and of their soup, the members of the soup."""

    sparsity: float
    candidates: tuple[float, ...]
    soup: float | None
    chosen: tuple[int, ...]


class SoupResult(NamedTuple):
    """What a sparse model soup leaves, and resumes from.

    Args:
      params: The soup of the last phase, exactly zero off the masks.
      masks: The masks; None for leaves that are not planned.
      candidates: The members of the last phase.
      phases: What happened in each phase.
    """

    params: PyTree
    masks: PyTree
    candidates: tuple[PyTree, ...]
    phases: tuple[Phase, ...]


def sparse_model_soup(
    params: PyTree,
    train: Callable[..., PyTree],
    plan: Plan,
    *,
    key: Key[Array, ""],
    phases: int = 3,
    copies: int = 3,
    settings: Sequence[Any] | None = None,
    soup: Literal["uniform", "greedy"] = "uniform",
    evaluate: Callable[[PyTree], Any] | None = None,
    recalibrate: Callable[[PyTree], PyTree] | None = None,
    parallel: Literal["loop", "vmap"] = "loop",
    callback: Callable[[SoupResult], Any] | None = None,
    resume: SoupResult | None = None,
) -> SoupResult:
    r"""Sparse model soups: prunes, retrains copies that share the mask, averages them, and again.

    Phase k of K prunes the average to the density `(1 - s)^(k / K)`, retrains m copies of it from
    the same weights and mask with different keys or settings, and averages them:
    `theta_k = sum_i lambda_i theta_{k,i}`. Copies of one pruned network stay in one basin, and
    their average has exactly the zeros of the mask. With one copy this is iterative pruning.

    Args:
      params: Trained dense parameters: a tree of arrays.
      train: `train(params, masks, key) -> params` retrains with a fresh optimizer and keeps the
        masks; with `settings` it is `train(params, masks, key, setting)`.
      plan: What to prune and how far, from `sj.plan`; the paper selects globally
        (`allocate=sj.masks.global_`).
      key: A key made by `jax.random.key`; copy i of phase k trains with it folded with k and i.
      phases: K.
      copies: m.
      settings: One setting per copy (weight decay, length, peak learning rate); None varies the
        key alone.
      soup: "uniform" averages all copies; "greedy" those that help by `evaluate`.
      evaluate: `evaluate(params) -> number` on held-out data, larger is better; "greedy" needs it.
      recalibrate: Function applied to each candidate and soup before it is scored or returned:
        normalisation statistics computed anew on training data.
      parallel: "vmap" trains the copies at once, if `train` can be traced; "loop" one by one.
      callback: Called with the `SoupResult` so far after each phase.
      resume: A result so far, to go on from: the end is that of an uninterrupted run.

    Returns:
      A `SoupResult`.

    Raises:
      TypeError: If a callable cannot be called so, or returns something else, `params` hold
        variables of NNX that are not `nnx.Param`s, or `resume` is no `SoupResult`.
      ValueError: If `train` revives pruned entries or returns what is not finite (`callback` has
        had all results before), "greedy" has no `evaluate`, the number of settings is not that of
        the copies, or `resume` is of another plan or number of phases or copies.

    Reference:
      Zimmer, Spiegel and Pokutta, Sparse Model Soups, 2023 (arXiv 2306.16788).

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> params = {"kernel": jnp.array([[4.0, 1.0], [2.0, 3.0]])}
      >>> def train(p, masks, key, shift):
      ...     return sj.masks.apply_masks({"kernel": p["kernel"] + shift}, masks)
      >>> found = sj.recipes.sparse_model_soup(
      ...     params, train, sj.plan(params, sj.Unstructured(0.5)), key=jax.random.key(0),
      ...     phases=1, copies=2, settings=[0.0, 1.0],
      ... )
      >>> found.params["kernel"].tolist()
      [[4.5, 0.0], [0.0, 3.5]]
    """
    _check(train, evaluate, recalibrate, callback, phases, copies, settings, soup, parallel)
    check_params("sparse_model_soup", params)
    check_key("key", key)
    if resume is not None:
        _check_resume(resume, params, plan, phases, copies)
    finish = (lambda p: p) if recalibrate is None else recalibrate

    def score(tree):
        return as_number("evaluate", evaluate(tree))  # pyright: ignore[reportOptionalCall]

    def mix(candidates):
        if soup == "greedy":
            found, chosen = greedy_soup(candidates, lambda tree: score(finish(tree)))
            return finish(found), chosen
        return finish(uniform_soup(candidates)), tuple(range(copies))

    done = SoupResult(params, plan.full_masks(params), (), ()) if resume is None else resume
    for k in range(len(done.phases) + 1, phases + 1):
        scores = magnitude(done.params)
        masks = prune_remaining(plan, scores, done.masks, k / phases)
        start = apply_masks(done.params, masks)
        keys = [fold(fold(key, k), i) for i in range(copies)]
        raw = _train_copies(train, start, masks, keys, settings, parallel)
        averaged, chosen = mix(raw)
        candidates = tuple(map(finish, raw))
        own = () if evaluate is None else tuple(map(score, candidates))
        entry = Phase(zero_fraction(masks), own, score(averaged) if own else None, chosen)
        done = SoupResult(averaged, masks, candidates, (*done.phases, entry))
        report(callback, done)
    return done


def _train_copies(train, start, masks, keys, settings, parallel) -> list[PyTree]:
    extra = [()] * len(keys) if settings is None else [(setting,) for setting in settings]
    if parallel == "loop":
        found = [train(start, masks, key, *rest) for key, rest in zip(keys, extra)]
    else:
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *extra)
        many = jax.vmap(lambda key, rest: train(start, masks, key, *rest))
        together = many(jnp.stack(keys), stacked)
        found = [jax.tree.map(lambda x, i=i: x[i], together) for i in range(len(keys))]
    return [returned_params("train", start, tree, masks) for tree in found]


def _check_resume(resume, params, plan: Plan, phases: int, copies: int) -> None:
    check_resume("resume", resume, SoupResult)
    if resume.phases and len(resume.candidates) != copies:
        raise ValueError(
            f"resume has {len(resume.candidates)} candidates and copies={copies}; resume with "
            f"copies={len(resume.candidates)}."
        )
    check_done("phases", resume, params, plan, (len(resume.phases), phases))


def _check(
    train, evaluate, recalibrate, callback, phases, copies, settings, soup, parallel
) -> None:
    setting = () if settings is None else ("setting",)
    check_callable("train", train, "params", "masks", "key", *setting)
    check_count("phases", phases)
    check_count("copies", copies)
    if settings is not None and len(settings) != copies:
        raise ValueError(f"there are {len(settings)} settings for {copies} copies; give one each.")
    if soup not in ("uniform", "greedy"):
        raise ValueError(f"soup={soup!r} must be 'uniform' or 'greedy'.")
    if parallel not in ("loop", "vmap"):
        raise ValueError(f"parallel={parallel!r} must be 'loop' or 'vmap'.")
    if soup == "greedy" and evaluate is None:
        raise ValueError("soup='greedy' needs evaluate(params) -> number on held-out data.")
    for name, f in (("evaluate", evaluate), ("recalibrate", recalibrate)):
        if f is not None:
            check_callable(name, f, "params")
    if callback is not None:
        check_callable("callback", callback, "result")
