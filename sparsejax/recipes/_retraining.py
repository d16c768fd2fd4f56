"""Learning-rate schedules after pruning: fine-tuning, rewinding, and warm restarts."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Float

from .._arguments import check_count, check_finite, checked

Kind = Literal["ft", "lrw", "llr", "clr", "slr", "allr"]


@checked(warmup="[0, inf)", drop="[0, inf)", pruned="[0, 1]")
def retraining_schedule(
    kind: Kind,
    steps: int,
    history: Float[ArrayLike, " t"] | Sequence[float],
    *,
    warmup: int = 0,
    drop: float | None = None,
    pruned: float | None = None,
) -> optax.Schedule:
    r"""The learning-rate schedule of retraining after pruning, derived from that of training.

    With h the history, hi and lo its largest and smallest value, T steps, w = floor(0.1 T),
    r = t - w and R = T - w: "ft" is lo; "lrw" the last T values of h; the others warm up by
    `peak (1 - cos(pi t / w)) / 2` and then follow "llr" `peak (1 - r / R)` with peak hi, "clr"
    `lo + (hi - lo) (1 + cos(pi r / R)) / 2`, "slr" `h[floor(r |h| / R)]`, and "allr" like "llr"
    with `peak = clip(hi d / sqrt(q), hi min(T / |h|, 1), hi)`.

    Args:
      kind: "ft" fine-tuning, "lrw" learning-rate rewinding, "llr", "clr", "slr" linear, cyclical
        and scaled restarting, "allr" adaptive linear restarting.
      steps: T, steps of retraining.
      history: h, the learning rate of every step of the training.
      warmup: Steps of warm-up in the history: lo ignores them and "slr" uses hi there.
      drop: For "allr": d, `sqrt(| |theta|^2 - |pruned theta|^2 |) / |theta|`.
      pruned: For "allr": q, the fraction pruned in this phase, in (0, 1].

    Returns:
      An optax schedule; constant at its last value after T steps.

    Raises:
      ValueError: If the history is empty or, for "lrw", shorter than `steps`, or "allr" lacks
        `drop` or `pruned`.

    Reference:
      Zimmer, Spiegel and Pokutta, How I Learned to Stop Worrying and Love Retraining, 2021
      (arXiv 2111.00843); Sparse Model Soups, 2023 (arXiv 2306.16788).

    Example:
      >>> import sparsejax as sj
      >>> rate = sj.recipes.retraining_schedule("llr", 10, [0.1] * 50)
      >>> [round(float(rate(t)), 3) for t in (0, 1, 4, 9)]
      [0.0, 0.1, 0.067, 0.011]
    """
    check_count("steps", steps)
    h = np.asarray(history, np.float64).ravel()
    check_finite("retraining_schedule", history=h)
    if h.size <= warmup:
        raise ValueError(
            f"history has {h.size} learning rates, warmup={warmup} of them; pass the whole history."
        )
    if kind not in _TABLES:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(map(repr, _TABLES))}.")
    hi, lo = h.max(), h[warmup:].min()
    if kind == "allr":
        hi = _adapted(hi, steps / h.size, drop, pruned)
    table = jnp.asarray(_TABLES[kind](steps, h, hi, lo, warmup), jnp.float32)
    return lambda t: table[jnp.clip(t, 0, steps - 1)]


def _adapted(hi: float, share: float, drop: float | None, pruned: float | None) -> float:
    if drop is None or pruned is None or not 0 < pruned <= 1:
        raise ValueError(
            f"kind='allr' needs drop= and pruned= in (0, 1], got drop={drop}, pruned={pruned}."
        )
    return float(np.clip(hi * drop / np.sqrt(pruned), hi * min(share, 1), hi))


def _rewound(steps, h, hi, lo, warmup):
    if h.size < steps:
        raise ValueError(f"kind='lrw' rewinds {steps} steps and history has only {h.size}.")
    return h[h.size - steps :]


def _restart(decay: Callable[..., Any]) -> Callable[..., Any]:
    """A cosine warm-up over a tenth of the steps, then `decay(r / R, ...)`."""

    def table(steps, h, hi, lo, warmup):
        w = int(0.1 * steps)
        up = hi * (1 - np.cos(np.pi * np.arange(w) / max(w, 1))) / 2
        r = np.arange(steps - w) / (steps - w)
        return np.concatenate([up, decay(r, h, hi, lo, warmup)])

    return table


def _scaled(r, h, hi, lo, warmup):
    h = np.concatenate([np.full(warmup, hi), h[warmup:]])
    return h[np.floor(r * h.size + 1e-9).astype(int)]


_linear = _restart(lambda r, h, hi, lo, warmup: hi * (1 - r))
_TABLES: dict[str, Callable[..., Any]] = {
    "ft": lambda steps, h, hi, lo, warmup: np.full(steps, lo),
    "lrw": _rewound,
    "llr": _linear,
    "clr": _restart(lambda r, h, hi, lo, warmup: lo + (hi - lo) * (1 + np.cos(np.pi * r)) / 2),
    "slr": _restart(_scaled),
    "allr": _linear,
}
