"""Training of a document encoder for queries without inference."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from ..._arguments import check_callable, check_params, checked, rows_of
from ..._minibatches import minibatches
from ..._progress import check_loop, run_chunks, structure
from ..._steady import steady
from ...recipes import Progress
from ._flops import flops_loss
from ._losses import Candidates, candidate_scores, ensemble_scores
from ._query import idf_query
from ._tokens import check_tokens

Encode = Callable[[PyTree, Array, Array], Float[Array, "m vocabulary"]]
Teacher = Callable[["Pairs"], Float[Array, "b b slots"]]


class Pairs(NamedTuple):
    """Queries and their documents, the relevant one in slot 0 and negative ones in the others.

    Args:
      queries: Tokens of the queries, n rows.
      query_mask: True at tokens, False at padding.
      documents: Tokens of the documents of each query, (n, slots, length).
      document_mask: True at tokens, False at padding.
      extra: Arrays for the teachers with n rows, such as their vectors.
    """

    queries: Int[ArrayLike, "n query"]
    query_mask: Bool[ArrayLike, "n query"]
    documents: Int[ArrayLike, "n slots length"]
    document_mask: Bool[ArrayLike, "n slots length"]
    extra: PyTree = ()


class Retriever(NamedTuple):
    """A trained document encoder, and means over each chunk of steps.

    Args:
      params: Parameters of the encoder.
      losses: Ranking losses, without the penalty.
      penalties: FLOPS penalties, without their strength.
      active: Non-zeros of a document; where it falls to 0 the strength is too large.
    """

    params: PyTree
    losses: Float[Array, " chunks"]
    penalties: Float[Array, " chunks"]
    active: Float[Array, " chunks"]


class _Task(NamedTuple):
    """The functions of a run; static."""

    encode: Encode
    loss: Callable[..., Array]
    teachers: tuple[Teacher, ...]
    penalty: Callable[[Array], Array]
    candidates: Candidates
    special: tuple[int, ...]
    table: Callable[[PyTree], Array] | None


@checked(encode="encode(params, ids, mask)", penalty="penalty(w)", strength="[0, inf)",
         scale="(0, inf)", steps="[0, inf)", batch_size="[1, inf)", chunk="[1, inf)")  # fmt: skip
def train_retriever(
    params: PyTree,
    encode: Encode,
    loss: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    data: Pairs,
    idf: Float[ArrayLike, " vocabulary"] | Callable[[PyTree], Array],
    *,
    steps: int,
    key: Key[Array, ""],
    teachers: Sequence[Teacher] = (),
    candidates: Candidates = "all",
    strength: optax.ScalarOrSchedule = 0.002,
    penalty: Callable[[Array], Array] = flops_loss,
    scale: float = 30.0,
    special: Sequence[int] = (),
    batch_size: int = 32,
    chunk: int = 100,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> Retriever:
    r"""Trains an encoder of documents whose queries are looked up in a table.

    Minimises `loss(s, t) + strength F(w)` with scores `s = sum_j q_j w_j` of the queries of
    `idf_query` and the documents of the batch, `t = ensemble_scores(teachers)` for the same
    candidates, and the FLOPS penalty F. Since the table is in the scores and not in the penalty,
    rare tokens are spared ("IDF-aware").

    The paper: AdamW of rate 2e-5 and decay 0.01 with a warm-up and a linear decay, two documents a
    query, strength 0.002 with `kl_distill` and an ensemble or 0.05 with `info_nce`, each by
    `quadratic_ramp`. Compiled once for the same functions and shapes.

    Args:
      params: Parameters of the encoder.
      encode: Function `(params, ids, mask)` that returns weights >= 0 of m documents, such as the
        result of `splade_pool`.
      loss: Function of the scores `(batch, m)` and, if there are teachers, of theirs: `info_nce`,
        `kl_distill`, `margin_mse` or a sum of them.
      optimizer: An optax transformation.
      data: Queries with their documents, and arrays for the teachers.
      idf: Weights of the tokens, from `idf`; or a function of the parameters that returns them,
        which are trained too: `lambda params: params["idf"]`.
      steps: Number of steps.
      key: A key from `jax.random.key`, for the order of the queries.
      teachers: Functions of a batch, a `Pairs`, that return the scores of each query with all
        documents (batch, batch, slots); no gradient flows into them.
      candidates: Documents that a query is compared with, as for `candidate_scores`.
      strength: Strength of the penalty: a number, or a schedule such as `quadratic_ramp`.
      penalty: Function of the weights of the documents (batch, slots, vocabulary);
        `partial(flops_loss, threshold=150)` is the l0 variant.
      scale: Range of the scores of the ensemble.
      special: Tokens without weight in queries.
      batch_size: Queries per step; at most all of them.
      chunk: Number of steps between two calls of the callback.
      callback: Called with a `sj.recipes.Progress` after each chunk.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      `Retriever(params, losses, penalties, active)`.

    Raises:
      ValueError: If the data are empty or of unequal lengths, a token is not in the vocabulary, the
        encoder or a teacher returns another shape, or `resume` began with other arguments.
      TypeError: If a function cannot be called as described.

    Reference:
      Geng et al., Towards Competitive Search Relevance For Inference-Free Learned Sparse
      Retrievers, 2024 (arXiv 2411.04403).

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from sparsejax.contrib import retrieval
      >>> def encode(params, ids, mask):
      ...     return retrieval.splade_pool(params[ids], mask)
      >>> ids, mask = jnp.arange(8)[:, None], jnp.ones((8, 1), bool)
      >>> pairs = retrieval.Pairs(ids, mask, ids[:, None], mask[:, None])
      >>> found = retrieval.train_retriever(
      ...     jnp.ones((8, 8)), encode, retrieval.info_nce, optax.adam(0.1), pairs, jnp.ones(8),
      ...     steps=60, key=jax.random.key(0), strength=0.1)
      >>> index = retrieval.InvertedIndex.from_dense(encode(found.params, ids, mask))
      >>> index.search(retrieval.idf_query(ids, mask, jnp.ones(8)), k=1).documents.ravel().tolist()
      [0, 1, 2, 3, 4, 5, 6, 7]
    """
    check_params("train_retriever", params)
    check_callable("loss", loss, "scores", *["teacher"] * bool(len(teachers)))
    samples, special = rows_of("data", data), tuple(map(int, special))
    batch_size = min(int(batch_size), samples)
    learned = callable(idf)
    task = _Task(encode, loss, tuple(teachers), penalty, candidates, special,
                 idf if learned else None)  # fmt: skip
    table = None if learned else jnp.asarray(idf)
    _check_shapes(task, params, table, data, batch_size)
    strengths = _each_step(strength, steps)
    arguments = check_loop(
        "train_retriever", resume, callback, key=key, steps=steps, batch_size=batch_size,
        chunk=chunk, candidates=candidates, scale=scale, special=special,
        teachers=len(task.teachers),
        data={"params": params, "data": data, "idf": table, "strength": strengths,
              "optimizer": structure(optimizer, params)},
    )  # fmt: skip
    rows = minibatches(samples, batch_size, steps, key=key)
    data = jax.tree.map(jnp.asarray, data)

    def advance(held, first, last):
        carry, means = held
        inputs = rows[first:last], strengths[first:last]
        carry, now = _steps(task, optimizer, carry, data, table, jnp.float32(scale), inputs)
        return carry, (*means, now)

    begin = (params, steady(optimizer).init(params)), ()
    (params, _), means = run_chunks(
        "train_retriever", begin, advance, steps, arguments, chunk=chunk, callback=callback,
        resume=resume, progress=progress, inputs=(params, data, table, strengths),
        view=lambda held: held[0][0],
    )  # fmt: skip
    return Retriever(params, *jnp.asarray(means).reshape(-1, 3).T)


def _each_step(strength: Any, steps: int) -> Array:
    """The strength of each step: data, so that another schedule does not compile again."""
    values = jax.vmap(strength)(jnp.arange(steps)) if callable(strength) else strength
    return jnp.broadcast_to(jnp.asarray(values, jnp.float32), (steps,))


@partial(jax.jit, static_argnames=("task", "optimizer"))
def _steps(task: _Task, optimizer: Any, carry: Any, data: Pairs, table: Any, scale, inputs) -> Any:
    tx = steady(optimizer)

    def step(carry, inputs):
        params, state = carry
        row, strength = inputs
        batch = jax.tree.map(lambda x: x[row], data)

        def objective(params):
            ranking, penalty, active = _parts(task, params, batch, table, scale)
            return ranking + strength * penalty, jnp.stack([ranking, penalty, active])

        grads, numbers = jax.grad(objective, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), numbers

    carry, numbers = jax.lax.scan(step, carry, inputs)
    return carry, jnp.mean(numbers, axis=0)


def _parts(task: _Task, params: Any, batch: Pairs, table: Any, scale: Any) -> Any:
    """The ranking loss, the penalty and the mean number of non-zeros of a document."""
    table = table if task.table is None else task.table(params)
    w = _encoded(task, params, batch)
    q = idf_query(batch.queries, batch.query_mask, table, special=task.special)
    choose = partial(candidate_scores, candidates=task.candidates)
    scores = choose(jnp.einsum("iv,jgv->ijg", q, w))
    targets = [choose(jax.lax.stop_gradient(teacher(batch))) for teacher in task.teachers]
    ensemble = [ensemble_scores(targets, scale)] if targets else []
    return task.loss(scores, *ensemble), task.penalty(w), jnp.mean(jnp.sum(w != 0, axis=-1))


def _encoded(task: _Task, params: Any, batch: Pairs) -> Array:
    """Weights (batch, slots, vocabulary)."""
    shape = jnp.shape(batch.documents)
    flat = (jnp.reshape(x, (-1, shape[-1])) for x in (batch.documents, batch.document_mask))
    return task.encode(params, *flat).reshape(*shape[:2], -1)


def _check_shapes(task: _Task, params: Any, table: Any, data: Pairs, batch_size: int) -> None:
    """Raises for shapes and tokens that do not fit, before anything is compiled."""
    whole = jax.tree.map(jnp.asarray, data)
    _, slots, length = whole.documents.shape
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), whole)
    found = jax.eval_shape(lambda p: table if task.table is None else task.table(p), params)
    vocabulary = found.shape[0]
    for name in ("queries", "documents"):
        check_tokens("train_retriever", f"data.{name}", getattr(data, name), vocabulary)
    check_tokens("train_retriever", "special", task.special, vocabulary)
    flat = batch.documents.shape[0] * slots
    ids, mask = (jax.ShapeDtypeStruct((flat, length), x.dtype) for x in whole[2:4])
    encoded = jax.eval_shape(task.encode, params, ids, mask)
    if encoded.shape != (flat, vocabulary):
        raise ValueError(
            f"train_retriever: encode must return shape {(flat, vocabulary)} for {flat} documents "
            f"and the {vocabulary} tokens of idf, got {encoded.shape}."
        )
    for i, teacher in enumerate(task.teachers):
        scores, wanted = jax.eval_shape(teacher, batch), (batch_size, batch_size, slots)
        if scores.shape != wanted:
            raise ValueError(
                f"train_retriever: teachers[{i}] must return scores of shape {wanted}, got "
                f"{scores.shape}."
            )
