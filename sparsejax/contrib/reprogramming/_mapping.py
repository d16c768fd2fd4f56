"""Label mappings: the source classes of a network for the classes of a task."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from ..._arguments import check_count, check_key, checked, known


def random_mapping(
    sources: int, targets: int, per_class: int = 1, *, key: Key[Array, ""]
) -> Int[Array, "t ..."]:
    """Random label mapping (RLM): random source classes for each target class, all distinct.

    Reference:
      Elsayed et al., Adversarial Reprogramming of Neural Networks, 2019 (arXiv 1806.11146).
    """
    check_key("key", key)
    _check_classes(sources, targets, per_class)
    chosen = jax.random.permutation(key, sources)[: targets * per_class]
    return chosen if per_class == 1 else chosen.reshape(targets, per_class)


@checked()
def frequency_mapping(
    predicted: Int[Array, " n"],
    labels: Int[Array, " n"],
    sources: int,
    targets: int,
    *,
    per_class: int = 1,
) -> Int[Array, "t ..."]:
    r"""Frequency label mapping (FLM): greedy matching of predicted and true classes by frequency.

    `T[s, t]` counts the samples of class t that the network classifies as s. The largest entry
    assigns s to t and removes row s and column t; then the next largest, until every target class
    has a source class. The first entry in row-major order wins ties. With several sources per
    class, a column is removed after so many; `Prompt.logits` averages their logits.

    Args:
      predicted: Source class predicted for each sample.
      labels: Target class of each sample.
      sources: Number of classes of the network.
      targets: Number of classes of the task.
      per_class: k, the number of source classes of each target class.

    Returns:
      The source class of each target class, all distinct: `(t,)`, or `(t, k)` if k > 1, in the
      order of assignment.

    Raises:
      ValueError: If there are fewer than `targets * per_class` source classes, the shapes differ,
        or (unless traced) a class is out of range.

    Reference:
      Chen et al., Understanding and Improving Visual Prompting: A Label-Mapping Perspective, 2023
      (arXiv 2211.11635).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import reprogramming
      >>> predicted, labels = jnp.array([2, 2, 2, 1]), jnp.array([0, 0, 1, 1])
      >>> reprogramming.frequency_mapping(predicted, labels, 3, 2).tolist()
      [2, 1]
    """
    _check_classes(sources, targets, per_class)
    if jnp.ndim(predicted) != 1 or jnp.shape(predicted) != jnp.shape(labels):
        raise ValueError(
            f"frequency_mapping: predicted {jnp.shape(predicted)} and labels {jnp.shape(labels)} "
            "must be one class a sample, of the same shape (n,)."
        )
    check_labels(predicted, sources, "predicted", "sources")
    check_labels(labels, targets, "labels", "targets")
    table = jnp.zeros((sources, targets), jnp.int32).at[predicted, labels].add(1)

    def pick(_, carry):
        table, mapping, found = carry
        s, t = jnp.divmod(jnp.argmax(table), targets)
        mapping, found = mapping.at[t, found[t]].set(s.astype(jnp.int32)), found.at[t].add(1)
        table = table.at[s, :].set(-1)
        return jnp.where(found == per_class, -1, table), mapping, found

    start = table, jnp.zeros((targets, per_class), jnp.int32), jnp.zeros(targets, jnp.int32)
    mapping = jax.lax.fori_loop(0, targets * per_class, pick, start)[1]
    return mapping[:, 0] if per_class == 1 else mapping


def _check_classes(sources: int, targets: int, per_class: int = 1) -> None:
    check_count("per_class", per_class)
    if not 1 <= targets * per_class <= sources:
        each = f", {per_class} each," if per_class > 1 else ""
        raise ValueError(
            f"{targets} target classes{each} cannot be mapped to {sources} source classes; use "
            "targets <= sources."
        )


def check_labels(labels: Any, classes: int, name: str = "labels", of: str = "classes") -> None:
    """Raises if a label is out of range, unless traced."""
    if not known(labels) or not np.size(labels):
        return
    labels = np.asarray(labels)
    if labels.max() >= classes or labels.min() < 0:
        raise ValueError(
            f"{name} must be from 0 to {classes - 1} for {of}={classes}, got {labels.min()} to "
            f"{labels.max()}."
        )
