"""Leaves of models of any kind, their masks, and exact counts."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from .._masks import masks_by_name
from .._tree import check_known, is_array, is_kernel, name_of, pure
from ..formats import Matrix
from ..masks import Plan
from ..nn import SparseKernel
from ..patterns import Layout

# A matrix named kernel is prunable, also in a module named embed.
_SPARED = re.compile(r"(norm|embed)(?!.*/kernel$)|(^|/)(bias|scale)$", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """A leaf of a report; a compressed kernel is one leaf, of its dense shape."""

    path: str
    shape: tuple[int, ...]
    dtype: Any
    value: Any
    layout: Layout | None = None  # of the kernel that a compressed matrix represents

    @property
    def size(self) -> int:
        """Number of entries, a Python int."""
        return math.prod(self.shape)

    @property
    def compressed(self) -> bool:
        """Whether the kernel is stored in a sparse format."""
        return isinstance(self.value, Matrix)

    @property
    def stored(self) -> int:
        """Values that a compressed kernel stores, padding included."""
        leaves = [x for x in jax.tree.leaves(self.value) if jnp.issubdtype(x.dtype, jnp.inexact)]
        return max((math.prod(x.shape) for x in leaves), default=0)

    @property
    def dense(self) -> Any:
        """The values as an array; None for shapes."""
        if self.compressed:
            matrix = self.value.todense()
            return matrix if self.layout is None else self.layout.from_matrix(matrix)
        return None if isinstance(self.value, jax.ShapeDtypeStruct) else self.value


def entries(model: PyTree) -> dict[str, Entry]:
    """The parameters of a model by path, without leaves that are not numeric arrays."""
    leaves = jax.tree.leaves_with_path(pure(model), is_leaf=lambda x: isinstance(x, Matrix))
    named = {name_of(path): leaf for path, leaf in leaves}
    for owner, kernel in _compressed_modules(model).items():
        named = {n: x for n, x in named.items() if not n.startswith(f"{owner}/")} | {owner: kernel}
    found = {
        name: Entry(name, tuple(x.shape), jnp.dtype(x.dtype), x)
        for name, x in named.items()
        if (isinstance(x, Matrix) or is_array(x)) and _is_number(x.dtype)
    }
    if not found:
        raise ValueError(
            "the tree must have parameters, got none; pass an nnx.Module, nnx.State, or a tree of "
            "arrays or jax.ShapeDtypeStruct: sj.report(model, masks)."
        )
    return found


def _compressed_modules(model: PyTree) -> dict[str, Any]:
    """The compressed kernels of an NNX model, which are modules."""
    if not isinstance(model, nnx.Module):
        return {}
    return {
        "/".join(map(str, path)): module[...]
        for path, module in nnx.iter_modules(model)
        if isinstance(module, SparseKernel)
    }


def _is_number(dtype: Any) -> bool:
    return not jnp.issubdtype(dtype, jax.dtypes.extended)


def as_planned(found: dict[str, Entry], plan: Plan) -> dict[str, Entry]:
    """The leaves in the shapes of the plan: a compressed matrix becomes its kernel again."""
    shaped = dict(found)
    for leaf in plan.leaves:
        entry = found.get(leaf.name)
        if entry is None or entry.shape == leaf.shape:
            continue
        if entry.compressed and leaf.layout.contraction:
            if leaf.layout.matrix_shape == entry.shape:
                shaped[leaf.name] = replace(entry, shape=leaf.shape, layout=leaf.layout)
                continue
        raise ValueError(
            f"{leaf.name} was planned with shape {leaf.shape} and now has shape {entry.shape}; "
            "make the plan from these parameters: sj.plan(model, rules)."
        )
    return shaped


def checked_masks(masks: PyTree, of: Mapping[str, Entry]) -> dict[str, Any]:
    """The masks by path, each with the shape of its leaf."""
    found = masks_by_name(masks)
    check_known(
        found, of, advice="Pass masks of this model: sj.report(model, sj.get_masks(opt_state))."
    )
    for name, mask in found.items():
        if tuple(mask.shape) != of[name].shape:
            raise ValueError(
                f"{name or 'the parameter'} has shape {of[name].shape} and its mask shape "
                f"{tuple(mask.shape)}; pass the masks that belong to these parameters."
            )
    return found


def is_prunable(entry: Entry, plan: Plan | None, masked: bool) -> bool:
    """Whether a leaf is in the headline: planned; without a plan a kernel or masked."""
    if plan is not None:
        return entry.path in plan
    if is_kernel(entry.path, entry):
        return True
    return masked and len(entry.shape) >= 2 and not is_spared(entry.path)


def is_spared(path: str) -> bool:
    """Whether a leaf is an embedding, norm or bias, which is only pruned by a plan."""
    return bool(_SPARED.search(path))
