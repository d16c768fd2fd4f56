"""Masks and architectures learned in three stages: dense training, scores, fine-tuning."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from ..._arguments import check_key, check_params, checked, rows_of
from ..._minibatches import minibatches
from ..._progress import check_loop, run_chunks, structure
from ..._steady import steady
from ...masks import Plan, apply_masks
from ...optim import keep_masked
from ...recipes import Progress
from ._bilevel import bilevel_gradient
from ._scores import apply_scores, check_separate, scaled_scores


@checked(steps="[0, inf)")
@dataclass(frozen=True)
class Stage:
    """A training stage: the number of steps and the optimizer."""

    steps: int
    optimizer: optax.GradientTransformation


class ScoredResult(NamedTuple):
    """The parameters, exactly 0 off the masks, the masks, their scores, the losses by stage."""

    params: PyTree
    masks: PyTree
    scores: PyTree
    losses: tuple[Array, ...]


class SearchedNetwork(NamedTuple):
    """The result of `dass`: a sparse network and the weights of its operations.

    Args:
      params: The parameters, exactly 0 off the masks.
      alpha: The upper variables; `genotype` derives a cell from them.
      masks: The masks; None for leaves that are not planned.
      scores: The scores of the masks.
      losses: The training losses of the steps of each stage.
      validation: The validation losses of the steps of each stage.
    """

    params: PyTree
    alpha: PyTree
    masks: PyTree
    scores: PyTree
    losses: tuple[Array, ...]
    validation: tuple[Array, ...]


@checked(loss="loss(params, batch)")
def score_prune(
    params: PyTree,
    loss: Callable[[PyTree, PyTree], Any],
    plan: Plan,
    data: PyTree,
    *,
    key: Key[Array, ""],
    pretrain: Stage | None = None,
    prune: Stage,
    finetune: Stage | None = None,
    batch_size: int = 64,
    chunk: int = 1000,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> ScoredResult:
    r"""Learns masks in three stages: dense training, scores with frozen weights, fine-tuning.

    The scores start at `sqrt(6 / fan_in) w / max |w|`, whose masks are magnitude pruning, and
    descend `dL/dS = dL/dw_eff * w * sign(S)` with the weights frozen. Fine-tuning fixes the masks
    and keeps pruned weights at exactly 0. Pure: works under jit, and under vmap over keys and
    parameters.

    Args:
      params: Parameters, already trained if `pretrain` is None.
      loss: Function `(params, batch)` to a scalar.
      plan: The leaves to prune and their patterns; with `rounding="down"` the counts are those of
        the paper, which empty no leaf.
      data: A tree of arrays with the samples along their first axis.
      key: A key from `jax.random.key`, for the order of the samples.
      pretrain: Steps and optimizer of dense training; None skips it.
      prune: Steps and optimizer of the scores; `optax.sgd(0.1)` is usual.
      finetune: Steps and optimizer of the kept weights; None skips it.
      batch_size: Samples per step.
      chunk: Number of steps between two calls of the callback.
      callback: Called with a `sj.recipes.Progress` after each chunk; not under jit or vmap.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      A `ScoredResult`; `losses` holds the training losses of each stage.

    Raises:
      TypeError: If `loss` cannot be called as `loss(params, batch)`, or `plan` is not a plan.
      ValueError: If the data are empty, the plan allocates jointly, or `resume` began with other
        parameters, data or arguments.

    Reference:
      Sehwag et al., HYDRA: Pruning Adversarially Robust Neural Networks, 2020 (arXiv 2002.10509).

    Example:
      >>> import jax, jax.numpy as jnp, optax, sparsejax as sj
      >>> from sparsejax.contrib import search
      >>> params = {"kernel": jnp.array([[2.0], [1.0]])}  # only the second input matters
      >>> loss = lambda p, batch: jnp.mean((batch["x"] @ p["kernel"] - batch["y"]) ** 2)
      >>> data = {"x": jnp.eye(2), "y": jnp.array([[0.0], [1.0]])}
      >>> plan = sj.plan(params, sj.Unstructured(0.5))
      >>> stage = search.Stage(20, optax.sgd(0.3))
      >>> found = search.score_prune(
      ...     params, loss, plan, data, key=jax.random.key(0), prune=stage
      ... )
      >>> found.params["kernel"].ravel().tolist()
      [0.0, 1.0]
    """
    found = dass(
        params, None, lambda p, alpha, batch: loss(p, batch), plan, data, None, key=key,
        pretrain=pretrain, prune=prune, finetune=finetune, batch_size=batch_size,
        chunk=chunk, callback=callback, resume=resume, progress=progress,
    )  # fmt: skip
    return ScoredResult(found.params, found.masks, found.scores, found.losses)


@checked(loss="loss(params, alpha, batch)")
def dass(
    params: PyTree,
    alpha: PyTree | None,
    loss: Callable[[PyTree, PyTree, PyTree], Any],
    plan: Plan,
    data: PyTree,
    validation: PyTree | None,
    *,
    key: Key[Array, ""],
    pretrain: Stage | None = None,
    prune: Stage,
    finetune: Stage | None = None,
    alpha_optimizer: optax.GradientTransformation | None = None,
    second_order: bool = True,
    batch_size: int = 64,
    chunk: int = 1000,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> SearchedNetwork:
    r"""Architecture search for sparse networks: alpha descends the loss of the *pruned* network.

    `min_alpha L_val(w* m(S*), alpha)` with `w*, S* = argmin L_train(w m(S), alpha)`, alternating
    one step of alpha and one training step per batch, in three stages: the dense weights; the
    scores, at the sparsities of the plan, with frozen weights; the weights under the masks of the
    fixed scores. The gradient of alpha goes through the next training step.

    Args:
      params: Parameters of the network with all its operations.
      alpha: Upper variables, for example small random numbers; None disables the search.
      loss: Function `(params, alpha, batch)` to a scalar; it is called with pruned parameters.
      plan: The leaves to prune and their patterns, in the second and third stage; with
        `rounding="down"` the counts are those of the paper, which empty no leaf.
      data: Training set: a tree of arrays with the samples along their first axis.
      validation: Held-out data to learn alpha from; None if alpha is None.
      key: A key from `jax.random.key`, for the order of the samples.
      pretrain: Steps and optimizer of dense training; None skips it.
      prune: Steps and optimizer of the scores.
      finetune: Steps and optimizer of the kept weights; None skips it.
      alpha_optimizer: Optimizer of alpha; None is Adam as published: learning rate 3e-4, b1 = 0.5,
        weight decay 1e-3.
      second_order: Whether the gradient of alpha goes through the training step.
      batch_size: Samples per step, from each set.
      chunk: Number of steps between two calls of the callback.
      callback: Called with a `sj.recipes.Progress` after each chunk; not under jit or vmap.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      A `SearchedNetwork`.

    Raises:
      TypeError: If `loss` cannot be called as `loss(params, alpha, batch)`, or `plan` is not a
        plan.
      ValueError: If the data are empty, only one of alpha and validation data is given, the plan
        allocates jointly, or `resume` began with other parameters, data or arguments.

    Reference:
      Mousavi et al., DASS: Differentiable Architecture Search for Sparse Neural Networks, 2022
      (arXiv 2207.06968). In the authors' code the optimizer of the weights updates alpha too; here
      it does not.

    Example:
      >>> import jax, jax.numpy as jnp, optax, sparsejax as sj
      >>> from sparsejax.contrib import search
      >>> params = {"kernel": jnp.array([[2.0], [1.0]])}
      >>> def loss(p, alpha, batch):  # two operations: the layer, and zero
      ...     weight = jax.nn.softmax(alpha)
      ...     return jnp.mean((weight[0] * batch["x"] @ p["kernel"] - batch["y"]) ** 2)
      >>> data = {"x": jnp.eye(2), "y": jnp.array([[0.0], [1.0]])}
      >>> found = search.dass(
      ...     params, jnp.zeros(2), loss, sj.plan(params, sj.Unstructured(0.5)), data, data,
      ...     key=jax.random.key(0), prune=search.Stage(30, optax.sgd(0.3)),
      ...     alpha_optimizer=optax.adam(0.1),
      ... )
      >>> found.params["kernel"].ravel().tolist(), bool(found.alpha[0] > found.alpha[1])
      ([0.0, 1.0], True)
    """
    check_params("score_prune and dass", params)
    check_key("key", key)
    _check(loss, plan, alpha, validation)
    upper = steady(_PUBLISHED if alpha_optimizer is None else alpha_optimizer)
    held = None if validation is None else jax.tree.map(jnp.asarray, validation)
    sets = (jax.tree.map(jnp.asarray, data), held)
    stages = {"pretrain": pretrain, "prune": prune, "finetune": finetune}
    arguments = check_loop(
        "dass", resume, callback, plan=plan, key=key, batch_size=batch_size, chunk=chunk,
        second_order=second_order, stages=tuple((n, x.steps) for n, x in stages.items() if x),
        data={"params": params, "alpha": alpha, "data": data, "validation": validation,
              "optimizers": [structure(x.optimizer, params) for x in stages.values() if x]},
    )  # fmt: skip
    keys = dict(zip(stages, jax.random.split(key, 3)))
    finished = [] if resume is None else list(resume.extra["finished"])

    def run(name, view, start, optimizer):
        """The trained leaves at the end of a stage, which begins with alpha of the one before."""
        given = stages[name]
        if given is None:
            return start
        place = sum(x is not None for x in list(stages.values())[: list(stages).index(name)])
        if place < len(finished):
            return finished[place][0]
        before = sum(len(end[-1][0]) for end in finished)
        own = steady(optimizer or given.optimizer)
        upper_state = finished[-1][2:4] if finished else (alpha, upper.init(cast(Any, alpha)))
        begin, advance = _stage(
            loss, sets, upper, second_order, batch_size, view, given.steps, own, keys[name],
            start, upper_state,
        )  # fmt: skip
        held = tuple(finished)

        def report(done):
            done = done._replace(step=before + done.step, extra=done.extra | {"finished": held})
            callback(done)  # pyright: ignore[reportOptionalCall]

        end = run_chunks(
            "dass", begin, advance, given.steps, arguments, inputs=(key, data), chunk=chunk,
            callback=callback and report, progress=progress,
            resume=None if resume is None or place > len(resume.extra["finished"])
            else resume._replace(step=resume.step - before),
        )  # fmt: skip
        finished.append(end)
        return end[0]

    dense = run("pretrain", lambda w: w, params, None)
    scores = run("prune", lambda s: apply_scores(dense, s, plan), scaled_scores(dense, plan), None)
    masks = plan.masks(jax.tree.map(jnp.abs, scores))
    params = apply_masks(dense, masks)
    held_masks = optax.chain(finetune.optimizer, keep_masked(masks)) if finetune else None
    params = run("finetune", lambda w: apply_masks(w, masks), params, held_masks)
    losses, values = zip(*(end[-1] for end in finished))
    return SearchedNetwork(params, finished[-1][2], masks, scores, losses, values)


_PUBLISHED = optax.chain(optax.add_decayed_weights(1e-3), optax.adam(3e-4, b1=0.5, b2=0.999))


def _stage(
    loss, sets, upper, second_order, batch_size, view, steps, optimizer, key, trained, moving
):
    """The first state of a stage and the function that advances it.

    A state holds what is trained, its optimizer's state, alpha, its optimizer's state, and the
    losses; `view` maps what is trained to parameters.
    """
    data, validation = sets
    keys = jax.random.split(key)
    rows = tuple(
        None if x is None else minibatches(rows_of("data", x), batch_size, steps, key=k)
        for k, x in zip(keys, sets)
    )

    def step(carry, rows):
        trained, opt_state, alpha, state = carry
        own, other = (
            None if x is None else jax.tree.map(lambda v: v[at], x)  # noqa: B023
            for x, at in zip((data, validation), rows)
        )
        train = lambda w, a: loss(view(w), a, own)  # noqa: E731
        value = jnp.zeros(())
        if validation is not None:
            through = (optimizer, opt_state) if second_order else ()
            value, grads = bilevel_gradient(
                train, lambda w, a: loss(view(w), a, other), trained, alpha, *through
            )
            updates, state = upper.update(grads, state, alpha)
            alpha = optax.apply_updates(alpha, updates)
        found, grads = jax.value_and_grad(train)(trained, alpha)
        updates, opt_state = optimizer.update(grads, opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        return (trained, opt_state, alpha, state), (found, value)

    def advance(state, first, last):
        *carry, records = state
        now = jax.tree.map(lambda x: x[first:last], rows)
        carry, record = jax.lax.scan(step, tuple(carry), now)
        return *carry, jax.tree.map(lambda *x: jnp.concatenate(x), records, record)

    begin = trained, optimizer.init(trained), *moving
    shapes = jax.eval_shape(step, begin, jax.tree.map(lambda x: x[0], rows))[1] if steps else (
        jnp.zeros(()), jnp.zeros(())
    )  # fmt: skip
    return (*begin, tuple(jnp.zeros(0, x.dtype) for x in shapes)), advance


def _check(loss, plan, alpha, validation) -> None:
    Plan.require("dass", plan)
    check_separate(plan)
    if (alpha is None) != (validation is None):
        raise ValueError("dass: alpha is learned from validation data: give both, or neither.")
