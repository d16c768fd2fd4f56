"""An inverted index: documents as compressed columns, one list of postings for each token."""

import importlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from ..._arguments import check_finite, checked
from ..._files import replacing
from ..._sharding import on_host
from ...nn import load as load_tensors, save as save_tensors
from ._columns import checked_columns, columns_of
from ._tokens import check_tokens

_CHUNK = 64  # queries whose scores are held together


class Hits(NamedTuple):
    """Documents found, the best first.

    Args:
      documents: Rows of the collection; -1 where a query has fewer hits.
      scores: Their scores > 0; 0 where a query has fewer hits.
    """

    documents: Int[np.ndarray, "queries k"]
    scores: Float[np.ndarray, "queries k"]


@dataclass(frozen=True, eq=False, repr=False)
class InvertedIndex:
    r"""Exact search of a collection of sparse vectors by `s(q, d) = sum_j q_j w_dj`.

    For each token the index holds the documents with a weight for it, and a query reads only the
    lists of its tokens. Scores are summed in float64 and rounded to float32; only scores above 0
    are hits, and the document with the lowest index wins ties. It lives on the host and needs
    SciPy.

    Made by `from_dense` or `from_sparse`. Vectors that are encoded in batches are stacked by
    `scipy.sparse.vstack`.

    Args:
      columns: A SciPy `csc_array` (documents, vocabulary) of weights >= 0; zeros are dropped.

    Raises:
      TypeError: If `columns` is not sparse.
      ValueError: If a weight is negative or not finite in float32.

    Reference:
      Geng et al., Towards Competitive Search Relevance For Inference-Free Learned Sparse
      Retrievers, 2024 (arXiv 2411.04403).

    Example:
      >>> import numpy as np
      >>> from sparsejax.contrib import retrieval
      >>> index = retrieval.InvertedIndex.from_dense(np.array([[1.0, 0.0], [0.5, 2.0], [0.0, 0.0]]))
      >>> index
      InvertedIndex(documents=3, vocabulary=2, postings=3)
      >>> hits = index.search(np.array([[2.0, 1.0]]), k=3)
      >>> hits.documents.tolist(), hits.scores.tolist()
      ([[1, 0, -1]], [[3.0, 2.0, 0.0]])
    """

    columns: Any

    def __post_init__(self):
        found = columns_of("InvertedIndex: columns", self.columns)
        limit = np.finfo(np.float32).max
        if np.any(found.data > limit):
            raise ValueError(f"InvertedIndex: columns must hold weights of at most {limit:.3g}.")
        found = found.astype(np.float32)
        found.eliminate_zeros()
        object.__setattr__(self, "columns", found)

    @classmethod
    @checked()
    def from_dense(cls, w: Shaped[Array | np.ndarray, "documents vocabulary"]) -> "InvertedIndex":
        """The index of document vectors in an array (documents, vocabulary)."""
        return cls(columns_of("from_dense: w", w))

    @classmethod
    def from_sparse(cls, matrix: Any) -> "InvertedIndex":
        """The index of document vectors in a SciPy matrix, such as CSR, a BCOO or a BCSR."""
        return cls(columns_of("from_sparse: matrix", matrix))

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of documents and of tokens."""
        return self.columns.shape

    def __repr__(self) -> str:
        documents, vocabulary = self.shape
        return (
            f"InvertedIndex(documents={documents}, vocabulary={vocabulary}, "
            f"postings={self.columns.nnz})"
        )

    @checked(k="[1, inf)")
    def search(self, queries: Any, k: int = 10) -> Hits:
        """The k best documents of each query.

        Args:
          queries: Weights >= 0 of the tokens: an array (queries, vocabulary), a SciPy matrix, a
            BCOO or a BCSR.
          k: Number of documents.
        """
        q = self._queries(queries)
        found = Hits(np.full((q.shape[0], k), -1, np.int64), np.zeros((q.shape[0], k), np.float32))
        for first in range(0, q.shape[0], _CHUNK):
            scores = self._scores(q[first : first + _CHUNK])
            for row in range(scores.shape[0]):
                here = slice(*scores.indptr[row : row + 2])
                documents, values = _best(scores.indices[here], scores.data[here], k)
                found.documents[first + row, : len(documents)] = documents
                found.scores[first + row, : len(documents)] = values
        return found

    @checked(k="[1, inf)")
    def search_tokens(
        self, tokens: Sequence[Sequence[int]], idf: Float[Array | np.ndarray, " v"], k: int = 10
    ) -> Hits:
        """The k best documents of queries that are lists of tokens, as for `idf_query`.

        Args:
          tokens: The tokens of each query, without special tokens; repeated ones count once.
          idf: The weight of each token of the vocabulary; negative weights are 0.
          k: Number of documents.
        """
        from scipy.sparse import csr_array

        weights = _weights("search_tokens", idf)
        rows = [_token_set(row) for row in tokens]
        ids = np.concatenate([*rows, np.empty(0, np.int64)])
        check_tokens("search_tokens", "tokens", ids, len(weights))
        ends = np.cumsum([0, *map(len, rows)])
        return self.search(csr_array((weights[ids], ids, ends), (len(rows), len(weights))), k)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the index as one safetensors file with a checksum, which `load` reads.

        Raises:
          ImportError: If safetensors is not installed.
        """
        save_tensors(path, {
            "documents": self.shape[0],
            "rows": self.columns.indices.astype(np.int32),
            "values": self.columns.data,
            "lengths": np.diff(self.columns.indptr).astype(np.int32),
        })  # fmt: skip

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "InvertedIndex":
        """Reads the index that `save` wrote; nothing in the file is executed.

        Raises:
          ImportError: If safetensors is not installed.
          ValueError: If the file is damaged or is not an index.
        """
        return cls(checked_columns(path, load_tensors(path)))

    @checked()
    def export(self, path: str | os.PathLike[str], vocabulary: Sequence[str]) -> None:
        """Writes JSON lines, `{"token": weight}` for each document, for search engines.

        Lucene and OpenSearch read them as `rank_features`, Elasticsearch as `sparse_vector`.

        Args:
          path: A file, which appears when it is complete.
          vocabulary: The text of each token.
        """
        _check_vocabulary("export", vocabulary, self.shape[1])
        rows = self.columns.tocsr()
        with replacing(Path(path)) as written, written.open("w", encoding="utf-8") as file:
            for first, last in zip(rows.indptr, rows.indptr[1:]):
                entries = zip(rows.indices[first:last], rows.data[first:last])
                vector = {vocabulary[j]: float(f"{w:.9g}") for j, w in entries}  # float32, exactly
                file.write(json.dumps(vector, ensure_ascii=False) + "\n")

    @checked()
    def to_bm25s(
        self, idf: Float[Array | np.ndarray, " v"], vocabulary: Sequence[str] | None = None
    ) -> Any:
        """A `bm25s.BM25` with these postings, multiplied by the weights of queries.

        bm25s sums the postings of the tokens of a query without weights; those of `idf_query`
        depend on the token only, so that `retrieve` ranks as `search` does, up to ties. Pass
        queries without repeated tokens: it counts them as often as they occur.

        Args:
          idf: The weight of each token; negative weights are 0.
          vocabulary: The text of each token, for queries in words; None for lists of token ids.

        Raises:
          ImportError: If bm25s is not installed.
        """
        try:
            library = importlib.import_module("bm25s")
        except ImportError as error:
            raise ImportError('to_bm25s needs: pip install "sparsejax[retrieval]".') from error
        weights = _weights("to_bm25s", idf).astype(np.float32)
        names = range(len(weights)) if vocabulary is None else vocabulary
        if len(weights) != self.shape[1]:
            raise ValueError(
                f"to_bm25s: idf must have {self.shape[1]} weights, got {len(weights)}."
            )
        _check_vocabulary("to_bm25s", names, self.shape[1])
        engine = library.BM25(method="lucene", backend="numpy")
        lengths = np.diff(self.columns.indptr)
        engine.scores = {
            "data": self.columns.data * np.repeat(weights, lengths),
            "indices": self.columns.indices,
            # One token more, without postings: that of queries in which no token is known.
            "indptr": np.append(self.columns.indptr, self.columns.nnz),
            "num_docs": self.shape[0],
        }
        engine.vocab_dict = {name: i for i, name in enumerate(names)} | {"": len(weights)}
        engine.unique_token_ids_set = set(range(len(weights) + 1))
        engine.nonoccurrence_array = None
        return engine

    def _queries(self, queries: Any) -> Any:
        found = columns_of("search: queries", queries)
        if found.shape[1] != self.shape[1]:
            raise ValueError(
                f"search: queries of shape {found.shape} must have the {self.shape[1]} tokens of "
                "the index."
            )
        return found.tocsr()

    def _scores(self, q: Any) -> Any:
        """Scores of the documents that share a token, in float32; reads their postings only."""
        used = np.unique(q.indices)
        postings = self.columns[:, used].astype(np.float64)
        return (q[:, used] @ postings.T).tocsr().astype(np.float32)


def _token_set(row: Any) -> np.ndarray:
    """The distinct tokens of a query."""
    ids = np.asarray(row)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise TypeError(
            f"search_tokens: tokens must hold a list of integers for each query, got {row!r:.80}."
        )
    return np.unique(ids.astype(np.int64))


def _weights(caller: str, idf: Any) -> np.ndarray:
    """Weights of queries, as those of `idf_query`."""
    check_finite(caller, idf=idf)
    return np.maximum(on_host(idf).astype(np.float64), 0)


def _best(documents: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest scores above 0, the lowest document first among equal ones."""
    kept = scores > 0
    if kept.sum() > k:
        kept = scores >= np.partition(scores, -k)[-k]
    documents, scores = documents[kept], scores[kept]
    order = np.lexsort((documents, -scores))[:k]
    return documents[order], scores[order]


def _check_vocabulary(caller: str, vocabulary: Any, tokens: int) -> None:
    if len(vocabulary) != tokens or len(set(vocabulary)) != tokens:
        raise ValueError(
            f"{caller}: vocabulary must hold {tokens} distinct tokens, those of the index, got "
            f"{len(vocabulary)}, {len(set(vocabulary))} of them distinct."
        )
