"""The order of kernel axes by framework."""

import functools
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import PyTree

from ._tree import expression, name_of, named_leaves, pure

# Input axes first, as in Flax, or output axes first, as in Equinox, PyTorch and safetensors.
IN_OUT, OUT_IN = "in_out", "out_in"


@functools.singledispatch
def kernel_order(node: Any) -> str | None:
    """The order of the axes of all kernels below a node of a tree, "in_out" or "out_in".

    None if the type of the node does not determine it. Register other frameworks with
    `kernel_order.register`.
    """
    del node


@kernel_order.register(nnx.Module)
@kernel_order.register(nnx.State)
@kernel_order.register(nnx.Variable)
def _(node: Any) -> str | None:
    del node
    return IN_OUT


@functools.cache
def _register_equinox(module: Any) -> None:
    kernel_order.register(module.Module, lambda node: OUT_IN)


@functools.singledispatch
def map_params(model: Any, f: Callable[[PyTree], PyTree]) -> Any:
    """Replaces the parameters of a model by `f` of them; a plain tree is its own parameters."""
    return f(model)


@map_params.register
def _(model: nnx.Module, f: Callable[[PyTree], PyTree]) -> Any:
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return nnx.merge(graphdef, f(nnx.as_pure(params)), rest, copy=False)


def kernel_orders(tree: PyTree, given: str | Mapping[str, str] | None = None) -> dict[str, Any]:
    """The order of the axes of each leaf by path; None where it is unknown.

    Leaves below a module of a known framework have its order. In plain trees `kernel` is the name
    that Flax uses, so such leaves are "in_out"; `weight` is ambiguous.

    Args:
      tree: A model or a tree of parameters.
      given: One order for all leaves, or orders by regular expressions over paths; takes
        precedence.
    """
    if "equinox" in sys.modules:
        _register_equinox(sys.modules["equinox"])
    found: dict[str, Any] = {}
    nodes = jax.tree.leaves_with_path(tree, is_leaf=lambda x: kernel_order(x) is not None)
    for path, node in nodes:
        prefix, order = name_of(path), kernel_order(node)
        if order is None:
            found[prefix] = IN_OUT if re.search(r"(^|/)kernel$", prefix) else None
            continue
        names = named_leaves(pure(node))
        found |= {"/".join(filter(None, (prefix, name))): order for name in names}
    if isinstance(given, str):
        return dict.fromkeys(found, given)
    for rule, order in reversed([*(given or {}).items()]):
        matches = expression("layout: the rule", rule)
        if not any(matches.search(name) for name in found):
            raise ValueError(
                f"layout: the rule {rule!r} matches nothing; the leaves are {', '.join(found)}."
            )
        found |= {name: order for name in found if matches.search(name)}
    return found
