"""Iterative pruning: train, prune the smallest of what remains, rewind, and again."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from .._arguments import check_count, check_key
from .._tree import map_named, named_leaves
from ..masks import Plan, apply_masks, magnitude
from ._check import as_number, check_callable, check_params, check_resume, returned_params

Rewind = Literal["weights", "learning_rate", "none"]


class Round(NamedTuple):
    """One round: the fraction of planned entries that is zero, and the score (None: not asked)."""

    sparsity: float
    score: float | None


class IterativeResult(NamedTuple):
    """What iterative pruning leaves, and resumes from.

    Args:
      params: The trained parameters, exactly zero off the masks.
      masks: The masks; None for leaves that are not planned.
      origin: The parameters each round starts from (before masking); None without rewinding.
      rounds: One entry for the dense training and one per round of pruning.
    """

    params: PyTree
    masks: PyTree
    origin: PyTree
    rounds: tuple[Round, ...]

    @property
    def ticket(self) -> PyTree:
        """The lottery ticket: `origin` under the masks."""
        return apply_masks(self.params if self.origin is None else self.origin, self.masks)


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
    callback: Callable[[IterativeResult], Any] | None = None,
    resume: IterativeResult | None = None,
) -> IterativeResult:
    r"""Iterative magnitude pruning: trains, prunes the smallest of what remains, rewinds, repeats.

    After round r of R the planned leaves have the density `(1 - s)^(r / R)` of the plan's sparsity
    s (as met in whole entries): each round removes the same fraction `q = 1 - (1 - s)^(1 / R)` of
    what remains. Counts are taken from the dense size, so no rounding accumulates. What is pruned
    never returns. With a plan made with `allocate=sj.masks.global_` all leaves compete, otherwise
    each leaf meets its own sparsity.

    Args:
      params: Parameters before training: a tree of arrays.
      train: `train(params, masks, key) -> params` trains to the end with a fresh optimizer and
        keeps the masks, as `sj.recipes.train_masked` does. If `rewind_step` is positive it is
        also called with `stop=rewind_step`, from the start with the key of the dense training,
        and with `start=rewind_step`, which goes on from there in data and learning rate.
      plan: What to prune and how far, from `sj.plan`.
      key: A key made by `jax.random.key`; round r trains with it folded with r.
      rounds: R, rounds of pruning after the dense training.
      rewind: "weights": survivors return to their values at `rewind_step` (0: the lottery ticket);
        "learning_rate": weights stay and training restarts at `rewind_step`; "none": both go on.
      rewind_step: Step to rewind to.
      trained: Whether `params` are trained already: the dense training is left out.
      score: Function of the parameters to scores, the largest stay; None means magnitudes.
      evaluate: `evaluate(params) -> number`, recorded for each round.
      callback: Called with the `IterativeResult` so far after each round.
      resume: A result so far, to go on from: the end is that of an uninterrupted run.

    Returns:
      An `IterativeResult`; its `ticket` is the sparse network before training.

    Raises:
      TypeError: If a callable cannot be called so, or returns something else, `params` hold
        variables of NNX that are not `nnx.Param`s, or `resume` is no `IterativeResult`.
      ValueError: If `train` revives pruned entries or returns what is not finite (`callback` has
        had all results before), a number or name is wrong, or `resume` is of another plan, number
        of rounds or rewinding.

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
      >>> found.ticket["kernel"].tolist()
      [[1.0, 0.0], [0.0, -1.0]]
    """
    _check(train, evaluate, callback, rounds, rewind, rewind_step)
    check_params("iterative_prune", params)
    check_key("key", key)
    if resume is not None:
        _check_resume(resume, params, plan, rounds, rewind)
    # Where to stop and start is said only if it is not the beginning.
    later = {} if rewind_step == 0 or rewind == "none" else {"start": rewind_step}
    origin = None

    def retrain(params, masks, key):
        start = params if origin is None else apply_masks(origin, masks)
        return returned_params("train", start, train(start, masks, key, **later), masks)

    def result(params, masks, history):
        return IterativeResult(params, masks, origin, history)

    if resume is None:
        masks = plan.full_masks(params)
        if rewind == "weights":
            origin = params
            if rewind_step:
                early = train(params, masks, jax.random.fold_in(key, 0), stop=rewind_step)
                origin = returned_params("train", params, early)
        if not trained:
            params = returned_params("train", params, train(params, masks, fold(key, 0)))
        resume = result(params, masks, (Round(0.0, _score(evaluate, params)),))
        report(callback, resume)
    origin = resume.origin
    done = resume
    for r in range(len(resume.rounds), rounds + 1):
        masks = prune_remaining(plan, (score or magnitude)(done.params), done.masks, r / rounds)
        params = retrain(apply_masks(done.params, masks), masks, fold(key, r))
        entry = Round(zero_fraction(masks), _score(evaluate, params))
        done = result(params, masks, (*done.rounds, entry))
        report(callback, done)
    return done


def prune_remaining(plan: Plan, scores: PyTree, masks: PyTree, progress: float) -> PyTree:
    r"""Masks within `masks` that keep the fraction `(1 - s)^progress` of each leaf of the plan.

    With `progress = r / R` this is round r of R rounds that remove the same fraction of what
    remains; s is the sparsity of the plan, of each leaf or, where leaves compete, of all together.

    Args:
      plan: What to prune and how far in the end.
      scores: A tree of scores with the planned leaves; the largest stay.
      masks: The masks so far; what they remove stays removed.
      progress: In [0, 1]; 1 meets the plan.

    Returns:
      A tree like `scores` of boolean arrays, None for leaves that are not planned.

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
    return _select(plan, scores, masks, float(progress))


@partial(jax.jit, static_argnums=(0, 3))  # one compilation a round, shared by runs and copies
def _select(plan: Plan, scores: PyTree, masks: PyTree, progress: float) -> PyTree:
    by_name = named_leaves(masks)

    def within(name, s, mask):  # NaN ranks last also where the scores of a unit are squared
        return s if mask is None else jnp.where(mask, s, jnp.asarray(jnp.nan, s.dtype))

    scores = map_named(within, scores, by_name)
    if plan.together:
        return plan.masks(scores, _reached(plan.sparsity, progress))
    found = {}
    for leaf in plan.leaves:
        alone = dataclasses.replace(plan, leaves=(leaf,))
        found |= named_leaves(alone.masks(scores, _reached(leaf.sparsity, progress)))
    return map_named(lambda name, s: found.get(name), scores)


def _reached(sparsity: float, progress: float) -> float:
    """Fraction of the planned zeros after a part of geometric pruning."""
    if sparsity == 0 or progress >= 1:
        return 1.0
    return (1 - (1 - sparsity) ** progress) / sparsity


def zero_fraction(masks: PyTree) -> float:
    """Entries off the masks over entries with a mask."""
    leaves = list(named_leaves(masks).values())
    size, kept = sum(m.size for m in leaves), sum(int(jnp.sum(m)) for m in leaves)
    return (size - kept) / max(size, 1)


def fold(key: Key[Array, ""], r: int) -> Key[Array, ""]:
    """The key of round r: a run that resumes sees the keys of one that was never interrupted."""
    return jax.random.fold_in(key, r)


def report(callback: Callable[..., Any] | None, result: Any) -> None:
    """Calls the callback, if there is one."""
    if callback is not None:
        callback(result)


def check_done(what: str, done: Any, params: PyTree, plan: Plan, steps: tuple[int, int]) -> None:
    """Raises if the masks of a result to go on from are not those of `plan` at this step."""
    at, of = steps
    if at > of:
        raise ValueError(
            f"resume has {at} {what} and {what}={of}; resume with {what}={at} or more."
        )
    before, after = named_leaves(params), named_leaves(done.params)
    if {n: jnp.shape(x) for n, x in before.items()} != {n: jnp.shape(x) for n, x in after.items()}:
        other = [n for n in {**before, **after} if _shape(before, n) != _shape(after, n)]
        raise ValueError(
            f"resume: {other[0]} has shape {_shape(after, other[0])} in resume.params and "
            f"{_shape(before, other[0])} in params; resume with the params that it began with."
        )
    masks, planned = named_leaves(done.masks), {x.name: x.shape for x in plan.leaves}
    for name in {**masks, **planned}:
        if _shape(masks, name) != planned.get(name):
            raise ValueError(
                f"resume: {name} has a mask of shape {_shape(masks, name)} and is planned with "
                f"shape {planned.get(name)}; resume with the plan that it began with."
            )
    # As many as the plan asks for are there exactly if selecting again changes nothing.
    again = prune_remaining(plan, magnitude(done.params), done.masks, at / of)
    same = all(bool(jnp.array_equal(m, masks[n])) for n, m in named_leaves(again).items())
    if not same:
        raise ValueError(
            f"resume has sparsity {zero_fraction(done.masks):.4f} after {at} of {of} {what}, where "
            f"plan of sparsity {plan.sparsity:.4f} has {zero_fraction(again):.4f}; resume with the "
            f"plan and the {what} that it began with."
        )


def _shape(leaves: dict[str, Any], name: str) -> tuple[int, ...] | None:
    return tuple(jnp.shape(leaves[name])) if name in leaves else None


def _check_resume(resume, params, plan: Plan, rounds: int, rewind: Rewind) -> None:
    check_resume("resume", resume, IterativeResult)
    if not resume.rounds:
        raise ValueError("resume.rounds is empty: leave resume out to begin.")
    if (resume.origin is None) == (rewind == "weights"):
        began = "'learning_rate' or 'none'" if resume.origin is None else "'weights'"
        raise ValueError(
            f"resume began with rewind={began} (its origin is "
            f"{'None' if resume.origin is None else 'kept'}) and cannot go on with "
            f"rewind={rewind!r}."
        )
    check_done("rounds", resume, params, plan, (len(resume.rounds) - 1, rounds))
    sparsity = zero_fraction(resume.masks)
    if abs(sparsity - resume.rounds[-1].sparsity) > 1e-6:
        raise ValueError(
            f"resume.rounds[-1].sparsity is {resume.rounds[-1].sparsity:.4f} and resume.masks have "
            f"{sparsity:.4f}: they are not of one result."
        )


def _score(evaluate, params) -> float | None:
    return None if evaluate is None else as_number("evaluate", evaluate(params))


def _check(train, evaluate, callback, rounds, rewind, rewind_step) -> None:
    check_callable("train", train, "params", "masks", "key")
    if rewind not in ("weights", "learning_rate", "none"):
        raise ValueError(f"rewind={rewind!r} must be 'weights', 'learning_rate' or 'none'.")
    check_count("rounds", rounds)
    check_count("rewind_step", rewind_step, 0)
    if rewind_step and rewind != "none":
        check_callable("train", train, "params", "masks", "key", keywords=("start",))
    if rewind_step and rewind == "weights":
        check_callable("train", train, "params", "masks", "key", keywords=("stop",))
    if evaluate is not None:
        check_callable("evaluate", evaluate, "params")
    if callback is not None:
        check_callable("callback", callback, "result")
