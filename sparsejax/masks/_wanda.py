"""Pruning a layer by what goes into it: Wanda's scores and SparseGPT's reconstruction."""

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._arguments import is_infinite_in
from .._tree import map_named, named_leaves
from ..patterns._layout import MatrixView, matrix_view
from ._plan import Plan, PlannedLeaf, check_plan


def wanda(params: PyTree, inputs: PyTree, plan: Plan) -> PyTree:
    r"""Weights times the norms of their inputs, `|W_ij| ||X_i||`: the score of Wanda.

    The paper compares the inputs of each output: plan with `sj.patterns.FanIn(0.5, rounding="down")`
    or `sj.NM(2, 4)`. Then `plan.masks(sj.masks.wanda(params, inputs, plan))`.

    Args:
      params: A tree of arrays.
      inputs: For each planned leaf the norms `(K,)` of its K inputs over all tokens, or their Gram
        matrix `X^T X (K, K)`, by path: from `sj.nn.input_grams(model, batches)`.
      plan: What is to be pruned; its patterns say which axes are contracted.

    Returns:
      The tree of scores; None for leaves that are not planned.

    Raises:
      ValueError: If a planned leaf has no inputs, or of another number than it contracts, or
        (outside of jit) ones that are not finite.

    Reference:
      Sun et al., A Simple and Effective Pruning Approach for Large Language Models, 2023
      (arXiv 2306.11695).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"kernel": jnp.array([[1.0], [2.0]])}
      >>> plan = sj.plan(params, sj.patterns.FanIn(0.5))
      >>> scores = sj.masks.wanda(params, {"kernel": jnp.array([3.0, 1.0])}, plan)
      >>> scores["kernel"].ravel().tolist(), plan.masks(scores)["kernel"].ravel().tolist()
      ([3.0, 2.0], [True, False])
    """
    check_plan("wanda", plan, "the order is sj.masks.wanda(params, grams, plan)")

    def score(leaf, w, given, view):
        norms = given if given.ndim == 1 else jnp.sqrt(jnp.diagonal(given))
        if is_infinite_in(norms) or is_infinite_in(given):
            raise ValueError(
                f"wanda: the inputs of {leaf.name} {given.shape} have norms that are not finite; "
                "give finite inputs: sj.nn.input_grams(model, batches) of batches without NaN."
            )
        return view.from_matrix(jnp.abs(view.to_matrix(w)) * norms[:, None])

    return _map_planned("wanda", score, params, inputs, plan)


def _map_planned(what: str, f, params: PyTree, inputs: PyTree, plan: Plan) -> PyTree:
    """`f(leaf, weights, inputs, view)` of each planned leaf, None for the others."""
    given, planned = named_leaves(inputs), {leaf.name: leaf for leaf in plan.leaves}

    def one(name: str, w: Float[Array, "..."]):
        if name not in planned:
            return None
        view = _view(planned[name])
        if view.stacked:
            raise ValueError(f"{what}: {name} {w.shape} is stacked; use jax.vmap over its slices.")
        found, wanted = given.get(name), view.matrix_shape[-2]
        if found is None or found.shape not in ((wanted,), (wanted, wanted)):
            got = "nothing" if found is None else f"shape {found.shape}"
            raise ValueError(
                f"{what}: {name} {w.shape} contracts {wanted} inputs and was given {got}; pass "
                "the Gram matrices of sj.nn.input_grams(model, batches), or without NNX a dict of "
                "them by path."
            )
        return f(planned[name], w, found, view)

    return map_named(one, params)


def _view(leaf: PlannedLeaf) -> MatrixView:
    axis = getattr(leaf.pattern, "axis", None)
    # The axis of channels counts them; it does not say what is contracted.
    axis = None if type(leaf.pattern).__name__ == "Channel" else axis
    return matrix_view(leaf.shape, axis, leaf.pattern.stacked)
