"""Unlearning by training with fixed masks: fine-tuning, ascent, l1-sparse."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Key, PyTree

from ... import prox
from ..._arguments import (
    check_count,
    check_fraction,
    check_key,
    check_params,
    checked,
    checked_number,
    rows_of,
)
from ..._progress import also_recording, check_progress
from ..._tree import named_leaves
from ...masks import apply_masks
from ...optim import add_penalty
from ...recipes import Progress, train_masked

Method = Literal["finetune", "ascent", "l1"]


@checked()
def forget_split(
    labels: Int[ArrayLike, " n"],
    *,
    label: int | None = None,
    fraction: float | None = None,
    key: Key[Array, ""] | None = None,
) -> tuple[Int[np.ndarray, " f"], Int[np.ndarray, " r"]]:
    r"""Splits training samples into a forget set, one class or a random fraction, and a retain set.

    Args:
      labels: Class of each training sample.
      label: The class to forget.
      fraction: The fraction of all samples to forget, `round(fraction * n)` of them; replaces
        `label`.
      key: A key from `jax.random.key`, required with `fraction`.

    Returns:
      Increasing indices of the forget set and of the retain set.

    Raises:
      ValueError: If no sample has the class, the retain set is empty, the labels are not 1-D, or
        not exactly one of `label` and `fraction` is given.
      TypeError: If `label` is a string and the labels are not.

    Reference:
      Jia et al., Model Sparsity Can Simplify Machine Unlearning, 2023 (arXiv 2304.04934).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import unlearning
      >>> forget, retain = unlearning.forget_split(jnp.array([0, 1, 2, 1]), label=1)
      >>> forget.tolist(), retain.tolist()
      ([1, 3], [0, 2])
    """
    y = np.asarray(labels)
    if y.ndim != 1:
        raise ValueError(
            f"forget_split: labels of shape {y.shape} must be one class a sample, of shape (n,): "
            "forget_split(labels.argmax(-1), label=1) of one-hot labels."
        )
    if (label is None) == (fraction is None):
        raise ValueError("forget_split: give label= or fraction=, one of the two.")
    if label is not None:
        if isinstance(label, str) and y.dtype.kind not in "OSTU":
            raise TypeError(
                f"forget_split: label={label!r} must be a class of labels, which are {y.dtype}: "
                "for example label=3."
            )
        chosen = y == label
        if not chosen.any():
            raise ValueError(
                f"forget_split: label: no sample has class {label}; the labels are {np.unique(y)}."
            )
    else:
        check_fraction("fraction", fraction)  # pyright: ignore[reportArgumentType]
        if key is None:
            raise ValueError("forget_split: a fraction needs key=jax.random.key(0).")
        check_key("key", key)
        order = np.asarray(jax.random.permutation(key, y.size))
        chosen = np.zeros(y.size, bool)
        chosen[order[: round(fraction * y.size)]] = True  # pyright: ignore[reportOptionalOperand]
    if chosen.all():
        raise ValueError("forget_split: nothing would be retained.")
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)


@checked(strength="[0, inf)", loss="loss(params, batch)")
def unlearn(
    params: PyTree,
    masks: PyTree | None,
    method: Method,
    loss: Callable[[PyTree, PyTree], Any],
    optimizer: optax.GradientTransformation,
    *,
    forget: PyTree,
    retain: PyTree,
    steps: int,
    key: Key[Array, ""],
    strength: float = 5e-4,
    free_epochs: int = 0,
    batch_size: int = 64,
    chunk: int = 1000,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> PyTree:
    r"""Unlearns by a few training steps with fixed masks.

    "finetune" (FT) descends the loss on the retain set, "ascent" (GA) ascends the loss on the
    forget set, "l1" (l1-sparse) is FT with the subgradient of `gamma_t ||theta||_1` over all
    parameters, `gamma_t = strength (1 - e / (E - E0))` in epoch e of E, and 0 in the last E0, the
    free epochs. Prune first: the unlearning error
    decreases with the number of trainable weights, as `||m * (theta_t - theta_0)||`.

    Args:
      params: Trained parameters: a tree of arrays.
      masks: Boolean arrays and None, looked up by path; None is the dense network.
      method: "finetune", "ascent" or "l1".
      loss: Function `(params, batch)` to the mean loss of a batch.
      optimizer: An optax transformation, such as `optax.sgd(0.01, 0.9)`.
      forget: Samples to forget: arrays with the samples along their first axis.
      retain: The rest of the training samples.
      steps: Number of training steps.
      key: A key from `jax.random.key`, for the order of the samples.
      strength: gamma of "l1"; it multiplies a sum over all parameters, so scale it by their number.
      free_epochs: E0, the number of last epochs of "l1" without the penalty.
      batch_size: Samples per step.
      chunk: Number of steps between two calls of the callback.
      callback: Called with a `sj.recipes.Progress` after each chunk; not under jit or vmap.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      Parameters that are zero off the masks; unchanged if `forget` is empty.

    Raises:
      ValueError: If `retain` is empty ("ascent" ignores it), `method` is not one of the three
        names, or a mask does not fit.
      TypeError: If `loss` cannot be called as `loss(params, batch)`, or `params` hold NNX variables
        other than `nnx.Param`.

    Reference:
      Jia et al., Model Sparsity Can Simplify Machine Unlearning, 2023 (arXiv 2304.04934).

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from sparsejax.contrib import unlearning
      >>> loss = lambda w, batch: jnp.mean((batch - w) ** 2)
      >>> unlearning.unlearn(
      ...     jnp.array(2.0), None, "finetune", loss, optax.sgd(0.5), forget=jnp.array([3.0]),
      ...     retain=jnp.array([1.0]), steps=5, key=jax.random.key(0),
      ... ).tolist()
      1.0
    """
    check_params("unlearn", params)
    check_key("key", key)
    if method not in ("finetune", "ascent", "l1"):
        raise ValueError(f"method={method!r} must be 'finetune', 'ascent' or 'l1'.")
    checked_number("strength", strength, "strength=5e-4")
    check_count("free_epochs", free_epochs, 0)
    for name, data in (("forget", forget), ("retain", retain)):
        if not named_leaves(data):  # None, or no arrays
            rows_of(name, data)
    l1 = (strength, steps) if method == "l1" else None
    arguments = check_progress("unlearn", resume, callback, method=method, l1=l1)
    if all(jnp.shape(x)[:1] == (0,) for x in named_leaves(forget).values()):
        return apply_masks(params, masks)
    data = forget if method == "ascent" else retain
    samples = rows_of("forget" if method == "ascent" else "retain", data)
    if method == "l1":
        optimizer = optax.chain(_l1(strength, free_epochs, steps, samples, batch_size), optimizer)
    objective = (lambda p, b: -loss(p, b)) if method == "ascent" else loss
    return train_masked(
        params, masks, objective, optimizer, data, steps=steps, key=key, batch_size=batch_size,
        chunk=chunk, callback=also_recording(callback, arguments), resume=resume, progress=progress,
    )  # fmt: skip


def _l1(
    strength, free_epochs: int, steps: int, samples: int, batch_size: int
) -> optax.GradientTransformation:
    """Adds the subgradient of the l1 norm, with a strength that decreases each epoch."""
    per_epoch = max(samples // min(batch_size, samples), 1)
    penalized = -(-steps // per_epoch) - free_epochs

    def decay(count):
        return (
            strength * jnp.clip(1 - (count // per_epoch) / penalized, 0) if penalized > 0 else 0.0
        )

    def at(count):
        return add_penalty({"": prox.l1(decay(count))})

    def init(params):
        at(0).init(params)
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        added, _ = at(state.count).update(updates, optax.EmptyState(), params)
        return added, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)
