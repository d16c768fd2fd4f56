"""Mean score of the hidden states of many texts."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..._arguments import checked
from ..._tree import is_array
from ._norms import matrix_nuclear_norm


class DatasetScore(NamedTuple):
    """Mean score of texts.

    Attributes:
      mean: The mean over texts, in the structure of the hidden states: a number, or one for each
        layer.
      texts: Number of texts in the mean.
      skipped: Number of texts of fewer than two tokens, which have no score.
    """

    mean: PyTree
    texts: int
    skipped: int


@checked(score="score(h, mask)")
def score_dataset(
    apply: Callable[..., Any],
    batches: Iterable[Any],
    score: Callable[..., Any] = matrix_nuclear_norm,
    *,
    valid: Callable[..., Any] | None = None,
) -> DatasetScore:
    r"""The mean of a score over texts, one padded batch at a time.

    Args:
      apply: Function of a batch that returns the hidden states `(b, n, d)` of b texts, or a pytree
        of them, such as the values by path of `sj.nn.record`.
      batches: Arguments of `apply`: arrays, or tuples of several.
      score: Function `(h, mask)` of the hidden states `(n, d)` of one text and its tokens `(n,)`,
        vmapped over the texts; compiled once for each function and shape.
      valid: Function of the same arguments to a mask `(b, n)`, True at tokens and False at padding;
        None for no padding.

    Returns:
      A `DatasetScore`.

    Raises:
      ValueError: If no text has two tokens, hidden states or masks have the wrong shape, or a score
        is NaN.
      TypeError: If a batch is neither an array nor a tuple.

    Reference:
      Li et al., Large Language Model Evaluation via Matrix Nuclear-Norm, 2024 (arXiv 2410.10672).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import hidden_states
      >>> table = jnp.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
      >>> batches = [jnp.array([[1, 2, 3, 4], [1, 2, 0, 0]]), jnp.array([[1, 0, 0, 0]])]
      >>> found = hidden_states.score_dataset(
      ...     lambda ids: table[ids], batches, valid=lambda ids: ids > 0)
      >>> round(float(found.mean), 4), found.texts, found.skipped  # 0.7071 both texts
      (0.7071, 2, 1)
    """
    totals, texts, skipped = [], 0, 0
    for batch in batches:
        hidden, mask = _run(apply, batch, valid)
        sums, scored = _sums(hidden, mask, score)
        totals.append(jax.tree.map(lambda x: np.asarray(x, np.float64), sums))
        texts, skipped = texts + int(scored), skipped + len(mask) - int(scored)
    if not texts:
        raise ValueError("score_dataset: batches must hold a text of at least two tokens.")
    mean = jax.tree.map(lambda *sums: float(sum(sums)) / texts, *totals)
    if np.isnan(jax.tree.leaves(mean)).any():
        raise ValueError("score_dataset: batches give NaN in hidden states or their scores.")
    return DatasetScore(mean, texts, skipped)


def _run(apply: Any, batch: Any, valid: Any) -> tuple[PyTree, Array]:
    """The hidden states of a batch, and which of its tokens are not padding."""
    arguments = batch if isinstance(batch, tuple) else (batch,)
    if not isinstance(batch, tuple) and not (is_array(batch) and np.ndim(batch)):
        raise TypeError(
            "score_dataset: batches must hold arrays, such as token ids (b, n), or tuples, got "
            f"{batch!r:.80}."
        )
    hidden = apply(*arguments)
    shapes = [np.shape(h) for h in jax.tree.leaves(hidden)]
    if not shapes or any(len(s) != 3 or s[:2] != shapes[0][:2] for s in shapes):
        raise ValueError(
            f"score_dataset: apply must return hidden states (b, n, d), got shapes {shapes}."
        )
    mask = jnp.ones(shapes[0][:2], bool) if valid is None else jnp.asarray(valid(*arguments))
    if mask.shape != shapes[0][:2]:
        raise ValueError(
            f"score_dataset: valid must return a mask (b, n) of shape {shapes[0][:2]}, got "
            f"{mask.shape}."
        )
    return hidden, mask.astype(bool)


@partial(jax.jit, static_argnames="score")
def _sums(hidden: PyTree, mask: Array, score: Callable[..., Any]) -> tuple[PyTree, Array]:
    """The sum of the scores of texts of at least two tokens, and their number."""
    scored = jnp.sum(mask, axis=1) >= 2
    each = jax.tree.map(lambda h: jax.vmap(score)(h, mask), hidden)
    if wrong := [np.shape(x)[1:] for x in jax.tree.leaves(each) if np.shape(x) != mask.shape[:1]]:
        raise ValueError(f"score_dataset: score must return a number, got the shape {wrong[0]}.")
    return jax.tree.map(lambda x: jnp.sum(jnp.where(scored, x, 0)), each), jnp.sum(scored)
