"""Curves of score against sparsity, and abrupt sparsification during training."""

from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from .._arguments import check_finite, checked
from .._masks import masks_by_name
from .._sharding import on_host

_GUARD = 1e-12  # tolerance for rounding in a drop of exactly eps


@checked(eps="[0, inf)")
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
    range ends at the first violation or NaN; equality is allowed.

    Args:
      sparsities: Increasing fractions of zeros, S of them.
      scores: Larger is better, `(S,)`, or `(S, seeds)`, averaged over seeds first.
      eps: The allowed drop: 0.01 is one point of accuracy.
      dense: Score without pruning; None uses the first score, whose sparsity must then be 0.
      relative: Whether eps is a fraction of `|dense|`.
      interpolate: Whether to interpolate linearly to the crossing before the first violation.

    Returns:
      A sparsity; 0 if the first point violates the bound, NaN if the dense score or eps is NaN.

    Raises:
      ValueError: If lengths differ, sparsities do not increase, or the dense score is missing.

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
            raise ValueError("essential_sparsity: pass dense=, or begin the sparsities with 0.")
        dense = float(y[0])
    floor = dense - eps * (abs(dense) if relative else 1.0)
    if np.isnan(floor):
        return float("nan")
    holds = y >= floor - _GUARD  # False for NaN
    last = len(s) - 1 if holds.all() else int(np.argmin(holds)) - 1
    if last < 0:
        return 0.0
    if not interpolate or last == len(s) - 1 or np.isnan(y[last + 1]):
        return float(s[last])
    share = (y[last] - floor) / (y[last] - y[last + 1])
    return float(s[last] + max(share, 0.0) * (s[last + 1] - s[last]))


@checked()
def knee(sparsities: ArrayLike | Sequence[float | int], scores: ArrayLike | Sequence[Any]) -> int:
    r"""The knee of a curve: the index of the point highest above its chord.

    Both axes are scaled to [0, 1]; the chord leads from the first to the last point.

    Args:
      sparsities: Increasing fractions of zeros, S of them.
      scores: `(S,)`, or `(S, seeds)`, averaged over seeds first.

    Returns:
      An index of the grid, the first in case of ties; 0 if no point is above the chord.

    Raises:
      ValueError: If lengths differ, sparsities do not increase, or scores are not finite.

    Reference:
      Satopaa et al., Finding a "Kneedle" in a Haystack, 2011.

    Example:
      >>> from sparsejax.metrics import knee
      >>> knee([0.0, 0.4, 0.8, 1.0], [1.0, 1.0, 0.9, 0.0])
      2
    """
    s, y = _curve(sparsities, scores)
    check_finite("knee", scores=y)
    spread = y.max() - y.min()
    if len(s) < 3 or not spread > 0:
        return 0
    x, y = (s - s[0]) / (s[-1] - s[0]), (y - y.min()) / spread
    above = y - (y[0] + (y[-1] - y[0]) * x)
    best = int(np.argmax(above))
    return best if above[best] > 1e-9 else 0


@checked()
def mask_similarity(
    a: PyTree, b: PyTree, kind: Literal["cosine", "jaccard", "overlap"] = "cosine"
) -> float:
    r"""The similarity of two trees of masks, over all their entries together.

    "cosine" `|a and b| / sqrt(|a| |b|)`, "jaccard" `|a and b| / |a or b|`, "overlap"
    `|a and b| / min(|a|, |b|)`. Two empty masks give 1, one empty mask 0. Random masks of density
    d have a cosine of about d.

    Args:
      a: A tree of boolean arrays and None.
      b: A second tree, with masks for the same leaves.
      kind: "cosine", "jaccard" or "overlap".

    Returns:
      A number in [0, 1].

    Raises:
      ValueError: If leaves or shapes differ, or `kind` is unknown.

    Reference:
      Jaiswal et al., 2023 (arXiv 2306.03805).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.metrics import mask_similarity
      >>> mask_similarity(jnp.array([True, True, False]), jnp.array([False, True, True]))
      0.5
    """
    first, second = masks_by_name(a), masks_by_name(b)
    shapes = [{name: jnp.shape(m) for name, m in x.items()} for x in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"mask_similarity: the masks differ in shape: {shapes[0]}, {shapes[1]}.")
    pairs = [[on_host(masks[name]) for masks in (first, second)] for name in first]
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


@checked(factor="(0, inf)")
def abrupt_change(counts: ArrayLike | Sequence[float | int], factor: float = 2.0) -> int:
    r"""The checkpoint of abrupt sparsification: the first at which a count jumps.

    The first t whose increase `c_t - c_{t-1}` exceeds `factor` times the largest earlier increase,
    floored at 1 % of the final count. The very first increase is not compared.

    Args:
      counts: Counts of (near) zeros, one per checkpoint.
      factor: Multiple of the largest earlier increase that defines a jump.

    Returns:
      An index of `counts`; -1 without a jump.

    Raises:
      ValueError: If counts or factor are not finite.

    Reference:
      Jaiswal et al., 2023 (arXiv 2306.03805), who show the jump; the detector is our own.

    Example:
      >>> from sparsejax.metrics import abrupt_change
      >>> abrupt_change([0, 10, 22, 31, 400, 420])
      4
    """
    c = np.asarray(counts, np.float64)
    if c.ndim != 1:
        raise ValueError(f"abrupt_change: counts must be a vector (t,), got shape {c.shape}.")
    check_finite("abrupt_change", counts=c, factor=factor)
    steps = np.diff(c)
    for t in range(1, len(steps)):
        if steps[t] > factor * max(steps[:t].max(), 0.01 * c[-1]):
            return t + 1
    return -1


def _curve(sparsities, scores) -> tuple[np.ndarray, np.ndarray]:
    try:
        s, y = np.asarray(sparsities, np.float64), np.asarray(scores, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"sparsities and scores must be numbers: {error}.") from None
    if s.ndim != 1 or not s.size or y.shape[:1] != s.shape or y.ndim > 2:
        raise ValueError(
            f"sparsities of shape {s.shape} and scores of shape {y.shape} must be (S,) and (S,) "
            "or (S, seeds)."
        )
    if not (np.isfinite(s).all() and np.all(np.diff(s) > 0)):
        raise ValueError(f"sparsities must increase, got {s.tolist()}.")
    return s, y if y.ndim == 1 else y.mean(axis=1)
