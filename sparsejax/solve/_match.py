"""Strengths at which different penalties give equally sparse results."""

from collections.abc import Callable

import numpy as np


def match_strength(
    run: Callable[[float], float],
    low: float,
    high: float,
    target: float,
    *,
    tolerance: float = 0.01,
    max_runs: int = 30,
) -> float:
    r"""The strength at which a run has a given activity, by bisection of its logarithm.

    Penalties can only be compared at equal sparsity, never at equal strength.

    Args:
      run: From a strength to a measure of activity that falls as it grows, such as the mean number
        of active units.
      low: A strength at which the activity is at least the target, > 0.
      high: A strength at which it is at most the target.
      target: The activity wanted.
      tolerance: Stop within this share of the target.
      max_runs: The largest number of runs.

    Returns:
      The strength whose activity came nearest to the target.

    Raises:
      ValueError: If the activities at `low` and `high` do not enclose the target.

    Reference:
      Rentzeperis et al., Beyond l1 sparse coding in V1, 2023 (arXiv 2301.10002).

    Example:
      >>> from sparsejax import solve
      >>> round(solve.match_strength(lambda strength: 10 / strength, 0.1, 100.0, 5.0), 1)
      2.0
    """
    if not 0 < low < high:
        raise ValueError(f"match_strength needs 0 < low < high, got low={low} and high={high}.")
    seen = {x: float(run(x)) for x in (low, high)}
    if not seen[low] >= target >= seen[high]:
        raise ValueError(
            f"match_strength: the activity is {seen[low]:g} at low={low:g} and {seen[high]:g} at "
            f"high={high:g}, which does not enclose the target {target:g}; take a lower low or a "
            "higher high."
        )

    def nearest() -> float:
        return min(seen, key=lambda x: abs(seen[x] - target))

    while len(seen) < max_runs and abs(seen[nearest()] - target) > tolerance * target:
        middle = float(np.sqrt(low * high))
        seen[middle] = float(run(middle))
        low, high = (middle, high) if seen[middle] >= target else (low, middle)
    return nearest()
