"""The sparsity that a task tolerates."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from ..._arguments import check_fraction, checked


class Tolerance(NamedTuple):
    """The sparsity that a task tolerates.

    Attributes:
      sparsity: The largest sparsity whose drop is not significant; 0 if all are.
      drop: The mean drop by sparsity.
      p: The p-value of a drop by sparsity.
    """

    sparsity: float
    drop: dict[float, float]
    p: dict[float, float]


@checked(level="(0, 1)")
def tolerable_sparsity(
    dense: Float[np.ndarray, " n"],
    sparse: Mapping[float, Shaped[np.ndarray, "..."]],
    level: float = 0.05,
) -> Tolerance:
    r"""The largest sparsity at which the accuracy does not drop significantly.

    A one-sided paired t-test over the samples of a task for each sparsity.

    Args:
      dense: Score of each sample with dense attention.
      sparse: Score of each sample by sparsity, in [0, 1].
      level: Significance level.

    Raises:
      ValueError: If there are fewer than 2 samples, the numbers of samples differ, or a sparsity is
        out of range.

    Reference:
      Nawrot et al., The Sparse Frontier, 2025 (arXiv 2504.17768).

    Example:
      >>> import numpy as np
      >>> from sparsejax.contrib import sparse_attention
      >>> right = np.ones(20)
      >>> half = np.where(np.arange(20) < 10, 1.0, 0.0)
      >>> sparse_attention.tolerable_sparsity(right, {0.5: right, 0.9: half}).sparsity
      0.5
    """
    a = np.asarray(dense, np.float64)
    if len(a) < 2 or np.isnan(a).any():
        raise ValueError(f"tolerable_sparsity: dense must be 2 scores or more, not NaN, got {a}.")
    drop, p = {}, {}
    for sparsity, scores in sorted(sparse.items()):
        check_fraction("tolerable_sparsity: each of sparse", sparsity)
        b = np.asarray(scores, np.float64)
        if b.shape != a.shape or np.isnan(b).any():
            raise ValueError(
                f"tolerable_sparsity: sparse[{sparsity}] must be the scores of the {len(a)} "
                f"samples of dense, not NaN, got the shape {b.shape}."
            )
        drop[sparsity], p[sparsity] = float((a - b).mean()), _p_of_drop(a - b)
    tolerated = [sparsity for sparsity in p if p[sparsity] >= level]
    return Tolerance(max(tolerated, default=0.0), drop, p)


def _p_of_drop(difference: np.ndarray) -> float:
    """The p-value of a mean above 0; differences that are all equal are no sample of chance."""
    if np.ptp(difference) <= 1e-12 * np.abs(difference).max():
        return 0.0 if difference[0] > 0 else 1.0
    from scipy.stats import ttest_1samp  # a dependency of jax; slow to load

    test: Any = ttest_1samp(difference, 0.0, alternative="greater")
    return float(test.pvalue)
