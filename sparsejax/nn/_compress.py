"""Compression of the kernels of models and parameter trees."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .._arguments import check_not_nan, checked
from .._masks import masks_by_name
from .._tree import map_named, named_leaves, pure
from ..formats import BitmaskArray, Matrix, compress_matrix
from ..masks import Plan, PlannedLeaf, magnitude
from ._frameworks import of_framework


@checked()
def compress(
    model: PyTree,
    plan: Plan,
    masks: PyTree | None = None,
    *,
    inference: bool = False,
    bitmask: bool = False,
) -> Any:
    r"""A copy of a model or tree of parameters whose planned kernels are compressed.

    An N:M leaf becomes an `NMArray`, a block-sparse one a `BlockArray`, of the matrix
    `(stacked..., K, N)` that the layer contracts. Leaves that have no compressed form (unstructured
    patterns, channels, groups, N:M that keeps nothing) remain dense arrays with zeros, or become a
    `BitmaskArray` if `bitmask`: less memory, and no faster.

    - A tree of parameters (plain dict, Linen, `nnx.State`) gets compressed leaves. Linen modules
      run with them inside `flax.linen.intercept_methods(sj.nn.linen_compressed)`.
    - An NNX module can be called and trained as before: kernels of `nnx.Linear`,
      `nnx.LinearGeneral` (hence of attention and recurrent cells) and `nnx.Einsum`, stacked by
      `nnx.vmap` or not, become a `SparseKernel` whose values are an `nnx.Param`. Planned leaves of
      other layers remain dense with zeros: convolutions, embeddings and kernels tied to them (tied
      kernels of linear layers stay tied), layers with batch axes or a custom `dot_general`, and
      patterns that do not run along the axes that the layer contracts.
      `sj.nn.linear_layer.register` adds custom layers.
    - An Equinox module can be called as before: the weights of `eqx.nn.Linear` are compressed.
    - In lists, dicts and other containers modules are compressed as alone.

    Args:
      model: An NNX module, an Equinox module or a tree of parameters; it is not changed.
      plan: The leaves to compress, from `sj.plan`.
      masks: Tree of masks such as `sj.get_masks(optimizer.opt_state)`; None keeps the largest
        magnitudes, which are the non-zero weights of a pruned model.
      inference: Whether to leave out what only gradients read: the lists by block row of a
        `BlockArray`. Its gradients then raise ValueError.
      bitmask: Whether kernels whose pattern has no compressed form become a `BitmaskArray`.

    Returns:
      A model of the same class or a tree, equal to the masked one up to rounding.

    Raises:
      ValueError: If a planned leaf has no mask or holds NaN, a mask does not fit its leaf or its
        pattern, or a kernel is already compressed.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
      >>> fast = sj.compress(model, sj.plan(model, sj.NM(2, 4)))
      >>> fast.kernel[...], fast(jnp.ones((3, 8))).shape
      (NMArray(2:4, shape=(8, 4), dtype=float32), (3, 4))
      >>> params = {"kernel": jnp.arange(16.0).reshape(8, 2), "bias": jnp.ones(2)}
      >>> small = sj.compress(params, sj.plan(params, sj.NM(2, 4)))
      >>> small["kernel"], small["kernel"].nbytes
      (NMArray(2:4, shape=(8, 2), dtype=float32), 36)
    """
    advice = "for given masks, sj.compress(model, plan, masks) with the plan of the masks"
    Plan.require("compress", plan, advice)
    _check(model, plan, masks)
    compressed = of_framework(compress_model, model)
    return compressed(model, plan, masks, Form(inference, bitmask))


def _check(model: PyTree, plan: Plan, masks: PyTree | None) -> None:
    """Raises if a planned leaf has no mask, or holds NaN, which a mask could hide."""
    names = [leaf.name for leaf in plan.leaves]
    given = names if masks is None else masks_by_name(masks, "compress")
    if missing := [name for name in names if name not in given]:
        raise ValueError(
            f"compress: {missing[0]} is planned and has no mask; the masks are of "
            f"{', '.join(given) or 'nothing'}. Pass those of this plan, such as "
            "sj.get_masks(opt_state), or none to keep the largest magnitudes."
        )
    leaves = named_leaves(pure(model))
    check_not_nan("compress", **{name: leaves[name] for name in names if name in leaves})


class Form(NamedTuple):
    """The form of compressed kernels, as for `compress`."""

    inference: bool
    bitmask: bool


@functools.singledispatch
def compress_model(model: Any, plan: Plan, masks: PyTree | None, form: Form) -> Any:
    """The compressed copy; other frameworks can be registered. Trees get compressed leaves."""
    tree = pure(model)
    if masks is None:
        masks = plan.masks(magnitude(tree))
    planned = {leaf.name: leaf for leaf in plan.leaves}

    def at(name, w, leaf, mask):
        del name
        return w if leaf is None or mask is None else compress_leaf(w, leaf, mask, form)

    return map_named(at, tree, planned, named_leaves(masks))


def compress_leaf(
    w: Float[Array, "..."], leaf: PlannedLeaf, mask: Bool[Array, "..."], form: Form
) -> Matrix | Float[Array, "..."]:
    """One leaf in the format of its pattern, or dense with zeros if it has none."""
    if tuple(w.shape) != tuple(mask.shape):
        raise ValueError(f"{leaf.name}: the mask has shape {mask.shape}, the leaf {w.shape}.")
    pattern = leaf.pattern.final
    try:
        array = None
        if leaf.layout.contraction:
            matrix, kept = leaf.layout.to_matrix(w), leaf.layout.to_matrix(mask)
            if pattern.follows_matrix(leaf.layout):
                array = compress_matrix(pattern, matrix, kept)
            if array is None and form.bitmask:
                array = BitmaskArray.fromdense(matrix, mask=kept)
    except ValueError as error:
        raise ValueError(f"{leaf.name} of shape {tuple(w.shape)}: {error}") from error
    if array is None:
        return jnp.where(mask, w, jnp.zeros((), w.dtype))
    return array.for_inference() if form.inference else array
