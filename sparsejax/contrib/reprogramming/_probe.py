"""Linear probes of frozen networks, and their training samples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from ..._arguments import check_count, check_finite, check_key, checked, rows_of
from ...recipes import Progress, train_masked
from ._mapping import check_labels


@checked(classes="[1, inf)", steps="[0, inf)")
def linear_probe(
    X: Float[Array, "n d"],
    y: Int[Array, " n"],
    *,
    classes: int,
    steps: int,
    key: Key[Array, ""],
    optimizer: optax.GradientTransformation | None = None,
    batch_size: int = 128,
    chunk: int = 1000,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> dict[str, Array]:
    r"""Linear probing: trains a linear head `X W + b` on frozen features by cross-entropy.

    Args:
      X: Features from a frozen network.
      y: Target classes.
      classes: Number of target classes.
      steps: Number of training steps.
      key: A key from `jax.random.key`, for the initial weights and the order of the samples.
      optimizer: An optax transformation; None uses `optax.adam(0.01)`.
      batch_size: Samples per step.
      chunk: Number of steps between two calls of the callback.
      callback: Called with a `sj.recipes.Progress` after each chunk; not under jit or vmap.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      A dict of "kernel" (d, classes) and "bias" (classes,).

    Raises:
      ValueError: If there are no samples, or a label is not below `classes`.

    Reference:
      Misra et al., Reprogramming under Constraints, 2023 (arXiv 2308.14969).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import reprogramming
      >>> X, y = jnp.eye(2), jnp.array([1, 0])
      >>> head = reprogramming.linear_probe(X, y, classes=2, steps=300, key=jax.random.key(0))
      >>> (X @ head["kernel"] + head["bias"]).argmax(-1).tolist()
      [1, 0]
    """
    data = {"X": X, "y": y}
    rows_of("X and y", data)
    check_labels(y, classes, "y")
    check_finite("linear_probe", X=X)
    d = X.shape[1]
    bound = 1 / np.sqrt(d)
    check_key("key", key)
    start, order = jax.random.split(key)
    head = {
        "kernel": jax.random.uniform(start, (d, classes), minval=-bound, maxval=bound),
        "bias": jnp.zeros(classes),
    }

    def loss(p, batch):
        logits = batch["X"] @ p["kernel"] + p["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    tx = optax.adam(0.01) if optimizer is None else optimizer
    return train_masked(
        head, None, loss, tx, data, steps=steps, key=order, batch_size=batch_size,
        chunk=chunk, callback=callback, resume=resume, progress=progress,
    )  # fmt: skip


@checked()
def few_shot(
    labels: Int[ArrayLike, " n"], shots: int, *, key: Key[Array, ""]
) -> Int[np.ndarray, " m"]:
    """Draws the rows of a few samples per class, without replacement.

    Args:
      labels: Class of each sample.
      shots: Samples per class; smaller classes are taken whole.
      key: A key from `jax.random.key`.

    Returns:
      Increasing indices.

    Raises:
      ValueError: If there are no labels or `shots` is not at least 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import reprogramming
      >>> rows = reprogramming.few_shot(jnp.array([0, 1, 0, 1, 0]), 1, key=jax.random.key(0))
      >>> rows.size
      2
    """
    check_key("key", key)
    check_count("shots", shots)
    y = np.asarray(labels)
    if not y.size:
        raise ValueError("few_shot: labels must not be empty.")
    order = np.asarray(jax.random.permutation(key, y.size))
    chosen = [order[y[order] == c][:shots] for c in np.unique(y)]
    return np.sort(np.concatenate(chosen))
