"""Fisher forgetting: noise where the retained data carry little information."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from ..._arguments import (
    check_count,
    check_finite,
    check_key,
    checked,
    checked_number,
    rows_of,
)
from ..._arrays import wide_dtype
from ..._tree import expression, map_named, named_leaves
from ...masks import apply_masks


@checked(alpha="[0, inf)", chunk="[1, inf)", batch_size="[1, inf)", logits="logits(params, x)")
def fisher_forgetting(
    params: PyTree,
    masks: PyTree | None,
    logits: Callable[[PyTree, Array], Float[Array, "n classes"]],
    retain: Float[Array, "r ..."],
    *,
    key: Key[Array, ""],
    alpha: float = 1e-7,
    output: str | None = None,
    label: int | None = None,
    batch_size: int = 1,
    chunk: int = 64,
) -> PyTree:
    r"""Fisher forgetting (FF): adds noise to parameters with little Fisher information on `retain`.

    `theta + sqrt(v) * N(0, 1)` with `v = alpha min(1 / (F + 1e-8), 1e3)`, averaged over the inputs
    of each output unit, and `F = mean_x sum_c p_c(x) (d(-log p_c(x)) / d theta)^2`. For the output
    layer the bound is 1e2 instead of 1e3; the output layer and vectors have ten times the variance.
    To forget a class, its weights in the output layer become noise of variance 1e-3 around 0.

    Args:
      params: Trained parameters: a tree of arrays.
      masks: Boolean arrays and None, looked up by path; None is the dense network.
      logits: `logits(params, x)`.
      retain: Inputs of the retain set.
      key: A key from `jax.random.key`.
      alpha: Scale of the noise variance.
      output: Regular expression for the paths of the output layer; None for no output layer.
      label: The class to forget, the index of its output; None if the forget set is not a class.
      batch_size: As for `fisher_diagonal`; 32 in the authors' code.
      chunk: Number of batches whose gradients are in memory at once.

    Returns:
      Parameters that are zero off the masks.

    Raises:
      ValueError: If `retain` is empty, `output` matches no leaf, `alpha` is negative or not finite,
        or `label` is not an output of the leaves that `output` matches.

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
    check_key("key", key)
    checked_number("alpha", alpha, "unlearning.fisher_forgetting(..., alpha=1e-7)")
    check_finite("fisher_forgetting", alpha=alpha)
    rows_of("retain", retain)
    ends = lambda n: output is not None and expression("output", output).search(n)  # noqa: E731
    if output is not None and not any(map(ends, named_leaves(params))):
        raise ValueError(f"output={output!r} matches none of {', '.join(named_leaves(params))}.")
    params = apply_masks(params, masks)
    _check_label(params, output, label)
    names = list(named_leaves(params))
    keys = dict(zip(names, jax.random.split(key, len(names))))
    options = {"batch_size": batch_size, "chunk": chunk}
    fisher = named_leaves(fisher_diagonal(params, logits, retain, **options))

    def noisy(name, w):
        last = ends(name)
        v = alpha * jnp.minimum(1 / (fisher[name] + 1e-8), 1e2 if last else 1e3)
        if w.ndim > 1:
            v = jnp.mean(v, axis=tuple(range(w.ndim - 1)), keepdims=True)
        if last and label is not None:
            w, v = w.at[..., label].set(0), v.at[..., label].set(1e-4)
        v = v * (10 if last or w.ndim == 1 else 1)
        return w + (jnp.sqrt(v) * jax.random.normal(keys[name], w.shape)).astype(w.dtype)

    return apply_masks(map_named(noisy, params), masks)


@checked(chunk="[1, inf)", batch_size="[1, inf)", logits="logits(params, x)")
def fisher_diagonal(
    params: PyTree,
    logits: Callable[[PyTree, Array], Float[Array, "n classes"]],
    x: Float[Array, "n ..."],
    *,
    batch_size: int = 1,
    chunk: int = 64,
) -> PyTree:
    r"""The diagonal of the Fisher information, with labels distributed as the network predicts.

    `F = mean_x sum_c p_c(x) (d(-log p_c(x)) / d theta)^2`, from per-sample gradients. In batches,
    `p_c` and `-log p_c` are the means over a batch, and F is the mean over batches: cheaper, but
    squares of mean gradients are smaller than means of squared gradients.

    Args:
      params: A tree of arrays.
      logits: `logits(params, x)`.
      x: Inputs.
      batch_size: Samples per batch, in the order of x; the last batch may be smaller. 1 is exact,
        32 is the batchwise Fisher information of the authors' code of sparse unlearning.
      chunk: Number of batches whose gradients are in memory at once.

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
    check_count("batch_size", batch_size)
    check_count("chunk", chunk)

    def one(rows):
        log_p = lambda p: jnp.mean(jax.nn.log_softmax(logits(p, rows)), axis=0)  # noqa: E731
        weight = jnp.mean(jax.nn.softmax(logits(params, rows)), axis=0)

        def mean(j):
            wide = wide_dtype(j, weight)
            return jnp.tensordot(weight.astype(wide), j.astype(wide) ** 2, 1)

        return jax.tree.map(mean, jax.jacrev(log_p)(params))

    whole = n - n % batch_size
    batches = x[:whole].reshape(-1, batch_size, *x.shape[1:])
    # A batch size of `map` above their number would trace a program of no batch.
    parts = [jax.lax.map(one, batches, batch_size=min(chunk, len(batches)))] if whole else []
    if whole < n:
        parts.append(jax.tree.map(lambda f: f[None], one(x[whole:])))
    return jax.tree.map(lambda *f: jnp.mean(jnp.concatenate(f), axis=0), *parts)


def _check_label(params: PyTree, output: str | None, label: int | None) -> None:
    if label is None:
        return
    if output is None:
        raise ValueError(
            f"fisher_forgetting: label={label} needs the output layer: output='layer_2/'."
        )
    check_count("label", label, 0)
    for name, w in named_leaves(params).items():
        if expression("output", output).search(name) and label >= w.shape[-1]:
            raise ValueError(
                f"fisher_forgetting: label={label} must be below {w.shape[-1]}, the outputs of "
                f"{name} {w.shape}."
            )
