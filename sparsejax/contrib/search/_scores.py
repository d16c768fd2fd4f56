"""Masks learned by gradient descent on scores."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..._arguments import checked
from ..._arrays import wide_dtype
from ..._tree import map_named, named_leaves
from ...masks import Plan, plan as make_plan
from ...patterns import Pattern


@checked()
def score_mask(
    scores: Float[Array, "..."], pattern: Pattern, *, rounding: str = "down"
) -> Float[Array, "..."]:
    r"""The mask of the largest `|S|`, exactly 0 or 1, with a straight-through gradient.

    Forward `m = topk(|S|)`; backward `dL/dS = dL/dm * sign(S)` for all entries, kept or not. A
    score of exactly 0 has gradient 0. Of n entries `n - floor(sparsity n)` are kept, at least one
    below sparsity 1. Multiply the mask with the weights:
    `w * sj.contrib.search.score_mask(scores, sj.Unstructured(0.99))`.

    Args:
      scores: Scores of one leaf.
      pattern: Pattern of the mask.
      rounding: How the number of zeros is rounded, as for `sj.plan`: "down" as published, "nearest"
        or "up".

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
    tree = {"kernel": jax.lax.stop_gradient(jnp.abs(scores))}
    plan = make_plan(tree, {"kernel": pattern}, rounding=rounding)
    return _through(scores, plan.masks(tree)["kernel"])


@checked()
def scaled_scores(params: PyTree, plan: Plan) -> PyTree:
    r"""Initial scores, `sqrt(6 / fan_in) * w / max |w|`: their masks are magnitude pruning.

    Args:
      params: A tree of arrays.
      plan: The planned leaves; fan_in is the number of entries that each output contracts.

    Returns:
      A tree like `params`, in at least float32; None for leaves that are not planned.

    Raises:
      ValueError: If the contracted axes of a planned leaf are unknown.

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
    planned = {leaf.name: leaf.layout for leaf in plan.leaves}

    def scale(name, w):
        if name not in planned:
            return None
        layout = planned[name]
        fan_in = layout.matrix_shape[-2]
        w = w.astype(wide_dtype(w))
        inner = tuple(range(len(layout.stacked), w.ndim))
        largest = jnp.max(jnp.abs(w), axis=inner, keepdims=True)
        return math.sqrt(6 / max(fan_in, 1)) * w / jnp.where(largest > 0, largest, 1)

    return map_named(scale, params)


@checked()
def apply_scores(params: PyTree, scores: PyTree, plan: Plan) -> PyTree:
    r"""Masks the parameters by their scores, `w * score_mask(S)`, for use inside a loss.

    The gradient reaches the kept weights, `dL/dw = g m`, and all scores, `dL/dS = g w sign(S)`:
    differentiate with respect to the one that is trained.

    Args:
      params: A tree of arrays.
      scores: Scores of the planned leaves, by path, as from `scaled_scores`.
      plan: The patterns, without joint allocation.

    Returns:
      A tree like `params`, exactly 0 off the masks.

    Raises:
      ValueError: If a planned leaf has no scores, or the plan allocates jointly.

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
            got = "none" if s is None else f"scores of shape {jnp.shape(s)}"
            raise ValueError(
                f"apply_scores: {name} of shape {jnp.shape(w)} needs scores and has {got}; "
                "sj.contrib.search.scaled_scores(params, plan) makes them."
            )
        leaf = planned[name]
        kept = leaf.pattern.select(jax.lax.stop_gradient(jnp.abs(s)), leaf.layout, leaf.zeros)
        return w * _through(s, kept).astype(w.dtype)

    return map_named(see, params, by_name)


def _through(scores: Array, kept: Array) -> Array:
    """The mask as floats with gradient sign(S); the term that carries it is exactly 0."""
    fixed = jax.lax.stop_gradient(scores)
    return kept.astype(scores.dtype) + jnp.sign(fixed) * (scores - fixed)


def check_separate(plan: Plan) -> None:
    """Raises if the plan allocates jointly: the scale of learned scores differs between leaves."""
    if plan.joint:
        raise ValueError(
            "learned scores are compared within a leaf: plan without allocate=sj.masks.joint, or "
            "with sj.masks.erk."
        )
