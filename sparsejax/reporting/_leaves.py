"""What a report reads: the leaves of a model of any kind, their masks, and exact counts."""

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
from .._tree import check_known, is_kernel, name_of, pure
from ..masks import Plan
from ..patterns import Stages
from ..patterns._layout import MatrixView, matrix_view

# A matrix called kernel is pruned like any other, also in a module called embed.
_SPARED = re.compile(r"(norm|embed)(?!.*/kernel$)|(^|/)(bias|scale)$", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """A leaf as the report sees it; a compressed kernel is one leaf, of its dense shape."""

    path: str
    shape: tuple[int, ...]
    dtype: Any
    value: Any
    view: MatrixView | None = None  # how a compressed matrix sees its kernel

    @property
    def size(self) -> int:
        """Number of entries, a Python int."""
        return math.prod(self.shape)

    @property
    def compressed(self) -> bool:
        """Whether the kernel is stored in a sparse format."""
        return is_compressed(self.value)

    @property
    def stored(self) -> int:
        """Values that a compressed kernel stores, padding included."""
        leaves = [x for x in jax.tree.leaves(self.value) if jnp.issubdtype(x.dtype, jnp.inexact)]
        return max((math.prod(x.shape) for x in leaves), default=0)

    @property
    def dense(self) -> Any:
        """The values as an array; None where there are only shapes."""
        if self.compressed:
            matrix = self.value.todense()
            return matrix if self.view is None else self.view.from_matrix(matrix)
        return None if isinstance(self.value, jax.ShapeDtypeStruct) else self.value


def is_compressed(x: Any) -> bool:
    """True for the sparse formats, recognised by what they offer."""
    return all(hasattr(x, name) for name in ("todense", "shape", "nbytes"))


def entries(model: PyTree) -> dict[str, Entry]:
    """The parameters of a model by path; what is not an array of numbers is left out."""
    leaves = jax.tree.leaves_with_path(pure(model), is_leaf=is_compressed)
    named = {name_of(path): leaf for path, leaf in leaves}
    for owner, kernel in _compressed_modules(model).items():
        named = {n: x for n, x in named.items() if not n.startswith(f"{owner}/")} | {owner: kernel}
    found = {
        name: Entry(name, tuple(x.shape), jnp.dtype(x.dtype), x)
        for name, x in named.items()
        if hasattr(x, "shape") and hasattr(x, "dtype") and _is_number(x.dtype)
    }
    if not found:
        raise ValueError(
            "there are no parameters in this tree; pass an nnx.Module, nnx.State, or a tree of "
            "arrays or jax.ShapeDtypeStruct: sj.report(model, masks)."
        )
    return found


def _compressed_modules(model: PyTree) -> dict[str, Any]:
    """The compressed kernels of an NNX model: modules with values, which `[...]` reads whole."""
    if not isinstance(model, nnx.Module):
        return {}
    found = {}
    for path, module in nnx.iter_modules(model):
        read = getattr(module, "__getitem__", None)
        if read is not None and isinstance(getattr(module, "values", None), nnx.Param):
            found["/".join(map(str, path))] = read(...)
    return {name: kernel for name, kernel in found.items() if is_compressed(kernel)}


def _is_number(dtype: Any) -> bool:
    return not jnp.issubdtype(dtype, jax.dtypes.extended)


def as_planned(found: dict[str, Entry], plan: Plan) -> dict[str, Entry]:
    """The leaves in the shapes of the plan: a compressed matrix becomes its kernel again."""
    shaped = dict(found)
    for leaf in plan.leaves:
        entry = found.get(leaf.name)
        if entry is None or entry.shape == leaf.shape:
            continue
        p = leaf.pattern.patterns[-1] if isinstance(leaf.pattern, Stages) else leaf.pattern
        if entry.compressed:
            view = matrix_view(leaf.shape, getattr(p, "axis", None), p.stacked)
            if view.matrix_shape == entry.shape:
                shaped[leaf.name] = replace(entry, shape=leaf.shape, view=view)
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
        if mask.dtype != bool:
            raise ValueError(
                f"the mask of {name or 'the parameter'} holds {mask.dtype}, not booleans; True "
                "means kept: pass `mask != 0`."
            )
    return found


def is_prunable(entry: Entry, plan: Plan | None, masked: bool) -> bool:
    """Whether a leaf counts in the headline: planned; else kernels and what has a mask."""
    if plan is not None:
        return entry.path in plan
    if is_kernel(entry.path, entry):
        return True
    return masked and len(entry.shape) >= 2 and not is_spared(entry.path)


def is_spared(path: str) -> bool:
    """Embeddings, norms and biases, which are not pruned unless a plan says so."""
    return bool(_SPARED.search(path))
