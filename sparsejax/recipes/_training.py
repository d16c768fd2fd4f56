"""The training loop shared by recipes, examples and benchmarks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from .._arguments import check_count, check_key, check_params, checked, rows_of
from .._minibatches import minibatches
from .._progress import Progress, check_loop, run_chunks, structure
from .._steady import steady
from ..masks import apply_masks
from ..optim import keep_masked


@checked(loss="loss(params, batch)")
def train_masked(
    params: PyTree,
    masks: PyTree | None,
    loss: Callable[[PyTree, PyTree], Any],
    optimizer: optax.GradientTransformation,
    data: PyTree,
    *,
    steps: int,
    key: Key[Array, ""],
    batch_size: int = 64,
    start: int = 0,
    chunk: int = 1000,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> PyTree:
    r"""Trains under fixed masks with a fresh optimizer state: zeros stay exactly 0.

    `p <- where(m, p + u, 0)` at every step, so that gradient, decay and momentum do not affect
    pruned entries. Pure and traceable: jit it and vmap it over keys and parameters.
    Each epoch visits the rows in a new order without replacement; an incomplete last batch is
    skipped.

    Args:
      params: A tree of arrays; it is masked before the first step.
      masks: Boolean arrays and None, looked up by path; None trains all entries.
      loss: Function `(params, batch)` that returns a scalar.
      optimizer: An optax transformation; its schedules begin at 0 (shift them by `start` to
        rewind a learning rate: `lambda t: rate(t + start)`).
      data: A tree of arrays with the samples along their first axis.
      steps: Step at which to stop.
      key: A key made by `jax.random.key`, for the order of the samples.
      batch_size: Samples per step; at most all of them.
      start: Step at which to continue in the order of the samples.
      chunk: Number of steps between two calls of the callback.
      callback: Called with a `sj.recipes.Progress` after each chunk; not under jit or vmap.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      The trained parameters.

    Raises:
      ValueError: If the data are empty or of unequal lengths, a mask does not fit, `start` lies
        beyond `steps`, or `resume` began with other parameters, data or arguments.
      TypeError: If `loss` cannot be called as `loss(params, batch)`, or `params` hold NNX variables
        that are not `nnx.Param`.

    Example:
      >>> import jax, jax.numpy as jnp, optax, sparsejax as sj
      >>> loss = lambda w, batch: jnp.mean((batch["x"] @ w - batch["y"]) ** 2)
      >>> data = {"x": jnp.eye(2), "y": jnp.array([1.0, 2.0])}
      >>> masks = jnp.array([True, False])
      >>> sj.recipes.train_masked(
      ...     jnp.zeros(2), masks, loss, optax.sgd(0.5), data, steps=20, key=jax.random.key(0)
      ... ).round(3).tolist()
      [1.0, 0.0]
    """
    check_params("train_masked", params)
    check_key("key", key)
    check_count("steps", steps, 0)
    check_count("start", start, 0)
    if start > steps:
        raise ValueError(f"train_masked(start={start}, steps={steps}) stops before it starts.")
    rows = minibatches(rows_of("data", data), batch_size, steps, key=key)[start:]
    arguments = check_loop(
        "train_masked", resume, callback, key=key, start=start, batch_size=batch_size, chunk=chunk,
        data={"params": params, "masks": masks, "data": data,
              "optimizer": structure(optimizer, params)},
    )  # fmt: skip
    params = apply_masks(params, masks)
    tx = optax.chain(steady(optimizer), keep_masked(masks))

    def step(carry, row):
        params, state = carry
        batch = jax.tree.map(lambda x: x[row], data)
        grads = jax.grad(lambda p: loss(p, batch))(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    data = jax.tree.map(jnp.asarray, data)
    return run_chunks(
        "train_masked", (params, tx.init(params)),
        lambda state, first, last: jax.lax.scan(step, state, rows[first:last])[0], len(rows),
        arguments, chunk=chunk, callback=callback, resume=resume, progress=progress,
    )[0]  # fmt: skip
