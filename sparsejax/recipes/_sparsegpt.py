"""SparseGPT: pruning a layer and moving the rest of its weights to make up for it."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PyTree

from .._topk import nm_mask, topk_mask
from .._tree import map_named, named_leaves
from ..masks import Plan, PlannedLeaf
from ..masks._plan import check_plan
from ..masks._wanda import _map_planned
from ..patterns import NM, FanIn, Pattern, Unstructured
from ..patterns._layout import MatrixView


def sparsegpt(
    params: PyTree,
    inputs: PyTree,
    plan: Plan,
    *,
    block: int = 128,
    damping: float = 0.01,
) -> tuple[PyTree, PyTree]:
    r"""Prunes each layer and moves what stays so that its outputs change least: SparseGPT.

    With `H = X^T X + damping mean(diag) I` and U the upper Cholesky factor of its inverse, inputs
    are visited in order: what is pruned of row i leaves the error `e = w_i / U_ii`, and the rows
    after it move by `-U_ij e`. Of each block of inputs the `floor(size * sparsity)` entries of
    least `w^2 / U_ii^2` go when it is reached (groups of N:M likewise); block, channel and group
    patterns are selected before the first.

    Args:
      params: A tree of arrays.
      inputs: The Gram matrix `X^T X (K, K)` of the inputs of each planned leaf, by path: from
        `sj.nn.input_grams(model, batches)`.
      plan: What is to be pruned.
      block: How many inputs are selected together.
      damping: What is added to the diagonal, relative to its mean.

    Returns:
      The parameters, with exact zeros, and the tree of masks.

    Raises:
      ValueError: If a planned leaf has no Gram matrix or one of another size or (outside of jit)
        one that is not positive definite, a leaf is stacked, `block` is less than 1, or the leaves
        are selected together.

    Reference:
      Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in
      One-Shot, 2023 (arXiv 2301.00774).

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> w, x = jax.random.normal(jax.random.key(0), (8, 4)), jnp.tri(32, 8)
      >>> plan = sj.plan({"kernel": w}, sj.NM(2, 4))
      >>> pruned, masks = sj.recipes.sparsegpt({"kernel": w}, {"kernel": x.T @ x}, plan)
      >>> one_shot = sj.masks.apply_masks({"kernel": w}, plan.masks({"kernel": abs(w)}))
      >>> error = lambda tree: float(jnp.linalg.norm(x @ (tree["kernel"] - w)))
      >>> int(masks["kernel"].sum()), error(pruned) < error(one_shot)
      (16, True)
    """
    check_plan("sparsegpt", plan, "the order is sj.recipes.sparsegpt(params, grams, plan)")
    if plan.together:
        raise ValueError(
            "sparsegpt prunes layer by layer: plan without allocate=sj.masks.global_, or with "
            "sj.masks.from_scores for the ratios of a global selection."
        )

    if block < 1:
        raise ValueError(f"sparsegpt(block={block}) must select at least 1 input at a time.")

    def prune(leaf, w, given, view):
        if given.ndim != 2:
            raise ValueError(f"sparsegpt: {leaf.name} needs a Gram matrix, got {given.shape}.")
        wide = jnp.promote_types(w.dtype, jnp.float32)
        matrix, gram = view.to_matrix(w).astype(wide), given.astype(wide)
        upper, dead = _upper_factor(gram, damping)
        if not isinstance(upper, Tracer) and not bool(jnp.isfinite(upper).all()):
            raise ValueError(
                f"sparsegpt: the Gram matrix of {leaf.name} {given.shape} is not positive definite "
                f"with damping={damping}; give finite inputs, or more damping: damping=0.1."
            )
        matrix = jnp.where(dead[:, None], 0, matrix)
        chosen, mask = _chooser(leaf, matrix, upper, view, block)
        pruned, mask = _reconstruct(matrix, upper, mask, chosen, block)
        return view.from_matrix(pruned).astype(w.dtype), view.from_matrix(mask)

    both = _map_planned("sparsegpt", prune, params, inputs, plan)
    pick = lambda i: jax.tree.map(lambda x: x[i], both, is_leaf=lambda x: isinstance(x, tuple))  # noqa: E731
    new = named_leaves(pick(0))
    return map_named(lambda name, w: new.get(name, w), params), pick(1)


def _upper_factor(
    gram: Float[Array, "k k"], damping: float
) -> tuple[Float[Array, "k k"], Bool[Array, " k"]]:
    """The upper Cholesky factor of the inverse, and which inputs are always 0."""
    diagonal = jnp.diagonal(gram)
    dead = diagonal == 0
    diagonal = jnp.where(dead, 1, diagonal)
    ridge = jnp.where(dead, 1 - jnp.diagonal(gram), 0) + damping * jnp.mean(diagonal)
    hessian = gram + jnp.diag(ridge)
    identity = jnp.eye(gram.shape[0], dtype=gram.dtype)
    factor = jax.scipy.linalg.cho_factor(hessian, lower=True)
    inverse = jax.scipy.linalg.cho_solve(factor, identity)
    return jnp.linalg.cholesky((inverse + inverse.T) / 2).T, dead


def _chooser(leaf: PlannedLeaf, matrix, upper, view: MatrixView, block: int) -> tuple[Any, Any]:
    """How rows are selected when they are reached, and the mask if it is known before."""
    pattern: Pattern = leaf.pattern
    if isinstance(pattern, NM):
        return ("nm", pattern.n, pattern.m), jnp.ones(matrix.shape, bool)
    if isinstance(pattern, Unstructured | FanIn):
        kind = "fan_in" if isinstance(pattern, FanIn) else "any"
        allocated = leaf.zeros != pattern.zeros(leaf.shape)
        sparsity = leaf.sparsity if allocated else pattern.sparsity
        return (kind, sparsity, None), jnp.ones(matrix.shape, bool)
    scores = view.from_matrix((matrix / jnp.diagonal(upper)[:, None]) ** 2)
    return None, view.to_matrix(pattern.select(scores, leaf.zeros))


@partial(jax.jit, static_argnames=("chosen", "block"))
def _reconstruct(matrix, upper, mask, chosen, block):
    """The pruned matrix and its mask. Rows are padded to whole blocks of dead inputs."""
    rows, columns = matrix.shape
    if chosen is not None and chosen[0] == "nm":
        block = math.lcm(min(block, rows), chosen[2])
    block = min(block, rows)
    pad = -rows % block
    matrix = jnp.pad(matrix, ((0, pad), (0, 0)))
    mask = jnp.pad(mask, ((0, pad), (0, 0)), constant_values=True)
    upper = jnp.pad(upper, (0, pad)) + jnp.diag(jnp.arange(rows + pad) >= rows)

    def one_block(i, state):
        matrix, mask = state
        start = i * block
        take = partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=block)
        inner = take(take(upper), axis=1)
        kept = _select(chosen, take(matrix), take(mask), inner, start + block > rows, block - pad)
        part, kept, errors = _sweep(chosen, take(matrix), kept, inner)
        later = jnp.arange(rows + pad) >= start + block
        moved = matrix - jnp.where(later[:, None], take(upper).T @ errors, 0)
        moved = lax.dynamic_update_slice_in_dim(moved, part, start, 0)
        return moved, lax.dynamic_update_slice_in_dim(mask, kept, start, 0)

    blocks = (rows + pad) // block
    matrix, mask = lax.fori_loop(0, blocks, one_block, (matrix, mask))
    return jnp.where(mask, matrix, 0)[:rows], mask[:rows]


def _select(chosen, part, mask, inner, last, left):
    """The mask of a block of rows, `floor(size * sparsity)` of which are zeroed.

    The last block has `left` rows that are not padding.
    """
    if chosen is None or chosen[0] == "nm":
        return mask
    kind, sparsity, _ = chosen
    rows, columns = part.shape
    padded = last & (jnp.arange(rows)[:, None] >= left)
    scores = jnp.where(padded, jnp.inf, (part / jnp.diagonal(inner)[:, None]) ** 2)
    each = columns if kind == "any" else 1

    def kept(real):
        return rows * each - math.floor(real * each * sparsity + 1e-9)

    count = jnp.where(last, kept(left), kept(rows))
    if kind == "any":
        return topk_mask(scores, count)
    return jax.vmap(topk_mask, (1, None), 1)(scores, count)


def _sweep(chosen, part, mask, inner):
    """Row by row: zero what is pruned and spread its error over the rows below."""

    def row(j, state):
        part, mask, errors = state
        if chosen is not None and chosen[0] == "nm":
            mask = lax.cond(
                j % chosen[2] == 0, partial(_group, chosen, j, inner), _same, part, mask
            )
        w = part[j]
        error = jnp.where(mask[j], 0, w) / inner[j, j]
        part = part - inner[j][:, None] * error
        return part, mask, errors.at[j].set(error)

    return lax.fori_loop(0, part.shape[0], row, (part, mask, jnp.zeros_like(part)))


def _group(chosen, j, inner, part, mask):
    _, n, m = chosen
    group = lax.dynamic_slice_in_dim(part, j, m)
    scores = (group / lax.dynamic_slice_in_dim(jnp.diagonal(inner), j, m)[:, None]) ** 2
    return lax.dynamic_update_slice_in_dim(mask, nm_mask(scores, n, m), j, 0)


def _same(part, mask):
    del part
    return mask
