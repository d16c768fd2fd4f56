"""SparseGPT: prunes a layer and updates its remaining weights to compensate."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PyTree

from .._arguments import checked
from .._arrays import wide_dtype
from .._tree import map_named, named_leaves
from ..masks import Plan, PlannedLeaf
from ..patterns import Pattern


@checked()
def sparsegpt(
    params: PyTree,
    inputs: PyTree,
    plan: Plan,
    *,
    block: int = 128,
    damping: float = 0.01,
) -> tuple[PyTree, PyTree]:
    r"""SparseGPT: prunes each layer and updates the kept weights to minimise the output error.

    With `H = X^T X + damping mean(diag) I` and U the upper Cholesky factor of its inverse, inputs
    are processed in order: pruned entries of row i have the error `e = w_i / U_ii`, and the
    following rows are updated by `-U_ij e`. In each block of inputs the `floor(size * sparsity)`
    entries of least `w^2 / U_ii^2` are pruned when the block is reached (N:M groups likewise);
    block, channel and group patterns are selected before the first.

    Args:
      params: A tree of arrays.
      inputs: The Gram matrix `X^T X (K, K)` of the inputs of each planned leaf, by path: from
        `sj.nn.input_grams(model, batches)`.
      plan: The plan, from `sj.plan`.
      block: Number of inputs selected together.
      damping: Constant added to the diagonal, relative to its mean.

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
    Plan.require("sparsegpt", plan, "the order is sj.recipes.sparsegpt(params, grams, plan)")
    if plan.joint:
        raise ValueError(
            "sparsegpt prunes layer by layer: plan without allocate=sj.masks.joint, or with "
            "sj.masks.from_scores for the ratios of a global selection."
        )

    if block < 1:
        raise ValueError(f"sparsegpt(block={block}) must select at least 1 input at a time.")

    def prune(leaf, w, given):
        if given.ndim != 2:
            raise ValueError(f"sparsegpt: {leaf.name} needs a Gram matrix, got {given.shape}.")
        wide = wide_dtype(w)
        matrix, gram = leaf.layout.to_matrix(w).astype(wide), given.astype(wide)
        upper, dead = _upper_factor(gram, damping)
        if not isinstance(upper, Tracer) and not bool(jnp.isfinite(upper).all()):
            raise ValueError(
                f"sparsegpt: the Gram matrix of {leaf.name} {given.shape} is not positive definite "
                f"with damping={damping}; pass finite inputs, or more damping: damping=0.1."
            )
        matrix = jnp.where(dead[:, None], 0, matrix)
        rows, mask = _selection(leaf, matrix, upper)
        pruned, mask = _reconstruct(matrix, upper, mask, rows, block)
        return leaf.layout.from_matrix(pruned).astype(w.dtype), leaf.layout.from_matrix(mask)

    both = plan.map_inputs("sparsegpt", prune, params, inputs)
    pick = lambda i: jax.tree.map(lambda x: x[i], both, is_leaf=lambda x: isinstance(x, tuple))  # noqa: E731
    new = named_leaves(pick(0))
    return map_named(lambda name, w: new.get(name, w), params), pick(1)


def _upper_factor(
    gram: Float[Array, "k k"], damping: float
) -> tuple[Float[Array, "k k"], Bool[Array, " k"]]:
    """The upper Cholesky factor of the inverse, and the mask of inputs that are always 0."""
    diagonal = jnp.diagonal(gram)
    dead = diagonal == 0
    diagonal = jnp.where(dead, 1, diagonal)
    ridge = jnp.where(dead, 1 - jnp.diagonal(gram), 0) + damping * jnp.mean(diagonal)
    hessian = gram + jnp.diag(ridge)
    identity = jnp.eye(gram.shape[0], dtype=gram.dtype)
    factor = jax.scipy.linalg.cho_factor(hessian, lower=True)
    inverse = jax.scipy.linalg.cho_solve(factor, identity)
    return jnp.linalg.cholesky((inverse + inverse.T) / 2).T, dead


class _Rows(NamedTuple):
    """Row-by-row selection."""

    pattern: Pattern
    sparsity: float


def _selection(leaf: PlannedLeaf, matrix: Array, upper: Array) -> tuple[_Rows | None, Array]:
    """Row-by-row selection, or the mask of a pattern that needs all rows."""
    pattern = leaf.pattern.final
    if not pattern.follows_matrix(leaf.layout):
        raise ValueError(
            f"sparsegpt: {leaf.name} {leaf.shape} has padded groups of {pattern!r} at each "
            f"position of its window; choose an m that divides {leaf.layout.run}."
        )
    if pattern.rows_at_once is not None:
        allocated = leaf.zeros != pattern.zeros(leaf.layout)
        sparsity = leaf.sparsity if allocated else pattern.sparsity
        return _Rows(pattern, sparsity), jnp.ones(matrix.shape, bool)
    scores = leaf.layout.from_matrix((matrix / jnp.diagonal(upper)[:, None]) ** 2)
    return None, leaf.layout.to_matrix(pattern.select(scores, leaf.layout, leaf.zeros))


@partial(jax.jit, static_argnames=("rows", "block"))
def _reconstruct(matrix, upper, mask, rows: _Rows | None, block: int):
    """The pruned matrix and its mask. Rows are padded to whole blocks of dead inputs."""
    inputs = matrix.shape[0]
    group = (rows.pattern.rows_at_once if rows else 0) or 0
    block = min(block, inputs)
    block = math.lcm(block, group) if group else block
    block = min(block, -(-inputs // group) * group if group else inputs)
    pad = -inputs % block
    matrix = jnp.pad(matrix, ((0, pad), (0, 0)))
    mask = jnp.pad(mask, ((0, pad), (0, 0)), constant_values=True)
    upper = jnp.pad(upper, (0, pad))
    upper = upper + jnp.diag((jnp.arange(inputs + pad) >= inputs).astype(upper.dtype))

    def one_block(i, state):
        matrix, mask = state
        start = i * block
        take = partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=block)
        inner = take(take(upper), axis=1)
        kept = take(mask)
        if rows and not group:
            kept = _select(rows, take(matrix), inner, start + block > inputs, block - pad)
        part, kept, errors = _sweep(rows if group else None, take(matrix), kept, inner)
        later = jnp.arange(inputs + pad) >= start + block
        moved = matrix - jnp.where(later[:, None], take(upper).T @ errors, 0)
        moved = lax.dynamic_update_slice_in_dim(moved, part, start, 0)
        return moved, lax.dynamic_update_slice_in_dim(mask, kept, start, 0)

    blocks = (inputs + pad) // block
    matrix, mask = lax.fori_loop(0, blocks, one_block, (matrix, mask))
    return jnp.where(mask, matrix, 0)[:inputs], mask[:inputs]


def _select(rows: _Rows, part, inner, last, left: int):
    """The mask of a block of rows; the last block has `left` rows that are not padding."""
    padded = last & (jnp.arange(part.shape[0])[:, None] >= left)
    scores = jnp.where(padded, jnp.inf, (part / jnp.diagonal(inner)[:, None]) ** 2)
    select = partial(rows.pattern.select_rows, scores, rows.sparsity)
    if left == part.shape[0]:
        return select(left)
    return lax.cond(last, lambda: select(left), lambda: select(part.shape[0]))


def _sweep(rows: _Rows | None, part, mask, inner):
    """Row by row: zeroes pruned entries and propagates their error to the rows below."""

    def row(j, state):
        part, mask, errors = state
        if rows is not None:
            start = j % rows.pattern.rows_at_once == 0
            mask = lax.cond(start, partial(_group, rows, j, inner), lambda _, m: m, part, mask)
        w = part[j]
        error = jnp.where(mask[j], 0, w) / inner[j, j]
        part = part - jnp.outer(inner[j], error)
        return part, mask, errors.at[j].set(error)

    return lax.fori_loop(0, part.shape[0], row, (part, mask, jnp.zeros_like(part)))


def _group(rows: _Rows, j, inner, part, mask):
    """The mask with the group of rows that begins at j selected."""
    size: Any = rows.pattern.rows_at_once
    group = lax.dynamic_slice_in_dim(part, j, size)
    scores = (group / lax.dynamic_slice_in_dim(jnp.diagonal(inner), j, size)[:, None]) ** 2
    kept = rows.pattern.select_rows(scores, rows.sparsity, size)
    return lax.dynamic_update_slice_in_dim(mask, kept, j, 0)
