"""Sparse retrieval whose queries need no model: IDF against FLOPS, ensembles, MiniLM (2411.04403).

    python -m benchmarks retrieval

Passages of Python's documentation (`pydoc_data.topics`, paragraphs of at least 24 words, their
first 32); a query is three of the words of a passage, which has to be found among all passages.
Encoders are trained on 80 % of the passages and queried for the other 20 %.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scipy import stats
from scipy.sparse import csr_array

import sparsejax as sj
from benchmarks._report import save, table_of
from benchmarks.papers._passages import (
    Task,
    bm25,
    padded,
    passages,
    quality,
    task_of,
    toy_encode,
    toy_task,
    toy_trained,
)
from sparsejax.contrib import retrieval

MINILM_STEPS = 80

COLUMNS = ("NDCG@10", "MRR@10", "recall@10", "non-zeros", "FLOPS")


def row_of(name: str, found: dict[str, float]) -> list[str]:
    return [name, *(f"{found[c]:.1f}" if c == "non-zeros" else f"{found[c]:.3f}" for c in COLUMNS)]


def mean_of(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}


def toy(strengths, seeds: int):
    """Mean quality by (strength, weighted), and of BM25."""
    found = {}
    for seed in range(seeds):
        task = toy_task(seed)
        found.setdefault("BM25", []).append(quality(task, bm25(task), task.idf))
        for strength, weighted in strengths:
            run, table = toy_trained(task, strength, weighted, seed)
            vectors = toy_encode(run.params, task.documents, task.mask)
            found.setdefault((strength, weighted), []).append(quality(task, vectors, table))
    return {name: mean_of(runs) for name, runs in found.items()}


def toy_rows(found) -> list[list[str]]:
    """A row for each run, in descending order of FLOPS."""
    runs = sorted((k for k in found if k != "BM25"), key=lambda k: -found[k]["FLOPS"])
    names = {k: f"{'IDF' if k[1] else 'uniform'}, strength {k[0]:g}" for k in runs}
    return [row_of(names.get(k, k), found[k]) for k in ("BM25", *runs)]


def exact(task: Task) -> tuple[bool, float]:
    """Whether a search ranks as all products do, and the largest difference of scores."""
    vectors = bm25(task).astype(np.float32)
    queries = np.asarray(retrieval.idf_query(task.queries, task.query_mask, task.idf))
    found = retrieval.InvertedIndex.from_dense(vectors).search(queries, 20)
    scores = (queries.astype(np.float64) @ vectors.T.astype(np.float64)).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :20]
    best = np.take_along_axis(scores, order, 1)
    same = np.array_equal(found.documents, np.where(best > 0, order, -1))
    return same, float(np.abs(found.scores - best).max())


class MiniLM(NamedTuple):
    """The task in WordPiece tokens, the teachers' scores of all passages, and the encoder."""

    task: Task
    dense: np.ndarray  # of the test queries, by sentence vectors
    sparse: np.ndarray  # of the test queries, by BM25
    encoder: retrieval.SpladeEncoder


SPECIAL = (101, 102)  # [CLS], [SEP]


def minilm_task(seed: int = 0, each: int = 2, bias: float = -4.0) -> MiniLM:
    bert, tokenize = sj.models.minilm()
    found = passages()
    ids, mask = map(np.asarray, tokenize([" ".join(words) for words in found], 48))
    distinct = sorted({word for words in found for word in words})
    pieces = {
        word: row[keep][1:-1].tolist()
        for word, row, keep in zip(distinct, *map(np.asarray, tokenize(distinct)))
    }
    documents = [row[keep].tolist() for row, keep in zip(ids, mask)]
    words = [[pieces[word] for word in sorted(set(row))] for row in found]
    task = task_of(documents, words, bert.word.num_embeddings, seed, each)
    vectors = np.asarray(embedded(bert, task.documents, task.mask))
    saturated = csr_array(bm25(task))

    def scores(queries, present):
        q = csr_array(np.asarray(retrieval.idf_query(queries, present, task.idf, special=SPECIAL)))
        return embedded(bert, *framed(queries, present)) @ vectors.T, (q @ saturated.T).toarray()

    dense, sparse = scores(task.train.queries, task.train.query_mask)
    extra = task.train.extra | {"dense": dense, "sparse": sparse.astype(np.float32)}
    task = task._replace(train=task.train._replace(extra=extra))
    encoder = retrieval.SpladeEncoder(bert, bias, rngs=nnx.Rngs(seed))
    return MiniLM(task, *scores(task.queries, task.query_mask), encoder)


def framed(ids, mask):
    """Queries between [CLS] and [SEP]."""
    return padded([[SPECIAL[0], *row[keep], SPECIAL[1]] for row, keep in zip(ids, mask)])


@nnx.jit
def _forward(model, ids, mask):
    return model(ids, mask)


def embedded(model, ids, mask, rows: int = 35) -> np.ndarray:
    """The outputs of a model, in batches of one shape."""
    found = []
    for first in range(0, len(ids), rows):
        here = np.arange(first, first + rows) % len(ids)
        found.append(np.asarray(_forward(model, jnp.asarray(ids[here]), jnp.asarray(mask[here]))))
    return np.concatenate(found)[: len(ids)]


def teacher_of(name: str):
    return lambda batch: batch.extra[name][:, batch.extra["passage"]][:, :, None]


def minilm_trained(minilm: MiniLM, distilled: bool, steps: int, strength: float, seed: int = 0,
                   rate: float = 2e-4, batch_size: int = 8, **options):  # fmt: skip
    """The encoder after training on the relevant documents, or on the ensemble of the teachers."""
    graph, params = nnx.split(minilm.encoder, nnx.Param)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 10, steps)
    run = retrieval.train_retriever(
        nnx.as_pure(params), lambda params, ids, mask: nnx.merge(graph, params)(ids, mask),
        retrieval.kl_distill if distilled else retrieval.info_nce,
        optax.adamw(schedule, weight_decay=0.01), minilm.task.train, minilm.task.idf,
        teachers=(teacher_of("dense"), teacher_of("sparse")) if distilled else (), steps=steps,
        key=jax.random.key(seed), batch_size=batch_size, special=SPECIAL, chunk=25,
        strength=retrieval.quadratic_ramp(strength, max(steps // 2, 1)), **options,
    )  # fmt: skip
    return nnx.merge(graph, run.params), run


def agreement(minilm: MiniLM, k: int = 30) -> dict[str, tuple[float, ...]]:
    """Mean rank correlation of an average of the teachers with each of them, dense and sparse.

    For each test query over the k passages that score highest by BM25.
    """
    found = {"normalised": [], "plain": []}
    for dense, sparse in zip(minilm.dense, minilm.sparse):
        at = np.argsort(-sparse, kind="stable")[:k]
        a, b = dense[at], sparse[at]
        means = {"normalised": np.asarray(retrieval.ensemble_scores([a[None], b[None]]))[0],
                 "plain": a + b}  # fmt: skip
        for name, mean in means.items():
            found[name].append([stats.spearmanr(mean, teacher)[0] for teacher in (a, b)])
    return {name: tuple(map(float, np.mean(each, 0))) for name, each in found.items()}


def minilm_rows(minilm: MiniLM, steps: int) -> tuple[list[list[str]], dict]:
    task, rows, found = minilm.task, [], {}
    for name, scores in (("BM25", minilm.sparse), ("MiniLM, sentence vectors", minilm.dense)):
        hits = np.argsort(-scores, axis=1, kind="stable")[:, :10]
        metrics = (retrieval.ndcg, retrieval.reciprocal_rank, retrieval.recall)
        means = [f"{float(metric(hits, task.relevant).mean()):.3f}" for metric in metrics]
        rows.append([name, *means, "", ""])
    rows[0] = row_of("BM25", quality(task, bm25(task), task.idf, SPECIAL))

    def add(name, model):
        vectors = embedded(model, task.documents, task.mask)
        found[name] = quality(task, vectors, task.idf, SPECIAL)
        rows.append(row_of(name, found[name]))
        cut = np.asarray(retrieval.prune_vectors(vectors, 0.1))
        found[f"{name}, pruned"] = quality(task, cut, task.idf, SPECIAL)
        rows.append(row_of(f"{name}, without weights up to 0.1 of the largest",
                           found[f"{name}, pruned"]))  # fmt: skip

    add("before training", minilm.encoder)
    for distilled in (False, True):
        for strength in (0.02, 0.2):
            model, _ = minilm_trained(minilm, distilled, steps, strength)
            add(f"{'ensemble' if distilled else 'InfoNCE'}, strength {strength:g}", model)
    return rows, found


def toy_claims(found) -> list[list]:
    claims = []
    for strength in (1.0, 3.0):
        weighted, uniform = (found[strength, w]["NDCG@10"] for w in (True, False))
        claims += [
            [f"NDCG@10 at strength {strength:g}, IDF (goal at least 0.4)", f"{weighted:.3f}",
             weighted >= 0.4],
            ["the same, uniform (goal at most 0.2)", f"{uniform:.3f}", uniform <= 0.2],
        ]  # fmt: skip
    same, difference = exact(toy_task())
    claims.append(["ranking of the index is that of all products (goal yes)",
                   f"{'yes' if same else 'no'}, scores within {difference:.1g}",
                   same and difference < 1e-5])  # fmt: skip
    return claims


def minilm_claims(minilm: MiniLM, found) -> list[list]:
    pair = "{:.2f} and {:.2f}".format
    shares = agreement(minilm)
    apart = abs(float(np.diff(shares["normalised"])[0])) < abs(float(np.diff(shares["plain"])[0]))
    before, after = (
        found[name]["NDCG@10"] for name in ("before training", "InfoNCE, strength 0.02")
    )
    return [
        ["rank correlation of the ensemble with its dense and its sparse teacher",
         pair(*shares["normalised"]), bool(apart)],
        ["the same without normalisation (goal: further apart)", pair(*shares["plain"]),
         bool(apart)],
        ["NDCG@10 of MiniLM before and after training (goal: a gain)",
         f"{before:.3f} and {after:.3f}", after > before],
    ]  # fmt: skip


def main(quick: bool = False) -> None:
    seeds, strengths = (1, (1.0, 3.0)) if quick else (3, (0.01, 0.1, 0.3, 1.0, 3.0))
    found = toy([(s, w) for s in strengths for w in (False, True)], seeds)
    columns = ["encoder", *COLUMNS]
    tables = [table_of(f"a small network, seeds: {seeds}", columns, toy_rows(found),
                       "Compare quality at equal FLOPS, not at equal strength: the table makes the "
                       "penalty milder.")]  # fmt: skip
    claims = toy_claims(found)
    if not quick:
        minilm = minilm_task()
        rows, trained = minilm_rows(minilm, MINILM_STEPS)
        tables.append(
            table_of(f"MiniLM, {MINILM_STEPS} steps of 8 queries, one seed", columns, rows)
        )
        claims += minilm_claims(minilm, trained)
    save("retrieval", *tables, table_of("claims", ["claim", "measured"], claims), quick=quick,
         seed=range(seeds))  # fmt: skip
