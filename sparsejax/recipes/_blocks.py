"""The steps of pruning a network block by block: whose inputs are collected when, and how."""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, PyTree

from .._tree import is_array, pure
from ..masks import Plan, PlannedLeaf
from ..nn import input_grams, replace
from ..patterns import Pattern

Flow = Any  # the activations before a block, one item for each batch
Grams = dict[str, Array]


class Part(NamedTuple):
    """A planned leaf, or one slice of a stacked one."""

    name: str
    leaf: PlannedLeaf
    index: int | None = None

    def of(self, x: Array) -> Array:
        """The part of the whole leaf."""
        return x if self.index is None else x[self.index]

    def put(self, whole: Array, x: Array) -> Array:
        """The whole leaf with this part replaced."""
        return x if self.index is None else whole.at[self.index].set(x)


class Step(NamedTuple):
    """Kernels that are pruned together.

    `grams(params, flow)` gives the Gram matrices by path, `onward(params, flow)` the activations
    behind the kernels.
    """

    parts: list[Part]
    grams: Callable[[PyTree, Flow], Grams]
    onward: Callable[[PyTree, Flow], Flow]


def check_ran(leaves: Iterable[PlannedLeaf], ran: Collection[str]) -> None:
    """Raises if a planned leaf has no inputs."""
    missing = [leaf.name for leaf in leaves if leaf.name not in ran]
    if missing:
        raise ValueError(
            f"sequential_prune: {', '.join(missing)} did not run as linear layers, only "
            f"{', '.join(ran)} did; exclude the others by a rule `pattern: None`."
        )


def steps_without_inputs(plan: Plan) -> list[Step]:
    """A step for each leaf, which needs no activations."""
    no_grams = lambda params, flow: {}  # noqa: E731
    return [Step([Part(leaf.name, leaf)], no_grams, _no_flow) for leaf in plan.leaves]


def module_steps(
    model: nnx.Module, batches: list[Any], plan: Plan, blocks: str | None, call: Any
) -> list[Step]:
    """The steps of an NNX module: kernels before the blocks, the blocks, kernels behind them."""
    ran = list(input_grams(model, batches[:1], call))
    check_ran(plan.leaves, ran)
    paths = _candidates(model, plan) if blocks is None else [blocks] if blocks else []
    why = {path: _why_not(model, batches[0], path, call) for path in paths}
    path = next((path for path in paths if not why[path]), "")
    if not path and why and (blocks or any(leaf.layout.stacked for leaf in plan.leaves)):
        first, reason = next(iter(why.items()))
        raise ValueError(
            f'sequential_prune: blocks={first!r}: {reason}; blocks="" prunes kernel by kernel.'
        )
    copy = nnx.clone(model)

    def updated(params: PyTree) -> nnx.Module:
        nnx.update(copy, params)
        return copy

    def alone(name: str) -> Step:
        grams = lambda params, flow: input_grams(updated(params), batches, call)  # noqa: E731
        return Step([Part(name, plan[name])], grams, _no_flow)

    inside = [bool(path) and name.startswith(path + "/") for name in ran]
    first = inside.index(True) if any(inside) else len(ran)
    others = [(i, name) for i, name in enumerate(ran) if name in plan and not inside[i]]
    before = [alone(name) for i, name in others if i < first]
    behind = [alone(name) for i, name in others if i > first]
    return before + (_block_steps(plan, path, updated, batches, call) if path else []) + behind


def steps_of_functions(
    params: PyTree, batches: list[Any], plan: Plan, blocks: Sequence[Callable[..., Any]]
) -> list[Step]:
    """The steps of a network that is given as functions `block(params, x) -> x`."""
    steps, ran, x = [], [], batches[:1]

    def step(block: Callable[..., Any], names: list[str]) -> Step:
        grams = jax.jit(lambda params, x: input_grams(functools.partial(block, params), [x]))
        run = jax.jit(block)

        def summed(params: PyTree, flow: Flow) -> Grams:
            each = [grams(params, x) for x in flow or batches]
            return functools.reduce(functools.partial(jax.tree.map, jnp.add), each)

        def onward(params: PyTree, flow: Flow) -> Flow:
            return [run(params, x) for x in flow or batches]

        return Step([Part(name, plan[name]) for name in names if name in plan], summed, onward)

    for block in blocks:
        names = list(input_grams(functools.partial(block, params), x))
        x = [block(params, one) for one in x]
        steps.append(step(block, names))
        ran += names
    check_ran(plan.leaves, ran)
    return steps


def _no_flow(params: PyTree, flow: Flow) -> Flow:
    return None


def _block_steps(plan: Plan, path: str, updated: Any, batches: list[Any], call: Any) -> list[Step]:
    """A step for each module of a list, or for each slice of a stack."""
    stack = _at(updated({}), path)
    listed = isinstance(stack, nnx.List)
    count = len(stack) if listed else _depth(stack)

    def step(i: int) -> Step:
        prefix = f"{path}/{i}/" if listed else f"{path}/"
        leaves = [leaf for leaf in plan.leaves if leaf.name.startswith(prefix)]
        parts = [
            Part(leaf.name, leaf) if listed else Part(leaf.name, _sliced(leaf, i, count), i)
            for leaf in leaves
        ]

        def block(params: PyTree) -> nnx.Module:
            found = _at(updated(params), path)
            return found[i] if listed else _slice(found, i)

        def entering(params: PyTree, flow: Flow) -> Flow:
            return flow or [_inputs(updated(params), batch, path, call) for batch in batches]

        def grams(params: PyTree, flow: Flow) -> Grams:
            found = input_grams(block(params), entering(params, flow), _run)
            return {prefix + name: gram for name, gram in found.items()}

        def onward(params: PyTree, flow: Flow) -> Flow:
            if i + 1 == count:
                return None
            module = block(params)
            return [_next(module, inputs) for inputs in entering(params, flow)]

        return Step(parts, grams, onward)

    return [step(i) for i in range(count)]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Fixed:
    """An argument that is not an array, such as a flag, which is static under jit."""

    value: Any


def _run(block: Any, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    fixed = lambda x: isinstance(x, _Fixed)  # noqa: E731
    given = jax.tree.map(lambda x: x.value if fixed(x) else x, inputs, is_leaf=fixed)
    arguments, named = given
    return block(*arguments, **named)


@nnx.jit
def _next(block: nnx.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    """The inputs of the block behind this one: what comes first is new, the rest as before."""
    arguments, named = inputs
    return (_first(_run(block, inputs)), *arguments[1:]), named


def _first(y: Any) -> Any:
    return y[0] if isinstance(y, tuple) else y


class _Reached(Exception):
    """Carries the inputs of the first block out of the model."""

    def __init__(self, inputs: Any):
        super().__init__()
        self.inputs = inputs


def _inputs(model: nnx.Module, batch: Any, path: str, call: Any) -> Any:
    """The inputs of the first block; what comes before it runs, what comes behind it does not."""

    def stop(path: str, call: Any, *arguments: Any, **named: Any) -> Any:
        fixed = lambda x: x if is_array(x) else _Fixed(x)  # noqa: E731
        raise _Reached(jax.tree.map(fixed, (arguments, named)))

    try:
        _tapped(model, batch, _where(model, path), stop, call)
    except _Reached as reached:
        return reached.inputs
    raise ValueError(f"sequential_prune: {path} did not run.")


def _tapped(model: nnx.Module, batch: Any, where: str, tap: Any, call: Any) -> None:
    """Runs a model on values, its scans as loops, with a tap of some modules."""
    tapped = replace(model, {where: tap})
    with jax.disable_jit():
        tapped(batch) if call is None else call(tapped, batch)


def _where(model: nnx.Module, path: str) -> str:
    entry = r"/\d+" if isinstance(_at(model, path), nnx.List) else ""
    return f"^{re.escape(path)}{entry}$"


def _candidates(model: nnx.Module, plan: Plan) -> list[str]:
    """The paths of the lists and stacks of modules that hold planned leaves, outermost first."""
    found: list[str] = []
    for path, module in sorted(nnx.iter_modules(model), key=lambda item: len(item[0])):
        name = "/".join(map(str, path))
        held = [leaf for leaf in plan.leaves if leaf.name.startswith(name + "/")]
        if not held or not name or any(name.startswith(outer + "/") for outer in found):
            continue
        if isinstance(module, nnx.List):
            if len(module) > 1 and all(isinstance(entry, nnx.Module) for entry in module):
                found.append(name)
        elif all(leaf.layout.stacked == (0,) for leaf in held) and _depth(module) > 1:
            found.append(name)
    return found


def _depth(module: Any) -> int:
    """The size of the first axis that all parameters of a stack share, or 0."""
    leaves = jax.tree.leaves(pure(nnx.state(module, nnx.Param)))
    sizes = {leaf.shape[:1] for leaf in leaves}
    return next(iter(sizes))[0] if len(sizes) == 1 and sizes != {()} else 0


def _why_not(model: nnx.Module, batch: Any, path: str, call: Any) -> str | None:
    """The reason that the modules at a path are not a chain of blocks; None if they are."""
    try:
        stack = _at(model, path)
    except (AttributeError, KeyError, TypeError):
        return "the model has no such module"
    listed = isinstance(stack, nnx.List)
    if not (listed or _depth(stack)):
        return "it is neither a list of modules nor a stack of them"
    seen: list[tuple[str, Any, Any, Any]] = []
    eps = 0.0

    def look(path: str, call: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal eps
        y = call(*arguments, **named)
        if arguments and _is_stream(arguments[0]) and _is_stream(_first(y)):
            eps = max(eps, float(jnp.finfo(arguments[0].dtype).eps))
            rest = jax.tree.map(_digest, (arguments[1:], named))
            seen.append((path, _digest(arguments[0]), _digest(_first(y)), rest))
        return y

    _tapped(model, batch, _where(model, path), look, call)
    ran = [name for name, *_ in seen]
    if ran != ([f"{path}/{i}" for i in range(len(stack))] if listed else [path] * _depth(stack)):
        return "its modules do not run one after another, with arrays as first arguments"
    # A program may compute in more than bfloat16 inside.
    tol = max(4 * eps, 1e-5)

    def same(a: Any, b: Any) -> bool:
        return (
            bool(jnp.all(jnp.abs(a - b) <= tol * a[0])) if is_array(a) and is_array(b) else a == b
        )

    for (_, _, gives, rest), (_, takes, _, others) in zip(seen, seen[1:]):
        if jax.tree.structure(rest) != jax.tree.structure(others):
            return "its modules take other arguments"
        if not all(jax.tree.leaves(jax.tree.map(same, (gives, rest), (takes, others)))):
            return "a module takes other values than the one before it gives"
    return None


def _is_stream(x: Any) -> bool:
    """Whether x is a known array of floats."""
    known = isinstance(x, jax.Array) and not isinstance(x, Tracer)
    return known and jnp.issubdtype(x.dtype, jnp.inexact)


def _digest(x: Any) -> Any:
    """Three numbers that tell arrays apart, the first the largest; x if it is not an array."""
    if not is_array(x):
        return x
    flat = jnp.ravel(jnp.asarray(x, jnp.float32))
    wave = jnp.cos(jnp.arange(flat.size))
    return jnp.stack([jnp.mean(jnp.abs(flat)), jnp.mean(flat), jnp.mean(flat * wave)])


def _at(model: Any, path: str) -> Any:
    for part in path.split("/"):
        model = model[int(part)] if isinstance(model, nnx.List) else getattr(model, part)
    return model


def _slice(stack: nnx.Module, i: int) -> nnx.Module:
    graphdef, state = nnx.split(stack)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x[i], state))


def _sliced(leaf: PlannedLeaf, i: int, count: int) -> PlannedLeaf:
    """The plan of slice i of a stacked leaf."""
    if leaf.layout.stacked != (0,):
        raise ValueError(
            f"sequential_prune: {leaf.name} {leaf.shape} holds {count} layers; plan it with "
            "stacked=1, so that each is pruned by itself."
        )
    down = lambda axes: tuple(axis - 1 for axis in axes)  # noqa: E731
    whole = leaf.layout
    layout = dataclasses.replace(
        whole,
        shape=whole.shape[1:],
        stacked=(),
        contraction=None if whole.contraction is None else down(whole.contraction),
        output=None if whole.output is None else down(whole.output),
        spatial=down(whole.spatial),
    )
    zeros = leaf.zeros * (i + 1) // count - leaf.zeros * i // count
    return PlannedLeaf(leaf.name, layout, _unstacked(leaf.pattern.final), zeros)


def _unstacked(pattern: Any) -> Pattern:
    axis = pattern.axis
    if isinstance(axis, tuple):
        axis = tuple(a - 1 if a > 0 else a for a in axis)
    elif axis is not None and axis > 0:
        axis -= 1
    return dataclasses.replace(pattern, stacked=0, axis=axis)
