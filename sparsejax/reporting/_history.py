"""Classification of sparse training by its history of masks."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .._arguments import checked
from .._masks import History, steps_of
from .._sharding import on_host
from ..metrics import exploration_rate, flip_rate


@dataclass(frozen=True)
class Taxonomy:
    """The taxonomy of sparse training methods, on three axes.

    Args:
      appears: When the final mask is determined: "before", "during" or "after" training.
      weights: "dense-to-sparse" if more weights were kept at some time than at the end, otherwise
        "sparse-to-sparse".
      over_time: "static", "shrinking" (entries are only pruned) or "dynamic" (entries are also
        grown).
      explored: R_s, share of the weights that were active at least once.
      flips: Mean flips per weight between consecutive records.
      last_change: Fraction of the recorded run after which the mask no longer changes.
    """

    appears: Literal["before", "during", "after"]
    weights: Literal["dense-to-sparse", "sparse-to-sparse"]
    over_time: Literal["static", "shrinking", "dynamic"]
    explored: float
    flips: float
    last_change: float

    def __str__(self) -> str:
        return f"{self.appears} training, {self.weights}, {self.over_time}"


@checked()
def taxonomy(history: History, *, dense_weights: bool = False) -> Taxonomy:
    r"""Classifies a run in the taxonomy of sparse training, from its masks.

    Args:
      history: Masks over training, first and last step included: a list of trees, or a dict from
        steps to trees. A mask that keeps everything is treated as no mask.
      dense_weights: Whether pruned weights keep training, as with a straight-through estimator;
        this cannot be inferred from masks.

    Returns:
      A `Taxonomy`.

    Raises:
      ValueError: If the history holds no masks, or its trees have different leaves.

    Reference:
      Liu and Wang, 2023 (arXiv 2302.02596).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.reporting import taxonomy
      >>> full, half = jnp.array([True, True]), jnp.array([True, False])
      >>> print(taxonomy([full, full, half]))
      after training, dense-to-sparse, static
    """
    steps = steps_of(history)
    times = list(steps)
    flat = [_flat(masks) for masks in steps.values()]
    kept = [int(m.sum()) for m in flat]
    first = next((i for i, k in enumerate(kept) if k < flat[i].size), len(flat) - 1)
    settled = _settled(flat)
    span = max(times[-1] - times[0], 1)
    return Taxonomy(
        appears=_appears(first, settled, len(flat) - 1),
        weights="dense-to-sparse" if dense_weights or max(kept) > kept[-1] else "sparse-to-sparse",
        over_time=_over_time(flat[first:]),
        explored=exploration_rate(history),
        flips=float(flip_rate(history).mean()) if len(flat) > 1 else 0.0,
        last_change=(times[settled] - times[0]) / span,
    )


def _flat(masks: dict[str, Any]) -> np.ndarray:
    return np.concatenate([on_host(masks[name]).ravel() for name in sorted(masks)] or [[]])


def _settled(flat: list[np.ndarray]) -> int:
    """The first record from which the final mask is used."""
    last = len(flat) - 1
    while last > 0 and np.array_equal(flat[last - 1], flat[-1]):
        last -= 1
    return last


def _appears(first: int, settled: int, last: int) -> Literal["before", "during", "after"]:
    # RigL and SET have a mask at step 0 but change it during training: classify by the final mask.
    if settled == 0:
        return "before"
    return "after" if first == last else "during"


def _over_time(flat: list[np.ndarray]) -> Literal["static", "shrinking", "dynamic"]:
    pairs = list(zip(flat, flat[1:]))
    if any((new & ~old).any() for old, new in pairs):
        return "dynamic"
    return "shrinking" if any((old & ~new).any() for old, new in pairs) else "static"
