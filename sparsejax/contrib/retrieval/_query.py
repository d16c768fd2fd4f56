"""Queries without a model: the tokens that are present, weighted by a table."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from ..._arguments import check_finite, checked, known
from ._tokens import check_tokens


@checked(vocabulary="[1, inf)")
def document_frequencies(
    ids: Int[ArrayLike, "documents length"],
    mask: Bool[ArrayLike, "documents length"],
    vocabulary: int,
) -> Int[Array, " vocabulary"]:
    """Number of documents that contain each token; those of several batches can be added.

    Args:
      ids: Tokens of the documents of the training collection.
      mask: True at tokens, False at padding.
      vocabulary: Number of tokens.

    Returns:
      Counts of documents; a token counts once in each.

    Raises:
      ValueError: If a token is not in the vocabulary.

    Example:
      >>> import numpy as np
      >>> from sparsejax.contrib import retrieval
      >>> ids = np.array([[1, 1, 2], [1, 0, 0]])
      >>> retrieval.document_frequencies(ids, np.array([[1, 1, 1], [1, 0, 0]], bool), 4).tolist()
      [0, 2, 1, 0]
    """
    check_tokens("document_frequencies", "ids", ids, vocabulary)
    return _frequencies(jnp.asarray(ids), jnp.asarray(mask), int(vocabulary))


@partial(jax.jit, static_argnames="vocabulary")
def _frequencies(ids: Array, mask: Array, vocabulary: int) -> Array:
    ordered = jnp.sort(jnp.where(mask, ids, vocabulary), axis=1)
    before = jnp.pad(ordered, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    first = (ordered != before).astype(jnp.int32)
    return jnp.zeros(vocabulary, jnp.int32).at[ordered].add(first, mode="drop")


@checked(documents="[1, inf)", unseen="[0, inf)")
def idf(
    frequencies: Int[ArrayLike, " vocabulary"], documents: int, *, unseen: float = 1.0
) -> Float[Array, " vocabulary"]:
    r"""Inverse document frequencies: `ln(1 + (N - n_j + 1/2) / (n_j + 1/2))`.

    The table belongs to the training collection and is the same for every collection that is
    searched.

    Args:
      frequencies: n_j, the number of documents that contain each token.
      documents: N, the number of documents.
      unseen: Weight of tokens that are in no document, which would get the largest.

    Returns:
      Weights > 0 of queries, without a unit, in float32.

    Raises:
      ValueError: If a frequency is not between 0 and the number of documents.

    Reference:
      Geng et al., 2024 (arXiv 2411.04403).

    Example:
      >>> import numpy as np
      >>> from sparsejax.contrib import retrieval
      >>> [round(float(x), 3) for x in retrieval.idf(np.array([0, 1, 10]), 10)]
      [1.0, 1.992, 0.047]
    """
    if known(frequencies, documents) and np.size(frequencies):
        low, high = int(np.min(frequencies)), int(np.max(frequencies))
        if low < 0 or high > documents:
            raise ValueError(
                f"idf: frequencies must be between 0 and the {documents} documents, got {low} to "
                f"{high}."
            )
    n = jnp.asarray(frequencies, jnp.float32)
    absent = jnp.asarray(documents, jnp.float32) - n  # more of them than int32 counts
    return jnp.where(n > 0, jnp.log1p((absent + 0.5) / (n + 0.5)), unseen)


@checked()
def idf_query(
    ids: Int[ArrayLike, "*queries length"],
    mask: Bool[ArrayLike, "*queries length"],
    idf: Float[ArrayLike, " vocabulary"],
    *,
    special: Sequence[int] = (),
) -> Float[Array, "*queries vocabulary"]:
    r"""Vectors of queries without inference: `q_j = [j in tokens] relu(idf_j)`.

    A token counts once however often it is repeated. Differentiable in the table.

    Args:
      ids: Tokens of the queries.
      mask: True at tokens, False at padding.
      idf: The weight of each token, from `idf`.
      special: Tokens of weight 0, such as those of [CLS] and [SEP].

    Returns:
      Weights >= 0, without a unit; a query without tokens is 0 and finds nothing.

    Raises:
      ValueError: If a token is not in the vocabulary, or the table holds NaN.

    Reference:
      Geng et al., 2024 (arXiv 2411.04403).

    Example:
      >>> import numpy as np
      >>> from sparsejax.contrib import retrieval
      >>> table = np.array([1.0, 2.0, 0.5, -1.0])
      >>> ids, mask = np.array([[0, 1, 1, 3]]), np.ones((1, 4), bool)
      >>> retrieval.idf_query(ids, mask, table, special=(0,)).tolist()
      [[0.0, 2.0, 0.0, 0.0]]
    """
    table = jnp.asarray(idf)
    vocabulary = table.shape[0]
    check_tokens("idf_query", "ids", ids, vocabulary)
    check_tokens("idf_query", "special", list(special), vocabulary)
    check_finite("idf_query", idf=table)
    return _query(jnp.asarray(ids), jnp.asarray(mask), table, tuple(map(int, special)))


@partial(jax.jit, static_argnames="special")
def _query(ids: Array, mask: Array, table: Array, special: tuple[int, ...]) -> Array:
    vocabulary = table.shape[0]
    weights = jax.nn.relu(table)
    if special:
        weights = weights.at[jnp.array(special)].set(0)
    rows = jnp.where(mask, ids, vocabulary).reshape(-1, ids.shape[-1])
    here = jnp.arange(len(rows))[:, None]
    present = jnp.zeros((len(rows), vocabulary), bool).at[here, rows].set(True, mode="drop")
    return jnp.where(present, weights, 0).reshape(*ids.shape[:-1], vocabulary)
