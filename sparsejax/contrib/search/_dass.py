"""Masks and architectures learned in three stages: dense training, scores, fine-tuning."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from ..._arguments import check_callable, check_count, check_key, check_params, rows_of
from ...masks import Plan, apply_masks
from ...optim import keep_masked
from ...recipes import minibatches
from ._bilevel import bilevel_gradient
from ._scores import apply_scores, check_separate, scaled_scores


class Stage(NamedTuple):
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
) -> ScoredResult:
    r"""Learns masks in three stages: dense training, scores with frozen weights, fine-tuning.

    The scores start at `sqrt(6 / fan_in) w / max |w|`, whose masks are magnitude pruning, and
    descend `dL/dS = dL/dw_eff * w * sign(S)` with the weights frozen. Fine-tuning fixes the masks
    and keeps pruned weights at exactly 0. Pure: works under jit, and under vmap over keys and
    parameters.

    Args:
      params: Parameters, already trained if `pretrain` is None.
      loss: Function `(params, batch)` to a scalar.
      plan: The leaves to prune and their patterns.
      data: A tree of arrays with the samples along their first axis.
      key: A key from `jax.random.key`, for the order of the samples.
      pretrain: Steps and optimizer of dense training; None skips it.
      prune: Steps and optimizer of the scores; `optax.sgd(0.1)` is usual.
      finetune: Steps and optimizer of the kept weights; None skips it.
      batch_size: Samples per step.

    Returns:
      A `ScoredResult`; `losses` holds the training losses of each stage.

    Raises:
      TypeError: If `loss` cannot be called as `loss(params, batch)`, or `plan` is not a plan.
      ValueError: If the data are empty, or the plan allocates jointly.

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
    check_callable("loss", loss, "params", "batch")
    found = dass(
        params, None, lambda p, alpha, batch: loss(p, batch), plan, data, None, key=key,
        pretrain=pretrain, prune=prune, finetune=finetune, batch_size=batch_size,
    )  # fmt: skip
    return ScoredResult(found.params, found.masks, found.scores, found.losses)


def dass(
    params: PyTree,
    alpha: PyTree,
    loss: Callable[[PyTree, PyTree, PyTree], Any],
    plan: Plan,
    data: PyTree,
    validation: PyTree,
    *,
    key: Key[Array, ""],
    pretrain: Stage | None = None,
    prune: Stage,
    finetune: Stage | None = None,
    alpha_optimizer: optax.GradientTransformation | None = None,
    second_order: bool = True,
    batch_size: int = 64,
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
      plan: The leaves to prune and their patterns, in the second and third stage.
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

    Returns:
      A `SearchedNetwork`.

    Raises:
      TypeError: If `loss` cannot be called as `loss(params, alpha, batch)`, or `plan` is not a
        plan.
      ValueError: If the data are empty, only one of alpha and validation data is given, or the plan
        allocates jointly.

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
    _check(loss, plan, alpha, validation, (pretrain, prune, finetune))
    upper = _PUBLISHED if alpha_optimizer is None else alpha_optimizer
    held = None if validation is None else jax.tree.map(jnp.asarray, validation)
    sets = (jax.tree.map(jnp.asarray, data), held)
    keys = jax.random.split(key, 3)
    alpha_state = upper.init(alpha)
    stage = partial(_stage, loss, sets, upper, second_order, batch_size)
    records = []

    def run(view, given, key, trained, alpha, alpha_state):
        trained, alpha, alpha_state, record = stage(
            view, given.steps, given.optimizer, key, trained, alpha, alpha_state
        )
        records.append(record)
        return trained, alpha, alpha_state

    moving = (alpha, alpha_state)
    if pretrain is not None:
        params, *moving = run(lambda w: w, pretrain, keys[0], params, *moving)
    scores = scaled_scores(params, plan)
    dense = params
    scores, *moving = run(lambda s: apply_scores(dense, s, plan), prune, keys[1], scores, *moving)
    masks = plan.masks(jax.tree.map(jnp.abs, scores))
    params = apply_masks(params, masks)
    if finetune is not None:
        held_masks = optax.chain(finetune.optimizer, keep_masked(masks))
        last = Stage(finetune.steps, held_masks)
        params, *moving = run(lambda w: apply_masks(w, masks), last, keys[2], params, *moving)
    losses, values = zip(*records)
    return SearchedNetwork(params, moving[0], masks, scores, losses, values)


_PUBLISHED = optax.chain(optax.add_decayed_weights(1e-3), optax.adam(3e-4, b1=0.5, b2=0.999))


def _stage(
    loss, sets, upper, second_order, batch_size, view, steps, optimizer, key, trained, alpha, state
):
    """Alternates steps of alpha and of `trained`; `view` maps `trained` to parameters."""
    data, validation = sets
    keys = jax.random.split(key)
    rows = [
        None if x is None else minibatches(rows_of("data", x), batch_size, steps, key=k)
        for k, x in zip(keys, sets)
    ]

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

    carry = (trained, optimizer.init(trained), alpha, state)
    (trained, _, alpha, state), record = jax.lax.scan(step, carry, tuple(rows))
    return trained, alpha, state, record


def _check(loss, plan, alpha, validation, stages) -> None:
    check_callable("loss", loss, "params", "alpha", "batch")
    Plan.require("dass", plan)
    check_separate(plan)
    if (alpha is None) != (validation is None):
        raise ValueError("dass: alpha is learned from validation data: give both, or neither.")
    for stage in stages:
        if stage is not None:
            check_count("Stage.steps", stage.steps, 0)
