"""Pruning by weights and inputs: the score of Wanda."""

import jax.numpy as jnp
from jaxtyping import PyTree

from .._arguments import checked, is_infinite_in
from .._arrays import wide_dtype
from ._plan import Plan


@checked()
def wanda(params: PyTree, inputs: PyTree, plan: Plan) -> PyTree:
    r"""Weights times the norms of their inputs, `|W_ij| ||X_i||`: the score of Wanda.

    The paper compares the inputs of each output: plan with `sj.NM(2, 4)` or
    `sj.patterns.FanIn(0.5, rounding="down")`. Then
    `plan.masks(sj.masks.wanda(params, inputs, plan))`.

    Args:
      params: A tree of arrays.
      inputs: For each planned leaf the norms `(K,)` of its K inputs over all tokens, or their Gram
        matrix `X^T X (K, K)`, by path: from `sj.nn.input_grams(model, batches)`.
      plan: The leaves to prune; its patterns determine the contracted axes.

    Returns:
      The tree of scores; None for leaves that are not planned.

    Raises:
      ValueError: If a planned leaf has no inputs, a different number of inputs than it contracts,
        or (outside of jit) non-finite ones.

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
    Plan.require("wanda", plan, "the order is sj.masks.wanda(params, grams, plan)")

    def score(leaf, w, given):
        norms = given if given.ndim == 1 else jnp.sqrt(jnp.diagonal(given))
        if is_infinite_in(norms) or is_infinite_in(given):
            raise ValueError(
                f"wanda: the inputs of {leaf.name} {given.shape} have norms that are not finite; "
                "pass finite inputs: sj.nn.input_grams(model, batches) of batches without NaN."
            )
        size, wide = jnp.abs(leaf.layout.to_matrix(w)), wide_dtype(w, norms)
        return leaf.layout.from_matrix(size.astype(wide) * norms[:, None].astype(wide))

    return plan.map_inputs("wanda", score, params, inputs)
