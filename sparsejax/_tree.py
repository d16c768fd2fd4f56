"""Names and selection of leaves: one path per leaf, with or without NNX variables."""

import dataclasses
import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.export
import numpy as np
import optax
from flax import nnx
from jax.core import Tracer
from jaxtyping import PyTree

C = TypeVar("C", bound=type)
_KERNEL = re.compile(r"(^|/)(kernel|weight)$")
# Norms and embeddings whose own parameter is `weight`; a leaf that they name kernel is a matrix.
_NOT_A_KERNEL = re.compile(r"(norm|embed)[^/]*/weight$", re.IGNORECASE)


def register(cls: C) -> C:
    """Registers a dataclass as a pytree; fields with `metadata=dict(static=True)` are static.

    Unlike with `jax.tree_util.register_dataclass`, trees of two classes are never equal. With it
    (JAX 0.10 to 0.12) they are equal if their fields are, so that a jitted function may run code
    compiled for another class. `jax.export` serialises trees of the class, if its static fields are
    numbers, strings, None or tuples of them.

    Args:
      cls: A dataclass.

    Returns:
      The same class.

    Example:
      >>> import dataclasses, jax, sparsejax as sj
      >>> @sj.register
      ... @dataclasses.dataclass(frozen=True)
      ... class Pair:
      ...     a: int
      ...     b: int = dataclasses.field(default=0, metadata=dict(static=True))
      >>> jax.tree.leaves(Pair(1, 2))
      [1]
    """
    names, fixed = fields_of(cls), fields_of(cls, static=True)

    def configuration(x: Any) -> tuple[Any, ...]:
        return tuple(getattr(x, name) for name in fixed)

    def flatten(x: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(x, name) for name in names], configuration(x)

    def flatten_with_keys(x: Any) -> tuple[list[Any], tuple[Any, ...]]:
        keys = map(jax.tree_util.GetAttrKey, names)
        return list(zip(keys, flatten(x)[0])), configuration(x)

    def unflatten(configuration: tuple[Any, ...], children: Iterable[Any]) -> Any:
        return cls(**dict(zip(names, children)), **dict(zip(fixed, configuration)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    jax.export.register_pytree_node_serialization(
        cls,
        serialized_name=_exported_name(cls),
        serialize_auxdata=lambda configuration: as_json(cls, configuration).encode(),
        deserialize_auxdata=lambda text: hashable(json.loads(text)),
    )
    return cls


_exported: Counter[str] = Counter()


def _exported_name(cls: type) -> str:
    """A name in files of `jax.export`: the public path; of a class defined again, with a number."""
    module = [part for part in cls.__module__.split(".") if not re.match("_(?!_)", part)]
    name = ".".join((*module, cls.__qualname__))
    _exported[name] += 1
    return name if _exported[name] == 1 else f"{name}#{_exported[name]}"


def as_json(cls: type, static: Any) -> str:
    """The static fields of a dataclass as text, from which `hashable` restores them."""
    try:
        text = json.dumps(static)
        same = hashable(json.loads(text)) == static
    except (TypeError, ValueError):
        text, same = "", False
    if not same:
        raise TypeError(
            f"{cls.__name__} cannot be stored: its static fields must be numbers, strings, None or "
            f"tuples of them, got {static!r:.80}."
        )
    return text


def hashable(x: Any) -> Any:
    """Converts lists from JSON back to tuples."""
    return tuple(map(hashable, x)) if isinstance(x, list) else x


def fields_of(cls: Any, static: bool = False) -> tuple[str, ...]:
    """The names of the fields of a dataclass that are children, or of those that are static."""
    fields = dataclasses.fields(cls)
    return tuple(f.name for f in fields if bool(f.metadata.get("static")) == static)


def optional_fields(cls: Any) -> tuple[str, ...]:
    """The names of the fields of a dataclass that are None by default."""
    return tuple(f.name for f in dataclasses.fields(cls) if f.default is None)


def is_gap(x: Any) -> bool:
    """True for a gap in a partial tree: `None` or optax's `MaskedNode`."""
    return x is None or isinstance(x, optax.MaskedNode)


def is_variable(x: Any) -> bool:
    """True for an NNX variable, which is treated as one leaf."""
    return isinstance(x, nnx.Variable)


def is_array(x: Any) -> bool:
    """True for arrays and their shapes."""
    return isinstance(x, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def name_of(path: tuple[Any, ...]) -> str:
    """The path of a leaf as text: `decoder/0/attention/query/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def pure(tree: PyTree) -> PyTree:
    """The parameters as a tree of arrays; those of an NNX module are its `nnx.Param`s."""
    if isinstance(tree, nnx.Module):
        tree = nnx.state(tree, nnx.Param)
    # nnx.as_pure would turn a bare State into a dict, so call it only if there are variables.
    leaves = jax.tree.leaves(tree, is_leaf=is_variable)
    return nnx.as_pure(tree) if any(map(is_variable, leaves)) else tree


@functools.singledispatch
def parts(node: Any) -> dict[str, Any]:
    """The parts of an object by name, in the order of definition: JAX sorts the keys of dicts."""
    return getattr(node, "__dict__", {})


@parts.register(Mapping)
def _(node: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): part for key, part in node.items()}


@parts.register(list | tuple)
def _(node: list[Any] | tuple[Any, ...]) -> dict[str, Any]:
    return {str(i): part for i, part in enumerate(node)}


def definition_order(model: PyTree, names: Iterable[str]) -> list[str]:
    """Paths in the order in which a model defines them; unknown ones in the order of numbers."""

    @functools.cache
    def inside(path: tuple[str, ...]) -> dict[str, Any]:
        return parts(inside(path[:-1]).get(path[-1]) if path else model)

    def place(name: str) -> list[Any]:
        path = tuple(name.split("/"))
        levels = [list(inside(path[:depth])) for depth in range(len(path))]
        return [
            (level.index(part) if part in level else len(level), natural_order(part))
            for level, part in zip(levels, path)
        ]

    return sorted(names, key=place)


def summary(tree: PyTree) -> str:
    """A tree on one line: small arrays by their values, others by dtype and shape."""
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return repr(tree) if tree is None else "{}"
    if len(leaves) > 4:
        sizes = sum(int(np.size(x)) for x in leaves)
        return f"{len(leaves)} arrays of {sizes:,} entries"
    return str(jax.tree.map(_Brief, tree))


class _Brief:
    """A leaf that prints on one line."""

    def __init__(self, leaf: Any):
        small = np.size(leaf) <= 8 and not isinstance(leaf, Tracer)
        kind = f"{getattr(leaf, 'dtype', type(leaf).__name__)}{list(np.shape(leaf))}"
        self.text = str(np.asarray(leaf).tolist()) if small else kind

    def __repr__(self) -> str:
        return self.text


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves by name, in the order of the tree; gaps are left out."""
    leaves = jax.tree.leaves_with_path(tree, is_leaf=is_variable)
    values = {}
    for path, x in leaves:
        name = name_of(path)
        if name in values:
            raise ValueError(f"two leaves of this tree have the same path {name}; rename one.")
        values[name] = x.get_value() if is_variable(x) else x
    return {name: value for name, value in values.items() if value is not None}


def map_named(f: Callable[..., Any], tree: PyTree, *by_name: Mapping[str, Any]) -> PyTree:
    """`tree` with `f(name, leaf, *(d.get(name) for d in by_name))` in place of each leaf.

    NNX variables stay variables around the new values, with their metadata.
    """

    def at(path, leaf):
        name = name_of(path)
        values = [d.get(name) for d in by_name]
        return jax.tree.map(lambda x: f(name, x, *values), leaf)

    return jax.tree.map_with_path(at, tree, is_leaf=is_variable)


def check_known(
    names: Iterable[str], leaves: Iterable[str], what: str = "", advice: str = ""
) -> None:
    """Raises if a mask, by its path, belongs to no leaf."""
    leaves = list(leaves)
    unknown = [name for name in names if name not in leaves]
    if unknown:
        raise ValueError(
            f"{what and what + ': '}masks holds a mask for "
            f"{', '.join(name or 'the parameter' for name in unknown)} but no such parameter; the "
            f"parameters are {', '.join(leaves)}.{advice and ' ' + advice}"
        )


def at_path(what: str, values: Mapping[str, Any], path: str) -> Any:
    """`values[path]`; a KeyError lists the existing paths."""
    if path not in values:
        raise KeyError(f"{what} has no {path!r}; it has {', '.join(values) or 'no leaves'}.")
    return values[path]


def is_kernel(name: str, leaf: Any) -> bool:
    """The leaves selected without a rule: matrices named `kernel` or `weight`.

    Never norms or embeddings, and never by the number of axes alone: attention biases are 2-D.
    """
    return bool(_KERNEL.search(name)) and len(leaf.shape) >= 2 and not _NOT_A_KERNEL.search(name)


def natural_order(name: str) -> list[Any]:
    """Sorting key that puts `layer_2` before `layer_10`."""
    return [(0, int(t), "") if t.isdigit() else (1, 0, t) for t in re.split(r"(\d+)", name) if t]


def expression(what: str, rule: Any) -> re.Pattern[str]:
    """A regular expression over paths, compiled; raises if it is none."""
    try:
        return re.compile(rule)
    except (re.error, TypeError) as error:
        raise ValueError(f"{what} {rule!r} is not a regular expression: {error}.") from None
