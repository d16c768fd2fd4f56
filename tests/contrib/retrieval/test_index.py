"""The inverted index against brute force, its files, and the engines it is exported to."""

import importlib.util
import json

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from jax.experimental import sparse

import sparsejax as sj
from sparsejax.contrib import retrieval

Index = retrieval.InvertedIndex
RNG = np.random.default_rng(0)


def vectors(n, v, density, levels=None):
    """Random weights; few levels make ties."""
    w = RNG.random((n, v)) if levels is None else RNG.integers(1, levels + 1, (n, v)) / levels
    return (w * (RNG.random((n, v)) < density)).astype(np.float32)


def brute(queries, documents, k):
    """All products in float64; equal scores in the order of documents."""
    scores = queries.astype(np.float64) @ documents.astype(np.float64).T
    scores = scores.astype(np.float32)
    found = np.full((len(queries), k), -1), np.zeros((len(queries), k), np.float32)
    for i, row in enumerate(scores):
        order = [d for d in np.argsort(-row, kind="stable") if row[d] > 0][:k]
        found[0][i, : len(order)], found[1][i, : len(order)] = order, row[order]
    return found


def check(found, wanted):
    np.testing.assert_array_equal(found.documents, wanted[0])
    np.testing.assert_allclose(found.scores, wanted[1], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("k", [1, 10, 300])
@pytest.mark.parametrize("levels", [None, 2])
def test_a_search_is_the_ranking_of_all_products(k, levels):
    documents, queries = vectors(200, 60, 0.1, levels), vectors(90, 60, 0.06, levels)
    documents[[3, 199]], queries[5] = 0, 0  # vectors without weights find nothing
    index, wanted = Index.from_dense(documents), brute(queries, documents, k)
    found = index.search(queries, k)
    check(found, wanted)
    assert not np.isin(found.documents, [3, 199]).any() and np.all(found.documents[5] == -1)
    for i in (0, 5, 89):  # one query alone has the same bits
        one = index.search(queries[i : i + 1], k)
        np.testing.assert_array_equal(one.documents[0], found.documents[i])
        np.testing.assert_array_equal(one.scores[0], found.scores[i])


def test_every_kind_of_matrix_gives_the_same_index():
    w = vectors(20, 9, 0.3)
    q = vectors(4, 9, 0.4)
    wanted = Index.from_dense(w)
    twice = sp.coo_array((np.ones(2), ([0, 0], [1, 1])), (20, 9))  # duplicates are summed
    assert Index.from_sparse(twice).columns.toarray()[0, 1] == 2
    pair = np.array([100, 100], np.int8), np.array([[0, 1], [0, 1]])
    for small in (sp.coo_array((pair[0], tuple(pair[1].T)), (2, 9)),
                  sparse.BCOO(tuple(map(jnp.asarray, pair)), shape=(2, 9))):  # fmt: skip
        assert Index.from_sparse(small).columns.toarray()[0, 1] == 200
    padded = sparse.BCOO.fromdense(jnp.asarray(w), nse=200)
    for matrix in (sp.csr_array(w), sp.csc_matrix(w), sp.coo_array(w), padded,
                   sparse.BCSR.fromdense(jnp.asarray(w))):  # fmt: skip
        found = Index.from_sparse(matrix)
        np.testing.assert_array_equal(found.columns.toarray(), w)
        assert found.columns.dtype == np.float32 and found.shape == (20, 9)
    for queries in (jnp.asarray(q), sp.csr_array(q), sparse.BCOO.fromdense(jnp.asarray(q))):
        check(wanted.search(queries, 5), brute(q, w, 5))
    low = jnp.asarray(w, jnp.bfloat16)
    half = np.asarray(low.astype(jnp.float32))
    check(Index.from_dense(low).search(q, 5), brute(q, half, 5))
    check(Index.from_dense(half.astype(np.float16)).search(q, 5), brute(q, half, 5))
    check(Index.from_sparse(sparse.BCOO.fromdense(low)).search(q, 5), brute(q, half, 5))
    stored = sp.csr_array((np.array([0.0, 1.0]), np.array([0, 1]), np.array([0, 2])), (1, 3))
    assert Index.from_sparse(stored).columns.nnz == 1  # an explicit zero is not a posting


def test_queries_by_tokens_are_those_by_vectors():
    w, table = vectors(50, 12, 0.3), RNG.normal(size=12).astype(np.float32)
    tokens = [[3, 3, 1], [], [11], list(range(12))]
    ids, mask = np.zeros((4, 12), int), np.zeros((4, 12), bool)
    for i, row in enumerate(tokens):
        ids[i, : len(row)], mask[i, : len(row)] = row, True
    index = Index.from_dense(w)
    q = np.asarray(retrieval.idf_query(ids, mask, table))
    check(index.search_tokens(tokens, table, 7), brute(q, w, 7))
    check(index.search_tokens([], table, 7), brute(q[:0], w, 7))
    with pytest.raises(ValueError, match="tokens in"):
        index.search_tokens([[12]], table)
    for row in (np.array([1.7]), np.array([[1, 2]])):
        with pytest.raises(TypeError, match="tokens"):
            index.search_tokens([row], table)


def test_empty_collections():
    for shape in ((0, 5), (4, 5)):
        found = Index.from_dense(np.zeros(shape)).search(np.ones((2, 5)), 3)
        assert np.all(found.documents == -1) and not np.any(found.scores)


def test_bad_vectors_are_refused():
    for w, error, match in (
        (np.array([[-1.0]]), ValueError, ">= 0"),
        (np.array([[np.nan]]), ValueError, "finite"),
        (np.array([[np.inf]]), ValueError, "finite"),
        (np.array([[1e39]]), ValueError, "at most"),
        (np.ones(3), ValueError, "shape"),
        (np.ones((1, 2)) * 1j, TypeError, "real"),
        ("text", ValueError, "w must"),
    ):
        with pytest.raises(error, match=match):
            Index.from_dense(w)
    index = Index.from_dense(np.ones((2, 3)))
    for queries in (np.ones((1, 2)), -np.ones((1, 3)), np.ones(3)):
        with pytest.raises(ValueError, match="queries"):
            index.search(queries)
    batched = sparse.BCOO.fromdense(jnp.ones((2, 3)), n_dense=1)
    with pytest.raises(ValueError, match="n_dense"):
        Index.from_sparse(batched)


@pytest.mark.parametrize("density", [0.0, 0.2])
def test_files(tmp_path, density):
    w, path = vectors(30, 8, density), tmp_path / "index.safetensors"
    index = Index.from_dense(w)
    index.save(path)
    again = Index.load(path)
    np.testing.assert_array_equal(again.columns.toarray(), w)
    assert repr(again) == repr(index)


def stored(**changes):
    tree = {
        "documents": 3,
        "rows": np.array([0, 2, 1], np.int32),
        "values": np.array([1, 2, 3], np.float32),
        "lengths": np.array([2, 0, 1], np.int32),
    }
    return {name: x for name, x in (tree | changes).items() if x is not None}


HOSTILE = {
    "beyond the documents": {"rows": np.array([0, 3, 1], np.int32)},
    "before the first": {"rows": np.array([-1, 2, 1], np.int32)},
    "in a wrong order": {"rows": np.array([2, 0, 1], np.int32)},
    "twice": {"rows": np.array([2, 2, 1], np.int32)},
    "too few": {"lengths": np.array([2, 0, 0], np.int32)},
    "too many": {"lengths": np.array([2, 1, 1], np.int32)},
    "negative": {"lengths": np.array([4, -2, 1], np.int32)},
    "overflowing": {"lengths": np.array([2**31 - 1, 2**31 - 1, 5], np.int32)},
    "not a number": {"values": np.array([1, np.nan, 1], np.float32)},
    "zero": {"values": np.array([1, 0, 1], np.float32)},
    "infinite": {"values": np.array([1, np.inf, 1], np.float32)},
    "other lengths": {"values": np.ones(2, np.float32)},
    "another dtype": {"rows": np.array([0, 2, 1], np.float32)},
    "two axes": {"lengths": np.array([[2, 0, 1]], np.int32)},
    "no documents": {"documents": None},
    "documents that are not a number": {"documents": np.ones(1, np.int32)},
    "more documents than indices reach": {"documents": 2**40},
    "more entries": {"other": np.ones(1, np.float32)},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_with_other_contents_are_refused(name, tmp_path):
    path = tmp_path / "index.safetensors"
    sj.save(path, stored())
    assert Index.load(path).shape == (3, 3)
    sj.save(path, stored(**HOSTILE[name]))
    with pytest.raises(ValueError, match=f"load: {path}"):
        Index.load(path)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "index.safetensors"
    Index.from_dense(vectors(30, 8, 0.3)).save(path)
    whole = path.read_bytes()
    for at in RNG.integers(0, len(whole), 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match="cannot be loaded"):
            Index.load(path)
    path.write_bytes(whole[:50])
    with pytest.raises(ValueError, match="cannot be loaded"):
        Index.load(path)
    sj.save(path, jnp.ones(3))
    with pytest.raises(ValueError, match="is not an index"):
        Index.load(path)


def test_json_lines_hold_every_weight_exactly(tmp_path):
    w, path = vectors(6, 4, 0.5), tmp_path / "documents.jsonl"
    w[2] = 0
    words = ["a", 'quo"te', "über", "line\nbreak"]
    Index.from_dense(w).export(path, words)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 6 and lines[2] == "{}"
    for row, line in zip(w, lines):
        found = {word: np.float32(x) for word, x in json.loads(line).items()}
        assert found == {word: x for word, x in zip(words, row) if x}
    with pytest.raises(ValueError, match="vocabulary must hold 4 distinct"):
        Index.from_dense(w).export(path, ["a", "a", "b", "c"])


@pytest.mark.skipif(importlib.util.find_spec("bm25s") is None, reason="needs bm25s")
@pytest.mark.parametrize("words", [False, True])
def test_bm25s_ranks_as_the_index(words):
    w, table = vectors(80, 15, 0.3), (RNG.random(15) + 0.1).astype(np.float32)
    index, names = Index.from_dense(w), [f"word{j}" for j in range(15)]
    tokens = [[int(j) for j in RNG.choice(15, 3, replace=False)] for _ in range(9)]
    engine = index.to_bm25s(table, names if words else None)
    queries = [[names[j] for j in row] for row in tokens] if words else tokens
    documents, scores = engine.retrieve(queries, k=10, show_progress=False)
    wanted = index.search_tokens(tokens, table, 10)
    np.testing.assert_array_equal(documents, wanted.documents)
    np.testing.assert_allclose(scores, wanted.scores, rtol=1e-5)
    unknown = engine.retrieve([["nowhere"] if words else [99]], k=2, show_progress=False)
    assert not np.any(unknown.scores)


def test_bm25s_is_an_extra_and_its_table_is_checked(monkeypatch):
    index = Index.from_dense(np.ones((2, 3)))
    monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
    with pytest.raises(ImportError, match=r"sparsejax\[retrieval\]"):
        index.to_bm25s(np.ones(3))
    monkeypatch.setitem(__import__("sys").modules, "bm25s", __import__("types"))
    with pytest.raises(ValueError, match="idf must have 3"):
        index.to_bm25s(np.ones(2))
