"""Plans: which leaf gets which pattern, checked once, before training."""

import html
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import PyTree
from rich.console import Console
from rich.table import Table

from .._counts import kept_at
from .._topk import topk_masks
from .._tree import at_path, is_kernel, map_named, named_leaves, pure
from ..patterns import NM, Pattern, Stages
from ..patterns._pattern import Pooled
from ._allocate import Allocation, global_
from ._distribute import redistributed, rounded_together


@dataclass(frozen=True)
class PlannedLeaf:
    """What a plan holds of one leaf: its path, shape, pattern, and how many units are zeroed."""

    name: str
    shape: tuple[int, ...]
    pattern: Pattern
    zeros: int

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def kept(self) -> int | None:
        """Number of entries that stay; None where groups of unequal size make it depend."""
        units = self.pattern.units(self.shape)
        if units == 0:
            return 0
        size, rest = divmod(self.size, units)
        return None if rest else size * (units - self.zeros)

    @property
    def sparsity(self) -> float:
        """Fraction of units that are zeroed."""
        return self.zeros / max(self.pattern.units(self.shape), 1)


@dataclass(frozen=True, repr=False)
class Plan:
    """Which leaf gets which pattern, and exactly how many of its units are zeroed.

    A value: frozen, hashable, printable, usable with any tree that has some of its leaves.

    Args:
      leaves: The planned leaves, in the order of the tree.
      together: True if the leaves compete in one selection (`allocate=sj.masks.global_`).
      size: Number of entries of the whole tree, planned or not.
    """

    leaves: tuple[PlannedLeaf, ...]
    together: bool = False
    size: int = 0

    def __getitem__(self, name: str) -> PlannedLeaf:
        return at_path("plan", self._by_name(), name)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name()

    def __len__(self) -> int:
        return len(self.leaves)

    def _by_name(self) -> dict[str, PlannedLeaf]:
        return {leaf.name: leaf for leaf in self.leaves}

    @property
    def sparsity(self) -> float:
        """Zeros over entries, of the planned leaves together."""
        zeros = sum(leaf.sparsity * leaf.size for leaf in self.leaves)
        return zeros / max(sum(leaf.size for leaf in self.leaves), 1)

    def masks(self, scores: PyTree, fraction: ArrayLike = 1.0) -> PyTree:
        """The masks that keep the largest scores, as a tree like `scores`.

        Args:
          scores: A tree of scores with some or all of the planned leaves. Scores, not parameters:
            the largest stay, so for weights `plan.masks(sj.masks.magnitude(params))`.
          fraction: Fraction of the planned zeros to reach, in [0, 1]; may be traced.

        Returns:
          Boolean arrays; None for leaves that are not planned.

        Raises:
          ValueError: If a planned leaf has another shape than the plan was made for, or there are
            leaves but none that is planned.
        """
        planned = self._by_name()
        self._check_shapes(named_leaves(scores))
        self._check_some(named_leaves(scores))
        jointly = self._select_together(named_leaves(scores), fraction) if self.together else {}

        def mask(name, s):
            if name not in planned:
                return None
            if name in jointly:
                return jointly[name]
            leaf = planned[name]
            return leaf.pattern.select(s, leaf.zeros, fraction)

        return map_named(mask, scores)

    def full_masks(self, params: PyTree) -> PyTree:
        """Masks that keep everything: where training starts."""
        return self._full(params, True)

    def _full(self, params: PyTree, value: bool) -> PyTree:
        planned = self._by_name()
        self._check_shapes(named_leaves(params))
        return map_named(
            lambda name, p: jnp.full_like(p, value, bool) if name in planned else None, params
        )

    def _select_together(self, scores, fraction):
        leaves = [leaf for leaf in self.leaves if leaf.pattern.free and leaf.name in scores]
        if not leaves:
            return {}
        pooled = [leaf.pattern.pool(scores[leaf.name]) for leaf in leaves]  # pyright: ignore
        kept = kept_at(fraction, sum(p.size for p in pooled), sum(x.zeros for x in leaves))
        masks = topk_masks(pooled, kept)
        return {
            leaf.name: leaf.pattern.expand(mask, leaf.shape)  # pyright: ignore
            for leaf, mask in zip(leaves, masks)
        }

    def _check_shapes(self, leaves: Mapping[str, jax.Array]) -> None:
        for leaf in self.leaves:
            found = leaves.get(leaf.name)
            if found is not None and tuple(found.shape) != leaf.shape:
                raise ValueError(
                    f"{leaf.name} was planned with shape {leaf.shape} and now has shape "
                    f"{tuple(found.shape)}; make the plan from these parameters."
                )

    def _check_some(self, leaves: Mapping[str, jax.Array]) -> None:
        """Part of a tree may be missing, but not everything."""
        if self.leaves and leaves and not any(leaf.name in leaves for leaf in self.leaves):
            paths = ", ".join(leaves) if any(leaves) else "one array without a path"
            raise ValueError(
                f"the plan is of {', '.join(x.name for x in self.leaves)} but the leaves are "
                f"{paths}; make it from these parameters."
            )

    def __rich__(self) -> Table:
        table = Table(title="sparsity plan")
        for column in ("leaf", "shape", "pattern", "sparsity", "kept"):
            table.add_column(column, justify="right" if column in ("sparsity", "kept") else "left")
        for x in self.leaves:
            shape = "x".join(map(str, x.shape))
            kept = "?" if x.kept is None else f"{x.kept:,}"
            # A jointly selected leaf has no sparsity of its own.
            own = "shared" if self.together and x.pattern.free else f"{x.sparsity:.4f}"
            pattern = type(x.pattern).__name__ if x.pattern.free else repr(x.pattern)
            table.add_row(x.name, shape, pattern, own, "" if own == "shared" else kept)
        size = sum(x.size for x in self.leaves)
        table.caption = (
            f"{len(self.leaves)} leaves, sparsity {self.sparsity:.4f} over {size:,} entries"
            + (f" of {self.size:,}" if self.size else "")
        )
        return table

    def __str__(self) -> str:
        out = io.StringIO()
        Console(file=out, width=100, force_jupyter=False, color_system=None).print(self)
        return out.getvalue().rstrip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def plan(
    model: PyTree,
    rules: Pattern | Mapping[str, Any],
    *,
    allocate: Allocation | None = None,
) -> Plan:
    r"""Says which leaf gets which pattern, and reports every mistake at once, by path.

    Each leaf takes the pattern of the first rule whose regular expression is found in its path
    (`re.search`); None leaves it dense. An allocation redistributes zeros among the leaves whose
    sparsity is free and keeps their total exactly: the largest remainder decides who keeps one
    more.

    Args:
      model: An `nnx.Module`, `nnx.State`, Linen or plain dict, Equinox module; arrays or shapes.
      rules: Regular expressions and patterns; or one pattern, for the leaves named `kernel` or
        `weight` (never norms or embeddings).
      allocate: `sj.masks.erk`, `uniform`, `uniform_plus`, `erdos_renyi`, `from_scores(...)`,
        `global_`, or a function (tree of layers, sparsity) -> tree of sparsities. Without it each
        leaf has the sparsity of its own pattern.

    Returns:
      A `Plan`.

    Raises:
      ValueError: If a rule matches nothing or comes too late, a pattern does not fit its leaf, a
        planned leaf does not hold floats, the tree is empty, or there is nothing to allocate.
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
            f"plan: allocate={allocate!r} must be a function such as sj.masks.erk or "
            "sj.masks.global_."
        )
    rows_are_outputs = _is_equinox(model)
    leaves = {
        name: leaf
        for name, leaf in named_leaves(pure(model)).items()
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    }
    if not leaves:
        raise ValueError("plan: the tree has no leaves; pass the parameters or an nnx.Module.")
    chosen = _match(leaves, rules)
    problems = [
        problem
        for name, pattern in chosen.items()
        if (problem := _problem(name, leaves[name], pattern, rows_are_outputs))
    ]
    if problems:
        raise ValueError("plan:\n  " + "\n  ".join(problems))
    if allocate is not None and chosen and not any(p.free for p in chosen.values()):
        fixed = ", ".join(sorted({repr(pattern) for pattern in chosen.values()}))
        raise ValueError(
            f"plan: nothing to allocate, {fixed} says itself how much each leaf keeps; leave "
            "allocate out, or plan with sj.Unstructured or sj.Block."
        )
    zeros = {name: pattern.zeros(leaves[name].shape) for name, pattern in chosen.items()}
    if allocate is not None and allocate is not global_:
        zeros |= redistributed(allocate, chosen, leaves)
    if allocate is global_:
        _check_comparable(chosen, leaves)
        zeros |= rounded_together(chosen, leaves)
    planned = tuple(
        PlannedLeaf(name, tuple(leaves[name].shape), pattern, zeros[name])
        for name, pattern in chosen.items()
    )
    size = sum(math.prod(leaf.shape) for leaf in leaves.values())
    return Plan(planned, allocate is global_, size)


def _check_dense(leaves) -> None:
    done = [name.removesuffix("/values") for name in leaves if name.endswith("kernel/values")]
    if done:
        verb = "are" if len(done) > 1 else "is"
        raise ValueError(
            f"plan: {', '.join(done)} {verb} already compressed; plan the dense model, and "
            "compress it once: sj.nn.compress(model, plan, masks)."
        )


def _match(leaves, rules) -> dict[str, Pattern]:
    if isinstance(rules, Pattern):
        chosen = {name: rules for name, leaf in leaves.items() if is_kernel(name, leaf)}
        if not chosen:
            _check_dense(leaves)
            raise ValueError(
                f"plan: no leaf is named kernel or weight; say which are meant with a rule, as in "
                f"{{r'...$': {rules!r}}}. The leaves are {', '.join(leaves)}."
            )
        return chosen
    if not isinstance(rules, Mapping):
        raise TypeError(
            f"plan: rules={rules!r} must be a pattern or a dict of regular expressions and "
            "patterns: {r'kernel$': sj.Unstructured(0.9)}."
        )
    for rule, pattern in rules.items():
        if not (pattern is None or isinstance(pattern, Pattern)):
            raise TypeError(
                f"plan: the rule {rule!r} must map to a pattern or None, got {pattern!r}; write "
                f"{{{rule!r}: {_suggestion(pattern)}}}."
            )
        _check_expression(rule)
    first = {name: next((rule for rule in rules if re.search(rule, name)), None) for name in leaves}
    _check_rules(leaves, rules, first)
    matched = {name: rules[rule] for name, rule in first.items() if rule is not None}
    return {name: pattern for name, pattern in matched.items() if pattern is not None}


def _suggestion(value: Any) -> str:
    """The pattern that was probably meant."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return f"sj.Unstructured({value!r})"
    groups = re.fullmatch(r"(\d+):(\d+)", value) if isinstance(value, str) else None
    return f"sj.NM({groups[1]}, {groups[2]})" if groups else "sj.Unstructured(0.9)"


def check_plan(
    what: str,
    plan: Any,
    advice: str = "for masks that are given use sj.optim.keep_masked(masks)",
) -> None:
    """Raises if something else than a plan was given."""
    if not isinstance(plan, Plan):
        raise TypeError(
            f"{what} takes a plan, made by sj.plan(params, rules), got a {type(plan).__name__}; "
            f"{advice}."
        )


def _check_expression(rule: Any) -> None:
    try:
        re.compile(rule)
    except (re.error, TypeError) as error:
        raise ValueError(f"plan: the rule {rule!r} is not a regular expression: {error}.") from None


def _check_rules(leaves, rules, first) -> None:
    problems = []
    for rule in rules:
        if rule in first.values():
            continue
        later = [name for name in leaves if re.search(rule, name)]
        problems.append(
            f"the rule {rule!r} comes too late: {', '.join(later)} matched an earlier one"
            if later
            else f"the rule {rule!r} matches nothing; the leaves are {', '.join(leaves)}"
        )
    if problems:
        raise ValueError("plan:\n  " + "\n  ".join(problems))


def _problem(name: str, leaf, pattern: Pattern, rows_are_outputs: bool) -> str | None:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return f"{name} {tuple(leaf.shape)} holds {leaf.dtype}, not floats; leave it out: None"
    if rows_are_outputs and isinstance(pattern, NM | Stages) and name.endswith("weight"):
        axis = pattern.axis if isinstance(pattern, NM) else pattern.patterns[-1].axis
        if axis is None:
            return (
                f"{name} {tuple(leaf.shape)}: Equinox weights are (out, in); say axis=1, as in "
                "sj.NM(2, 4, axis=1)"
            )
    try:
        pattern.units(tuple(leaf.shape))
    except ValueError as error:
        return f"{name} {tuple(leaf.shape)}: {error}"
    return None


def _check_comparable(chosen, leaves) -> None:
    for name, pattern in chosen.items():
        if pattern.free and not isinstance(pattern, Pooled):
            raise ValueError(f"{name}: {pattern!r} has no scores to compare between leaves.")
        if getattr(pattern, "balanced", False):
            raise ValueError(
                f"{name}: {pattern!r} is balanced, which one selection over all leaves cannot "
                "promise; leave out balanced=True or plan with sj.masks.erk."
            )


def _is_equinox(model: PyTree) -> bool:
    return any(base.__module__.split(".")[0] == "equinox" for base in type(model).__mro__)
