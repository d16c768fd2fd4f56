"""Selected entries of arrays as vectors, and gradients for these entries only."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int, PyTree

from ..._arguments import checked, named_masks
from ..._arrays import wide_dtype
from ..._sharding import on_host
from ..._tree import map_named, named_leaves

# `indices_of` returns sorted indices; an index equal to the size of the array is padding.
_SORTED: dict[str, Any] = {"unique_indices": True, "indices_are_sorted": True}


@checked()
def indices_of(masks: PyTree) -> PyTree:
    r"""The sorted flat indices of the selected entries, computed on the host.

    Args:
      masks: A tree of boolean arrays; None selects nothing.

    Returns:
      A tree of int32 vectors. Pass it to a jitted step as an argument: a closure would compile the
      indices into the program.

    Raises:
      ValueError: If an array has 2^31 entries or more.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import sara
      >>> sara.indices_of({"w": jnp.array([[True, False], [False, True]])})["w"].tolist()
      [0, 3]
    """

    named_masks("indices_of", masks)

    def one(name, mask):
        if mask.size >= 2**31:
            raise ValueError(
                f"indices_of: {name} must have fewer than 2^31 entries (int32), got {mask.size}."
            )
        return jnp.asarray(np.flatnonzero(on_host(mask)).astype(np.int32))

    return map_named(one, masks)


@checked()
def gather_values(params: PyTree, indices: PyTree) -> PyTree:
    r"""Gathers the selected entries as vectors in at least float32, for an optimizer to train.

    Args:
      params: A tree of arrays.
      indices: Flat indices by path, from `indices_of`; padding gives 0.

    Returns:
      A tree of vectors; None for leaves without indices.

    Raises:
      ValueError: If `indices` has a leaf that `params` does not have.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import sara
      >>> sara.gather_values({"w": jnp.arange(4.0)}, {"w": jnp.array([1, 3])})["w"].tolist()
      [1.0, 3.0]
    """

    def one(name, w, at):
        del name
        if at is None:
            return None
        wide = wide_dtype(w)
        return w.reshape(-1).at[at].get(mode="fill", fill_value=0).astype(wide)

    return map_named(one, params, _by_name("gather_values", params, indices))


@checked()
def write_back(params: PyTree, values: PyTree, indices: PyTree) -> PyTree:
    r"""Writes the values at the indices into the parameters, in place if they are donated.

    Args:
      params: A tree of arrays.
      values: Vectors by path, from `gather_values`; rounded to the dtype of the leaf.
      indices: Flat indices by path; padding is dropped.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: If `indices` has a leaf that `params` does not have.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import sara
      >>> at = {"w": jnp.array([1, 3])}
      >>> sara.write_back({"w": jnp.zeros(4)}, {"w": jnp.ones(2)}, at)["w"].tolist()
      [0.0, 1.0, 0.0, 1.0]
    """

    def one(name, w, v, at):
        del name
        if at is None or v is None:
            return w
        return w.reshape(-1).at[at].set(v.astype(w.dtype), mode="drop", **_SORTED).reshape(w.shape)

    at = _by_name("write_back", params, indices)
    return map_named(one, params, _values("write_back", values, at), at)


@checked()
def select_gradients(params: PyTree, values: PyTree, indices: PyTree) -> PyTree:
    r"""Returns the parameters unchanged, with gradients for the selected values only.

    Unstructured backpropagation: the forward pass copies nothing, since the parameters already hold
    the values (call `write_back` after each step); the backward pass gathers from each dense
    gradient and frees it. `write_back` inside the loss would instead keep a second copy of the
    network from the forward to the backward pass. Derivatives of every order and mode are those of
    `write_back`. `jax.lax.scan` over stacked layers stacks its residuals, a copy of all weights,
    unless the layer is wrapped in
    `jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False)`.

    Args:
      params: A tree of arrays that hold `values` at `indices`.
      values: Vectors by path, with respect to which the loss is differentiated.
      indices: Flat indices by path.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: If `indices` has a leaf that `params` does not have.

    Reference:
      Hu et al., SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank
      Adaptation, 2024 (arXiv 2409.06633).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import sara
      >>> params, at = {"w": jnp.arange(4.0)}, {"w": jnp.array([1, 3])}
      >>> loss = lambda v: jnp.sum(sara.select_gradients(params, v, at)["w"] ** 2)
      >>> jax.grad(loss)(sara.gather_values(params, at))["w"].tolist()
      [2.0, 6.0]
    """

    def one(name, w, v, at):
        del name
        return w if at is None or v is None else _tap(w, v, at)

    at = _by_name("select_gradients", params, indices)
    return map_named(one, params, _values("select_gradients", values, at), at)


@jax.custom_jvp
def _tap(w: Float[Array, "..."], v: Float[Array, " k"], at: Int[Array, " k"]) -> Array:
    del v, at
    return w


def _tap_jvp(primals, tangents):
    """Moves w with v only: linear in v, so that the backward pass is a gather."""
    (w, _, at), (_, moved, _) = primals, tangents
    out = _tap(*primals)  # so that derivatives of this derivative see v too
    if type(moved) is SymbolicZero:
        return out, jnp.zeros_like(w)
    still = jnp.zeros(w.size, w.dtype)
    return out, still.at[at].set(moved.astype(w.dtype), mode="drop", **_SORTED).reshape(w.shape)


# Symbolic zeros: no dense tangent of w is formed.
_tap.defjvp(_tap_jvp, symbolic_zeros=True)


def _by_name(what: str, params: PyTree, indices: PyTree) -> dict[str, Any]:
    by_name, leaves = named_leaves(indices), named_leaves(params)
    unknown = [name for name in by_name if name not in leaves]
    if unknown:
        raise ValueError(
            f"{what}: there are indices of {', '.join(unknown)} but no such parameter; the "
            f"parameters are {', '.join(leaves)}. Make them with sara.indices_of(masks)."
        )
    for name, at in by_name.items():
        if jnp.ndim(at) != 1 or not jnp.issubdtype(jnp.result_type(at), jnp.integer):
            raise ValueError(
                f"{what}: the indices of {name or 'the parameter'} must be a vector of integers, "
                f"got {jnp.result_type(at)} of shape {jnp.shape(at)}; sara.indices_of(masks)."
            )
    return by_name


def _values(what: str, values: PyTree, indices: dict[str, Any]) -> dict[str, Any]:
    """The values by path, one for each index."""
    by_name = named_leaves(values)
    shapes = {name: jnp.shape(v) for name, v in by_name.items()}
    wanted = {name: jnp.shape(at) for name, at in indices.items()}
    if any(wanted.get(name) != shape for name, shape in shapes.items()):
        raise ValueError(
            f"{what}: values must be a vector of one number for each index, of shapes {wanted}, "
            f"got {shapes}; sara.gather_values(params, indices)."
        )
    return by_name
