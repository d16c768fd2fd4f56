"""Iterative masks: scores are recomputed in each round."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from .._arguments import checked, known
from .._masks import within
from ._apply import apply_masks
from ._plan import Plan


@checked(score="lambda p: sj.masks.synflow(p, network)", rounds="[1, inf)")
def iterative(
    score: Callable[[PyTree], PyTree], plan: Plan, params: PyTree, rounds: int = 100
) -> PyTree:
    r"""Iterative masks: prunes in rounds and recomputes the scores in each.

    With d the density of the plan, round r = 1..R keeps the fraction `d^(r / R)`, scored by
    `score(params masked by round r - 1)`; pruned entries stay pruned. With `synflow` this is
    SynFlow, with `saliency` iterative SNIP.

    Args:
      score: Maps masked parameters to scores, the largest of which are kept.
      plan: The leaves to prune, usually with `allocate=sj.masks.joint`.
      params: The parameters, which are not trained between rounds.
      rounds: R.

    Returns:
      The tree of masks.

    Raises:
      ValueError: If `rounds` is less than 1, or (outside of jit) scores of kept entries are NaN.
      TypeError: If `rounds` is not an integer.

    Reference:
      Tanaka et al., 2020 (arXiv 2006.05467); de Jorge et al., Progressive Skeletonization, 2020
      (arXiv 2006.09081).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"a": {"kernel": jnp.ones((4, 4))}, "b": {"kernel": jnp.ones((4, 4))}}
      >>> plan = sj.plan(params, sj.Unstructured(0.75), allocate=sj.masks.joint)
      >>> network = lambda p: jnp.ones(4) @ p["a"]["kernel"] @ p["b"]["kernel"]
      >>> masks = sj.masks.iterative(lambda p: sj.masks.synflow(p, network), plan, params)
      >>> sum(int(m["kernel"].sum()) for m in masks.values())
      8
    """
    density = 1 - plan.sparsity

    def one(r, state):
        masks, lost = state
        raw = score(apply_masks(params, masks))
        scores = jax.tree.map(within, raw, masks)
        kept = jnp.asarray(density, jnp.float32) ** ((r + 1) / rounds)
        fraction = jnp.where(r + 1 == rounds, 1.0, (1 - kept) / max(plan.sparsity, 1e-9))
        new = jax.tree.map(jnp.logical_and, plan.masks(scores, fraction), masks)
        undecided = lambda m, old, s: jnp.any(m & jnp.isnan(s)) & jnp.any(old & ~m)  # noqa: E731
        here = jax.tree.leaves(jax.tree.map(undecided, new, masks, raw))
        return new, lost | jnp.any(jnp.stack(here))

    masks, lost = lax.fori_loop(0, rounds, one, (plan.full_masks(params), jnp.array(False)))
    if known(lost) and lost:
        raise ValueError("iterative: score returned NaN for entries that would be kept.")
    return masks
