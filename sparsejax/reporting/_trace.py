"""Counts the products of a program with its weights, by a walk over its jaxpr.

The jaxpr represents Linen, NNX, Equinox and plain functions, scanned stacks of layers, grouped
convolutions and shared weights uniformly.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.extend.core import Jaxpr, Literal
from jaxtyping import PyTree

from .._tree import is_array, name_of


class Origin(NamedTuple):
    """The origin of a value: some leaves of the parameters, and possibly the data."""

    leaves: frozenset[str] = frozenset()
    data: bool = False

    @property
    def is_weight(self) -> bool:
        """A function of parameters alone."""
        return bool(self.leaves) and not self.data


class Sizes(NamedTuple):
    """Entries of each leaf by path, and the number stored by a compressed leaf."""

    dense: Mapping[str, int]
    stored: Mapping[str, int]


@dataclass
class Products:
    """FLOPs of the products of a program: by leaf, in order of use, and between activations.

    `opaque` are leaves read by custom kernels, whose products are unknown.
    """

    weights: Counter = field(default_factory=Counter)
    activations: int = 0
    opaque: set[str] = field(default_factory=set)

    @property
    def total(self) -> int:
        """All products together."""
        return sum(self.weights.values()) + self.activations

    def add(self, other: "Products", times: int = 1) -> None:
        """Adds the products of a part that runs `times` times."""
        for name, n in other.weights.items():
            self.weights[name] += times * n
        self.activations += times * other.activations
        self.opaque |= other.opaque


class Program(NamedTuple):
    """A forward pass: `function(params, constants, *data)`."""

    function: Callable[..., Any]
    params: PyTree
    constants: PyTree
    data: tuple[Any, ...]


def trace_products(program: Program, sizes: Sizes) -> Products:
    """The products of a program; nothing is computed.

    Args:
      program: The forward pass; its arrays may be shapes.
      sizes: Sizes of the leaves by path; a nested leaf of the parameters is counted for its owner.
    """
    function, params, constants, data = program
    closed = jax.make_jaxpr(function)(params, constants, *data)
    named = [name_of(path) for path, _ in jax.tree.leaves_with_path(params)]
    origins = [Origin(frozenset({_owner(name, sizes.dense)})) for name in named]
    origins += [Origin()] * len(jax.tree.leaves(constants))
    origins += [Origin(data=True)] * (len(closed.jaxpr.invars) - len(origins))
    found = Products()
    _walk(closed.jaxpr, origins, sizes, found)
    return found


def program_of(model: PyTree, apply: Callable[..., Any] | None, example: Any) -> Program:
    """The forward pass of a model of any kind."""
    data = example if isinstance(example, tuple) else (example,)
    if apply is not None:
        return Program(lambda params, _, *x: apply(params, *x), model, None, data)
    if isinstance(model, nnx.Module):
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        merged = lambda p, r, *x: nnx.merge(graphdef, p, r, copy=True)(*x)  # noqa: E731
        return Program(merged, nnx.as_pure(params), nnx.as_pure(rest), data)
    if callable(model):
        return _callable_tree(model, data)
    raise TypeError(
        f"example= needs a model that can be called, and {type(model).__name__} cannot; pass "
        "apply=lambda params, x: model.apply({'params': params}, x)."
    )


def _callable_tree(model: PyTree, data: tuple[Any, ...]) -> Program:
    """An Equinox module: functions live among its leaves, and only arrays are traced."""
    leaves, structure = jax.tree.flatten(model)
    places = [i for i, x in enumerate(leaves) if is_array(x)]
    shown = jax.tree.unflatten(structure, [x if is_array(x) else None for x in leaves])

    def function(params, _, *x):
        traced = dict(zip(places, jax.tree.leaves(params)))
        mixed = [traced.get(i, leaf) for i, leaf in enumerate(leaves)]
        return jax.tree.unflatten(structure, mixed)(*x)

    return Program(function, shown, None, data)


def _owner(name: str, sizes: Mapping[str, int]) -> str:
    """The report leaf that is or contains `name` (`kernel/values` of a compressed kernel)."""
    while name not in sizes and "/" in name:
        name = name.rpartition("/")[0]
    return name


def _walk(jaxpr, origins: list[Origin], sizes: Sizes, out: Products) -> list[Origin]:
    known = dict(zip(jaxpr.invars, origins))

    def origin(atom) -> Origin:
        return Origin() if isinstance(atom, Literal) else known.get(atom, Origin())

    for eqn in jaxpr.eqns:
        results = _equation(eqn, [origin(x) for x in eqn.invars], sizes, out)
        known.update(zip(eqn.outvars, results))
    return [origin(x) for x in jaxpr.outvars]


def _equation(eqn, origins: list[Origin], sizes, out: Products) -> list[Origin]:
    name = eqn.primitive.name
    if name == "dot_general":
        return _product(eqn, origins, _dot_flops(eqn), sizes, out)
    if name == "conv_general_dilated":
        return _product(eqn, origins, _conv_flops(eqn), sizes, out)
    if name.startswith("ragged_dot"):
        lhs, rhs = (x.aval.shape for x in eqn.invars[:2])
        return _product(eqn, origins, 2 * math.prod(lhs) * rhs[-1], sizes, out)
    if name == "scan":
        return _scan(eqn, origins, sizes, out)
    if name == "while":
        return _while(eqn, origins, sizes, out)
    if name == "cond":
        return _cond(eqn, origins, sizes, out)
    inner = _called(eqn)
    if inner is not None:
        part = Products()
        results = _walk(inner, origins, sizes, part)
        # Inside shard_map the shapes are those of one shard.
        out.add(part, eqn.params["mesh"].size if name == "shard_map" else 1)
        return results
    if name in ("pallas_call", "ffi_call") and any(o.data for o in origins):
        out.opaque |= set().union(*(o.leaves for o in origins if o.is_weight))
    return [_join(origins)] * len(eqn.outvars)


def _product(eqn, origins, flops: int, sizes, out: Products) -> list[Origin]:
    left, right = origins[:2]
    weight = next((i for i, o in enumerate((left, right)) if o.is_weight), None)
    if weight is None or left.data == right.data:
        out.activations += flops
        return [_join(origins)]
    size = eqn.invars[weight].aval.size
    name = _leaf(origins[weight], size, sizes.dense)
    if size == sizes.stored.get(
        name
    ):  # the product skips entries not stored by a compressed kernel
        flops = flops * sizes.dense[name] // size
    out.weights[name] += flops
    return [Origin(data=True)]


def _leaf(origin: Origin, size: int, sizes: Mapping[str, int]) -> str:
    """For `w * scale` or `w + a @ b`, the leaf of the operand's size; otherwise the largest."""
    same = sorted(name for name in origin.leaves if sizes.get(name) == size)
    return same[0] if same else max(sorted(origin.leaves), key=lambda name: sizes.get(name, 0))


def _dot_flops(eqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    lhs = eqn.invars[0].aval.shape
    depth = math.prod(lhs[axis] for axis in contracted)
    return 2 * depth * math.prod(eqn.outvars[0].aval.shape)


def _conv_flops(eqn) -> int:
    """Positions times the kernel size; transposed convolutions are counted at their inputs."""
    lhs, kernel = (x.aval.shape for x in eqn.invars[:2])
    numbers = eqn.params["dimension_numbers"]
    transposed = math.prod(eqn.params["lhs_dilation"]) > 1
    shape, spec = (
        (lhs, numbers.lhs_spec) if transposed else (eqn.outvars[0].aval.shape, numbers.out_spec)
    )
    batch = lhs[numbers.lhs_spec[0]] // eqn.params["batch_group_count"]
    return 2 * batch * math.prod(shape[axis] for axis in spec[2:]) * math.prod(kernel)


def _scan(eqn, origins, sizes, out: Products) -> list[Origin]:
    """The body times the number of iterations; stacked values have one more axis outside."""
    inner = _jaxpr(eqn.params["jaxpr"])
    same = lambda a, b: len(a.aval.shape) == len(b.aval.shape)  # noqa: E731
    carry = sum(map(same, eqn.outvars, inner.outvars))
    consts = sum(map(same, eqn.invars, inner.invars)) - carry
    _, part, results = _settle(inner, origins, consts, carry, sizes)
    out.add(part, eqn.params["length"])
    return results


def _while(eqn, origins, sizes, out: Products) -> list[Origin]:
    """Counts one iteration, since the number of iterations is not static."""
    skip, consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carry = len(eqn.outvars)
    inner = _jaxpr(eqn.params["body_jaxpr"])
    _, part, results = _settle(inner, origins[skip:], consts, carry, sizes)
    out.add(part)
    return results


def _settle(inner, origins, consts: int, carry: int, sizes):
    """Walks a loop body until the origins of its carry no longer grow."""
    origins = list(origins)
    while True:
        part = Products()
        results = _walk(inner, origins, sizes, part)
        now = origins[consts : consts + carry]
        joined = [_join(pair) for pair in zip(now, results)]
        if joined == now:
            return origins, part, results
        origins[consts : consts + carry] = joined


def _cond(eqn, origins, sizes, out: Products) -> list[Origin]:
    """Counts the most expensive branch."""
    parts = []
    for branch in eqn.params["branches"]:
        part = Products()
        results = _walk(_jaxpr(branch), origins[1:], sizes, part)
        parts.append((part.total, len(parts), part, results))
    out.add(max(parts, key=lambda p: p[0])[2])
    return [_join([*group, origins[0]]) for group in zip(*(p[3] for p in parts))]


def _called(eqn):
    """The jaxpr of a call (jit, remat, custom_jvp, shard_map), if its arguments are the call's."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = _jaxpr(eqn.params.get(key))
        if isinstance(inner, Jaxpr) and len(inner.invars) == len(eqn.invars):
            return inner
    return None


def _jaxpr(x):
    """An inner jaxpr without its constants, which only some versions of JAX add."""
    return getattr(x, "jaxpr", x)


def _join(origins) -> Origin:
    leaves = frozenset().union(*(o.leaves for o in origins))
    return Origin(leaves, any(o.data for o in origins))
