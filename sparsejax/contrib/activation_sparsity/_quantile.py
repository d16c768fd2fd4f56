"""Quantiles of scores that arrive in batches."""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from ..._arguments import checked


class Counts(NamedTuple):
    """Distinct values in ascending order, and how often each occurred."""

    values: np.ndarray
    counts: np.ndarray


@checked(limit="[2, inf)")
def count_values(samples: ArrayLike, counts: Counts | None = None, limit: int = 2**16) -> Counts:
    """Adds samples to the counted values of earlier ones.

    Exact up to `limit` distinct values; beyond, neighbours are merged, so that each call moves the
    rank of a value by at most a fraction `2 / limit` of all samples.

    Args:
      samples: Numbers of any shape.
      counts: The result of the call before; None for the first.
      limit: The most values to hold.

    Raises:
      ValueError: If a sample is NaN.

    Example:
      >>> import numpy as np
      >>> from sparsejax.contrib import activation_sparsity
      >>> counts = activation_sparsity.count_values(np.array([1.0, 3.0, 1.0]))
      >>> activation_sparsity.count_values(np.array([3.0]), counts).counts.tolist()
      [2, 2]
    """
    flat = np.sort(np.asarray(samples).astype(np.float32).ravel())
    if flat.size and np.isnan(flat[-1]):  # sorted last
        raise ValueError("count_values: samples must not hold NaN.")
    found = _merged(_distinct(flat, np.ones(len(flat), np.int64)), limit)
    if counts is None:
        return found
    values = np.concatenate([counts.values, found.values])
    order = np.argsort(values, kind="stable")  # of two sorted runs: one pass
    both = np.concatenate([counts.counts, found.counts])
    return _merged(_distinct(values[order], both[order]), limit)


def _distinct(values: np.ndarray, counts: np.ndarray) -> Counts:
    """Sorted values, each once, with the sums of their counts."""
    first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])[: len(values)])
    ends = np.concatenate([first[1:], [len(values)]])[: len(first)]
    total = np.cumsum(counts)
    return Counts(values[first], np.diff(total[ends - 1], prepend=0))


def _merged(counts: Counts, limit: int) -> Counts:
    """At most `limit` values: each run of neighbours becomes its largest."""
    if len(counts.values) <= limit:
        return counts
    total = np.cumsum(counts.counts)
    ranks = np.ceil(total[-1] * np.arange(1, limit + 1) / limit)
    last = np.searchsorted(total, ranks)
    last = last[np.concatenate([[True], last[1:] != last[:-1]])]  # np.unique would sort again
    return Counts(counts.values[last], np.diff(total[last], prepend=0))


@checked(q="[0, 1]")
def pooled_quantile(counts: Counts, q: float) -> float:
    r"""The q-quantile of counted values, linear in the cumulative counts.

    With the target `t = q C_r` and the first i with `C_i >= t`: the first value if i is the first,
    else `v_{i-1} + (t - C_{i-1}) / (C_i - C_{i-1}) (v_i - v_{i-1})`.

    Args:
      counts: The result of `count_values`.
      q: In [0, 1].

    Raises:
      ValueError: If nothing was counted.

    Reference:
      Liu et al., TEAL, 2024 (arXiv 2408.14690).

    Example:
      >>> import numpy as np
      >>> from sparsejax.contrib import activation_sparsity
      >>> counts = activation_sparsity.count_values(np.array([1.0, 2.0, 3.0, 4.0]))
      >>> activation_sparsity.pooled_quantile(counts, 0.6)
      2.4
    """
    if not len(counts.values):
        raise ValueError("pooled_quantile: counts is empty; pass samples to count_values first.")
    total = np.cumsum(counts.counts).astype(np.float64)
    target = q * total[-1]
    i = min(int(np.searchsorted(total, target)), len(total) - 1)
    if i == 0:
        return float(counts.values[0])
    low, high = counts.values[i - 1 : i + 1].astype(np.float64)
    return float(low + (target - total[i - 1]) / (total[i] - total[i - 1]) * (high - low))
