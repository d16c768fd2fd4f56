"""Masks that are learned through scores of their own."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..._tree import map_named, named_leaves
from ...masks import Plan, topk
from ...patterns import Pattern
from ...patterns._layout import matrix_view


def score_mask(scores: Float[Array, "..."], pattern: Pattern) -> Float[Array, "..."]:
    r"""The mask of the largest `|S|`, exactly 0 or 1, whose gradient is that of `|S|`.

    Forward `m = topk(|S|)`; backward straight through, `dL/dS = dL/dm * sign(S)` for all entries,
    kept or not. A score that is exactly 0 does not move. Multiply it with weights:
    `w * sj.contrib.search.score_mask(scores, sj.Unstructured(0.99))`.

    Args:
      scores: Scores of one leaf.
      pattern: What the mask keeps to.

    Returns:
      An array of the dtype of the scores.

    Raises:
      ValueError: If the pattern does not fit the shape.

    Reference:
      Sehwag et al., HYDRA: Pruning Adversarially Robust Neural Networks, 2020 (arXiv 2002.10509);
      Mousavi et al., DASS, 2022 (arXiv 2207.06968).

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> from sparsejax.contrib import search
      >>> scores = jnp.array([3.0, -1.0, -4.0])
      >>> search.score_mask(scores, sj.Unstructured(0.34)).tolist()
      [1.0, 0.0, 1.0]
      >>> jax.grad(lambda s: search.score_mask(s, sj.Unstructured(0.34)).sum())(scores).tolist()
      [1.0, -1.0, -1.0]
    """
    return _through(scores, topk(jax.lax.stop_gradient(jnp.abs(scores)), pattern))


def scaled_scores(params: PyTree, plan: Plan) -> PyTree:
    r"""Scores to learn masks from, `sqrt(6 / fan_in) * w / max |w|`: at first magnitude pruning.

    Args:
      params: A tree of arrays.
      plan: Which leaves; fan_in is the number of entries that each output contracts.

    Returns:
      A tree like `params`, in at least float32; None for leaves that are not planned.

    Raises:
      ValueError: If a planned leaf does not say which axes it contracts.

    Reference:
      Sehwag et al., 2020 (arXiv 2002.10509).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from sparsejax.contrib import search
      >>> params = {"kernel": jnp.array([[2.0, -1.0]] * 6), "bias": jnp.ones(2)}
      >>> scores = search.scaled_scores(params, sj.plan(params, sj.Unstructured(0.5)))
      >>> scores["kernel"][0].tolist(), scores["bias"]
      ([1.0, -0.5], None)
    """
    planned = {leaf.name: leaf.pattern for leaf in plan.leaves}

    def scale(name, w):
        if name not in planned:
            return None
        axis, stacked = getattr(planned[name], "axis", None), planned[name].stacked
        view = matrix_view(w.shape, axis, stacked)
        w = w.astype(jnp.promote_types(w.dtype, jnp.float32))
        largest = jnp.max(jnp.abs(w), axis=tuple(range(stacked, w.ndim)), keepdims=True)
        fan_in = math.prod(w.shape[axis] for axis in view.contraction)
        return math.sqrt(6 / max(fan_in, 1)) * w / jnp.where(largest > 0, largest, 1)

    return map_named(scale, params)


def apply_scores(params: PyTree, scores: PyTree, plan: Plan) -> PyTree:
    r"""The parameters under the masks of their scores, `w * score_mask(S)`, for use inside a loss.

    The gradient reaches the weights that are kept, `dL/dw = g m`, and all scores,
    `dL/dS = g w sign(S)`: differentiate in the one that is trained.

    Args:
      params: A tree of arrays.
      scores: Scores of the planned leaves, by path, as from `scaled_scores`.
      plan: The patterns; leaves are not selected together.

    Returns:
      A tree like `params`, exactly 0 off the masks.

    Raises:
      ValueError: If a planned leaf has no scores, or the plan selects leaves together.

    Reference:
      Mousavi et al., 2022 (arXiv 2207.06968).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from sparsejax.contrib import search
      >>> params = {"kernel": jnp.array([[3.0], [2.0]])}
      >>> plan = sj.plan(params, sj.Unstructured(0.5))
      >>> scores = {"kernel": jnp.array([[0.1], [-0.2]])}
      >>> search.apply_scores(params, scores, plan)["kernel"].ravel().tolist()
      [0.0, 2.0]
    """
    check_separate(plan)
    by_name, planned = named_leaves(scores), {leaf.name: leaf for leaf in plan.leaves}

    def see(name, w, s):
        if name not in planned:
            return w
        if s is None or jnp.shape(s) != jnp.shape(w):
            got = "none" if s is None else f"some of shape {jnp.shape(s)}"
            raise ValueError(
                f"apply_scores: {name} of shape {jnp.shape(w)} needs scores and has {got}; "
                "sj.contrib.search.scaled_scores(params, plan) makes them."
            )
        leaf = planned[name]
        kept = leaf.pattern.select(jax.lax.stop_gradient(jnp.abs(s)), leaf.zeros)
        return w * _through(s, kept).astype(w.dtype)

    return map_named(see, params, by_name)


def _through(scores: Array, kept: Array) -> Array:
    """The mask as numbers, with the gradient sign(S), 0 at 0; what is added is exactly 0."""
    fixed = jax.lax.stop_gradient(scores)
    return kept.astype(scores.dtype) + jnp.sign(fixed) * (scores - fixed)


def check_separate(plan: Plan) -> None:
    """Raises if leaves compete: learned scores have another scale in each."""
    if plan.together:
        raise ValueError(
            "learned scores are compared within a leaf: plan without allocate=sj.masks.global_, or "
            "with sj.masks.erk."
        )
