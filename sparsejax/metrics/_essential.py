"""Curves of score against sparsity: where quality is lost, and when weights vanish in training."""

from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from .._tree import named_leaves, pure

_GUARD = 1e-12  # what rounding may add to a drop of exactly eps


def essential_sparsity(
    sparsities: ArrayLike | Sequence[float | int],
    scores: ArrayLike | Sequence[Any],
    eps: float = 0.01,
    *,
    dense: float | None = None,
    relative: bool = False,
    interpolate: bool = False,
) -> float:
    r"""The essential sparsity: the drop point of a curve of scores.

    The largest s of the grid such that `score(s') >= dense - eps` at every s' <= s of the grid: the
    first violation ends the range, so does a NaN, equality stays.

    Args:
      sparsities: Increasing fractions of zeros, S of them.
      scores: Larger is better, `(S,)`, or `(S, seeds)`, averaged over seeds first.
      eps: The drop that is allowed: 0.01 is one point of accuracy.
      dense: Score without pruning; None takes the first, whose sparsity must then be 0.
      relative: Whether eps is a fraction of `|dense|`.
      interpolate: Whether to go on along the line to the first violation, to where it crosses.

    Returns:
      A sparsity; 0 if the first point falls short already.

    Raises:
      ValueError: If lengths differ, sparsities do not increase, or there is no dense score.

    Reference:
      Jaiswal et al., The Emergence of Essential Sparsity in Large Pre-trained Models, 2023
      (arXiv 2306.03805).

    Example:
      >>> from sparsejax.metrics import essential_sparsity
      >>> essential_sparsity([0.0, 0.5, 0.8, 0.9], [0.95, 0.95, 0.945, 0.7])
      0.8
    """
    s, y = _curve(sparsities, scores)
    if dense is None:
        if s[0] != 0:
            raise ValueError("essential_sparsity: say dense=, or begin the sparsities with 0.")
        dense = float(y[0])
    floor = dense - eps * (abs(dense) if relative else 1.0)
    holds = y >= floor - _GUARD  # False for NaN
    last = len(s) - 1 if holds.all() else int(np.argmin(holds)) - 1
    if last < 0:
        return 0.0
    if not interpolate or last == len(s) - 1 or np.isnan(y[last + 1]):
        return float(s[last])
    share = (y[last] - floor) / (y[last] - y[last + 1])
    return float(s[last] + max(share, 0.0) * (s[last + 1] - s[last]))


def knee(sparsities: ArrayLike | Sequence[float | int], scores: ArrayLike | Sequence[Any]) -> int:
    r"""The turning point: the index of the point highest above the chord of a curve.

    Both axes are scaled to [0, 1]; the chord leads from the first to the last point.

    Args:
      sparsities: Increasing fractions of zeros, S of them.
      scores: `(S,)`, or `(S, seeds)`, averaged over seeds first.

    Returns:
      An index of the grid, the first of equals; 0 if the curve is flat or nowhere above its chord.

    Raises:
      ValueError: If lengths differ or sparsities do not increase.

    Reference:
      Satopaa et al., Finding a "Kneedle" in a Haystack, 2011.

    Example:
      >>> from sparsejax.metrics import knee
      >>> knee([0.0, 0.4, 0.8, 1.0], [1.0, 1.0, 0.9, 0.0])
      2
    """
    s, y = _curve(sparsities, scores)
    spread = y.max() - y.min()
    if len(s) < 3 or not spread > 0:
        return 0
    x, y = (s - s[0]) / (s[-1] - s[0]), (y - y.min()) / spread
    above = y - (y[0] + (y[-1] - y[0]) * x)
    best = int(np.argmax(above))
    return best if above[best] > 1e-9 else 0


def mask_similarity(
    a: PyTree, b: PyTree, kind: Literal["cosine", "jaccard", "overlap"] = "cosine"
) -> float:
    r"""How alike two trees of masks are, over all their entries together.

    "cosine" `|a and b| / sqrt(|a| |b|)`, "jaccard" `|a and b| / |a or b|`, "overlap"
    `|a and b| / min(|a|, |b|)`. Two empty masks give 1, one empty mask 0. Random masks of density
    d have a cosine of about d.

    Args:
      a: A tree of boolean arrays and None.
      b: Another, with masks for the same leaves.
      kind: Which similarity.

    Returns:
      A number in [0, 1].

    Raises:
      ValueError: If leaves or shapes differ, or `kind` is none of the three.

    Reference:
      Jaiswal et al., 2023 (arXiv 2306.03805).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.metrics import mask_similarity
      >>> mask_similarity(jnp.array([True, True, False]), jnp.array([False, True, True]))
      0.5
    """
    first, second = named_leaves(pure(a)), named_leaves(pure(b))
    shapes = [{name: jnp.shape(m) for name, m in x.items()} for x in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"mask_similarity: the masks differ in shape: {shapes[0]}, {shapes[1]}.")
    pairs = [(np.asarray(m, bool), np.asarray(second[name], bool)) for name, m in first.items()]
    both = sum(int(np.sum(x & y)) for x, y in pairs)
    of_a, of_b = (sum(int(pair[i].sum()) for pair in pairs) for i in (0, 1))
    over = {
        "cosine": np.sqrt(float(of_a) * of_b),
        "jaccard": of_a + of_b - both,
        "overlap": min(of_a, of_b),
    }
    if kind not in over:
        raise ValueError(f"kind={kind!r} must be 'cosine', 'jaccard' or 'overlap'.")
    if of_a == 0 or of_b == 0:
        return float(of_a == of_b)
    return float(both / over[kind])


def near_zero_count(params: PyTree, tolerance: float = 1e-5, *, relative: bool = False) -> int:
    r"""Number of entries with `|w| <= tolerance`, or `tolerance max|w|` of their leaf.

    Weight decay leaves numbers near zero that are not zero, so a tolerance is needed.

    Args:
      params: A tree of arrays.
      tolerance: The largest magnitude that counts as zero.
      relative: Whether it is a fraction of the largest magnitude of the leaf.

    Returns:
      A count over all floating leaves.

    Reference:
      Jaiswal et al., 2023 (arXiv 2306.03805).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.metrics import near_zero_count
      >>> near_zero_count({"kernel": jnp.array([0.0, 1e-6, 0.1])})
      2
    """
    total = 0
    for w in named_leaves(pure(params)).values():
        if jnp.issubdtype(w.dtype, jnp.floating) and w.size:
            size = np.abs(np.asarray(w, np.float32))
            total += int(np.sum(size <= tolerance * (size.max() if relative else 1.0)))
    return total


def abrupt_change(counts: ArrayLike | Sequence[float | int], factor: float = 2.0) -> int:
    r"""The first checkpoint at which a count jumps: abrupt sparsification in training.

    The first t whose increase `c_t - c_{t-1}` exceeds `factor` times the largest earlier increase,
    floored at 1 % of the final count. The very first increase has nothing to be compared with.

    Args:
      counts: Counts of (near) zeros, one a checkpoint.
      factor: How many times the largest earlier increase is a jump.

    Returns:
      An index of `counts`; -1 if there is no jump.

    Reference:
      Jaiswal et al., 2023 (arXiv 2306.03805), who show the jump; the detector is our own.

    Example:
      >>> from sparsejax.metrics import abrupt_change
      >>> abrupt_change([0, 10, 22, 31, 400, 420])
      4
    """
    c = np.asarray(counts, np.float64).ravel()
    steps = np.diff(c)
    for t in range(1, len(steps)):
        if steps[t] > factor * max(steps[:t].max(), 0.01 * c[-1]):
            return t + 1
    return -1


def _curve(sparsities, scores) -> tuple[np.ndarray, np.ndarray]:
    s, y = np.asarray(sparsities, np.float64), np.asarray(scores, np.float64)
    if s.ndim != 1 or not s.size or y.shape[:1] != s.shape or y.ndim > 2:
        raise ValueError(
            f"sparsities of shape {s.shape} and scores of shape {y.shape} must be (S,) and (S,) "
            "or (S, seeds)."
        )
    if np.any(np.diff(s) <= 0):
        raise ValueError(f"sparsities must increase, got {s.tolist()}.")
    return s, y if y.ndim == 1 else y.mean(axis=1)
