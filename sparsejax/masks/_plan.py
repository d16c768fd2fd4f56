"""Plans: the pattern of each leaf and its exact number of zeroed units."""

import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import PyTree
from rich.console import Console
from rich.table import Table

from .._arguments import check_not_nan, check_ranking
from .._counts import kept_at
from .._sharding import with_auto_axes
from .._topk import topk_mask, topk_masks
from .._tree import at_path, map_named, named_leaves
from ._allocate import Allocation
from ._distribute import zeros_of
from ._planned_leaf import PlannedLeaf

_SHOWN = 8  # excluded leaves shown in a printed plan
_ROWS = 40  # leaves in a printed plan


@dataclass(frozen=True, repr=False)
class Plan:
    """The pattern of each leaf and its exact number of zeroed units.

    Frozen, hashable, printable, and usable with any tree that has some of its leaves. Made by
    `sj.plan`.

    Args:
      leaves: The planned leaves, in the order of the tree.
      joint: True if the leaves compete in one selection (`allocate=sj.masks.joint`).
      size: Number of entries of the whole tree, planned or not.
      left_out: Paths of the leaves that are not planned, with reasons.
      min_kept: Least number of units kept of each slice of a leaf.
      rounding: How numbers of zeros are rounded.
      allocate: The allocation that distributed the zeros.
      order: The kernels of the whole tree in the order of definition, planned or not.
    """

    leaves: tuple[PlannedLeaf, ...]
    joint: bool = False
    size: int = 0
    left_out: tuple[tuple[str, str], ...] = ()
    min_kept: int = 0
    rounding: str = "nearest"
    allocate: Allocation | None = field(default=None, compare=False)
    order: tuple[str, ...] = field(default=(), compare=False)

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
        """The masks of the largest scores, as a tree like `scores`.

        Args:
          scores: A tree of scores with some or all of the planned leaves. Scores, not parameters:
            the largest are kept, so for weights `plan.masks(sj.masks.magnitude(params))`.
          fraction: Fraction of the planned zeros to reach, in [0, 1]; may be traced.

        Returns:
          Boolean arrays; None for leaves that are not planned.

        Raises:
          ValueError: If a planned leaf has another shape than the plan was made for, the tree
            has leaves but no planned one, or (outside of jit) NaN scores would be kept.
        """
        check_not_nan("masks", fraction=fraction)
        planned, found = self._by_name(), named_leaves(scores)
        self.check_shapes(found)
        self._check_some(found)
        scored = {name: s for name, s in found.items() if name in planned}
        chosen = with_auto_axes(self._select, scored, fraction, like=scored)
        masks = map_named(lambda name, s: chosen.get(name), scores)
        check_ranking("masks", found, named_leaves(masks), joint=self.joint)
        return masks

    def at_sparsities(self, sparsities: Sequence[float]) -> "list[Plan]":
        """This plan at other sparsities: the same leaves and allocation.

        No leaf keeps more at a higher sparsity, so that the masks of one ranking are nested.

        Args:
          sparsities: Fractions of zeros in [0, 1], in place of that of every free pattern.

        Returns:
          A plan for each.

        Raises:
          ValueError: If a sparsity is not in [0, 1], or does not keep `min_kept` units everywhere.

        Example:
          >>> import jax.numpy as jnp, sparsejax as sj
          >>> params = {"a": {"kernel": jnp.ones((8, 8))}, "b": {"kernel": jnp.ones((8, 2))}}
          >>> plan = sj.plan(params, sj.Unstructured(0.5), allocate=sj.masks.erk)
          >>> [[leaf.kept for leaf in other.leaves] for other in plan.at_sparsities([0.25, 0.75])]
          [[44, 16], [12, 8]]
        """
        found: dict[float, Plan] = {}
        most: dict[str, int] = {}
        for sparsity in sorted(set(sparsities)):
            leaves = [_resized(leaf, sparsity) for leaf in self.leaves]
            zeros = zeros_of(leaves, self.allocate, self.rounding, self.min_kept, most)
            now = tuple(replace(leaf, zeros=zeros[leaf.name]) for leaf in leaves)
            most = {leaf.name: leaf.units - leaf.zeros for leaf in now}
            found[sparsity] = replace(self, leaves=now)
        return [found[sparsity] for sparsity in sparsities]

    def full_masks(self, params: PyTree) -> PyTree:
        """Masks that keep everything: the start of training."""
        planned = self._by_name()
        self.check_shapes(named_leaves(params))
        return map_named(
            lambda name, p: jnp.full_like(p, True, bool) if name in planned else None, params
        )

    @classmethod
    def require(
        cls,
        function: str,
        plan: Any,
        call: str = "for given masks use sj.optim.keep_masked(masks)",
    ) -> None:
        """Raises TypeError unless `plan` is a Plan; `call` is advice for the message."""
        if not isinstance(plan, cls):
            raise TypeError(
                f"{function}: plan must be a plan, made by sj.plan(params, rules), got a "
                f"{type(plan).__name__}; {call}."
            )

    def map_inputs(
        self, function: str, f: Callable[..., Any], params: PyTree, inputs: PyTree
    ) -> PyTree:
        """`f(leaf, weights, inputs)` of each planned leaf, None for the others.

        Args:
          function: Name for error messages.
          f: Receives a `PlannedLeaf`, its weights, and its norms `(K,)` or Gram matrix `(K, K)`.
          params: A tree of arrays.
          inputs: Norms or Gram matrices by path.

        Raises:
          ValueError: If a planned leaf is stacked, or its inputs are missing or have another size.
        """
        given, planned = named_leaves(inputs), {leaf.name: leaf for leaf in self.leaves}

        def one(name: str, w: Any) -> Any:
            if name not in planned:
                return None
            layout = planned[name].layout
            if layout.stacked:
                raise ValueError(
                    f"{function}: {name} {w.shape} is stacked; use jax.vmap over its slices."
                )
            found, size = given.get(name), layout.matrix_shape[-2]
            if found is None or found.shape not in ((size,), (size, size)):
                got = "nothing" if found is None else f"shape {found.shape}"
                raise ValueError(
                    f"{function}: {name} {w.shape} contracts {size} inputs, got {got}; "
                    "pass the Gram matrices of sj.nn.input_grams(model, batches), or a dict of "
                    "them by path."
                )
            return f(planned[name], w, found)

        return map_named(one, params)

    def _select(self, scores: dict[str, Any], fraction: ArrayLike) -> dict[str, Any]:
        """The masks by path."""
        jointly = self._select_jointly(scores, fraction) if self.joint else {}
        alone = [leaf for leaf in self.leaves if leaf.name in scores and leaf.name not in jointly]
        return jointly | {leaf.name: leaf.select(scores[leaf.name], fraction) for leaf in alone}

    def _select_jointly(self, scores: Mapping[str, Any], fraction: ArrayLike) -> dict[str, Any]:
        leaves = [leaf for leaf in self.leaves if leaf.pattern.free and leaf.name in scores]
        if not leaves:
            return {}
        pooled = [self._kept_first(leaf, scores[leaf.name]) for leaf in leaves]
        kept = kept_at(fraction, sum(p.size for p in pooled), sum(x.zeros for x in leaves))
        masks = topk_masks(pooled, kept)
        return {
            leaf.name: leaf.pattern.expand(mask, leaf.layout) for leaf, mask in zip(leaves, masks)
        }

    def _kept_first(self, leaf: PlannedLeaf, scores: Any) -> Any:
        """The scores of the units, infinite for the `min_kept` largest of each slice."""
        pooled = leaf.pattern.pool(scores, leaf.layout)
        if not self.min_kept:
            return pooled
        axes = leaf.pattern.unit_axes(leaf.layout, pooled.ndim)
        return jnp.where(topk_mask(pooled, self.min_kept, axes), jnp.inf, pooled)

    def check_shapes(self, leaves: Mapping[str, jax.Array]) -> None:
        """Raises if a planned leaf, given by path, has another shape than it was planned with."""
        for leaf in self.leaves:
            found = leaves.get(leaf.name)
            if found is not None and tuple(found.shape) != leaf.shape:
                raise ValueError(
                    f"{leaf.name} was planned with shape {leaf.shape} and now has shape "
                    f"{tuple(found.shape)}; make the plan from these parameters."
                )

    def _check_some(self, leaves: Mapping[str, jax.Array]) -> None:
        """Raises unless at least one planned leaf is present."""
        if self.leaves and leaves and not any(leaf.name in leaves for leaf in self.leaves):
            paths = ", ".join(leaves) if any(leaves) else "one array without a path"
            raise ValueError(
                f"the plan is for {', '.join(x.name for x in self.leaves)} but the leaves are "
                f"{paths}; make it from these parameters."
            )

    def __rich__(self) -> Table:
        table = Table(title="sparsity plan")
        for column in ("leaf", "shape", "pattern", "sparsity", "kept"):
            table.add_column(column, justify="right" if column in ("sparsity", "kept") else "left")
        for x in self.leaves[:_ROWS]:
            shape = "x".join(map(str, x.shape))
            kept = "?" if x.kept is None else f"{x.kept:,}"
            # A jointly selected leaf has no individual sparsity.
            own = "joint" if self.joint and x.pattern.free else f"{x.sparsity:.4f}"
            table.add_row(x.name, shape, x.pattern.label, own, "" if own == "joint" else kept)
        if (more := len(self.leaves) - _ROWS) > 0:
            table.add_row(f"... {more} more, in plan.leaves")
        size = sum(x.size for x in self.leaves)
        lines = [
            f"{len(self.leaves)} leaves, sparsity {self.sparsity:.4f} over {size:,} entries"
            + (f" of {self.size:,}" if self.size else "")
        ]
        lines += [f"not planned: {name} ({why})" for name, why in self.left_out[:_SHOWN]]
        if (more := len(self.left_out) - _SHOWN) > 0:
            lines.append(f"and {more} more, in plan.left_out")
        table.caption = "\n".join(lines)
        return table

    def __str__(self) -> str:
        out = io.StringIO()
        Console(file=out, width=100, force_jupyter=False, color_system=None).print(self)
        return out.getvalue().rstrip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def _resized(leaf: PlannedLeaf, sparsity: float) -> PlannedLeaf:
    if not leaf.pattern.free:
        return leaf
    pattern = cast(Any, leaf.pattern)  # a dataclass with a field `sparsity`
    return replace(leaf, pattern=replace(pattern, sparsity=sparsity))
