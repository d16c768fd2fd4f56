"""Findings: errors in a sparse network (E) and warnings about claims (W)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._tree import is_array, is_kernel, named_leaves, pure
from ..masks import Plan
from ._flops import Flops
from ._history import Taxonomy
from ._leaves import is_spared
from ._study import Study

_MANY_NEAR_ZEROS = 0.01  # of the entries of a leaf


@dataclass(frozen=True)
class Finding:
    """A finding: a code of the table in `sj.reporting.FINDINGS`, a location, and a text."""

    code: str
    path: str
    text: str

    @property
    def level(self) -> Literal["error", "warning"]:
        """ "error" for E1 to E6, "warning" for W1 to W9."""
        return "error" if self.code.startswith("E") else "warning"

    def __str__(self) -> str:
        return f"{self.code} {self.path + ': ' if self.path else ''}{self.text}"


FINDINGS = {
    "E1": "values that are not zero under the mask",
    "E2": "a planned leaf that does not have its planned count",
    "E3": "a pattern that the mask violates",
    "E4": "a layer that is all zero, or units without inputs or outputs (inputs of the network "
    "may be unused)",
    "E5": "a pattern that does not divide the axis",
    "E6": "parameters that are NaN or infinite",
    "W1": "embeddings, norms or biases are pruned",
    "W2": "the headline differs from the total by more than 10 points",
    "W3": "the first or last layer is pruned by 90 % or more",
    "W4": "an unstructured pattern, which no dense kernel makes faster",
    "W5": "a dense optimizer state although training is called sparse-to-sparse",
    "W6": "near-zeros that are not exact zeros",
    "W7": "a shrinking mask that still moves after 90 % of the run",
    "W8": "one seed only",
    "W9": "a saving of FLOPs without the cost of finding the mask",
}


@dataclass(frozen=True)
class Evidence:
    """The data from which findings are derived."""

    studies: Mapping[str, Study]
    plan: Plan | None
    flops: Flops
    traced: bool
    sparsity: float
    total_sparsity: float
    taxonomy: Taxonomy | None
    opt_state: PyTree
    order: Sequence[str]
    training_stated: bool
    seeds: int | None


def find(evidence: Evidence) -> tuple[Finding, ...]:
    """All findings, errors first."""
    found = [finding for check in _CHECKS for finding in check(evidence)]
    return tuple(sorted(found, key=lambda f: f.code))


def _values_under_masks(e: Evidence) -> Iterator[Finding]:
    for s in e.studies.values():
        n = s.values["under_mask"] if s.values and s.mask is not None else 0
        if n:
            yield Finding(
                "E1",
                s.path,
                f"{n:,} values under the mask are not zero; export "
                "sj.masks.apply_masks(params, masks)",
            )


def _planned_counts(e: Evidence) -> Iterator[Finding]:
    if e.plan is None:
        return
    for leaf in e.plan.leaves:
        if leaf.name not in e.studies:
            yield Finding("E2", leaf.name, "is planned but not in the model")
    shared = [s for s in e.studies.values() if e.plan.joint and s.pattern and s.pattern.free]
    for s in e.studies.values():
        if s not in shared and s.planned_kept is not None and s.kept != s.planned_kept:
            text = f"{s.kept:,} entries are kept, {s.planned_kept:,} are planned"
            yield Finding("E2", s.path, text)
    if all(s.planned_kept is not None for s in shared):
        kept, planned = sum(s.kept for s in shared), sum(s.planned_kept or 0 for s in shared)
        if kept != planned:
            text = f"{kept:,} entries are kept in leaves selected jointly, {planned:,} are planned"
            yield Finding("E2", "", text)


def _claims(e: Evidence) -> Iterator[Finding]:
    for s in e.studies.values():
        if s.mask is None or s.pattern is None or not s.divisible:
            continue
        if not s.pattern.fits(jnp.asarray(s.mask), s.layout):
            fits = f"; it is {s.fit.name}" if s.fit and s.fit.significant else ""
            yield Finding("E3", s.path, f"the mask is not {s.pattern.label}{fits}")


def _dead_units(e: Evidence) -> Iterator[Finding]:
    first = next(iter(_in_order(e)), None)
    for s in e.studies.values():
        if s.entry.size and s.kept == 0:
            text = "no entry is kept: the layer is all zero; sj.plan(..., min_kept=1) empties none"
            yield Finding("E4", s.path, text)
        elif empty := _empty_slices(s):
            text = f"no entry is kept in {len(empty)} of {s.layout.slices} slices, as in {empty[0]}"
            yield Finding("E4", s.path, text)
        elif s.mask is not None and s.prunable and not _whole_units(s):
            outputs, inputs = _units(s)
            if s.path == first:  # features of the data may be unused
                inputs = np.ones(1, bool)
            parts = [
                f"{int((~x).sum()):,} of {x.size:,} {what}"
                for x, what in ((outputs, "units have no inputs"), (inputs, "inputs are not used"))
                if not x.all()
            ]
            if parts:
                yield Finding("E4", s.path, "dead paths: " + ", ".join(parts))


def _empty_slices(s: Study) -> list[int]:
    """The stacked slices in which no entry is kept."""
    if s.mask is None or not s.prunable or not s.layout.stacked:
        return []
    rows = np.asarray(s.mask).reshape(s.layout.slices, -1)
    return np.flatnonzero(~rows.any(axis=1)).tolist()


def _whole_units(s: Study) -> bool:
    """Whether units were removed on purpose."""
    by_fit = s.planned is None and s.fit is not None and s.fit.name == "channel"
    return by_fit or (s.pattern is not None and s.pattern.removes_units)


def _units(s: Study) -> tuple[np.ndarray, np.ndarray]:
    """Masks of outputs with an input and of inputs with an output, slice by slice."""
    layout = s.layout
    if not layout.contraction:  # unknown, or a bias
        return np.ones(1, bool), np.ones(1, bool)
    mask = np.asarray(s.mask)
    outputs = mask.any(axis=layout.contraction)
    # The inputs of a convolution are its channels, at any position of the kernel.
    channels = tuple(a for a in layout.contraction if a not in layout.spatial)
    others = tuple(a for a in range(mask.ndim) if a not in channels + layout.stacked)
    return np.asarray(outputs), np.asarray(mask.any(axis=others))


def _divisibility(e: Evidence) -> Iterator[Finding]:
    for s in e.studies.values():
        if s.pattern is not None and not s.divisible:
            text = f"{s.pattern.label} does not divide a leaf of shape {s.entry.shape}"
            yield Finding("E5", s.path, text)


def _not_finite(e: Evidence) -> Iterator[Finding]:
    for s in e.studies.values():
        n = s.values["not_finite"] if s.values else 0
        if n:
            text = f"{n:,} of {s.entry.size:,} values are NaN or infinite; training has diverged"
            yield Finding("E6", s.path, text)


def _pruned_others(e: Evidence) -> Iterator[Finding]:
    for s in e.studies.values():
        if s.kept < s.entry.size and (is_spared(s.path) or len(s.entry.shape) < 2):
            yield Finding("W1", s.path, "embeddings, norms and biases are better left dense")


def _headline(e: Evidence) -> Iterator[Finding]:
    if abs(e.sparsity - e.total_sparsity) > 0.10:
        dense = [s for s in e.studies.values() if not s.prunable and s.kept == s.entry.size]
        largest = max(dense, key=lambda s: s.entry.size, default=None)
        total = sum(s.entry.size for s in e.studies.values())
        rest = "" if largest is None else (
            f"; {largest.path}, {largest.entry.size / total:.0%} of the parameters, is not "
            "planned, which no allocation changes"
        )  # fmt: skip
        text = (
            f"{e.sparsity:.1%} of the prunable weights are zero, but {e.total_sparsity:.1%} of "
            f"all parameters: state both{rest}"
        )
        yield Finding("W2", "", text)


def _ends(e: Evidence) -> Iterator[Finding]:
    order = _in_order(e)
    for name, which in dict(zip((order[:1] + order[-1:]), ("first", "last"))).items():
        zeros, size = e.studies[name].entry.size - e.studies[name].kept, e.studies[name].entry.size
        if size and zeros >= round(0.9 * size):
            yield Finding("W3", name, f"the {which} layer has sparsity {zeros / size:.3g}")


def _in_order(e: Evidence) -> list[str]:
    """The kernels in execution order; without an example in the order of definition."""
    kernels = {n for n, s in e.studies.items() if s.prunable or is_kernel(n, s.entry)}
    order = e.flops.leaves if e.traced else e.order
    return [name for name in order if name in kernels]


def _speed_path(e: Evidence) -> Iterator[Finding]:
    names = [s.path for s in e.studies.values() if s.kept < s.entry.size and _is_unstructured(s)]
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        text = (
            f"unstructured zeros do not make dense hardware faster ({shown}); for speed plan "
            "sj.NM(2, 4), sj.Block or sj.Channel"
        )
        yield Finding("W4", "", text)


def _is_unstructured(s: Study) -> bool:
    if s.entry.compressed:
        return False
    if s.pattern is not None:
        return not s.pattern.structured
    if s.fit is None or s.fit.name == "unstructured":
        return s.fit is not None
    return s.fit.pattern is not None and not s.fit.significant


def _optimizer_state(e: Evidence) -> Iterator[Finding]:
    if e.opt_state is None or e.taxonomy is None or e.taxonomy.weights != "sparse-to-sparse":
        return
    pruned = [s for s in e.studies.values() if s.kept < s.entry.size and not s.entry.compressed]
    dense = [s.path for s in pruned if list(_moments(e.opt_state, s))]
    if dense:
        text = (
            f"the optimizer state of {', '.join(dense[:3])} is stored dense: sparse-to-sparse "
            "training saves no memory there"
        )
        yield Finding("W5", "", text)


def _moments(opt_state: PyTree, s: Study) -> Iterator[Any]:
    for name, x in named_leaves(pure(opt_state)).items():
        floats = is_array(x) and jnp.issubdtype(x.dtype, jnp.floating)
        if floats and tuple(x.shape) == s.entry.shape and f"/{name}".endswith(f"/{s.path}"):
            yield x


def _near_zeros(e: Evidence) -> Iterator[Finding]:
    for s in e.studies.values():
        n = s.values["near_zeros"] if s.values and s.prunable else 0
        if n > _MANY_NEAR_ZEROS * s.entry.size:
            text = f"{n:,} kept values are below 1e-6 of the largest, but not exactly zero"
            yield Finding("W6", s.path, text)


def _late_change(e: Evidence) -> Iterator[Finding]:
    t = e.taxonomy
    if t is not None and t.over_time == "shrinking" and t.last_change > 0.9:
        text = f"the last entries were pruned at {t.last_change:.0%} of the run: no time to recover"
        yield Finding("W7", "", text)


def _seeds(e: Evidence) -> Iterator[Finding]:
    if e.seeds == 1:
        yield Finding("W8", "", "one seed only: report at least 3, with their standard deviation")


def _training_cost(e: Evidence) -> Iterator[Finding]:
    if e.taxonomy is None or e.training_stated or e.flops.sparse == e.flops.dense:
        return
    if e.taxonomy.over_time != "static":
        text = (
            "the FLOPs are those of inference; state those of training with "
            "training=partial(training_flops, 'rigl', every=100)"
        )
        yield Finding("W9", "", text)


def optimizer_bytes(opt_state: PyTree) -> int:
    """Bytes of all arrays of an optimizer state."""
    leaves = filter(is_array, jax.tree.leaves(pure(opt_state)))
    return sum(x.size * x.dtype.itemsize for x in leaves)


_CHECKS = (
    _values_under_masks,
    _planned_counts,
    _claims,
    _dead_units,
    _divisibility,
    _not_finite,
    _pruned_others,
    _headline,
    _ends,
    _speed_path,
    _optimizer_state,
    _near_zeros,
    _late_change,
    _seeds,
    _training_cost,
)
