"""Sparse model soups: averaging inside iterative pruning."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from .._arguments import (
    as_number,
    check_callable,
    check_count,
    check_key,
    check_params,
    checked,
    returned_params,
)
from .._progress import Progress, appended, check_progress, check_shapes, run_steps
from ..masks import Plan, apply_masks, magnitude
from ._average import greedy_soup, uniform_soup
from ._iterative import check_masks_at, prune_remaining, zero_fraction


@checked(evaluate="evaluate(params)", recalibrate="recalibrate(params)")
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
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> Progress:
    r"""Sparse model soups: repeatedly prunes, retrains copies with one mask, averages them.

    Phase k of K prunes the average to the density `(1 - s)^(k / K)`, retrains m copies of it from
    the same weights and mask with different keys or settings, and averages them:
    `theta_k = sum_i lambda_i theta_{k,i}`. Copies of one pruned network remain in one basin, and
    their average has exactly the zeros of the mask. With one copy this is iterative pruning.

    Args:
      params: Trained dense parameters: a tree of arrays.
      train: `train(params, masks, key) -> params` retrains with a fresh optimizer and keeps the
        masks; with `settings` it is `train(params, masks, key, setting)`.
      plan: The plan, from `sj.plan`; the paper selects globally
        (`allocate=sj.masks.joint`).
      key: A key made by `jax.random.key`; copy i of phase k folds in k and i.
      phases: K.
      copies: m.
      settings: One setting per copy (weight decay, length, peak learning rate); None varies only
        the key.
      soup: "uniform" averages all copies; "greedy" those that improve `evaluate`.
      evaluate: `evaluate(params) -> number` on held-out data, larger is better; "greedy" needs it.
      recalibrate: Function applied to each candidate and soup before it is scored or returned, to
        recompute normalisation statistics on training data, as `sj.nn.recalibrate` does.
      parallel: "vmap" trains the copies in parallel, if `train` can be traced; "loop" one by one.
      callback: Called with the `Progress` after each phase.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      A `Progress`: `params` is the soup of the last phase. Records: `candidates`, its members, and
      for each phase `sparsity`, `candidate_scores`, `soup_score` (None without `evaluate`) and
      `chosen`, the members of the soup.

    Raises:
      TypeError: If a callable has another signature or result type, `params` hold NNX variables
        that are not `nnx.Param`s, or `resume` is not a `Progress`.
      ValueError: If `train` revives pruned entries or returns non-finite values (all earlier
        results were passed to `callback`), "greedy" has no `evaluate`, the number of settings is
        not that of the copies, or `resume` began with other
        parameters, another plan, settings, or number of phases or copies.

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
    _check(train, evaluate, phases, copies, settings, soup, parallel)
    check_params("sparse_model_soup", params)
    check_key("key", key)
    # Settings may be any objects: numbers, arrays and strings in them are compared.
    data = {"params": params} | ({} if settings is None else {"settings": list(settings)})
    check_shapes("sparse_model_soup", resume, params)
    arguments = check_progress(
        "sparse_model_soup", resume, callback, data=data,
        recalibrate=recalibrate is not None, evaluate=evaluate is not None, plan=plan, key=key,
        phases=phases, copies=copies, soup=soup, parallel=parallel,
    )  # fmt: skip
    finish = (lambda p: p) if recalibrate is None else recalibrate

    def score(tree):
        return as_number("evaluate", evaluate(tree))  # pyright: ignore[reportOptionalCall]

    def mix(candidates):
        if soup == "greedy":
            found, chosen = greedy_soup(candidates, lambda tree: score(finish(tree)))
            return finish(found), chosen
        return finish(uniform_soup(candidates)), tuple(range(copies))

    def advance(done):
        k = done.step + 1
        masks = prune_remaining(plan, magnitude(done.params), done.masks, k / phases)
        start = apply_masks(done.params, masks)
        keys = [jax.random.fold_in(jax.random.fold_in(key, k), i) for i in range(copies)]
        raw = _train_copies(train, start, masks, keys, settings, parallel)
        averaged, chosen = mix(raw)
        candidates = tuple(map(finish, raw))
        scores = () if evaluate is None else tuple(map(score, candidates))
        now = {
            "sparsity": zero_fraction(masks),
            "candidate_scores": scores,
            "soup_score": score(averaged) if scores else None,
            "chosen": chosen,
        }
        extra = appended(done.extra, now) | {"candidates": candidates}
        return Progress(averaged, masks, k, extra)

    if resume is None:
        done = Progress(params, plan.full_masks(params), 0, {"arguments": arguments})
    else:
        done = resume
        check_masks_at("sparse_model_soup", done, plan, phases)
    return run_steps(
        "sparse_model_soup", done, advance, phases, callback=callback, progress=progress
    )


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


def _check(train, evaluate, phases, copies, settings, soup, parallel) -> None:
    setting = () if settings is None else ("setting",)
    check_callable("train", train, "params", "masks", "key", *setting)
    check_count("phases", phases)
    check_count("copies", copies)
    if settings is not None and len(settings) != copies:
        raise ValueError(f"settings must have one entry per copy ({copies}), got {len(settings)}.")
    if soup not in ("uniform", "greedy"):
        raise ValueError(f"soup={soup!r} must be 'uniform' or 'greedy'.")
    if parallel not in ("loop", "vmap"):
        raise ValueError(f"parallel={parallel!r} must be 'loop' or 'vmap'.")
    if soup == "greedy" and evaluate is None:
        raise ValueError("soup='greedy' needs evaluate(params) -> number on held-out data.")
