"""Passages of Python's documentation as a search task, a small encoder, and its quality.

Paragraphs of `pydoc_data.topics` with at least 24 words, their first 32; a query is three of the
words of a passage, which has to be found among all passages.
"""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.sparse import csr_array

from sparsejax.contrib import retrieval

WORDS, QUERY, WIDTH = 32, 3, 64


def passages() -> list[list[str]]:
    """The words of each paragraph, each paragraph once."""
    from pydoc_data.topics import topics

    text = [part for topic in topics.values() for part in re.split(r"\n\s*\n", topic)]
    words = [re.findall(r"[a-z_]{2,}", part.lower()) for part in text]
    long = [tuple(w[:WORDS]) for w in words if len(w) >= 24]
    return [list(w) for w in dict.fromkeys(long)]


class Task(NamedTuple):
    """Passages as tokens, the table, and queries: several of each passage, one of each test one."""

    documents: np.ndarray  # (n, length)
    mask: np.ndarray
    idf: np.ndarray
    train: retrieval.Pairs
    queries: np.ndarray  # of the test passages
    query_mask: np.ndarray
    relevant: np.ndarray  # (queries, 1)


def padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), lengths.max()), np.int32)
    for row, into in zip(rows, ids):
        into[: len(row)] = row
    return ids, np.arange(ids.shape[1]) < lengths[:, None]


def task_of(documents: list[list[int]], words: list[list[list[int]]], vocabulary: int,
            seed: int = 0, each: int = 9) -> Task:  # fmt: skip
    """A task from the tokens of the passages, and the tokens of each of their words.

    `each` queries of every training passage, so that an epoch over them sees other words.
    """
    rng = np.random.default_rng(seed)
    ids, mask = padded(documents)
    frequencies = retrieval.document_frequencies(ids, mask, vocabulary)
    order = rng.permutation(len(ids))
    test, train = order[: len(ids) // 5], np.tile(order[len(ids) // 5 :], each)

    def draw(rows):
        chosen = [rng.choice(len(words[i]), min(QUERY, len(words[i])), replace=False) for i in rows]
        return padded([sum((words[i][j] for j in at), []) for i, at in zip(rows, chosen)])

    pairs = retrieval.Pairs(*draw(train), ids[train][:, None], mask[train][:, None],
                            {"passage": train})  # fmt: skip
    return Task(ids, mask, np.asarray(retrieval.idf(frequencies, len(ids))), pairs, *draw(test),
                test[:, None])  # fmt: skip


def toy_task(seed: int = 0) -> Task:
    """Words in at least two passages are tokens."""
    found = passages()
    counts = {}
    for word in [word for words in found for word in set(words)]:
        counts[word] = counts.get(word, 0) + 1
    known = {w: i for i, w in enumerate(sorted(w for w, n in counts.items() if n > 1))}
    documents = [[known[w] for w in words if w in known] for words in found]
    words = [[[j] for j in sorted(set(row))] for row in documents]
    return task_of(documents, words, len(known), seed)


def toy_params(vocabulary: int, seed: int = 0) -> dict[str, jax.Array]:
    draw = lambda i, *shape: jax.random.normal(jax.random.key(10 * seed + i), shape)  # noqa: E731
    return {
        "embedding": 0.3 * draw(0, vocabulary, WIDTH),
        "up": draw(1, 2 * WIDTH, 128) / np.sqrt(2 * WIDTH),
        "down": draw(2, 128, WIDTH) / np.sqrt(128),
        "bias": jnp.zeros(vocabulary),
    }


def toy_encode(params, ids, mask):
    """A GELU network on (embedding, mean of the passage), with tied outputs."""
    x = params["embedding"][ids]
    mean = jnp.sum(x * mask[..., None], 1, keepdims=True) / jnp.maximum(
        jnp.sum(mask, 1)[:, None, None], 1
    )
    both = jnp.concatenate([x, jnp.broadcast_to(mean, x.shape)], -1)
    hidden = jax.nn.gelu(both @ params["up"]) @ params["down"]
    return retrieval.splade_pool(hidden @ params["embedding"].T + params["bias"], mask)


def toy_loss(scores):
    return retrieval.info_nce(0.2 * scores)


def toy_trained(task: Task, strength: float, weighted: bool, seed: int = 0, steps: int = 220):
    """An encoder for queries with the weights of the table, or all of weight 1."""
    table = task.idf if weighted else np.ones_like(task.idf)
    return retrieval.train_retriever(
        toy_params(len(table), seed), toy_encode, toy_loss, ADAM, task.train, table,
        steps=steps, key=jax.random.key(seed), batch_size=24, chunk=110,
        strength=retrieval.quadratic_ramp(strength, 80),
    ), table  # fmt: skip


ADAM = optax.adam(4e-3)


def quality(task: Task, vectors, table, special=()) -> dict[str, float]:
    """Metrics of the test queries over all passages, by the inverted index."""
    index = retrieval.InvertedIndex.from_dense(np.asarray(vectors))
    queries = retrieval.idf_query(task.queries, task.query_mask, table, special=special)
    found = index.search(queries, 10).documents
    return {
        "NDCG@10": float(retrieval.ndcg(found, task.relevant).mean()),
        "MRR@10": float(retrieval.reciprocal_rank(found, task.relevant).mean()),
        "recall@10": float(retrieval.recall(found, task.relevant).mean()),
        "non-zeros": index.columns.nnz / len(vectors),
        "FLOPS": float(retrieval.flops(queries, jnp.asarray(vectors))),
    }


def bm25(task: Task, k1: float = 1.2, b: float = 0.75) -> np.ndarray:
    """Saturated term frequencies; a query multiplies them by the table."""
    rows, _ = np.nonzero(task.mask)
    shape = len(task.documents), len(task.idf)
    counts = csr_array((np.ones(len(rows)), (rows, task.documents[task.mask])), shape).toarray()
    length = counts.sum(1, keepdims=True)
    return counts * (k1 + 1) / (counts + k1 * (1 - b + b * length / length.mean()))
