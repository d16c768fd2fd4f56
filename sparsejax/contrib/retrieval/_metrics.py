"""Quality of rankings, and the work that they take."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from ..._arguments import check_finite, checked, known
from ..._sharding import on_host


@checked(k="[1, inf)")
def ndcg(
    found: Int[ArrayLike, "queries hits"],
    relevant: Int[ArrayLike, "queries relevant"],
    gains: Shaped[ArrayLike, "queries relevant"] | None = None,
    *,
    k: int = 10,
) -> Float[Array, " queries"]:
    r"""Normalised discounted cumulative gain at k of each query; NDCG@k is the mean.

    `sum_{i<k} g_i / log2(i + 2)` of the documents found, over that of the best ranking.

    Args:
      found: Documents found, the best first, -1 where there are fewer: `Hits.documents`. One that
        is found again counts once, at its first place.
      relevant: Distinct relevant documents of each query, -1 where there are fewer.
      gains: Gains >= 0 of the relevant documents; None for 1 each.
      k: Length of the rankings that are compared.

    Returns:
      Values in [0, 1]; 0 for a query without relevant documents.

    Raises:
      ValueError: If a gain is negative or not finite.

    Reference:
      Jarvelin and Kekalainen, Cumulated gain-based evaluation of IR techniques, 2002.

    Example:
      >>> import numpy as np
      >>> from sparsejax.contrib import retrieval
      >>> round(float(retrieval.ndcg(np.array([[7, 3, 5]]), np.array([[3, -1]]))[0]), 3)
      0.631
    """
    found, relevant = _documents("ndcg", found=found, relevant=relevant)
    given = jnp.ones(relevant.shape) if gains is None else jnp.asarray(gains)
    check_finite("ndcg", gains=given)
    if known(given) and (on_host(given) < 0).any():
        raise ValueError("ndcg: gains must be >= 0.")
    return _ndcg(found, relevant, given.astype(jnp.float32), int(k))


@partial(jax.jit, static_argnames="k")
def _ndcg(found: Array, relevant: Array, gains: Array, k: int) -> Array:
    gains = jnp.where(relevant >= 0, gains, 0)
    hits = _matches(found[:, :k], relevant)
    hits &= jnp.cumsum(hits, axis=1) == 1  # a document that is found again gains nothing
    reached = jnp.max(jnp.where(hits, gains[:, None], 0), -1, initial=0)
    best = -jnp.sort(-gains, axis=1)[:, :k]
    ideal = _discounted(best)
    return jnp.where(ideal > 0, _discounted(reached) / jnp.where(ideal > 0, ideal, 1), 0)


def _documents(caller: str, **given: ArrayLike) -> list[Array]:
    """Rows of the collection as arrays; raises for those that JAX would wrap to other ones."""
    arrays = {name: jnp.asarray(rows) for name, rows in given.items()}
    for name, rows in given.items():
        if known(rows) and np.any(np.asarray(arrays[name]) != np.asarray(rows)):
            raise ValueError(
                f"{caller}: {name} must be rows of a collection within {arrays[name].dtype}, got "
                f"{np.max(rows)}; number the documents from 0."
            )
    return list(arrays.values())


def _discounted(gains: Array) -> Array:
    return jnp.sum(gains / jnp.log2(jnp.arange(gains.shape[1]) + 2.0), axis=1)


def _matches(found: Array, relevant: Array) -> Array:
    """Whether each document found is each of the relevant ones."""
    return (found[:, :, None] == relevant[:, None]) & (relevant >= 0)[:, None]


@checked(k="[1, inf)")
def reciprocal_rank(
    found: Int[ArrayLike, "queries hits"],
    relevant: Int[ArrayLike, "queries relevant"],
    *,
    k: int = 10,
) -> Float[Array, " queries"]:
    """One over the rank of the first relevant document of each query; MRR@k is the mean.

    Args:
      found: Documents found, the best first, -1 where there are fewer: `Hits.documents`.
      relevant: Relevant documents of each query, -1 where there are fewer.
      k: Length of the rankings.

    Returns:
      Values in [0, 1]; 0 if no relevant document is among the first k.

    Example:
      >>> import numpy as np
      >>> from sparsejax.contrib import retrieval
      >>> retrieval.reciprocal_rank(np.array([[7, 3], [1, 2]]), np.array([[3], [4]])).tolist()
      [0.5, 0.0]
    """
    rows = _documents("reciprocal_rank", found=found, relevant=relevant)
    return _reciprocal_rank(*rows, int(k))


@partial(jax.jit, static_argnames="k")
def _reciprocal_rank(found: Array, relevant: Array, k: int) -> Array:
    hit = jnp.any(_matches(found[:, :k], relevant), axis=-1)
    return jnp.max(hit / (jnp.arange(hit.shape[1]) + 1.0), axis=1, initial=0)


@checked(k="[1, inf)")
def recall(
    found: Int[ArrayLike, "queries hits"],
    relevant: Int[ArrayLike, "queries relevant"],
    *,
    k: int = 10,
) -> Float[Array, " queries"]:
    """The fraction of the relevant documents of each query among the first k found.

    Args:
      found: Documents found, the best first, -1 where there are fewer: `Hits.documents`.
      relevant: Distinct relevant documents of each query, -1 where there are fewer.
      k: Length of the rankings.

    Returns:
      Values in [0, 1]; 0 for a query without relevant documents.

    Example:
      >>> import numpy as np
      >>> from sparsejax.contrib import retrieval
      >>> retrieval.recall(np.array([[7, 3]]), np.array([[3, 4]])).tolist()
      [0.5]
    """
    return _recall(*_documents("recall", found=found, relevant=relevant), int(k))


@partial(jax.jit, static_argnames="k")
def _recall(found: Array, relevant: Array, k: int) -> Array:
    reached = jnp.any(_matches(found[:, :k], relevant), axis=1)
    return jnp.sum(reached, axis=1) / jnp.maximum(jnp.sum(relevant >= 0, axis=1), 1)


@checked()
def flops(
    queries: Float[ArrayLike, "queries vocabulary"],
    documents: Float[ArrayLike, "documents vocabulary"],
) -> Float[Array, ""]:
    r"""The mean number of multiplications for a pair of a query and a document.

    `sum_j P(q_j != 0) P(w_j != 0)`: that of an inverted index, which visits nothing else.

    Args:
      queries: Vectors of queries, such as those of a test set.
      documents: Vectors of the collection.

    Returns:
      A scalar >= 0.

    Raises:
      ValueError: If there are no queries or no documents, or a vector holds NaN.

    Reference:
      Formal et al., SPLADE, 2021 (arXiv 2107.05720).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import retrieval
      >>> float(retrieval.flops(jnp.array([[1.0, 1.0]]), jnp.array([[0.0, 2.0], [0.0, 0.0]])))
      0.5
    """
    queries, documents = jnp.asarray(queries), jnp.asarray(documents)
    if not (len(queries) and len(documents)):
        raise ValueError(
            f"flops: queries {queries.shape} and documents {documents.shape} must not be empty."
        )
    check_finite("flops", queries=queries, documents=documents)
    return _flops(queries, documents)


@jax.jit
def _flops(queries: Array, documents: Array) -> Array:
    rate = lambda x: jnp.mean(x != 0, axis=0, dtype=jnp.float32)  # noqa: E731
    return jnp.sum(rate(queries) * rate(documents))
