"""Unlearning with fixed masks: fine-tuning, ascent, l1-sparse, Fisher forgetting, influence."""

import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PyTree

from ... import prox
from ..._arguments import (
    check_callable,
    check_count,
    check_finite,
    check_fraction,
    check_key,
    check_params,
    checked_number,
    rows_of,
)
from ..._tree import map_named, named_leaves
from ...masks import apply_masks
from ...optim import add_penalty
from ...recipes import Progress, train_masked

Method = Literal["finetune", "ascent", "l1"]


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
                f"forget_split: no sample has class {label}; the labels are {np.unique(y)}."
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


def unlearn(
    params: PyTree,
    masks: PyTree,
    method: Method,
    loss: Callable[[PyTree, PyTree], Any],
    optimizer: optax.GradientTransformation,
    *,
    forget: PyTree,
    retain: PyTree,
    steps: int,
    key: Key[Array, ""],
    strength: float = 5e-4,
    batch_size: int = 64,
    chunk: int = 1000,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> PyTree:
    r"""Unlearns by a few training steps with fixed masks.

    "finetune" (FT) descends the loss on the retain set, "ascent" (GA) ascends the loss on the
    forget set, "l1" (l1-sparse) is FT with the subgradient of `gamma_t ||theta||_1` over all
    parameters, `gamma_t = strength (1 - e / E)` in epoch e of E. Prune first: the unlearning error
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
    check_callable("loss", loss, "params", "batch")
    check_params("unlearn", params)
    check_key("key", key)
    if method not in ("finetune", "ascent", "l1"):
        raise ValueError(f"method={method!r} must be 'finetune', 'ascent' or 'l1'.")
    checked_number("strength", strength, "strength=5e-4")
    for name, data in (("forget", forget), ("retain", retain)):
        if not named_leaves(data):  # None, or no arrays
            rows_of(name, data)
    if all(jnp.shape(x)[:1] == (0,) for x in named_leaves(forget).values()):
        return apply_masks(params, masks)
    data = forget if method == "ascent" else retain
    samples = rows_of("forget" if method == "ascent" else "retain", data)
    if method == "l1":
        optimizer = optax.chain(_l1(strength, steps, samples, batch_size), optimizer)
    objective = (lambda p, b: -loss(p, b)) if method == "ascent" else loss
    return train_masked(
        params, masks, objective, optimizer, data, steps=steps, key=key, batch_size=batch_size,
        chunk=chunk, callback=callback, resume=resume, progress=progress,
    )  # fmt: skip


def _l1(strength, steps: int, samples: int, batch_size: int) -> optax.GradientTransformation:
    """Adds the subgradient of the l1 norm, with a strength that decreases each epoch."""
    per_epoch = max(samples // min(batch_size, samples), 1)
    epochs = -(-steps // per_epoch)
    decay = lambda count: strength * (1 - (count // per_epoch) / max(epochs, 1))  # noqa: E731

    def at(count):
        return add_penalty({"": prox.l1(decay(count))})

    def init(params):
        at(0).init(params)
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        added, _ = at(state.count).update(updates, optax.EmptyState(), params)
        return added, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def fisher_forgetting(
    params: PyTree,
    masks: PyTree,
    logits: Callable[[PyTree, Array], Float[Array, "n classes"]],
    retain: Float[Array, "r ..."],
    *,
    key: Key[Array, ""],
    alpha: float = 1e-7,
    output: str | None = None,
    chunk: int = 64,
) -> PyTree:
    r"""Fisher forgetting (FF): adds noise to parameters with little Fisher information on `retain`.

    `theta + sqrt(v) * N(0, 1)` with `v = alpha min(1 / (F + 1e-8), 1e3)`, averaged over the inputs
    of each output unit, and `F = mean_x sum_c p_c(x) (d(-log p_c(x)) / d theta)^2`. For the output
    layer the bound is 1e2 instead of 1e3; the output layer and vectors have ten times the variance.

    Args:
      params: Trained parameters: a tree of arrays.
      masks: Boolean arrays and None, looked up by path; None is the dense network.
      logits: `logits(params, x)`.
      retain: Inputs of the retain set.
      key: A key from `jax.random.key`.
      alpha: Scale of the noise variance.
      output: Regular expression for the paths of the output layer; None for no output layer.
      chunk: Number of samples whose gradients are in memory at once.

    Returns:
      Parameters that are zero off the masks.

    Raises:
      ValueError: If `retain` is empty, `output` matches no leaf, or `alpha` is negative or not
        finite.

    Reference:
      Golatkar et al., Eternal Sunshine of the Spotless Net, 2020 (arXiv 1911.04933); Jia et al.,
      2023 (arXiv 2304.04934).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import unlearning
      >>> logits = lambda p, x: x @ p["kernel"]
      >>> params = {"kernel": jnp.eye(2)}
      >>> found = unlearning.fisher_forgetting(
      ...     params, None, logits, jnp.ones((3, 2)), key=jax.random.key(0), alpha=0.0
      ... )
      >>> found["kernel"].tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    check_callable("logits", logits, "params", "x")
    check_key("key", key)
    checked_number("alpha", alpha, "unlearning.fisher_forgetting(..., alpha=1e-7)")
    check_finite("fisher_forgetting", alpha=alpha)
    rows_of("retain", retain)
    if output is not None and not any(re.search(output, n) for n in named_leaves(params)):
        raise ValueError(f"output={output!r} matches none of {', '.join(named_leaves(params))}.")
    params = apply_masks(params, masks)
    names = list(named_leaves(params))
    keys = dict(zip(names, jax.random.split(key, len(names))))
    fisher = named_leaves(fisher_diagonal(params, logits, retain, chunk=chunk))

    def noisy(name, w):
        last = output is not None and re.search(output, name) is not None
        v = alpha * jnp.minimum(1 / (fisher[name] + 1e-8), 1e2 if last else 1e3)
        if w.ndim > 1:
            v = jnp.mean(v, axis=tuple(range(w.ndim - 1)), keepdims=True)
        v = v * (10 if last or w.ndim == 1 else 1)
        return w + (jnp.sqrt(v) * jax.random.normal(keys[name], w.shape)).astype(w.dtype)

    return apply_masks(map_named(noisy, params), masks)


def fisher_diagonal(
    params: PyTree,
    logits: Callable[[PyTree, Array], Float[Array, "n classes"]],
    x: Float[Array, "n ..."],
    *,
    chunk: int = 64,
) -> PyTree:
    r"""The diagonal of the Fisher information, with labels distributed as the network predicts.

    `F = mean_x sum_c p_c(x) (d(-log p_c(x)) / d theta)^2`, from per-sample gradients.

    Args:
      params: A tree of arrays.
      logits: `logits(params, x)`.
      x: Inputs.
      chunk: Number of samples whose gradients are in memory at once.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: If there are no inputs.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import unlearning
      >>> logits = lambda w, x: jnp.stack([w * x, 0 * x], -1)
      >>> float(unlearning.fisher_diagonal(jnp.array(0.0), logits, jnp.array([2.0])))
      1.0
    """
    n = rows_of("x", x)

    def one(row):
        log_p = lambda p: jax.nn.log_softmax(logits(p, row[None])[0])  # noqa: E731
        weight = jnp.exp(log_p(params))
        return jax.tree.map(
            lambda j: jnp.tensordot(weight, j.astype(jnp.float32) ** 2, 1),
            jax.jacrev(log_p)(params),
        )

    total = jax.lax.map(one, x, batch_size=min(chunk, n))
    return jax.tree.map(lambda f: jnp.mean(f, axis=0), total)


def influence_unlearning(
    params: PyTree,
    masks: PyTree,
    loss: Callable[[PyTree, PyTree], Any],
    *,
    forget: PyTree,
    retain: PyTree,
    alpha: float = 1.0,
    damping: float = 1.0,
    samples: int = 1024,
) -> PyTree:
    r"""Influence unlearning (IU): one Newton step away from the forget set.

    `theta + alpha H^-1 v` with `v = (n_f / N) (g_f - g_r)`, g the mean gradients on both sets, and
    the damped empirical Fisher `H = damping I + (1 / n) sum_i g_i g_i'` of n retained samples,
    solved exactly: `H^-1 v = (v - G' (n damping I + G G')^-1 G v) / damping`.

    Args:
      params: Trained parameters: a tree of arrays.
      masks: Boolean arrays and None, looked up by path; None is the dense network.
      loss: Function `(params, batch)` to the mean loss of a batch.
      forget: Samples to forget: arrays with the samples along their first axis.
      retain: The rest of the training samples.
      alpha: Length of the step.
      damping: Added to the diagonal; 1 in the authors' code.
      samples: The largest n; the gradients of n samples are in memory at once.

    Returns:
      Parameters that are zero off the masks.

    Raises:
      ValueError: If one of the sets is empty, `damping` is not positive, or `alpha` not finite.

    Reference:
      Koh and Liang, Understanding Black-box Predictions via Influence Functions, 2017 (arXiv
      1703.04730); Jia et al., 2023 (arXiv 2304.04934).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import unlearning
      >>> loss = lambda w, batch: jnp.mean((batch - w) ** 2) / 2
      >>> data = dict(forget=jnp.array([3.0]), retain=jnp.array([1.0]))
      >>> round(float(unlearning.influence_unlearning(jnp.array(2.0), None, loss, **data)), 3)
      1.5
    """
    check_callable("loss", loss, "params", "batch")
    check_count("samples", samples)
    n_f, n_r = rows_of("forget", forget), rows_of("retain", retain)
    check_finite("influence_unlearning", alpha=alpha)
    if not damping > 0:
        raise ValueError(f"influence_unlearning: damping={damping!r} must be positive.")
    params = apply_masks(params, masks)
    flat, unravel = ravel_pytree(params)
    wide = jnp.promote_types(flat.dtype, jnp.float32)

    def gradient(batch):
        grads = jax.grad(lambda p: loss(p, batch))(params)
        return ravel_pytree(apply_masks(grads, masks))[0].astype(wide)

    v = n_f / (n_f + n_r) * (gradient(forget) - gradient(retain))
    n = min(samples, n_r)
    alone = jax.tree.map(lambda x: jnp.asarray(x)[:n, None], retain)
    g = jax.vmap(gradient)(alone)
    inner = jnp.linalg.solve(n * damping * jnp.eye(n, dtype=wide) + g @ g.T, g @ v)
    step = unravel((alpha * (v - g.T @ inner) / damping).astype(flat.dtype))
    return apply_masks(jax.tree.map(jnp.add, params, step), masks)
