"""Selected entries of arrays as vectors: trained alone, with gradients of their size."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._tree import map_named, named_leaves

# Written by `indices_of`, which sorts; an index of the size of the array is padding.
_SURE = {"unique_indices": True, "indices_are_sorted": True}


def indices_of(masks: PyTree) -> PyTree:
    r"""The flat indices of the selected entries, sorted; computed on the host.

    Args:
      masks: A tree of boolean arrays; None selects nothing.

    Returns:
      The tree of int32 vectors, data for a jitted step: as a constant they would be compiled in.

    Raises:
      ValueError: If an array has 2^31 entries or more.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.formats.indices_of({"w": jnp.array([[True, False], [False, True]])})["w"].tolist()
      [0, 3]
    """

    def one(name, mask):
        if mask.size >= 2**31:
            raise ValueError(f"indices_of: {name} has {mask.size} entries, int32 counts to 2^31.")
        return jnp.asarray(np.flatnonzero(mask).astype(np.int32))

    return map_named(one, masks)


def gather_values(params: PyTree, indices: PyTree) -> PyTree:
    r"""The selected entries as vectors, in at least float32: what an optimizer then trains.

    Args:
      params: A tree of arrays.
      indices: Flat indices by path, from `indices_of`; padding gives 0.

    Returns:
      The tree of vectors; None for leaves without indices.

    Raises:
      ValueError: If there are indices of a leaf that is not there.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.formats.gather_values({"w": jnp.arange(4.0)}, {"w": jnp.array([1, 3])})["w"].tolist()
      [1.0, 3.0]
    """

    def one(name, w, at):
        del name
        if at is None:
            return None
        wide = jnp.promote_types(w.dtype, jnp.float32)
        return w.reshape(-1).at[at].get(mode="fill", fill_value=0).astype(wide)

    return map_named(one, params, _by_name("gather_values", params, indices))


def write_back(params: PyTree, values: PyTree, indices: PyTree) -> PyTree:
    r"""The parameters with the values at the indices: in place where they are donated.

    Args:
      params: A tree of arrays.
      values: Vectors by path, from `gather_values`; rounded to the dtype of the leaf.
      indices: Flat indices by path; padding is dropped.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: If there are indices of a leaf that is not there.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> at = {"w": jnp.array([1, 3])}
      >>> sj.formats.write_back({"w": jnp.zeros(4)}, {"w": jnp.ones(2)}, at)["w"].tolist()
      [0.0, 1.0, 0.0, 1.0]
    """

    def one(name, w, v, at):
        del name
        if at is None or v is None:
            return w
        return w.reshape(-1).at[at].set(v.astype(w.dtype), mode="drop", **_SURE).reshape(w.shape)

    return map_named(one, params, named_leaves(values), _by_name("write_back", params, indices))


def tap(params: PyTree, values: PyTree, indices: PyTree) -> PyTree:
    r"""The parameters unchanged, with gradients for the selected values only.

    Unstructured back-propagation: forward nothing is copied, since the parameters already hold the
    values (`write_back` after each step keeps it so); backward each dense gradient is gathered and
    freed. A merge by `write_back` inside the loss would hold a second copy of the network from
    forward to backward.

    Args:
      params: A tree of arrays that hold `values` at `indices`.
      values: Vectors by path, which the loss is differentiated in.
      indices: Flat indices by path.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: If there are indices of a leaf that is not there.

    Reference:
      Hu et al., SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank
      Adaptation, 2024 (arXiv 2409.06633).

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> params, at = {"w": jnp.arange(4.0)}, {"w": jnp.array([1, 3])}
      >>> loss = lambda v: jnp.sum(sj.formats.tap(params, v, at)["w"] ** 2)
      >>> jax.grad(loss)(sj.formats.gather_values(params, at))["w"].tolist()
      [2.0, 6.0]
    """

    def one(name, w, v, at):
        del name
        return w if at is None or v is None else _tap(w, v, at)

    return map_named(one, params, named_leaves(values), _by_name("tap", params, indices))


@jax.custom_vjp
def _tap(w: Float[Array, "..."], v: Float[Array, " k"], at: Int[Array, " k"]) -> Array:
    del v, at
    return w


def _tap_forward(w, v, at):
    return w, (at, v[:0])


def _tap_backward(residuals, g):
    at, like = residuals
    return None, g.reshape(-1).at[at].get(mode="fill", fill_value=0).astype(like.dtype), None


_tap.defvjp(_tap_forward, _tap_backward)


def _by_name(what: str, params: PyTree, indices: PyTree) -> dict[str, Any]:
    by_name, leaves = named_leaves(indices), named_leaves(params)
    unknown = [name for name in by_name if name not in leaves]
    if unknown:
        raise ValueError(
            f"{what}: there are indices of {', '.join(unknown)} but no such parameter; the "
            f"parameters are {', '.join(leaves)}."
        )
    return by_name
