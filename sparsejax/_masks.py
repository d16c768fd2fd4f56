"""Trees and histories of masks by path, and exact counts of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._sharding import on_host
from ._tree import is_array, is_gap, named_leaves, pure

History = Mapping[Any, PyTree] | Sequence[PyTree]


def masks_by_name(masks: PyTree, what: str = "masks") -> dict[str, Any]:
    """The masks by path; leaves without a mask are absent."""
    found = {name: m for name, m in named_leaves(pure(masks)).items() if not is_gap(m)}
    for name, mask in found.items():
        if not is_array(mask) or mask.dtype != bool:
            held = mask.dtype if is_array(mask) else type(mask).__name__
            raise TypeError(
                f"{what}: the mask of {name or 'the parameter'} holds {held}, not booleans; True "
                "means kept: pass sj.get_masks(opt_state), plan.masks(scores) or `mask != 0`."
            )
    return found


def count(x: Any) -> int:
    """The number of True entries as a Python int, exact at any size."""
    if isinstance(x, np.ndarray):
        return int(np.count_nonzero(x))
    with jax.ensure_compile_time_eval():  # known masks, also inside jit
        return int(on_host(row_counts(x)).sum(dtype=np.int64))


def within(scores: Any, mask: Any) -> Any:
    """Scores that rank the entries of a mask, NaN last, above all others; without a mask unchanged.

    NaN marks the others: it ranks below every number, also if the scores of a unit are squared.
    """
    if is_gap(mask):
        return scores
    lowest = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    return jnp.where(mask, lowest, jnp.nan).astype(scores.dtype)


@jax.jit
def row_counts(x):
    """Counts along the last axis: an int32 count of a whole leaf overflows at 2**31 entries."""
    return jnp.sum(x, axis=-1 if x.ndim else None, dtype=jnp.int32)


def steps_of(history: History) -> dict[int, dict[str, Any]]:
    """A history of masks as {step: {path: mask}}, in the order of the steps."""
    if not isinstance(history, Mapping | Sequence):
        raise TypeError(
            f"history is a {type(history).__name__}; pass the masks over training, as in "
            "[sj.get_masks(opt_state), ...] or {0: masks, 100: masks}."
        )
    if isinstance(history, Mapping):
        if not all(isinstance(step, int | np.integer) for step in history):
            raise TypeError(
                "history must map steps to trees of masks, {0: masks, 100: masks}, or be a list "
                f"of trees; the keys are {', '.join(map(repr, list(history)[:4]))}."
            )
        found = {int(step): masks_by_name(history[step], "history") for step in sorted(history)}
    else:
        found = {step: masks_by_name(masks, "history") for step, masks in enumerate(history)}
    if not any(found.values()):
        raise ValueError(
            "the history holds no masks; record sj.get_masks(opt_state) during training."
        )
    return found
