"""Construction of plans: rules, layouts, allocations, and errors by path."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import PyTree

from .._arguments import check_count, checked
from .._frameworks import kernel_orders
from .._tree import definition_order, expression, is_array, is_kernel, named_leaves, pure
from ..patterns import Pattern
from ._allocate import Allocation, joint
from ._distribute import ROUNDINGS, zeros_of
from ._plan import Plan
from ._planned_leaf import PlannedLeaf


@checked(rules="sj.NM(2, 4)")
def plan(
    model: PyTree,
    rules: Pattern | Mapping[str, Any],
    *,
    allocate: Allocation | None = None,
    layout: str | Mapping[str, str] | None = None,
    min_kept: int = 0,
    rounding: str = "nearest",
) -> Plan:
    r"""Assigns patterns to leaves, and reports all errors at once, by path.

    Each leaf gets the pattern of the first rule whose regular expression matches its path
    (`re.search`); None leaves it dense. An allocation redistributes zeros among the leaves whose
    sparsity is free and keeps their total exactly: the leaves with the largest remainders keep one
    more.

    Args:
      model: An `nnx.Module`, `nnx.State`, Linen or plain dict, Equinox module, or a tree of them;
        arrays or shapes.
      rules: Regular expressions and patterns; or one pattern, for the leaves named `kernel` or
        `weight` (never norms or embeddings).
      allocate: `sj.masks.erk`, `uniform`, `uniform_plus`, `erdos_renyi`, `from_scores(...)`,
        `joint`, or a function (tree of layers, sparsity) -> tree of sparsities. Without it each
        leaf has the sparsity of its pattern.
      layout: Order of the axes of kernels: "in_out" (Flax), "out_in" (Equinox, PyTorch,
        safetensors), or a dict of regular expressions and orders. None takes the order of the
        framework; leaves of a plain tree that are not named `kernel` have an unknown order, and
        patterns that need it raise.
      min_kept: Least number of units (entries, blocks, channels) kept of each leaf whose sparsity
        is free, and of each slice of a stacked one, at any sparsity: 1 empties no layer. An
        allocation takes them from the other leaves.
      rounding: How a number of zeros is rounded: "nearest" (half to even), "down" or "up".

    Returns:
      A `Plan`.

    Raises:
      ValueError: If a rule matches nothing or is shadowed by an earlier rule, a pattern does not
        fit its leaf or the order of its axes is unknown, a planned leaf does not hold floats, the
        tree is empty, no leaf has a free sparsity to allocate, or `min_kept` exceeds what an
        allocation may keep.
      TypeError: If a rule is not a pattern.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"dense": {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}}
      >>> plan = sj.plan(params, {r"kernel$": sj.NM(2, 4)})
      >>> plan["dense/kernel"].kept, plan.sparsity
      (32, 0.5)
    """
    if allocate is not None and not callable(allocate):
        raise TypeError(
            f"plan: allocate must be a function such as sj.masks.erk or sj.masks.joint, got "
            f"{allocate!r}."
        )
    check_count("min_kept", min_kept, 0)
    if rounding not in ROUNDINGS:
        raise ValueError(f'plan: rounding must be "nearest", "down" or "up", got {rounding!r}.')
    leaves = {name: leaf for name, leaf in named_leaves(pure(model)).items() if is_array(leaf)}
    if not leaves:
        raise ValueError("plan: the tree has no leaves; pass the parameters or an nnx.Module.")
    orders, (patterns, left_out) = kernel_orders(model, layout), _match(leaves, rules)
    chosen: dict[str, PlannedLeaf] = {}
    problems = []
    for name, pattern in patterns.items():
        try:
            chosen[name] = _fitted(name, leaves[name], pattern, orders.get(name))
        except ValueError as error:
            problems.append(f"{name} {tuple(leaves[name].shape)}: {error}")
    if problems:
        raise ValueError("plan:\n  " + "\n  ".join(problems))
    _check_allocation(allocate, chosen)
    zeros = zeros_of(list(chosen.values()), allocate, rounding, min_kept)
    planned = tuple(replace(leaf, zeros=zeros[leaf.name]) for leaf in chosen.values())
    size = sum(math.prod(leaf.shape) for leaf in leaves.values())
    order = tuple(definition_order(model, filter(lambda n: is_kernel(n, leaves[n]), leaves)))
    return Plan(planned, allocate is joint, size, left_out, min_kept, rounding, allocate, order)


def _fitted(name: str, leaf: Any, pattern: Pattern, order: Any) -> PlannedLeaf:
    """The planned leaf; raises ValueError if the pattern does not fit."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise ValueError(f"holds {leaf.dtype}, not floats; exclude it with a rule: None")
    layout = pattern.layout(tuple(leaf.shape), order)
    pattern.units(layout)
    return PlannedLeaf(name, layout, pattern, pattern.zeros(layout))


def _check_allocation(allocate: Allocation | None, chosen: dict[str, PlannedLeaf]) -> None:
    """Raises if there is nothing to allocate, or leaves cannot compete."""
    if allocate is None:
        return
    if chosen and not any(leaf.pattern.free for leaf in chosen.values()):
        fixed = ", ".join(sorted({repr(leaf.pattern) for leaf in chosen.values()}))
        raise ValueError(
            f"plan: nothing to allocate, {fixed} has a fixed sparsity; omit allocate, or plan with "
            "sj.Unstructured or sj.Block."
        )
    for leaf in chosen.values() if allocate is joint else ():
        if leaf.pattern.free and not leaf.pattern.pooled:
            raise ValueError(
                f"{leaf.name}: {leaf.pattern!r} has no scores to compare between leaves."
            )
        if leaf.pattern.balanced:
            raise ValueError(
                f"{leaf.name}: {leaf.pattern!r} is balanced, which one selection over all leaves "
                "cannot ensure; omit balanced=True or plan with sj.masks.erk."
            )


def _match(
    leaves: Mapping[str, Any], rules: Any
) -> tuple[dict[str, Pattern], tuple[tuple[str, str], ...]]:
    """The pattern of each matched leaf, and the reasons for excluding the others."""
    if isinstance(rules, Pattern):
        chosen = {name: rules for name, leaf in leaves.items() if is_kernel(name, leaf)}
        if not chosen:
            _check_dense(leaves)
            raise ValueError(
                "plan: no leaf is named kernel or weight, which is what stands behind the last /; "
                f"select leaves with a rule, as in {{r'weight$': {rules!r}}}. The leaves are "
                f"{', '.join(leaves) or 'one array without a path'}."
            )
        left = {name: _why(name, leaf) for name, leaf in leaves.items() if name not in chosen}
        return chosen, tuple(left.items())
    if not isinstance(rules, Mapping):
        raise TypeError(
            "plan: rules must be a pattern or a dict of regular expressions and patterns, got "
            f"{rules!r}; write {{r'kernel$': sj.Unstructured(0.9)}}."
        )
    if not rules:
        raise ValueError("plan: rules is empty; write {r'kernel$': sj.Unstructured(0.9)}.")
    for rule, pattern in rules.items():
        if not (pattern is None or isinstance(pattern, Pattern)):
            raise TypeError(
                f"plan: in rules {rule!r} must map to a pattern or None, got {pattern!r}; write "
                f"{{{rule!r}: {_suggestion(pattern)}}}."
            )
        expression("plan: the rule", rule)
    first = {name: next((rule for rule in rules if re.search(rule, name)), None) for name in leaves}
    _check_rules(leaves, rules, first)
    matched = {name: rules[rule] for name, rule in first.items() if rule is not None}
    left = {
        name: "no rule matches" if rule is None else f"rule {rule!r}: None"
        for name, rule in first.items()
        if matched.get(name) is None
    }
    chosen = {name: pattern for name, pattern in matched.items() if pattern is not None}
    return chosen, tuple(left.items())


def _why(name: str, leaf: Any) -> str:
    """The reason for excluding a leaf if one pattern applies to all kernels."""
    if not re.search(r"(^|/)(kernel|weight)$", name):
        return "not named kernel or weight"
    return "a norm or embedding" if len(leaf.shape) >= 2 else "fewer than two axes"


def _suggestion(value: Any) -> str:
    """The pattern that was probably intended."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return f"sj.Unstructured({value!r})"
    groups = re.fullmatch(r"(\d+):(\d+)", value) if isinstance(value, str) else None
    return f"sj.NM({groups[1]}, {groups[2]})" if groups else "sj.Unstructured(0.9)"


def _check_dense(leaves: Mapping[str, Any]) -> None:
    done = [name.removesuffix("/values") for name in leaves if name.endswith("kernel/values")]
    if done:
        verb = "are" if len(done) > 1 else "is"
        raise ValueError(
            f"plan: {', '.join(done)} {verb} already compressed; plan the dense model, and "
            "compress it once: sj.compress(model, plan, masks)."
        )


def _check_rules(leaves: Mapping[str, Any], rules: Any, first: Mapping[str, Any]) -> None:
    problems = []
    for rule in rules:
        if rule in first.values():
            continue
        later = [name for name in leaves if re.search(rule, name)]
        problems.append(
            f"the rule {rule!r} is shadowed by an earlier rule for {', '.join(later)}"
            if later
            else f"the rule {rule!r} matches nothing; the leaves are {', '.join(leaves)}"
        )
    if problems:
        raise ValueError("plan:\n  " + "\n  ".join(problems))
