"""Accuracy at equal cost: dense or sparse models of several sizes."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ..._arguments import check_fraction, checked
from ...models import LlamaConfig
from ._flops import decoder_flops


class IsoFlopsRow(NamedTuple):
    """One configuration of `isoflops`.

    Attributes:
      model: Name of the model.
      length: Number of tokens.
      sparsity: Share of the pairs left out.
      flops: Operations, without the indexing.
      accuracy: What `evaluate` returned.
      best: Whether no row of this length costs less, or as much, and is more accurate.
    """

    model: str
    length: int
    sparsity: float
    flops: float
    accuracy: float
    best: bool


@checked(evaluate="evaluate(model, length, sparsity)")
def isoflops(
    configs: Mapping[str, LlamaConfig],
    lengths: Sequence[int],
    sparsities: Sequence[float],
    evaluate: Callable[[str, int, float], float],
    *,
    decode: bool = False,
) -> list[IsoFlopsRow]:
    r"""The cost and accuracy of each model, length and sparsity, and the best for each cost.

    Args:
      configs: Sizes of the models by name.
      lengths: Numbers of tokens.
      sparsities: Shares of the pairs left out, in [0, 1].
      evaluate: `(model, length, sparsity)` to the accuracy.
      decode: As for `decoder_flops`.

    Returns:
      The rows by length and rising cost; those with `best` are the Pareto front of a length.

    Raises:
      ValueError: If a length or a sparsity is out of range.

    Reference:
      Nawrot et al., The Sparse Frontier, 2025 (arXiv 2504.17768).

    Example:
      >>> import sparsejax as sj
      >>> from sparsejax.contrib import sparse_attention
      >>> sizes = {"small": 2, "large": 4}
      >>> configs = {
      ...     name: sj.models.LlamaConfig(
      ...         vocabulary=9, width=64, hidden=64, layers=layers, heads=4, key_heads=4,
      ...         head_size=16)
      ...     for name, layers in sizes.items()}
      >>> rows = sparse_attention.isoflops(
      ...     configs, [4096], [0.0, 0.9], lambda model, n, s: sizes[model] - s)
      >>> [(row.model, row.sparsity) for row in rows if row.best]
      [('small', 0.9), ('large', 0.9), ('large', 0.0)]
    """
    for sparsity in sparsities:
        check_fraction("isoflops: each of sparsities", sparsity)
    rows = []
    for length in lengths:
        found = [
            IsoFlopsRow(
                name, length, sparsity,
                decoder_flops(config, length, sparsity, decode=decode).total,
                float(evaluate(name, length, sparsity)), False,
            )
            for name, config in configs.items()
            for sparsity in sparsities
        ]  # fmt: skip
        best = pareto_front([r.flops for r in found], [r.accuracy for r in found])
        found = [row._replace(best=bool(b)) for row, b in zip(found, best)]
        rows += sorted(found, key=lambda row: row.flops)
    return rows


@checked()
def pareto_front(
    cost: Float[np.ndarray, " n"] | Sequence[float],
    value: Float[np.ndarray, " n"] | Sequence[float],
) -> Bool[np.ndarray, " n"]:
    r"""The points to which no other is preferred: none costs no more and is worth no less.

    Of equal points all are on the front.

    Args:
      cost: Less is better.
      value: More is better.

    Raises:
      ValueError: If the numbers of points differ, or one is NaN.

    Example:
      >>> from sparsejax.contrib import sparse_attention
      >>> sparse_attention.pareto_front([1.0, 2.0, 3.0], [0.5, 0.4, 0.9]).tolist()
      [True, False, True]
    """
    a, b = np.asarray(cost, np.float64), np.asarray(value, np.float64)
    if a.shape != b.shape or a.ndim != 1 or np.isnan(a).any() or np.isnan(b).any():
        raise ValueError(
            f"pareto_front: cost and value must be lists of as many numbers, got the shapes "
            f"{a.shape} and {b.shape}; NaN cannot be compared."
        )
    no_worse = (a <= a[:, None]) & (b >= b[:, None])
    better = no_worse & ((a < a[:, None]) | (b > b[:, None]))
    return np.asarray(~better.any(1))
