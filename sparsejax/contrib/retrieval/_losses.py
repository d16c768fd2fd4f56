"""Candidates of queries, scores of an ensemble of teachers, and ranking losses."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..._arguments import checked
from ..._arrays import wide_dtype

Candidates = Literal["own", "negatives", "all"]


@checked()
def candidate_scores(
    scores: Float[Array | np.ndarray, "batch batch slots"], candidates: Candidates = "all"
) -> Float[Array, "batch m"]:
    """The scores of the documents that a query is compared with, its positive one first.

    Args:
      scores: Scores of each query with the documents of each query of a batch; the positive
        document is in slot 0, negative ones in the others.
      candidates: "own" for the documents of the query, "negatives" for these and the negative
        documents of the other queries, "all" for all documents of the batch.

    Returns:
      One row for each query, its own documents first, then those of the queries that follow.

    Raises:
      ValueError: If a query would have one candidate only.

    Reference:
      Geng et al., 2024 (arXiv 2411.04403), whose released code takes "negatives" for `info_nce`.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import retrieval
      >>> scores = jnp.arange(8.0).reshape(2, 2, 2)
      >>> retrieval.candidate_scores(scores, "negatives").tolist()
      [[0.0, 1.0, 3.0], [6.0, 7.0, 5.0]]
    """
    scores = jnp.asarray(scores)
    batch, _, slots = scores.shape
    first = {"own": slots, "negatives": 1, "all": 0}[candidates]
    if not batch or slots + (batch - 1) * (slots - first) < 2:
        raise ValueError(
            f"candidate_scores: scores of shape {scores.shape} with candidates={candidates!r} give "
            'a query fewer than two candidates; add negative documents, or take candidates="all".'
        )
    own_first = (jnp.arange(batch)[:, None] + jnp.arange(batch)) % batch
    ordered = jnp.take_along_axis(scores, own_first[..., None], axis=1)
    others = ordered[:, 1:, first:].reshape(batch, -1)
    return jnp.concatenate([ordered[:, 0], others], axis=1)


@checked(scale="(0, inf)")
def ensemble_scores(
    scores: Sequence[ArrayLike], scale: ArrayLike = 30.0
) -> Float[Array, "batch m"]:
    r"""Scores of an ensemble of teachers that all count alike, whatever their units.

    `scale mean_T (S - min S) / (max S - min S + 1e-6)`, with minimum and maximum over the
    candidates of a query.

    Args:
      scores: For each teacher its scores of the candidates, the same as those of the student.
      scale: Range of the result, in units of the logits of the student.

    Returns:
      Scores in [0, scale], without gradients; 0 from a teacher whose scores are all equal.

    Raises:
      ValueError: If there is no teacher, there are no candidates, or shapes differ.

    Reference:
      Geng et al., 2024 (arXiv 2411.04403).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import retrieval
      >>> dense, sparse = jnp.array([[0.1, 0.3, 0.2]]), jnp.array([[0.0, 20.0, 40.0]])
      >>> retrieval.ensemble_scores([dense, sparse], 1.0).round(2).tolist()
      [[0.0, 0.75, 0.75]]
    """
    if not len(scores):
        raise ValueError("ensemble_scores: scores must hold those of at least one teacher.")
    shapes = {jnp.shape(s) for s in scores}
    if len(shapes) > 1 or jnp.ndim(scores[0]) != 2 or not jnp.shape(scores[0])[-1]:
        raise ValueError(
            "ensemble_scores: scores must be arrays (batch, candidates) of one shape, got "
            f"{sorted(shapes)}."
        )
    return jnp.mean(jnp.stack([_unit_range(s) for s in scores]), axis=0) * jnp.asarray(scale)


def _unit_range(scores: ArrayLike) -> Array:
    s = jax.lax.stop_gradient(jnp.asarray(scores))
    s = s.astype(wide_dtype(s))
    low = jnp.min(s, axis=-1, keepdims=True)
    return (s - low) / (jnp.max(s, axis=-1, keepdims=True) - low + 1e-6)


@checked(temperature="(0, inf)")
def kl_distill(
    scores: Float[Array | np.ndarray, "batch m"],
    teacher: Float[Array | np.ndarray, "batch m"],
    temperature: ArrayLike = 1.0,
) -> Float[Array, ""]:
    r"""Distillation of a ranking: `mean_B sum_M p_T (ln p_T - ln p_S)`, `p = softmax(s / tau)`.

    Args:
      scores: Scores of the student; -inf for documents that are left out.
      teacher: Scores of the teacher for the same candidates; no gradient flows into them.
      temperature: tau, in units of the scores.

    Returns:
      A scalar >= 0, in nats; infinite where the teacher does not leave out what the student does.

    Raises:
      ValueError: If there are no candidates or the shapes differ.

    Reference:
      Geng et al., 2024 (arXiv 2411.04403).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import retrieval
      >>> round(float(retrieval.kl_distill(jnp.zeros((1, 2)), jnp.array([[0.0, 50.0]]))), 4)
      0.6931
    """
    _check_candidates("kl_distill", scores)
    wide = wide_dtype(scores, teacher)
    student, target = (
        jax.nn.log_softmax(jnp.asarray(s).astype(wide) / temperature) for s in (scores, teacher)
    )
    target = jax.lax.stop_gradient(target)
    never = jnp.exp(target) == 0  # 0 ln 0 = 0; a score of -inf leaves its document out
    target, student = (jnp.where(never, 0, s) for s in (target, student))
    return jnp.mean(optax.losses.kl_divergence_with_log_targets(student, target))


@checked()
def info_nce(scores: Float[Array | np.ndarray, "batch m"]) -> Float[Array, ""]:
    r"""The contrastive loss of the positive document, `mean_B (ln sum_M exp(s) - s_0)`.

    Args:
      scores: Scores of the candidates, the positive document first, as of `candidate_scores`.

    Returns:
      A scalar >= 0, in nats.

    Raises:
      ValueError: If there are no candidates.

    Reference:
      van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018 (arXiv
      1807.03748).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import retrieval
      >>> round(float(retrieval.info_nce(jnp.zeros((1, 2)))), 4)
      0.6931
    """
    _check_candidates("info_nce", scores)
    s = jnp.asarray(scores)
    s = s.astype(wide_dtype(s))
    first = jnp.zeros(len(s), jnp.int32)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(s, first))


@checked()
def margin_mse(
    scores: Float[Array | np.ndarray, "batch m"], teacher: Float[Array | np.ndarray, "batch m"]
) -> Float[Array, ""]:
    r"""The mean squared error of margins, `mean ((s_0 - s_j) - (t_0 - t_j))^2` over j >= 1.

    Args:
      scores: Scores of the student, the positive document first.
      teacher: Scores of the teacher for the same candidates; no gradient flows into them.

    Returns:
      A scalar, in the squared unit of the scores.

    Raises:
      ValueError: If there is no negative document or the shapes differ.

    Reference:
      Hofstaetter et al., Improving Efficient Neural Ranking Models with Cross-Architecture
      Knowledge Distillation, 2020 (arXiv 2010.02666).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import retrieval
      >>> float(retrieval.margin_mse(jnp.array([[3.0, 1.0]]), jnp.array([[1.0, 0.0]])))
      1.0
    """
    _check_candidates("margin_mse", scores, 2)
    wide = wide_dtype(scores, teacher)
    error = jnp.asarray(scores).astype(wide) - jax.lax.stop_gradient(jnp.asarray(teacher))
    return jnp.mean((error[:, :1] - error[:, 1:]) ** 2)


def _check_candidates(caller: str, scores: Array | np.ndarray, least: int = 1) -> None:
    if not scores.shape[0] or scores.shape[1] < least:
        raise ValueError(
            f"{caller}: scores must hold queries with at least {least} candidates, got shape "
            f"{scores.shape}."
        )
