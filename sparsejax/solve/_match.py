"""Strengths that give different penalties equal sparsity."""

from collections.abc import Callable

import numpy as np

from .._arguments import checked


@checked(
    low="[0, inf)",
    high="(0, inf)",
    target="(-inf, inf)",
    tol="[0, inf)",
    max_runs="[1, inf)",
    run="run(strength)",
)
def match_strength(
    run: Callable[[float], float],
    low: float,
    high: float,
    target: float,
    *,
    tol: float = 0.01,
    max_runs: int = 30,
) -> float:
    r"""The strength at which a run reaches a given activity, by bisection on a logarithmic scale.

    Compare penalties at equal sparsity, never at equal strength.

    Args:
      run: Maps a strength to a measure of activity that decreases with it, such as the mean number
        of active units.
      low: A strength at which the activity is at least the target, > 0.
      high: A strength at which it is at most the target.
      target: The target activity.
      tol: Relative tolerance on the activity.
      max_runs: Maximum number of runs.

    Returns:
      The strength whose activity is nearest to the target.

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
            f"high={high:g}, which does not enclose the target {target:g}; pass a lower low or a "
            "higher high."
        )

    def nearest() -> float:
        return min(seen, key=lambda x: abs(seen[x] - target))

    while len(seen) < max_runs and abs(seen[nearest()] - target) > tol * target:
        middle = float(np.sqrt(low * high))
        seen[middle] = float(run(middle))
        low, high = (middle, high) if seen[middle] >= target else (low, middle)
    return nearest()
